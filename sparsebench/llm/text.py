"""Text of calibration and evaluation: from a folder or the hub, tokenised, cut into segments."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from sparsebench.data.named import find_folder, places
from sparsebench.data.options import Options
from sparsebench.errors import UserError, bad_value

#: Rows of at least so many characters tell texts apart; headings may be in several.
TELLING = 100
#: Characters from which on the tokens of a text are remembered.
LONG = 100_000


class Tokenizer(Protocol):
    """What is asked of a tokenizer."""

    def __hash__(self) -> int:
        """Which object it is: the tokens of long texts are remembered."""

    def __call__(self, text: str) -> Any:
        """An object or dictionary with ``input_ids``."""


@dataclass(frozen=True)
class Known:
    """A text set: its folders' names, and where the hub has it.

    Attributes:
        folders: names a folder of it may have.
        hub: arguments of ``load_dataset``.
        files: data files by split, where not all of the set is wanted.
        documents: its rows are documents and not lines of one text.
    """

    folders: tuple[str, ...]
    hub: tuple[str, ...]
    files: Mapping[str, str] | None = None
    documents: bool = False


KNOWN = {
    "wikitext2": Known(
        ("wikitext-2-raw-v1", "wikitext2"), ("Salesforce/wikitext", "wikitext-2-raw-v1")
    ),
    "c4": Known(
        ("c4", "allenai--c4"),
        ("allenai/c4",),
        {
            "train": "en/c4-train.00000-of-01024.json.gz",
            "validation": "en/c4-validation.00000-of-00008.json.gz",
        },
        documents=True,
    ),
    "tinyshakespeare": Known(
        ("tinyshakespeare", "tiny_shakespeare"), ("karpathy/tiny_shakespeare",)
    ),
}
#: Parts of a text in one file without splits, as shares of its characters.
SHARES = {"train": (0.0, 0.9), "validation": (0.9, 0.95), "test": (0.95, 1.0)}


@dataclass(frozen=True)
class Text:
    """Rows of a split, and where they are from."""

    name: str
    split: str
    rows: Sequence[str]
    where: str
    documents: bool = False

    @property
    def joined(self) -> str:
        """All rows with an empty line between them, as the standard protocol has it."""
        return "\n\n".join(self.rows)


def load_text(key: str, dataset: str, split: str, data: Mapping[str, Any]) -> Text:
    """The rows of a split.

    Args:
        key: group of the config that asks, for messages.
        dataset: one of :data:`KNOWN`, or a folder with parquet, text or JSON files.
        split: name of the split.
        data: the config group ``data``: where sets lie, and whether the hub may be asked.

    Raises:
        UserError: it is nowhere, or has no such split, or no text.
    """
    options, known = Options.of(data), KNOWN.get(dataset, Known((dataset,), (dataset,)))
    folder = Path(dataset).expanduser() if "/" in dataset else None
    folder = folder if folder and folder.is_dir() else find_folder(known.folders, options)
    if folder is not None:
        where = str(folder)
        try:
            rows = _of_folder(key, folder, split)
        except UserError:
            raise
        except Exception as error:  # of many kinds, by format and by what is damaged
            said = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{key}.dataset={dataset}: {folder} can't be read: {said}") from error
    elif options.download:
        rows, where = _of_hub(key, known, split), "/".join(known.hub)
    else:
        names = f"one of {', '.join(KNOWN)}, or a folder"
        raise UserError(
            f"{key}.dataset={dataset}: not found; {names}; looked for {' or '.join(known.folders)} "
            f"in {places(options)}; data.download=true asks the hub"
        )
    if not any(row.strip() for row in rows):
        raise UserError(f"{key}.dataset={dataset}: split '{split}' in {where} has no text")
    return Text(dataset, split, rows, where, known.documents)


def _of_folder(key: str, folder: Path, split: str) -> list[str]:
    files = [path for path in sorted(folder.rglob("*")) if path.name.startswith(split)]
    tables = [path for path in files if path.suffix == ".parquet"]
    if tables:
        import pyarrow.parquet as pq

        return [
            row
            for path in tables
            for row in pq.read_table(path, columns=["text"])["text"].to_pylist()
        ]
    texts = [path for path in files if path.suffix in (".txt", ".raw", ".tokens")]
    if texts:
        return "".join(path.read_text(encoding="utf-8") for path in texts).splitlines()
    json_files = [path for path in sorted(folder.rglob(f"*{split}*.json*")) if path.is_file()]
    if json_files:
        return [row for path in json_files for row in _json_rows(path)]
    whole = folder / "input.txt"
    if whole.exists() and split in SHARES:
        text = whole.read_text(encoding="utf-8")
        first, last = (round(share * len(text)) for share in SHARES[split])
        return [text[first:last]]
    there = sorted({path.stem for path in folder.rglob("*") if path.is_file()})
    raise bad_value(f"{key}.split", split, f"{folder} has {', '.join(there) or 'no files'}", there)


def _json_rows(path: Path) -> list[str]:
    import gzip
    import json

    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    return [json.loads(line)["text"] for line in text.splitlines() if line.strip()]


def _of_hub(key: str, known: Known, split: str) -> list[str]:
    from datasets import load_dataset

    files = {split: known.files[split]} if known.files and split in known.files else None
    try:
        found = load_dataset(*known.hub, data_files=files, split=split)
        return list(found["text"])
    except Exception as error:  # the hub's own errors are of many kinds
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{key}.split={split}: {'/'.join(known.hub)} on the hub: {said}") from error


def check_apart(
    calibration: Text, evaluation: Text, key: str = "calibration", other: str = "eval"
) -> None:
    """Refuse calibration, or training, on text that the model is measured on.

    Args:
        calibration: text that the model is to see.
        evaluation: text that it is measured on.
        key: config group of the one, for messages.
        other: config group of the other.

    Raises:
        UserError: they are one split, or share a row long enough to tell.
    """
    same = (calibration.where, calibration.split) == (evaluation.where, evaluation.split)
    lines = [
        {line.strip() for row in text.rows for line in row.splitlines() if len(line) >= TELLING}
        for text in (calibration, evaluation)
    ]
    shared = lines[0] & lines[1]
    if same or shared:
        what = "are the same text" if same else f"share {len(shared)} lines"
        first = f", such as '{sorted(shared)[0][:60]}...'" if shared and not same else ""
        raise UserError(
            f"{key}.dataset={calibration.name} {key}.split={calibration.split}: it and "
            f"{other}.dataset={evaluation.name} {other}.split={evaluation.split} {what}{first}"
        )


def tokens_of(text: str, tokenizer: Tokenizer, vocabulary: int) -> Tensor:
    """Token ids of a whole text, int64.

    Raises:
        UserError: an id that the model has no embedding for: a tokenizer of another model.
    """
    ids = _of_whole(text, tokenizer) if len(text) > LONG else _of(text, tokenizer)
    if len(ids) and int(ids.max()) >= vocabulary:
        raise UserError(
            f"model: its tokenizer gives token {int(ids.max())}, and the model knows {vocabulary}; "
            "it is the tokenizer of another model"
        )
    return ids.long()


def _of(text: str, tokenizer: Any) -> Tensor:
    found = tokenizer(text)
    return torch.tensor(found["input_ids"] if isinstance(found, Mapping) else found.input_ids)


_of_whole = lru_cache(maxsize=4)(_of)  # seconds, and the runs of a table share their texts


def calibration_samples(
    text: Text, tokenizer: Tokenizer, vocabulary: int, calibration: Mapping[str, Any], seed: int
) -> list[Tensor]:
    """The sequences that a model is pruned on.

    ``first`` takes consecutive segments from the start of the joined text. ``random`` takes
    starts uniformly, by Python's generator from ``seed``, as Wanda's and SparseGPT's loaders do:
    of the joined text, or of documents drawn uniformly until one is longer than a sequence.

    Args:
        text: to take them from.
        tokenizer: of the model.
        vocabulary: number of the model's embeddings.
        calibration: the config group, with ``samples``, ``length`` and ``order``.
        seed: of random starts.

    Raises:
        UserError: the text is too short.
    """
    samples, length = calibration["samples"], calibration["length"]
    draw = random.Random(seed)
    if text.documents and calibration["order"] == "random":
        return _of_documents(text, tokenizer, vocabulary, samples, length, draw)
    ids = tokens_of(text.joined, tokenizer, vocabulary)
    needed = samples * length if calibration["order"] == "first" else length + 2
    if len(ids) < needed:
        raise UserError(
            f"calibration.samples={samples} calibration.length={length}: {needed} tokens are "
            f"needed, and '{text.name}' ({text.split}) has {len(ids)}"
        )
    if calibration["order"] == "first":
        return list(ids[:needed].view(samples, length))
    starts = [draw.randint(0, len(ids) - length - 1) for _ in range(samples)]
    return [ids[start : start + length] for start in starts]


def _of_documents(
    text: Text,
    tokenizer: Tokenizer,
    vocabulary: int,
    samples: int,
    length: int,
    draw: random.Random,
) -> list[Tensor]:
    found: list[Tensor] = []
    for _ in range(1000 * samples):
        ids = tokens_of(text.rows[draw.randint(0, len(text.rows) - 1)], tokenizer, vocabulary)
        if len(ids) > length:
            start = draw.randint(0, len(ids) - length - 1)
            found.append(ids[start : start + length])
            if len(found) == samples:
                return found
    raise UserError(
        f"calibration.length={length}: hardly a document of '{text.name}' has so many tokens"
    )
