"""Crop, flip and normalise whole batches at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad as pad_edges

from sparsebench.data.seeding import generator


@dataclass(frozen=True)
class Recipe:
    """How stored images become a batch of floats.

    ``(x / scale - mean) / std`` for every channel; when training also a crop of the
    padded image and a mirror image, both at random.
    """

    scale: float = 255.0  # stored value that becomes 1
    mean: tuple[float, ...] = ()  # by channel, after scaling; empty: no normalisation
    std: tuple[float, ...] = ()
    pad: int = 0  # pixels of zeros on each side before the crop back to size
    flip: bool = False  # mirror left and right with probability 1/2

    def without_augmentation(self) -> Recipe:
        """The same scaling, nothing random."""
        return replace(self, pad=0, flip=False)


class Draw(NamedTuple):
    """The random choices of one epoch, one entry a sample."""

    top: Tensor  # int64 [N], first row of the crop in the padded image
    left: Tensor  # int64 [N]
    flip: Tensor  # bool [N]


def draw_epoch(recipe: Recipe, samples: int, seed: int, epoch: int) -> Draw | None:
    """Draw the augmentation of every sample of one epoch.

    Args:
        recipe: what is to be drawn.
        samples: number of samples N.
        seed: seed of the run.
        epoch: number of the epoch.

    Returns:
        The choices, or None where the recipe has nothing random.
    """
    if not recipe.pad and not recipe.flip:
        return None
    stream = generator("augment", seed, epoch)
    top, left = torch.randint(0, 2 * recipe.pad + 1, (2, samples), generator=stream)
    flip = torch.rand(samples, generator=stream) < (0.5 if recipe.flip else 0.0)
    return Draw(top, left, flip)


def crop(images: Tensor, top: Tensor, left: Tensor, pad: int) -> Tensor:
    """Cut each image [B, C, H, W] out of its zero-padded self at its own offset."""
    height, width = images.shape[-2:]
    windows = pad_edges(images, (pad, pad, pad, pad)).unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(images)), :, top, left]


def mirror(images: Tensor, flip: Tensor) -> Tensor:
    """Turn those images [B, C, H, W] left to right where ``flip`` [B] is true."""
    return torch.where(flip[:, None, None, None], images.flip(-1), images)


def normalise(images: Tensor, recipe: Recipe) -> Tensor:
    """Scale [B, C, ...] to float32, in the order of operations of torchvision."""
    batch = images.to(torch.float32, copy=True)
    if not images.is_floating_point():
        batch = batch.div_(recipe.scale)
    if not recipe.mean:
        return batch
    shape = (1, -1, *[1] * (batch.dim() - 2))
    mean, std = (torch.tensor(values).view(shape) for values in (recipe.mean, recipe.std))
    return batch.sub_(mean).div_(std)


def augment(images: Tensor, recipe: Recipe, draw: Draw, index: Tensor) -> Tensor:
    """Crop and mirror the batch [B, C, H, W] whose samples are ``index`` [B] of the epoch."""
    if recipe.pad:
        images = crop(images, draw.top[index], draw.left[index], recipe.pad)
    return mirror(images, draw.flip[index]) if recipe.flip else images
