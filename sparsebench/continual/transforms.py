"""What the tasks of a stream do to the images of a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsebench.data.seeding import generator
from sparsebench.errors import UserError

#: Of stored images [B, C, H, W] (or samples [B, N]).
Transform = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Permute:
    """Pixels in another order, all channels of a pixel together."""

    order: Tensor  # int64 [pixels]

    def __call__(self, images: Tensor) -> Tensor:
        """Images in that order."""
        flat = images.flatten(2) if images.dim() > 2 else images
        return flat.index_select(-1, self.order).view(images.shape)


@dataclass(frozen=True)
class Rotate:
    """Turned counter-clockwise, bilinear, black where there was nothing."""

    degrees: float

    def __call__(self, images: Tensor) -> Tensor:
        """Turned images."""
        if self.degrees == 0.0:
            return images
        from torchvision.transforms.v2 import InterpolationMode
        from torchvision.transforms.v2.functional import rotate

        turned: Tensor = rotate(images, self.degrees, InterpolationMode.BILINEAR)
        return turned


def transforms(config: Any, shape: tuple[int, ...]) -> list[Transform | None]:
    """What each task does to images, from the stream's own seed.

    Args:
        config: the config group ``stream``.
        shape: of one sample.

    Raises:
        UserError: samples that can't be turned.
    """
    if config.kind == "split":
        return [None] * config.tasks
    if config.kind == "permuted":
        pixels = shape[-1] if len(shape) == 1 else shape[-2] * shape[-1]
        return [
            Permute(torch.randperm(pixels, generator=generator("permuted", config.seed, task)))
            for task in range(config.tasks)
        ]
    if len(shape) != 3:
        raise UserError(f"stream.kind=rotated: needs images, and the data have {list(shape)}")
    if config.degrees is not None:
        return [Rotate(task * config.degrees % 360) for task in range(config.tasks)]
    drawn = torch.rand(config.tasks, generator=generator("rotated", config.seed))
    return [Rotate(180.0 * float(share)) for share in drawn]
