"""Splits of image files turned into one tensor of bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from sparsebench.data.rows import Label, Rows, one_line
from sparsebench.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

GREY = ("1", "L", "LA")  # modes of PIL without colour


class Survey(NamedTuple):
    """What the first images of a split look like."""

    channels: int  # 1 if all are grey, else 3
    smallest: tuple[int, int]  # height and width
    largest: tuple[int, int]


def survey(rows: Rows, limit: int = 200) -> Survey:
    """Look at the modes and sizes of up to ``limit`` images."""
    seen = [
        (image.mode in GREY, (image.height, image.width))
        for image, _ in guarded(rows, islice(rows, limit))
    ]
    sizes = sorted(size for _, size in seen)
    return Survey(1 if all(grey for grey, _ in seen) else 3, sizes[0], sizes[-1])


def decode(
    rows: Rows, shape: Sequence[int], resize: bool = False
) -> tuple[Tensor, list[Label], str]:
    """Decode a split.

    Args:
        rows: the split.
        shape: (C, H, W) that every image must have.
        resize: make images of other sizes fit (shorter side resized, centre cut out).

    Returns:
        uint8 [N, C, H, W], the labels, and the file format of the first image.

    Raises:
        UserError: an image cannot be decoded, or its size is another one.
    """
    from torchvision.transforms.v2.functional import pil_to_tensor

    channels, height, width = shape
    images = torch.empty((len(rows), channels, height, width), dtype=torch.uint8)
    labels: list[Label] = []
    kind = ""
    for index, (image, label) in enumerate(guarded(rows, rows)):
        kind = kind or image.format or ""
        if resize:
            image = fit(image, height, width)
        elif (image.height, image.width) != (height, width):
            raise UserError(
                f"{rows.where}: image {index} is {image.height}x{image.width}, all must be"
                f" {height}x{width} (data.input_shape gives the size of images of mixed sizes)"
            )
        elif channels == 1 and image.mode not in GREY:
            raise UserError(
                f"{rows.where}: image {index} is in colour, those before are grey"
                f" (data.input_shape=[3,{height},{width}] takes all as colour)"
            )
        images[index] = pil_to_tensor(_convert(rows, image, index, channels))
        labels.append(label)
    if len(labels) != len(images):
        raise UserError(f"{rows.where}: {len(labels)} of {len(images)} images could be read")
    return images, labels, kind


def _convert(rows: Rows, image: Image, index: int, channels: int) -> Image:
    mode = "L" if channels == 1 else "RGB"
    try:
        return image.convert(mode)
    except ValueError as error:  # such as 16-bit grey
        raise UserError(f"{rows.where}: image {index} of mode {image.mode} is no {mode}") from error


def fit(image: Image, height: int, width: int) -> Image:
    """Resize the shorter side and cut out the centre, so that no content is distorted."""
    from torchvision.transforms.v2.functional import center_crop, resize

    ratio = max(height / image.height, width / image.width)
    size = [max(height, round(image.height * ratio)), max(width, round(image.width * ratio))]
    fitted: Image = center_crop(resize(image, size), [height, width])
    return fitted


def guarded(rows: Rows, items: Iterable[tuple[Image, Label]]) -> Iterator[tuple[Image, Label]]:
    """Pass ``items`` on; a damaged image is named by its place."""
    iterator = iter(items)
    for count in range(len(rows)):
        with one_line(f"{rows.where}: image {count}", "copy the set again"):
            item = next(iterator, None)
        if item is None:
            return
        yield item


def encode_labels(
    train: Sequence[Label], test: Sequence[Label], names: tuple[str, ...], where: str
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Turn labels into class numbers; words are numbered in the order of the alphabet.

    Raises:
        UserError: a word stands in the test split only, or a label is no number or word.
    """
    if all(isinstance(label, int) for label in (*train, *test)):
        return torch.tensor(train), torch.tensor(test), names
    if not all(isinstance(label, str) for label in (*train, *test)):
        raise UserError(f"{where}: labels must all be integers or all be words")
    names = tuple(sorted({str(label) for label in train}))
    number = {name: index for index, name in enumerate(names)}
    missing = sorted({str(label) for label in test} - set(names))
    if missing:
        raise UserError(f"{where}: no training image has the label '{missing[0]}'")
    return (
        torch.tensor([number[str(label)] for label in train]),
        torch.tensor([number[str(label)] for label in test]),
        names,
    )
