"""The errors that end a run on purpose; the command line turns each into one line."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user asked for: one clear line, exit code 2, nothing written."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def bad_value(key: str, given: object, allowed: str, names: Iterable[str] = ()) -> UserError:
    """The one sentence every refused value gets.

    Args:
        key: config key as the user would override it, such as ``method.drop_fraction``.
        given: what was given.
        allowed: what is allowed, in words.
        names: valid names; the nearest to ``given`` is proposed if one is close.

    Returns:
        The error, to be raised by the caller.
    """
    near = nearest(str(given), names)
    hint = f"; did you mean '{near}'?" if near else ""
    return UserError(f"{key}={given}: {allowed}{hint}")


def nearest(given: str, names: Iterable[str]) -> str | None:
    """The valid name closest to ``given``, or None if none is close."""
    found = difflib.get_close_matches(given, list(names), n=1, cutoff=0.6)
    return found[0] if found and found[0] != given else None


class Diverged(RuntimeError):
    """The loss became NaN or infinite; the run is recorded as diverged and not asked again."""

    def __init__(self, step: int, value: float) -> None:
        super().__init__(f"training diverged at step {step}: loss {value}")
        self.step = step


class Interrupted(BaseException):
    """A signal asked the run to stop; what it has written stands, and it can go on.

    Not an ``Exception``: as with KeyboardInterrupt, nobody on the way may take it for a fault.
    """

    def __init__(self, signum: int, step: int | None = None, advice: str = "") -> None:
        at = "" if step is None else f" at step {step}"
        super().__init__(f"interrupted by {signal.Signals(signum).name}{at}{advice}")
        self.signum = signum
        self.step = step
