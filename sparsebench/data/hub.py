"""Any image classification set: a repository of the hub, or a folder of the same layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from sparsebench.data import splits as on_disk
from sparsebench.data.augment import Recipe
from sparsebench.data.decode import survey
from sparsebench.data.folders import folder_splits
from sparsebench.data.known import KNOWN
from sparsebench.data.named import find_folder, places
from sparsebench.data.options import Options
from sparsebench.data.parquet import parquet_splits
from sparsebench.data.source import Source
from sparsebench.errors import UserError

TESTS = ("test", "validation", "valid", "val")


def hub_source(config: Mapping[str, Any]) -> Source:
    """The set at ``data.path``; its columns, splits, classes and image size are found.

    Sets of up to 4 GiB decoded are held in memory: normalised by the mean and deviation of
    their training images and, if they are in colour, padded, cropped and mirrored. Larger
    ones stay on disk and get the ImageNet recipe.

    Raises:
        UserError: it is nowhere, or its images, labels or splits cannot be told.
    """
    options = Options.of(config)
    if not options.path:
        raise UserError("data.path=null: data=hf needs the name of a hub set, or a folder")
    pair = _open(options.path, options)
    shape = _shape(pair, options)
    if (len(pair[0]) + len(pair[1])) * prod(shape) <= on_disk.IN_MEMORY:
        resize = options.input_shape is not None
        return on_disk.memory_source(pair, shape, None, options, resize)
    return on_disk.lazy_source(pair, tuple(shape), _imagenet(shape[0]), options)


def _open(path: str, options: Options) -> on_disk.Splits:
    folder = Path(path).expanduser()
    found = folder if folder.is_dir() else find_folder((path,), options)
    if found is not None:
        return _open_folder(found, options)
    if options.download:
        return on_disk.hub_splits(path, options, TESTS)
    raise UserError(
        f"data.path={path}: no such folder here or in {places(options)};"
        " if it is a set of the hub, data.download=true gets it"
    )


def _open_folder(folder: Path, options: Options) -> on_disk.Splits:
    if next(folder.rglob("*.parquet"), None) is not None:
        return parquet_splits(folder, options, TESTS)
    if any(path.is_dir() for path in folder.iterdir()):
        return folder_splits(folder, options, TESTS)
    raise UserError(f"{folder}: holds neither parquet files nor folders <split>/<class>")


def _shape(pair: on_disk.Splits, options: Options) -> Sequence[int]:
    """The configured shape, else that of all images."""
    shape = options.image_shape()
    if shape is not None:
        return shape
    seen = survey(pair[0])
    if seen.smallest != seen.largest:
        raise UserError(
            f"data.input_shape=null: {pair[0].where} has images from {seen.smallest} to"
            f" {seen.largest} pixels; give the size to bring them to, such as [3,64,64]"
        )
    return (seen.channels, *seen.smallest)


def _imagenet(channels: int) -> Recipe:
    recipe = KNOWN["imagenet"].recipe
    return recipe if channels == 3 else Recipe(mean=(0.5,), std=(0.25,), flip=True)
