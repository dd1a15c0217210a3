"""Making a training batch, over a ResNet-20 step.

python scripts/bench/data.py
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from common import alternate, report
from step import Step, resnet20
from torch import Tensor

from sparsebench.data import Recipe, TensorImages, TrainLoader


def main() -> None:
    """Measure and print."""
    images = torch.randint(0, 256, (50_000, 3, 32, 32), dtype=torch.uint8)
    recipe = Recipe(pad=4, flip=True)
    loader = TrainLoader(TensorImages.of(images, torch.zeros(50_000), recipe), 128, seed=0)

    def forever() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from loader

    batches = forever()
    step = Step(*resnet20(), None)
    name = "a CIFAR batch of 128 / a ResNet-20 step"
    report("data", [alternate(name, lambda: next(batches), step, target=0.05, pairs=60)])


if __name__ == "__main__":
    main()
