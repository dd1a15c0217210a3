"""Lengths of time as one type: ``30ep``, ``5000it``, ``75%`` (of training)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sparsebench.errors import bad_value

_FORM = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ep|it|%)\s*")
ALLOWED = "a time is written 30ep (epochs), 5000it (optimizer steps) or 75% (of training)"


@dataclass(frozen=True)
class Duration:
    """A length of training time.

    Attributes:
        value: the number.
        unit: ``ep`` (epochs), ``it`` (optimizer steps) or ``%`` (of all steps).
    """

    value: float
    unit: str

    @classmethod
    def parse(cls, text: object, key: str) -> Duration:
        """Read ``30ep``, ``5000it`` or ``75%``.

        Raises:
            UserError: another form, or steps that are not whole.
        """
        match = _FORM.fullmatch(str(text))
        if not match:
            raise bad_value(key, text, ALLOWED)
        value, unit = float(match[1]), match[2]
        if unit == "it" and value != int(value):
            raise bad_value(key, text, "optimizer steps are whole numbers")
        if unit == "%" and value > 100:
            raise bad_value(key, text, "at most 100% of training")
        return cls(value, unit)

    def steps(self, total_steps: int, steps_per_epoch: int) -> int:
        """The length in optimizer steps, rounded to the nearest."""
        scale = {"it": 1.0, "ep": steps_per_epoch, "%": total_steps / 100}[self.unit]
        return round(self.value * scale)
