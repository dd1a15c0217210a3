"""Hydra's and OmegaConf's errors, said in one line with the nearest valid name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from sparsebench.config.paths import config_files, config_folder
from sparsebench.config.schema import Config
from sparsebench.errors import UserError, bad_value, nearest


def refusal(error: BaseException) -> UserError | None:
    """The user's mistake that an exception stands for, or None if it is not one."""
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return None
    if isinstance(error, OverrideParseException):
        return UserError(f"override '{error.override}' can't be read: {_first_line(error)}")
    text = _chain(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _missing_option(str(error.missing_cfg_file))
    if match := re.search(r"Could not override '([^']*)'|Key '([^']*)' (?:is )?not in '?\w+", text):
        return _unknown_key(_full_key(text) or match[1] or match[2], text)
    if match := re.search(r"Value '(.*?)'(?: \(?of type '\w+'\)?| of type '\w+')? (?:could not|is not)", text):
        return _wrong_type(match[1], text)
    return UserError(_first_line(error))


def keys() -> list[str]:
    """All keys of the schema, and the names of groups."""
    return list(_keys(Config))


def _keys(kind: type, prefix: str = "") -> Iterator[str]:
    for spec in fields(kind):
        yield f"{prefix}{spec.name}"
        default = spec.default_factory() if callable(spec.default_factory) else None
        if is_dataclass(default):
            yield from _keys(type(default), f"{prefix}{spec.name}.")


def _missing_option(missing: str) -> UserError:
    group, _, option = missing.rpartition("/")
    group = group.lstrip("+")
    if not group or not (Path(config_folder()) / group).is_dir():
        return UserError(f"{missing}: there is no config of this name")
    names = config_files(group)
    return bad_value(group, option, f"no such option; there are {', '.join(names)}", names)


def _unknown_key(key: str, text: str) -> UserError:
    value = re.search(rf"{re.escape(key)}=(\S+)", text)
    near = _nearest_key(key)
    hint = f"; did you mean '{near}'?" if near else ""
    given = f"={value[1]}" if value else ""
    return UserError(f"{key}{given}: there is no key '{key}'{hint}")


def _nearest_key(key: str) -> str | None:
    """A key that differs in its last part only is nearer than one of another group."""
    group, _, name = key.rpartition(".")
    siblings = [k for k in keys() if k.rpartition(".")[0] == group]
    found = nearest(name, [k.rpartition(".")[2] for k in siblings])
    return f"{group}.{found}".lstrip(".") if found else nearest(key, keys())


def _wrong_type(value: str, text: str) -> UserError:
    key = _full_key(text) or "a key"
    wanted = re.search(r"(?:converted to|not a valid|not convertible to) '?([\w\[\] ,.]+?)'?(?:\s|$)", text)
    return bad_value(key, value, f"a value of type {wanted[1].strip() if wanted else 'another kind'} is needed")


def _full_key(text: str) -> str | None:
    match = re.search(r"full_key: (\S+)", text)
    return match[1] if match else None


def _chain(error: BaseException | None) -> str:
    parts = []
    while error is not None:
        parts.append(str(error))
        error = error.__cause__
    return "\n".join(parts)


def _first_line(error: Any) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
