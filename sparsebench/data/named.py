"""Find a named set on disk in whichever layout it lies there, and read it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sparsebench.data.cache import Decoded, cached, key_of
from sparsebench.data.folders import folder_splits
from sparsebench.data.idx import idx_files, read_idx
from sparsebench.data.known import KNOWN, Known
from sparsebench.data.options import Options
from sparsebench.data.parquet import parquet_splits
from sparsebench.data.source import Source, in_memory
from sparsebench.data.splits import Splits, hub_splits, lazy_source, memory_source
from sparsebench.errors import UserError


def named_source(name: str, config: Mapping[str, Any]) -> Source:
    """The set ``name`` from the first folder it is found in, or from the hub.

    Raises:
        UserError: it is nowhere (all places and the way to get it are said), or what is
            there is damaged or incomplete.
    """
    known, options = KNOWN[name], Options.of(config)
    options = replace(options, name=name, label_column=options.label_column or known.label_column)
    folder = find_folder(known.folders, options)
    if folder is not None:
        return _read_folder(folder, known, options)
    if options.download and known.hub:
        return _of_splits(hub_splits(known.hub, options, known.tests), known, options)
    more = ", or with data.download=true" if known.hub else ""
    raise UserError(
        f"data={name}: not found; looked for {' or '.join(known.folders)} in"
        f" {places(options)}; get it with {known.advice}{more}"
    )


def find_folder(names: Sequence[str], options: Options) -> Path | None:
    """The first folder of one of these names, or a place that bears the name itself."""
    for place in options.folders():
        for folder in [place / name for name in names]:
            if folder.is_dir():
                return folder
        if place.name in names and place.is_dir():
            return place
    return None


def places(options: Options) -> str:
    """All places looked at, in words."""
    said = ", ".join(str(place) for place in options.folders())
    if options.root or os.environ.get("SPARSEBENCH_DATA"):
        return said
    return f"{said} (neither data.root nor SPARSEBENCH_DATA is set)"


def _read_folder(folder: Path, known: Known, options: Options) -> Source:
    """Read whichever layout is there."""
    files = idx_files(folder) or idx_files(folder / "raw")
    if files is not None:
        return _cached(known, options, folder, list(files.values()), lambda: (read_idx(files), {}))
    if folder.name in ("cifar-10-batches-py", "cifar-100-python"):
        sources = sorted(path for path in folder.iterdir() if path.is_file())
        return _cached(known, options, folder, sources, lambda: _pickles(folder, known))
    if next(folder.rglob("*.parquet"), None) is not None:
        return _of_splits(parquet_splits(folder, options, known.tests), known, options)
    if (folder / (options.train_split or "train")).is_dir():
        return _of_splits(folder_splits(folder, options, known.tests), known, options)
    raise UserError(
        f"{folder}: holds no parquet files, no idx files and no folder 'train' of {known.name}"
        f" (half extracted?); get it with {known.advice}"
    )


def _of_splits(splits: Splits, known: Known, options: Options) -> Source:
    if known.name == "imagenet":
        shape = options.image_shape() or known.shape
        return lazy_source(splits, shape, known.recipe, options)
    return memory_source(splits, known.shape, known.recipe, options, lossless=known.lossless)


def _cached(known: Known, options: Options, folder: Path, sources: list[Path], read: Any) -> Source:
    tensors, text = cached(known.name, key_of(sources, known.name), read, options.cache)
    names = tuple(json.loads(text.get("names", "[]")))
    return in_memory(tensors, known.recipe, options, text["sha256"], names, where=str(folder))


def _pickles(folder: Path, known: Known) -> Decoded:
    """The files of the set's own site, in the folder torchvision unpacks them to."""
    from torchvision.datasets import CIFAR10, CIFAR100

    reader = CIFAR10 if known.name == "cifar10" else CIFAR100
    tensors = {}
    for split in ("train", "test"):
        try:
            found = reader(str(folder.parent), train=split == "train")
        except RuntimeError as error:  # a file is missing or its checksum is wrong
            raise UserError(f"{folder}: {error}; extract it again") from error
        tensors[f"{split}_images"] = torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous()
        tensors[f"{split}_labels"] = torch.tensor(found.targets)
    return tensors, {"names": json.dumps(found.classes)}
