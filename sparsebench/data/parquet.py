"""Splits kept in parquet files, as on the hub, read offline by ``datasets``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebench.data.options import Options
from sparsebench.data.rows import (
    Label,
    TableRows,
    class_names,
    find_columns,
    names_split,
    one_line,
    split_name,
)
from sparsebench.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

SPLITS = ("train", "test", "validation", "valid", "val")


@dataclass(frozen=True, eq=False)
class ParquetRows:
    """The files of one split. Reading them in order leaves no second copy on disk.

    Nothing is opened before it is asked for: a set in the cache needs the names only.
    """

    where: str
    sources: Sequence[Path]
    options: Options  # may name the columns

    @cached_property
    def _count(self) -> int:
        count = sum(rows_in(file) for file in self.sources)
        if count == 0:
            raise UserError(f"{', '.join(map(str, self.sources))}: holds no images")
        return count

    @cached_property
    def _stream(self) -> Any:
        """The rows in order (``datasets.IterableDataset``)."""
        return with_images(open_files(self.sources, streaming=True), self._columns[0])

    @cached_property
    def _columns(self) -> tuple[str, str]:
        features = open_files(self.sources, streaming=True).features
        return find_columns(features, self.options.image_column, self.options.label_column)

    @cached_property
    def _table(self) -> TableRows:
        """The rows in any order; ``datasets`` keeps an Arrow copy of them in its own cache."""
        with one_line(self.where, "copy it again"):
            table = with_images(open_files(self.sources, streaming=False), self._columns[0])
        return TableRows(self.where, table, *self._columns, self.sources)

    @property
    def names(self) -> tuple[str, ...]:
        """Class names, if the files hold them."""
        return class_names(self._stream.features[self._columns[1]])

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[Image, Label]]:
        image, label = self._columns
        for row in self._stream:
            yield row[image], row[label]

    def labels(self) -> list[Label]:
        """The labels alone."""
        return self._table.labels()

    def image(self, index: int) -> Image:
        """One image."""
        return self._table.image(index)


def open_files(files: Sequence[Path], streaming: bool) -> Any:
    """Let ``datasets`` read parquet files as one split.

    Its reader is asked directly: ``load_dataset`` would report the use to the hub first,
    and wait for an answer where there is no network.
    """
    from datasets import NamedSplit
    from datasets.io.parquet import ParquetDatasetReader

    names: Any = [str(file) for file in files]
    return ParquetDatasetReader(names, split=NamedSplit("rows"), streaming=streaming).read()


def with_images(table: Any, column: str) -> Any:
    """Make sure that the bytes in ``column`` are decoded as images."""
    from datasets import Image

    if type(table.features[column]).__name__ == "Image":
        return table
    return table.cast_column(column, Image())


def parquet_splits(
    folder: Path, options: Options, tests: Sequence[str]
) -> tuple[ParquetRows, ParquetRows]:
    """The training and the test split of a folder of parquet files.

    Args:
        folder: is searched with its subfolders; a file belongs to the split whose name is
            a word of its path, as in ``data/train-00000-of-00002.parquet``.
        options: may name the splits and columns.
        tests: usual names of the test split, the first that is there is taken.

    Raises:
        UserError: a split is missing.
    """
    files = sorted(folder.rglob("*.parquet"))
    names = [n for n in (options.train_split, options.test_split, *SPLITS) if n is not None]
    by_split = {n: [f for f in files if names_split(str(f.relative_to(folder)), n)] for n in names}
    there = [name for name in by_split if by_split[name]]
    train = split_name("data.train_split", options.train_split, ("train",), there)
    test = split_name("data.test_split", options.test_split, tests, there)
    return (
        ParquetRows(str(folder), by_split[train], options),
        ParquetRows(str(folder), by_split[test], options),
    )


def rows_in(file: Path) -> int:
    """Number of rows of a parquet file, from its footer.

    Raises:
        UserError: the file is truncated or no parquet.
    """
    from pyarrow import ArrowException
    from pyarrow.parquet import read_metadata

    try:
        return int(read_metadata(file).num_rows)
    except (ArrowException, OSError) as error:
        raise UserError(f"{file}: damaged or incomplete ({error}); copy it again") from error
