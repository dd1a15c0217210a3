"""From a pair of splits on disk to a source: decoded into memory, or left where they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from sparsebench.data.augment import Recipe
from sparsebench.data.cache import Decoded, cached, key_of
from sparsebench.data.decode import decode, encode_labels
from sparsebench.data.lazy import LazyImages
from sparsebench.data.options import Options
from sparsebench.data.rows import Rows, TableRows, find_columns, split_name
from sparsebench.data.source import Source, in_memory, measured
from sparsebench.errors import UserError

IN_MEMORY = 4 * 2**30  # decoded bytes up to which a set of the hub is held in memory

Splits = tuple[Rows, Rows]  # training and test
MANY = 10_000  # files whose sizes are not asked one by one


def memory_source(
    splits: Splits,
    shape: Sequence[int],
    recipe: Recipe | None,
    options: Options,
    resize: bool = False,
    lossless: bool = False,
) -> Source:
    """Decode both splits, once: the next time they come from the cache.

    Args:
        splits: training and test split.
        shape: (C, H, W) of every image.
        recipe: scaling and augmentation; None: measured on the training images.
        options: the config group.
        resize: make images of other sizes fit.
        lossless: the set's original is, so that a copy in JPEG is noted.
    """
    train, test = splits
    columns = (options.image_column, options.label_column)
    sources = [*train.sources, *test.sources]
    key = key_of(sources, tuple(shape), resize, columns, train.where, test.where)
    name = options.name or "hf"
    tensors, text = cached(name, key, lambda: _decode(splits, shape, resize), options.cache)
    notes = (f"{name} (JPEG)",) if lossless and text["format"] == "JPEG" else ()
    used = recipe or measured(tensors["train_images"], options.augmented)
    names = tuple(json.loads(text["names"]))
    return in_memory(tensors, used, options, text["sha256"], names, notes, train.where)


def _decode(splits: Splits, shape: Sequence[int], resize: bool) -> Decoded:
    train, test = splits
    train_images, train_labels, kind = decode(train, shape, resize)
    test_images, test_labels, _ = decode(test, shape, resize)
    first, second, names = encode_labels(train_labels, test_labels, train.names, train.where)
    tensors = {
        "train_images": train_images,
        "train_labels": first,
        "test_images": test_images,
        "test_labels": second,
    }
    return tensors, {"names": json.dumps(names), "format": kind}


def lazy_source(splits: Splits, shape: tuple[int, ...], recipe: Recipe, options: Options) -> Source:
    """Leave both splits on disk, to be decoded batch by batch."""
    train, test = splits
    first, second, names = encode_labels(train.labels(), test.labels(), train.names, train.where)
    return Source(
        LazyImages.of(train, first, shape, recipe, options),
        LazyImages.of(test, second, shape, recipe, options),
        _listing(splits),
        names,
        where=train.where,
    )


def _listing(splits: Splits) -> str:
    """Hash of the names and, unless there are very many files, the sizes of the sources."""
    total = hashlib.sha256()
    for rows in splits:
        few = len(rows.sources) <= MANY
        for path in rows.sources:
            size = path.stat().st_size if few else ""
            total.update(f"{path.parent.name}/{path.name} {size}\n".encode())
    return total.hexdigest()


def hub_splits(repository: str, options: Options, tests: Sequence[str]) -> Splits:
    """The training and the test split of a repository of the hub, downloaded if need be.

    Raises:
        UserError: the hub cannot be reached, or there is no such repository or split.
    """
    from datasets import load_dataset

    try:
        found = load_dataset(repository)
    except Exception as error:  # the hub's client raises types of several libraries
        reason = " ".join(str(error).split())
        raise UserError(f"data.download=true: cannot load '{repository}' ({reason})") from error
    there = list(found)
    train = split_name("data.train_split", options.train_split, ("train",), there)
    test = split_name("data.test_split", options.test_split, tests, there)
    features = found[train].features
    image, label = find_columns(features, options.image_column, options.label_column)

    def rows(split: str) -> TableRows:
        files = [Path(file["filename"]) for file in found[split].cache_files]
        return TableRows(f"{repository} ({split})", found[split], image, label, files)

    return rows(train), rows(test)
