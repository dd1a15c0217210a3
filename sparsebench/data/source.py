"""What a builder of a data set returns, before it is split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparsebench.data.augment import Recipe
from sparsebench.data.cache import digest
from sparsebench.data.images import Images, TensorImages
from sparsebench.data.options import Options
from sparsebench.errors import UserError


@dataclass(frozen=True)
class Source:
    """All training and test images of a set."""

    train: Images
    test: Images
    digest: str  # hash of the content
    class_names: tuple[str, ...] = ()  # empty: unknown
    notes: tuple[str, ...] = ()
    where: str = ""  # folder it was read from, for messages
    facts: Mapping[str, Tensor] = field(default_factory=dict)  # see ``DataSets``


def in_memory(
    tensors: Mapping[str, Tensor],
    recipe: Recipe,
    options: Options,
    digest: str,
    class_names: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
    where: str = "",
) -> Source:
    """A source of tensors ``train_images``, ``train_labels``, ``test_images``, ``test_labels``."""
    used = recipe if options.augmented else recipe.without_augmentation()
    train, test = (
        TensorImages.of(tensors[f"{split}_images"], tensors[f"{split}_labels"], used)
        for split in ("train", "test")
    )
    return Source(train, test, digest, class_names, notes, where)


def measured(images: Tensor, augmented: bool = False) -> Recipe:
    """A recipe with the mean and deviation of each channel of uint8 images [N, C, H, W].

    Args:
        images: the training images.
        augmented: pad, crop and mirror colour images, as for CIFAR.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in range(images.shape[1]):
        share = torch.bincount(images[:, channel].flatten(), minlength=256) / images[:, 0].numel()
        mean = float((share * values).sum())
        means.append(mean)
        deviations.append(float((share * (values - mean) ** 2).sum().sqrt()) or 1.0)
    colour = augmented and images.shape[1] == 3
    return Recipe(mean=tuple(means), std=tuple(deviations), pad=4 if colour else 0, flip=colour)


def of_arrays(pair: Any, options: Options, key: str) -> Source:
    """A source made of a user's own ``((images, labels), (images, labels))``.

    Args:
        pair: training and test set. Images: arrays or tensors, uint8 [N, C, H, W] (measured
            and normalised, augmented as configured) or float [N, ...] (used as they are).
            Labels: integers [N].
        options: the config group.
        key: config key for messages.

    Raises:
        UserError: it is something else.
    """
    try:
        (train, train_labels), (test, test_labels) = (
            (_stored(images), torch.as_tensor(labels)) for images, labels in pair
        )
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{key}: a builder returns DataSets, Source or ((images, labels), (images, labels)),"
            f" not {type(pair).__name__} ({error})"
        ) from error
    for images, labels in ((train, train_labels), (test, test_labels)):
        if len(images) != len(labels) or labels.dim() != 1 or labels.is_floating_point():
            raise UserError(
                f"{key}: {len(images)} images need as many integer labels, got"
                f" {tuple(labels.shape)} of {labels.dtype}"
            )
    if train.shape[1:] != test.shape[1:] or train.dtype != test.dtype:
        raise UserError(f"{key}: training images are {_kind(train)}, test images {_kind(test)}")
    tensors = {
        "train_images": train,
        "train_labels": train_labels.to(torch.int64),
        "test_images": test,
        "test_labels": test_labels.to(torch.int64),
    }
    recipe = measured(train, options.augmented) if train.dtype == torch.uint8 else Recipe()
    return in_memory(tensors, recipe, options, digest(tensors))


def _stored(images: Any) -> Tensor:
    """uint8 [N, C, H, W] or float32 [N, ...]."""
    tensor = torch.as_tensor(images)
    if tensor.dtype == torch.uint8:
        if tensor.dim() != 4:
            raise ValueError(f"uint8 images must be [N, C, H, W], got {list(tensor.shape)}")
        return tensor.contiguous()
    if not tensor.is_floating_point():
        raise ValueError(f"images must be uint8 or float, got {tensor.dtype}")
    return tensor.to(torch.float32).contiguous()


def _kind(images: Tensor) -> str:
    return f"{list(images.shape[1:])} of {images.dtype}"
