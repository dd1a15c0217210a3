"""Hydra's and OmegaConf's errors, said in one line with the nearest valid name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from sparsebench.config.paths import config_folder
from sparsebench.config.rules import allowed, group_of, keys, nearest_key
from sparsebench.config.schema import BASES, OPEN
from sparsebench.errors import UserError, bad_value, nearest

_BASE_60 = "YAML reads 2:4 as the number 124 (base 60)"
_NM = "N:M is written structure=2_4, or structure=nm structure.n=2 structure.m=4 for any N and M"


def refusal(error: BaseException, overrides: Sequence[str] = ()) -> UserError | None:
    """The user's mistake that an exception stands for, or None if it is not one.

    Args:
        error: what Hydra or OmegaConf raised.
        overrides: the words of the command line, for errors that do not name theirs.
    """
    if isinstance(error, YAMLError):
        return UserError(f"a config can't be read: {error}")
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return _no_option(overrides) if isinstance(error, ValueError | TypeError) else None
    if isinstance(error, OverrideParseException):
        return UserError(f"override '{error.override}' can't be read: {_first_line(error)}")
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _missing_option(str(error.missing_cfg_file), error.options or ())
    text = _chain(error)
    if match := re.search(r"(?:Ambiguous value for argument|Sweep parameters) '(.*?)' ?", text):
        return UserError(f"{match[1]}: several values make a sweep, which needs -m")
    if match := re.search(r"Could not append to config\. An item is already at '([^']*)'", text):
        return UserError(f"+{match[1]}: the key is there already; write it without '+'")
    if match := re.search(r"Could not override '([^']*)'|Key '([^']*)' (?:is )?not in '?\w+", text):
        return _unknown_key(_full_key(text) or match[1] or match[2], text)
    if match := re.search(r"Could not delete from config\. '([^']*)' does not exist", text):
        return _unknown_key(match[1], text)
    if match := re.search(r"is not a subclass of (\w+)\. value: (.*)", text):
        group = group_of(match[1])
        return bad_value(
            group, match[2], f"{_BASE_60}; {_NM}" if group == "structure" else allowed(group)
        )
    if key := _full_key(text):
        return _wrong_value(key, text)
    return UserError(_first_line(error))


def _no_option(overrides: Sequence[str]) -> UserError | None:
    """Hydra fails without a name where a group's option is a number, a list or null."""
    for word in overrides:
        key, equals, value = word.lstrip("+").partition("=")
        if not equals or not (config_folder() / key).is_dir() or not key:
            continue
        if _is_pattern(key, value):
            return UserError(f"{word}: {_NM}")
        if re.fullmatch(r"[\d_]+", value):
            return UserError(
                f"{word}: an option's name is needed, and this is read as the number "
                f"{int(value.strip('_') or 0)}; write \"{key}='{value}'\""
            )
        if not re.fullmatch(r"[\w.,-]+", value) or value.lower() in ("null", "true", "false"):
            return UserError(f"{word}: the name of one option is needed")
    bare = next((word for word in overrides if word.startswith("=")), None)
    return UserError(f"{bare}: a key is needed before '='") if bare else None


def _is_pattern(group: str, option: str) -> bool:
    """Whether someone means N:M; YAML and Hydra read 2:4 and 2_4 as numbers."""
    return group == "structure" and bool(re.fullmatch(r"(nm)?\W*_?\d+([:_]\d+)?\W*", option))


def _missing_option(missing: str, options: Sequence[str]) -> UserError:
    group, _, option = missing.rpartition("/")
    group = group.lstrip("+")
    if _is_pattern(group, option):
        return UserError(f"{group}={option}: {_NM}")
    if not group:
        near = nearest(missing, keys())
        hint = f"; did you mean '{near}'?" if near else ""
        return UserError(f"{missing}: there is no config of this name{hint}")
    names = [name.rpartition("/")[2] for name in options]
    names = [name for name in names if name not in BASES]
    there = f"there are {', '.join(names)}" if names else "there are none"
    return bad_value(group, option, f"no such option; {there}", names)


def _unknown_key(key: str, text: str) -> UserError:
    value = re.search(rf"{re.escape(key)}=(\S+)", text)
    if value and (config_folder() / key).is_dir():
        return UserError(f"{key}={value[1]}: this group is added to a run, by +{key}={value[1]}")
    if key.rpartition(".")[0] in OPEN:
        return UserError(f"{key}: is a key of your own, to be added by +{key}=...")
    near = nearest_key(key)
    hint = f"; did you mean '{near}'?" if near else ""
    given = f"={value[1]}" if value else ""
    return UserError(f"{key}{given}: there is no key '{key}'{hint}")


def _wrong_value(key: str, text: str) -> UserError:
    """A value of the wrong type: what was given is in the override or in OmegaConf's words."""
    override = re.search(rf"override \S*?{re.escape(key)}=(.*)", text)
    value = override or re.search(r"Value '(.*?)'", text)
    if "Missing mandatory value" in text:
        return UserError(f"{key}: a value is needed")
    if "Interpolation" in text:
        return UserError(f"{key}: {_first_line(text)}")
    if "does not support deletion" in text:
        return UserError(f"~{key}: the key can't be left out; {allowed(key)}")
    return bad_value(key, value[1] if value else "?", allowed(key))


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
