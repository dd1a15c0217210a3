"""What a run over the blocks of a language model says while it works."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable


class Progress:
    """One line on a terminal: what is done, of how much, and the time left."""

    def __init__(self, wanted: bool) -> None:
        """Say nothing where nobody reads it."""
        self.wanted = wanted and sys.stderr.isatty()

    def __call__(self, what: str, done: int, total: int, spent: float) -> None:
        """Say it."""
        if not self.wanted:
            return
        left = spent / done * (total - done)
        end = "\n" if done == total else ""
        print(f"\r{what}: {done}/{total}, {left:.0f} s left ", end=end, file=sys.stderr, flush=True)

    def of(self, what: str) -> Callable[[int, int], None]:
        """Something that begins now, and is told what is done and of how much."""
        begin = time.perf_counter()
        return lambda done, total: self(what, done, total, time.perf_counter() - begin)
