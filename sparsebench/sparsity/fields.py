"""Checks of typed values by the rules in their fields' metadata; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from sparsebench.errors import bad_value
from sparsebench.sparsity.time import ALLOWED, Duration

Options = TypeVar("Options")


def check_fields(values: Any, key: str, kind: Any = None) -> None:
    """Check each field of a dataclass, or of a config node of its shape, by its metadata."""
    for spec in fields(kind or values):
        # a config node's attribute may be a method of dictionaries, such as `update`
        value = values[spec.name] if isinstance(values, Mapping) else getattr(values, spec.name)
        check_field(value, f"{key}.{spec.name}", spec.metadata)


def check_field(value: Any, key: str, rules: Mapping[str, Any]) -> None:
    """Check one value against the rules of its field."""
    if value is None:
        return
    if "range" in rules:
        check_number(key, value, rules["range"])
    if "names" in rules and "." not in str(value) and value not in rules["names"]:
        raise bad_value(key, value, words(rules), rules["names"])
    if "choices" in rules and value not in rules["choices"]:
        raise bad_value(key, value, words(rules), map(str, rules["choices"]))
    if "least" in rules and not (
        type(value) is int and rules["least"] <= value <= rules.get("most", value)
    ):
        raise bad_value(key, value, words(rules))
    if "duration" in rules:
        Duration.parse(value, key)
    if "share" in rules and not (0 <= value <= 1 or (value > 1 and value % 1 == 0)):
        raise bad_value(key, value, words(rules))


def check_number(key: str, value: object, interval: str) -> None:
    """Refuse a number outside an interval such as ``[0, 1)``; NaN is in none."""
    needed = f"a number in {interval} is needed"
    if not isinstance(value, int | float):
        raise bad_value(key, value, needed)
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    if not (above and below):
        percent = f"; did you mean {value / 100:.2f}?" if high == 1 and 2 <= value < 100 else ""
        raise bad_value(key, value, needed + percent)


def read_options(kind: type[Options], given: Mapping[str, Any], key: str) -> Options:
    """The typed options of a part, from what a config gives.

    Args:
        kind: dataclass of the options, with rules in its fields' metadata.
        given: values by name; what is missing stands at its default.
        key: config key of the options, such as ``method.options``.

    Raises:
        UserError: an option that does not exist, or a value that is not allowed.
    """
    known = {spec.name: spec for spec in fields(kind)}  # type: ignore[arg-type]  # a dataclass
    for name, value in given.items():
        if name not in known:
            allowed = f"no such option; there are: {', '.join(known) or 'none'}"
            raise bad_value(f"{key}.{name}", value, allowed, known)
    options = kind(**given)
    check_fields(options, key)
    return options


def words(rules: Mapping[str, Any]) -> str:
    """The sentence for the rules in a field's metadata; empty if it has none."""
    if "range" in rules:
        return f"a number in {rules['range']} is needed"
    if "names" in rules:
        return f"one of {', '.join(rules['names'])}, or the import path of your own"
    if "choices" in rules:
        return f"one of {', '.join(map(str, rules['choices']))}"
    if "most" in rules:
        return f"a whole number from {rules['least']} to {rules['most']} is needed"
    if "least" in rules:
        return f"a whole number of at least {rules['least']} is needed"
    if "share" in rules:
        return "a share up to 1.0, or a whole number of images"
    return ALLOWED if "duration" in rules else ""
