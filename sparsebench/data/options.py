"""The keys of the config group ``data``, read and checked once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sparsebench.errors import bad_value

#: Where data sets are looked for if nothing is said; Debian's packages are in the second.
USUAL = (Path("data"), Path("/usr/share/datasets"))


@dataclass(frozen=True)
class Options:
    """The config group ``data``; a key that is not given has the default below.

    The group's ``args`` are for builders of users and mean nothing here.
    """

    name: str = ""
    root: str | None = None  # folder looked at first; null: SPARSEBENCH_DATA, usual places
    num_classes: int | None = None  # null: found in the data
    input_shape: tuple[int, ...] | None = None  # null: found; for hf the size to resize to
    train_size: int | None = None  # images to train and validate on; null: found
    augment: str = "standard"
    validation: float | int = 0.1  # share or count held out of the training images; 0: none
    subset: float | int | None = None  # share or count of the training images that is used
    split_seed: int = 0
    workers: int = 0  # processes that decode a set too large for memory
    path: str | None = None  # hf: hub name or folder
    image_column: str | None = None
    label_column: str | None = None
    train_split: str | None = None
    test_split: str | None = None
    cache: bool = True  # keep the decoded set on disk
    download: bool = False  # ask the hub for what is not on disk

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Options:
        """Read the keys of this group and leave all others to their owners.

        Raises:
            UserError: a value is out of range.
        """
        known = {field.name for field in fields(cls)}
        given = {key: config[key] for key in config if key in known}
        if given.get("input_shape") is not None:
            given["input_shape"] = tuple(given["input_shape"])
        return cls(**given)._checked()

    def _checked(self) -> Options:
        if self.augment not in ("standard", "none"):
            names = ("standard", "none")
            raise bad_value("data.augment", self.augment, "is standard or none", names)
        for key in ("split_seed", "workers"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise bad_value(f"data.{key}", value, "an integer of at least 0 is needed")
        if self.input_shape is not None and (
            not 1 <= len(self.input_shape) <= 3 or min(self.input_shape) < 1
        ):
            shape = list(self.input_shape)
            raise bad_value("data.input_shape", shape, "such as [3,32,32], is needed")
        return self

    def image_shape(self) -> tuple[int, ...] | None:
        """The configured (C, H, W) of images.

        Raises:
            UserError: it is the shape of no image.
        """
        shape = self.input_shape
        if shape is not None and (len(shape) != 3 or shape[0] not in (1, 3)):
            allowed = "[channels, height, width] with 1 or 3 channels is needed"
            raise bad_value("data.input_shape", list(shape), allowed)
        return shape

    @property
    def augmented(self) -> bool:
        """Whether training images are cropped and flipped."""
        return self.augment == "standard"

    def folders(self) -> list[Path]:
        """Where data sets are looked for, in this order."""
        first = self.root or os.environ.get("SPARSEBENCH_DATA")
        return [Path(first).expanduser(), *USUAL] if first else list(USUAL)
