"""What continual learning costs: steps of replay, its buffer, and what removing data saves.

    python scripts/bench/continual.py

* An ER step with a sparse method, its updates included, over a dense ER step: ResNet-20 on 32
  images and 32 replayed ones (random, of CIFAR's shape). SparCL is without its removal of data, and
  its own choices of masks and gradients are counted.
* The buffer (draw, augment, normalise, and take in the batch) over that dense step. The peer is
  the usual way to write it: a Python loop over examples, and a transform for each.
* Epochs of whole runs after 30 % of the data are removed, over those before. Their samples are
  0.7 of those before, so a ratio of 0.735 is within 5 % of what is counted.

ROUNDS says how often each is measured.
"""

from __future__ import annotations

import csv
import os
import random
import statistics
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
from common import Ratio, alternate, of, report, seconds
from step import resnet20
from torch import Tensor
from whole_run import CIFAR_IMAGES, fake_cifar

from sparsebench import Session, library
from sparsebench.config.compose import compose
from sparsebench.continual.replay import Replay
from sparsebench.continual.streams import Batch
from sparsebench.data import Recipe
from sparsebench.run import run
from sparsebench.sparsity.examples import Examples

ROUNDS = int(os.environ.get("ROUNDS", "10"))
BATCH, SIZE = 32, 500
EVERY, WARM, TIMED = 30, 5, 60  # steps; SparCL chooses gradients every 30 too
RECIPE = Recipe(
    mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2615), pad=4, flip=True
)  # as CIFAR-10 is
METHODS = ("static", "set", "rigl", "sparcl")
SHARE, TOLERANCE = 0.3, 1.05  # of the data that is removed; on what is counted


class Er:
    """ER steps of ResNet-20 on one batch, dense or with what keeps it sparse."""

    def __init__(self, name: str | None = None) -> None:
        torch.manual_seed(0)
        self.model, _ = resnet20()
        images = torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8)
        y, fresh = torch.randint(10, (BATCH,)), torch.ones(BATCH, dtype=torch.bool)
        x = torch.randn(BATCH, 3, 32, 32)
        self.batch = Batch(x, y, torch.zeros_like(y), images, fresh)
        config = SimpleNamespace(
            name="er", size=SIZE, batch=None, alpha=0.0, beta=0.0, when="every_batch", er="together"
        )
        self.replay = Replay(config, BATCH, RECIPE, seed=0)
        self.all = torch.ones(10, dtype=torch.bool)
        self.logits = torch.zeros(BATCH, 10)
        for _ in range(-(-SIZE // BATCH)):
            self.take_in()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        self.session = None if name is None else self._sparse(name)

    def _sparse(self, name: str) -> Session:
        dials = {"begin": f"{WARM}it"} if name in ("set", "rigl") else {}
        every = {} if name == "static" else {"every": f"{EVERY}it", "end": "100%"}
        session = Session(
            library.method(name, sparsity=0.9, **dials, **every), self.model, self.optimizer,
            total_steps=WARM + 4 * TIMED, seed=0,
            examples=Examples(lambda seed: iter([(self.batch.x, self.batch.y)])),
        )  # fmt: skip
        session.state.memory = Examples(self.replay.batches)
        session.begin_task(0)
        return session

    def __call__(self) -> None:
        """One step."""
        loss, _ = self.replay.loss(self.model, self.batch, self.all, self.all)
        loss.backward()
        if self.session:
            self.session.after_backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.session:
            self.session.after_step()

    def take_in(self) -> None:
        """Show the buffer the batch."""
        self.replay._show(self.batch, self.logits)

    def buffer(self) -> None:
        """All that a step does with the buffer."""
        self.replay._draw(torch.device("cpu"))
        self.take_in()


class Loop:
    """A reservoir as a Python loop over examples, and a transform for each of them."""

    def __init__(self, images: Tensor, y: Tensor) -> None:
        from torchvision import transforms

        self.images, self.y, self.seen = images, y, 0
        self.kept: list[tuple[Tensor, Tensor]] = []
        self.transform = transforms.Compose(
            [
                transforms.ToPILImage(),
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(RECIPE.mean, RECIPE.std),
            ]
        )
        while self.seen < SIZE:
            self.take_in()

    def take_in(self) -> None:
        """Show it the batch."""
        for image, label in zip(self.images, self.y, strict=True):
            if len(self.kept) < SIZE:
                self.kept.append((image, label))
            elif (slot := random.randint(0, self.seen)) < SIZE:
                self.kept[slot] = (image, label)
            self.seen += 1

    def __call__(self) -> None:
        """All that a step does with the buffer."""
        drawn = random.sample(self.kept, BATCH)
        torch.stack([self.transform(image) for image, _ in drawn])
        torch.stack([label for _, label in drawn])
        self.take_in()


def step(name: str) -> Ratio:
    """ER steps and updates of a method over dense ER steps."""
    ratios = []
    for _ in range(ROUNDS):
        sparse, dense = Er(name), Er()
        for _ in range(WARM):
            sparse()
            dense()
        above = below = 0.0
        for _ in range(TIMED):  # in turn, so that both see the same machine
            above += seconds(sparse)
            below += seconds(dense)
        ratios.append(above / below)
    return of(f"ER step with {name} / dense ER step, ResNet-20", ratios, 1.05)


def buffers() -> list[Ratio]:
    """The buffer's part of a step, ours and a loop's."""
    dense = Er()
    loop = Loop(dense.batch.stored, dense.batch.y)
    pairs, said = 4 * ROUNDS, "/ dense ER step, buffer of 500"
    return [
        alternate(f"sampling and augmentation {said}", dense.buffer, dense, target=0.03,
                  pairs=pairs),
        alternate(f"a loop over examples {said}", loop, dense, pairs=pairs),
    ]  # fmt: skip


def removal() -> Ratio:
    """Seconds of an epoch after removal over those before, in whole runs."""
    ratios, counted = [], 1 - SHARE
    with tempfile.TemporaryDirectory() as folder:
        fake_cifar(Path(folder))
        for number in range(ROUNDS):
            cfg = compose([
                "task=continual", "stream=split_cifar10", "stream.tasks=1", "method=sparcl",
                "model=resnet20", f"data.root={folder}", f"data.train_size={CIFAR_IMAGES}",
                "data.validation=0", "batch_size=32", "epochs=5", f"task.options.remove={SHARE}",
                "task.options.remove_every=3ep", "task.options.remove_until=3ep",
                "trainer.threads=1", "plots=false", "quiet=true", f"runs={folder}/runs",
                f"seed={number}",
            ])  # fmt: skip
            result = run(cfg)
            assert result["status"] == "finished", result.get("error")
            path = next(Path(folder, "runs").glob(f"*-{number}-*/seconds.csv"))
            with path.open() as file:
                times = [float(row["training"]) for row in csv.DictReader(file)]
            ratios.append(statistics.mean(times[3:]) / statistics.mean(times[1:3]))
    name = f"epoch after removal / before, samples {counted:.2f}, SparCL"
    return of(name, ratios, counted * TOLERANCE)


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    random.seed(0)
    report("continual", [*map(step, METHODS), *buffers(), removal()])


if __name__ == "__main__":
    main()
