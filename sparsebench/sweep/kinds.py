"""The kind of each row's method, read off its runs (Ten Lessons, arXiv 2302.02596)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsebench.result import read_result
from sparsebench.sweep.results import Results

#: Headings of the kinds of a table, and the fields of a result's ``kind`` below them.
KIND_HEAD = ("Pruned", "Starts", "Masks", "Pattern", "Gradient of absent weights")
KIND_SOURCE = (
    "Compare like with like (Ten Lessons, arXiv 2302.02596): sparsity counts the selected weights, "
    "and training FLOPs count forward and backward passes at the masks of each step."
)
FIELDS = ("when", "start", "masks", "pattern", "dense_gradient")


def kinds(results: Results) -> list[tuple[str, ...]]:
    """A line for each row with a finished run: its label, and what kind of method it is.

    Columns of a table may differ in their pattern of zeros; then the line names all of them.
    """
    lines = []
    for i, row in enumerate(results.grid.rows):
        found = [kind for j in range(len(results.grid.columns)) if (kind := _kind(results, i, j))]
        if found:
            texts = (" or ".join(dict.fromkeys(kind[name] for kind in found)) for name in FIELDS)
            lines.append((row.label, *texts))
    return lines


def _kind(results: Results, row: int, column: int) -> Mapping[str, str] | None:
    entry = results.entries.get((row, column))
    outcomes = entry.by_seed.values() if entry else ()
    done = next((outcome for outcome in outcomes if outcome.status == "finished"), None)
    content = read_result(done.run.folder) if done else None
    if content is None:
        return None
    return content.get("kind") or _from_config(content["config"])


def _from_config(config: Mapping[str, Any]) -> Mapping[str, str] | None:
    """For results of before kinds were written down: what their method would say today."""
    from dataclasses import asdict

    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from sparsebench.errors import UserError
    from sparsebench.sparsity.kind import kind_of
    from sparsebench.tasks.build import build_method

    try:
        cfg = OmegaConf.create(dict(config))
        return asdict(kind_of(build_method(cfg)))
    except (UserError, TypeError, OmegaConfBaseException):  # a part of then that is gone
        return None
