"""Splits of labelled image files: a hub's parquet, a folder for each class, a hub data set."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sparsebench.errors import UserError, bad_value

if TYPE_CHECKING:
    from PIL.Image import Image

Label = int | str
IMAGE_NAMES = ("img", "image", "images", "pixel_values", "picture", "photo")
LABEL_NAMES = ("label", "labels", "class", "target", "y", "fine_label")


class Rows(Protocol):
    """One split: images in their order, decoded only when they are asked for."""

    @property
    def where(self) -> str:
        """File or folder, for messages."""
        ...

    @property
    def sources(self) -> Sequence[Path]:
        """The files whose change changes the split."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes; empty if unknown."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[Image, Label]]: ...

    def labels(self) -> list[Label]:
        """The labels alone, without decoding an image."""
        ...

    def image(self, index: int) -> Image:
        """One image, in any order."""
        ...


@dataclass(frozen=True, eq=False)
class FileRows:
    """Image files with their labels."""

    where: str
    files: Sequence[Path]
    classes: Sequence[int]
    names: tuple[str, ...]

    @property
    def sources(self) -> Sequence[Path]:
        """The image files."""
        return self.files

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[tuple[Image, Label]]:
        for index, label in enumerate(self.classes):
            yield self.image(index), label

    def labels(self) -> list[Label]:
        """The labels alone."""
        return list(self.classes)

    def image(self, index: int) -> Image:
        """One image; its file is closed again."""
        from PIL import Image

        file = self.files[index]
        with one_line(str(file), "copy it again"), Image.open(file) as image:
            image.load()
            return image


@dataclass(frozen=True, eq=False)
class TableRows:
    """Rows of a split that ``datasets`` has opened (map-style)."""

    where: str
    table: Any  # datasets.Dataset
    image_column: str
    label_column: str
    sources: Sequence[Path]

    @property
    def names(self) -> tuple[str, ...]:
        """Class names, if the label column knows them."""
        return class_names(self.table.features[self.label_column])

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[tuple[Image, Label]]:
        for row in self.table.select_columns([self.image_column, self.label_column]):
            yield row[self.image_column], row[self.label_column]

    def labels(self) -> list[Label]:
        """The labels alone."""
        return list(self.table.select_columns([self.label_column])[:][self.label_column])

    def image(self, index: int) -> Image:
        """One image."""
        with one_line(f"{self.where}: image {index}", "copy the set again"):
            image: Image = self.table[index][self.image_column]
        return image


@contextmanager
def one_line(what: str, advice: str) -> Iterator[None]:
    """Turn whatever a damaged file does to its reader into one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # Pillow, Arrow and datasets raise a dozen types
        raise UserError(f"{what}: cannot be read ({error}); {advice}") from error


def class_names(feature: Any) -> tuple[str, ...]:
    """Names in a ``ClassLabel`` feature, else nothing."""
    return tuple(getattr(feature, "names", None) or ())


def find_columns(
    features: Any, image_column: str | None, label_column: str | None
) -> tuple[str, str]:
    """The columns of images and labels: as configured, else by type, else by name.

    Raises:
        UserError: a configured column does not exist, or none or several would do.
    """
    images = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    labels = [name for name, feature in features.items() if class_names(feature)]
    images = images or [name for name in features if name in IMAGE_NAMES]
    labels = labels or [name for name in features if name in LABEL_NAMES]
    return (
        _column("data.image_column", image_column, images, list(features)),
        _column("data.label_column", label_column, labels, list(features)),
    )


def _column(key: str, given: str | None, found: list[str], columns: list[str]) -> str:
    if given is not None:
        if given not in columns:
            raise bad_value(key, given, f"the columns are {', '.join(columns)}", columns)
        return given
    if len(found) != 1:
        what = f"several would do ({', '.join(found)})" if found else "none was recognised"
        raise UserError(f"{key}=null: {what}; name one of the columns {', '.join(columns)}")
    return found[0]


def split_name(key: str, given: str | None, usual: Sequence[str], there: Sequence[str]) -> str:
    """The name of a split: as configured, else the first of the usual ones that is there."""
    wanted = [given] if given is not None else list(usual)
    for name in wanted:
        if name in there:
            return name
    found = f"the splits found are {', '.join(there)}" if there else "no split was found"
    raise bad_value(key, given or "null", f"{found}, looked for {' or '.join(wanted)}", there)


def names_split(path: str, split: str) -> bool:
    """Whether a file's relative path has the split's name as a word of its own."""
    word = rf"(?<![a-z0-9]){re.escape(split.lower())}(?![a-z0-9])"
    return re.search(word, path.lower()) is not None
