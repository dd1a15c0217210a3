"""Several sets as one, their classes one set after the other, for streams over data sets.

All images are brought to the shape of the largest: zeros around smaller ones, a grey value thrice
where others have colours. They are normalised alike, by the mean and deviation of all, so that how
bright a batch is does not tell which set it is from by more than the images do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparsebench.data.images import TensorImages
from sparsebench.data.options import Options
from sparsebench.data.source import Source, in_memory, measured
from sparsebench.errors import UserError, bad_value


def joined_source(
    config: Mapping[str, Any], names: Sequence[str], builders: Mapping[str, Any]
) -> Source:
    """The sets of some names as one.

    Args:
        config: the config group ``data``.
        names: of the sets, in the order of their classes.
        builders: by name, what reads a set.

    Raises:
        UserError: no such set, a set named twice, or one whose images do not fit into memory.
    """
    if len(set(names)) < max(len(names), 1):
        raise bad_value("data.args.sets", list(names), "at least one set is needed, each once")
    own = {"image_column": None, "label_column": None, "input_shape": None, "train_size": None}
    sources = []
    for name in names:
        if name not in builders:
            allowed = f"one of {', '.join(builders)}"
            raise bad_value("data.args.sets", name, allowed, builders)
        sources.append(builders[name]({**config, **own, "name": name, "num_classes": None}))
    shape = _largest(names, sources)
    tensors: dict[str, list[Tensor]] = {
        f"{split}_{what}": [] for split in ("train", "test") for what in ("images", "labels")
    }
    offset = 0
    class_names: list[str] = []
    for name, source in zip(names, sources, strict=True):
        classes = len(source.class_names) or 1 + int(source.train.labels.max())
        for split in ("train", "test"):
            images = getattr(source, split)
            tensors[f"{split}_images"].append(_fitted(images.images, shape))
            tensors[f"{split}_labels"].append(images.labels + offset)
        own_names = source.class_names or tuple(map(str, range(classes)))
        class_names += [f"{name}/{each}" for each in own_names]
        offset += classes
    whole = {name: torch.cat(parts) for name, parts in tensors.items()}
    options = Options.of({**config, "input_shape": None})
    digest = hashlib.sha256("".join(source.digest for source in sources).encode()).hexdigest()
    notes = tuple(dict.fromkeys(note for source in sources for note in source.notes))
    recipe = replace(measured(whole["train_images"]), flip=False)
    return in_memory(whole, recipe, options, digest, tuple(class_names), notes)


def _largest(names: Sequence[str], sources: Sequence[Source]) -> tuple[int, ...]:
    for name, source in zip(names, sources, strict=True):
        if not isinstance(source.train, TensorImages) or source.train.storage.dtype != torch.uint8:
            raise UserError(f"data.args.sets={name}: only sets of images that are in memory join")
    shapes = [source.train.shape for source in sources]
    return tuple(max(sizes) for sizes in zip(*shapes, strict=True))


def _fitted(images: Tensor, shape: tuple[int, ...]) -> Tensor:
    """uint8 [N, C, H, W] in the middle of a larger shape."""
    channels, height, width = shape
    top, left = height - images.shape[2], width - images.shape[3]
    edges = (left // 2, left - left // 2, top // 2, top - top // 2)
    return pad(images.expand(-1, channels, -1, -1), edges).contiguous()
