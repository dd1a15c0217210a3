"""Splits kept as image files: a folder for each class, or Tiny ImageNet's list."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sparsebench.data.options import Options
from sparsebench.data.rows import FileRows, split_name
from sparsebench.errors import UserError

LIST = "val_annotations.txt"  # Tiny ImageNet: file name, tab, class, tab, box


def folder_splits(
    folder: Path, options: Options, tests: Sequence[str]
) -> tuple[FileRows, FileRows]:
    """The training and the test split of ``<folder>/<split>/<class>/<image file>``.

    Args:
        folder: has one subfolder a split.
        options: may name the splits.
        tests: usual names of the test split, the first that is there is taken.

    Raises:
        UserError: a split is missing or empty, or the splits have different classes.
    """
    there = sorted(path.name for path in folder.iterdir() if path.is_dir())
    train_name = split_name("data.train_split", options.train_split, ("train",), there)
    test_name = split_name("data.test_split", options.test_split, tests, there)
    train = image_folder(folder / train_name)
    if (folder / test_name / LIST).exists():
        return train, listed_images(folder / test_name, train.names)
    test = image_folder(folder / test_name)
    if test.names != train.names:
        wrong = sorted(set(train.names) ^ set(test.names))[0]
        raise UserError(f"{folder}: class '{wrong}' is in one of {train_name} and {test_name} only")
    return train, test


def image_folder(folder: Path) -> FileRows:
    """One split as torchvision's ``ImageFolder`` finds it.

    Raises:
        UserError: there is no image, or a class without any.
    """
    from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise UserError(f"{folder}: {error}") from error
    files, classes = zip(*found.samples, strict=True)
    return FileRows(str(folder), [Path(file) for file in files], classes, tuple(found.classes))


def listed_images(folder: Path, names: tuple[str, ...]) -> FileRows:
    """Tiny ImageNet's validation images: all in one folder, their classes in a list.

    Raises:
        UserError: the list is empty, names an unknown class or an image that is missing.
    """
    files, classes = [], []
    for line in (folder / LIST).read_text().splitlines():
        file, name = line.split("\t")[:2] if "\t" in line else (line, "")
        if name not in names or not (folder / "images" / file).exists():
            raise UserError(f"{folder / LIST}: no such image or class: {line!r}; extract it again")
        files.append(folder / "images" / file)
        classes.append(names.index(name))
    if not files:
        raise UserError(f"{folder / LIST}: holds no images")
    return FileRows(str(folder), files, classes, names)
