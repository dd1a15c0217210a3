"""What a table was made with, read off its runs."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import Any

from sparsebench.sweep.order import spent
from sparsebench.sweep.results import Results
from sparsebench.sweep.watch import clock

VERSIONS = (
    "sparsebench",
    "torch",
    "lightning",
    "hydra-core",
    "timm",
    "datasets",
    "scikit-learn",
    "numpy",
)


def provenance(results: Results, command: str) -> list[str]:
    """Lines about command, versions, source, machine, date and time.

    All of it comes from the results, so that a table that is made again is the same file.

    Args:
        results: the table.
        command: what makes it.
    """
    done = [o for o in results.outcomes.values() if o.status == "finished"]
    lines = [f"command: {command}"]
    if not done:
        return lines
    made = [outcome.environment for outcome in done]
    versions = [
        f"{name} {found}" for name in VERSIONS if (found := _all(_version(e, name) for e in made))
    ]
    python = _all(e.get("python") for e in made)
    days = sorted({_day(outcome.written) for outcome in done})
    seconds = sum(spent(outcome.metrics) for outcome in done)
    return [
        *lines,
        f"versions: {', '.join([f'Python {python}', *versions])}",
        f"source: {_all(map(_revision, made)) or 'no git revision'}",
        f"machine: {_all(map(_machine, made))}",
        f"runs: {len(done)} finished {' to '.join(dict.fromkeys((days[0], days[-1])))}, "
        f"{clock(seconds)} of computing in all",
    ]


def _all(found: Iterable[Any]) -> str:
    """The different values there are; usually one."""
    return " | ".join(dict.fromkeys(str(value) for value in found if value))


def _version(environment: Any, name: str) -> str | None:
    found: str | None = environment.get("versions", {}).get(name)
    return found


def _revision(environment: Any) -> str | None:
    commit = environment.get("revision")
    if not commit:
        return None
    diff = environment.get("revision_diff")
    return f"git {commit[:12]}" + (f" with changes {diff[:8]}" if diff else "")


def _machine(environment: Any) -> str:
    counts = (("cores", "core"), ("accelerators", "GPU"), ("threads", "thread per run"))
    return ", ".join(
        [str(environment.get("machine", "?")), *(_count(environment.get(k), w) for k, w in counts)]
    )


def _count(number: Any, what: str) -> str:
    one, *rest = what.split(" ", 1)
    many = " ".join([one if number == 1 else f"{one}s", *rest])
    return f"{number or 'no'} {many}"


def _day(written: float) -> str:
    return datetime.datetime.fromtimestamp(written, datetime.UTC).date().isoformat()
