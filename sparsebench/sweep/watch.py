"""Progress of a sweep, read off the files its runs write; they may be in any process."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from sparsebench.claim import owner_of
from sparsebench.result import read_result
from sparsebench.sweep.cells import Run
from sparsebench.sweep.launch import Launch
from sparsebench.sweep.order import Costs, spent

if TYPE_CHECKING:
    from rich.console import RenderableType

#: Seconds between two looks.
PERIOD = 0.5
#: Most runs that are shown as running.
SHOWN = 8


class Watch:
    """One live display on a terminal, plain lines elsewhere; both on stderr."""

    def __init__(
        self,
        launch: Launch,
        runs: Sequence[Run],
        already: int,
        costs: Costs,
        *,
        at_once: int | None,
        quiet: bool,
    ) -> None:
        """Say what to look at.

        Args:
            launch: what is going on.
            runs: the runs to be done.
            already: how many more were done before.
            costs: of the runs, by which the time left is estimated.
            at_once: runs at the same time, if known.
            quiet: show nothing.
        """
        self.launch = launch
        self.pending = list(runs)
        self.already = already
        self.total = already + len(runs)
        self.costs = costs
        self.at_once = at_once
        self.quiet = quiet
        self.trouble = 0
        self._all = costs.total(runs)
        self._told: set[str] = set()
        self._began = time.monotonic()
        self._first = self._began  # when the first run was begun: imports take their time too
        self._working = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._live: Any = None

    def __enter__(self) -> Watch:
        """Begin to look."""
        if not self.quiet and self.pending:
            if sys.stderr.isatty():
                from rich.console import Console
                from rich.live import Live

                console = Console(stderr=True)
                self._live = Live(self._view(), console=console, auto_refresh=False, transient=True)
                self._live.start()
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Look once more, and leave the screen as it was."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()
        if not self.quiet:
            self._look()
        if self._live is not None:
            self._live.stop()

    @property
    def done(self) -> int:
        """How many runs have ended."""
        return self.total - len(self.pending)

    def _follow(self) -> None:
        while not self._end.wait(PERIOD):
            self._look()

    def _look(self) -> None:
        if not self._working and any(owner_of(run.folder) for run in self.pending):
            self._working = True
            self._first = time.monotonic() if self.done == self.already else self._began
        for run in [run for run in self.pending if self.launch.ended(run)]:
            self.pending.remove(run)
            said = self._said(run)
            if self._live is None:
                print(
                    f"[{self.done}/{self.total}] {run.label}: {said}{self._left()}", file=sys.stderr
                )
        if self._live is not None:
            self._live.update(self._view(), refresh=True)
            return
        for run in [run for run in self.pending if run.identity in self.launch.elsewhere]:
            if run.identity not in self._told:
                self._told.add(run.identity)
                who = owner_of(run.folder) or "another process"
                print(f"{run.label}: elsewhere ({who})", file=sys.stderr)

    def _said(self, run: Run) -> str:
        """How a run ended, in a few words."""
        result = read_result(run.folder)
        if result is None:
            report = self.launch.reports.get(run.identity)
            said = f"{report.status}: {report.error}" if report else "no result"
        elif result["status"] == "finished":
            seconds = result["metrics"].get("seconds/fit") or spent(result["metrics"])
            return f"finished in {seconds:.1f} s" if seconds else "finished"
        else:
            said = f"{result['status']}: {result.get('error', '')}"
        self.trouble += 1
        return said

    def _left(self) -> str:
        """Time left, if what is to come takes as long for its cost as what has ended.

        Until a run has ended, what runs of earlier sweeps took is all that is known.
        """
        left = self.costs.total(self.pending)
        spent = self._all - left
        if self.done > self.already and spent:
            seconds = (time.monotonic() - self._first) / spent * left
        elif self.costs.measured and self.at_once:
            seconds = left / min(self.at_once, len(self.pending) or 1)
        else:
            return ""
        return f", {clock(seconds)} left" if self.pending else ""

    def _view(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        head = Table.grid(padding=(0, 1))
        trouble = Text(f"{self.trouble} not finished", style="red") if self.trouble else Text("")
        spent = clock(time.monotonic() - self._began)
        head.add_row(
            ProgressBar(total=self.total, completed=self.done, width=30),
            f"{self.done}/{self.total} runs",
            f"{spent}{self._left()}",
            trouble,
        )
        running = [run for run in self.pending if owner_of(run.folder)]
        rows = Table.grid(padding=(0, 2))
        for run in running[:SHOWN]:
            doing = f"epoch {_epochs(run)}/{run.epochs}"
            place = "" if self.launch.owner(run) else f" elsewhere ({owner_of(run.folder)})"
            rows.add_row(f"  {run.label}", Text(doing + place, style="dim"))
        if len(running) > SHOWN:
            rows.add_row(f"  and {len(running) - SHOWN} more", "")
        return Group(head, rows)


def clock(seconds: float) -> str:
    """A duration as one reads it: ``48 s``, ``3:05 min``, ``2:10 h``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


def _epochs(run: Run) -> int:
    """Epochs that a run has behind it: the rows of its metrics."""
    try:
        return max((run.folder / "metrics.csv").read_bytes().count(b"\n") - 1, 0)
    except OSError:
        return 0
