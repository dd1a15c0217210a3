"""Images too many to hold decoded: read, cropped and resized by worker processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sparsebench.data.augment import Recipe, normalise
from sparsebench.data.images import Batch
from sparsebench.data.options import Options
from sparsebench.data.rows import Rows
from sparsebench.data.seeding import generator, number
from sparsebench.errors import UserError

RESIZE = 256 / 224  # shorter side before the centre crop, over the side of the crop


@dataclass(frozen=True, eq=False)
class LazyImages:
    """Samples on disk, with the ImageNet recipe.

    Training: random crop of 8 to 100 % of the area, resized, and a flip
    (``RandomResizedCrop``). Else: shorter side resized to 256 for a crop of 224, in the
    same ratio for other sizes, and the centre cut out.
    """

    source: Rows
    labels: Tensor  # int64 [N], of the rows below
    rows: Tensor  # int64 [N], which images of the source belong to this set
    shape: tuple[int, ...]  # (C, H, W) of a sample in a batch
    recipe: Recipe  # ``pad`` is not used here
    augmented: bool = True
    workers: int = 0

    @classmethod
    def of(
        cls, source: Rows, labels: Tensor, shape: tuple[int, ...], recipe: Recipe, options: Options
    ) -> LazyImages:
        """All images of ``source`` with their ``labels`` (int64 [N])."""
        rows = torch.arange(len(source))
        return cls(source, labels, rows, shape, recipe, options.augmented, options.workers)

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, positions: Tensor) -> LazyImages:
        """The samples at ``positions`` (int64), in that order."""
        return replace(self, labels=self.labels[positions], rows=self.rows[positions])

    def draw(self, seed: int, epoch: int) -> tuple[int, int] | None:
        """What the crops of an epoch depend on, together with the sample's position."""
        return (seed, epoch) if self.augmented else None

    def batches(
        self, positions: Iterable[Tensor], draw: tuple[int, int] | None = None
    ) -> Iterator[Batch]:
        """One batch for each tensor of positions, decoded by the workers."""
        loader = DataLoader(
            _Decoder(self, draw),
            batch_sampler=[each.tolist() for each in positions],
            num_workers=self.workers,
            # the loader seeds its workers; from a generator of its own, not the global one
            generator=generator("workers"),
        )
        try:
            for images, labels in loader:
                yield normalise(images, self.recipe), labels
        except UserError as error:  # a worker's comes with its traceback in the message
            raise UserError(str(error).rpartition("UserError: ")[2]) from error

    def image(self, position: int, draw: tuple[int, int] | None) -> Tensor:
        """One sample, decoded and cut: uint8 [C, H, W]."""
        image = self.source.image(int(self.rows[position]))
        image = image.convert("L" if self.shape[0] == 1 else "RGB")
        if draw is None:
            return self._centre(image)
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            torch.manual_seed(number("augment", *draw, position))
            return self._crop(image)

    def _crop(self, image: Any) -> Tensor:
        from torchvision.transforms import v2

        size = list(self.shape[1:])
        flip = [v2.RandomHorizontalFlip()] if self.recipe.flip else []
        steps = [v2.RandomResizedCrop(size), *flip, v2.PILToTensor()]
        cut: Tensor = v2.Compose(steps)(image)
        return cut

    def _centre(self, image: Any) -> Tensor:
        from torchvision.transforms.v2 import functional as F

        size = list(self.shape[1:])
        image = F.resize(image, [round(min(size) * RESIZE)])
        cut: Tensor = F.pil_to_tensor(F.center_crop(image, size))
        return cut


class _Decoder(Dataset[tuple[Tensor, Tensor]]):
    """What the worker processes get: the images and the draw of one pass."""

    def __init__(self, images: LazyImages, draw: tuple[int, int] | None) -> None:
        self.images, self.draw = images, draw

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        return self.images.image(position, self.draw), self.images.labels[position]
