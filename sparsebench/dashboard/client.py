"""The W&B client, held on a short lead: whatever happens to it, the run goes on."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sparsebench.dashboard.names import init_arguments

#: W&B's own patience in seconds: a server that does not answer must not hold a run up for long.
DEFAULTS = {
    "WANDB_SILENT": "true",
    "WANDB_CONSOLE": "off",
    "WANDB_INIT_TIMEOUT": "20",
    "WANDB_FINISH_TIMEOUT": "60",
    "WANDB_FINISH_TIMEOUT_RAISES": "true",
    # reports of W&B's own errors; a server that hangs would hold the process up by 20 s more
    "WANDB_ERROR_REPORTING": "false",
}
#: Records in a run's folder of what went to a server, and of what did not.
ONLINE, OFFLINE = "wandb/run-*", "wandb/offline-run-*"
#: Why this process has given W&B's server up: waited for once, not at each run of a sweep.
_given_up: list[str] = []


def history(
    rows: Sequence[Mapping[str, Any]], densities: Sequence[Mapping[str, Any]]
) -> list[dict[str, float]]:
    """Rows of ``metrics.csv`` with those of ``density.csv`` as ``density/<layer>``."""
    by_epoch = {int(row["epoch"]): row for row in densities}
    found = []
    for row in rows:
        layers = by_epoch.get(int(row["epoch"]), {})
        values = {**row, **{f"density/{k}": v for k, v in layers.items() if k != "epoch"}}
        found.append({name: float(value) for name, value in values.items()})
    return found


class View:
    """A run in W&B, under the run's identity; offline without an account or a server.

    Attributes:
        offline: whether it is only written beside the run.
        why: the reason, where it was meant to be online; else empty.
    """

    def __init__(self, config: Mapping[str, Any], folder: Path, mode: str) -> None:
        """Open it.

        Args:
            config: the resolved config as plain containers.
            folder: the run's folder; its name is its identity.
            mode: ``auto``, ``online``, ``offline`` or ``disabled``.
        """
        for name, value in DEFAULTS.items():
            os.environ.setdefault(name, value)
        import wandb

        mode, self.why = _mode(mode)
        arguments = init_arguments(config, folder.name)
        before = set(folder.glob(ONLINE))
        try:
            self._run = _open(arguments, folder, mode)
        except Exception as error:  # wandb raises many kinds, and tells us by text only
            if mode != "online":
                raise
            mode, self.why = "offline", first_line(error)
            _given_up.append(self.why)
            # W&B's service goes on believing that a run of this id is open: another one is needed,
            # of our own, should this process have its parent's
            wandb.teardown()
            os.environ.pop("WANDB_SERVICE", None)
            for empty in set(folder.glob(ONLINE)) - before:
                shutil.rmtree(empty, ignore_errors=True)
            self._run = _open(arguments, folder, mode)
        self.offline = mode == "offline"
        self._folder = folder
        self._record = Path(self._run.dir).parent  # its files are beside its record
        self._next = self._run.starting_step  # beyond the last that W&B has, where it resumes
        # no row may enter the summary by itself: that is exactly the result's metrics
        self._run.define_metric("*", step_metric="step", summary="none")

    @property
    def upload(self) -> str:
        """The command that uploads what is on the disk.

        ``wandb sync`` adds a record to what W&B has of the run, without looking: a second one
        of the same run would be there twice.
        """
        if any(self._folder.glob("wandb/*/*.synced")) or any(self._folder.glob(ONLINE)):
            return f"sparsebench push {_quoted(self._folder)}"
        return f"wandb sync {_quoted(self._record)}"

    @property
    def url(self) -> str | None:
        """Where it can be seen."""
        return None if self.offline else self._run.url

    def log(self, rows: Iterable[Mapping[str, float]]) -> int:
        """Log the rows that W&B does not have yet; returns how many.

        A row's place in W&B is its step, so that nothing is there twice.
        """
        sent = 0
        for row in rows:
            if row["step"] >= self._next:
                self._run.log(_undotted(row), step=int(row["step"]), commit=True)
                self._next, sent = int(row["step"]) + 1, sent + 1
        return sent

    def close(self, summary: Mapping[str, Any], failed: bool) -> None:
        """End it, with the metrics of ``result.json`` as its summary.

        Records of the run from before, which this one repeats, are removed: see ``upload``.

        Raises:
            TimeoutError: the server did not take everything in time; the disk has it.
        """
        self._run.summary.update({name: _finite(value) for name, value in summary.items()})
        try:
            self._run.finish(exit_code=int(failed))
        except TimeoutError as error:
            _given_up.append("the server takes too long")
            raise TimeoutError(f"not all is uploaded; '{self.upload}' does it") from error
        if self.offline:
            for record in self._folder.glob(OFFLINE):
                if record.name != self._record.name and not any(record.glob("*.synced")):
                    shutil.rmtree(record, ignore_errors=True)


def _undotted(row: Mapping[str, float]) -> dict[str, float]:
    """W&B takes a dot for the way into a dictionary, and forgets what was defined for ``*``."""
    return {name.replace(".", "/"): value for name, value in row.items()}


def _quoted(place: Path) -> str:
    return f'"{place}"' if " " in str(place) else str(place)


def first_line(error: Exception) -> str:
    """What an error says, in a line."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _open(arguments: Mapping[str, Any], folder: Path, mode: Any) -> Any:
    import wandb

    return wandb.init(
        **arguments,
        dir=str(folder),
        mode=mode,
        resume="allow",
        reinit="create_new",  # a sweep opens many runs in one process
    )


def _mode(asked: str) -> tuple[str, str]:
    """Online only with an account and a server that was not given up; and why it is not."""
    mode = asked
    if mode == "auto":
        told = os.environ.get("WANDB_MODE", "")
        known = told in ("online", "offline", "disabled")
        mode = told if known else ("online" if has_account() else "offline")
    if mode == "online" and not has_account():
        return "offline", "no account is known; 'wandb login' changes that"
    if mode == "online" and _given_up:
        return "offline", _given_up[-1]
    return mode, ""


def has_account() -> bool:
    """Whether W&B would find a key without asking."""
    import netrc

    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname
    try:
        return host in netrc.netrc(os.environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        return False


def _finite(value: Any) -> Any:
    """As ``result.json`` has it, where NaN and infinity are null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
