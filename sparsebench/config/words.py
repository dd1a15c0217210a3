"""Words of the command line, as people write them and as Hydra reads them."""

from __future__ import annotations

import re

from sparsebench.config.paths import config_files


def spelled(word: str) -> str:
    """An override with each N:M pattern under its name: ``structure=2:4`` is ``nm_2_4``.

    To YAML 2:4 is the number 124 (base 60), and to Hydra 2_4 is 24. A pattern that is no option
    stays as it is.
    """
    key, equals, value = word.partition("=")
    if not equals or key.lstrip("+") != "structure":
        return word
    return f"{key}={','.join(map(option, value.split(',')))}"


def option(value: str) -> str:
    """The structure that someone means by ``2:4`` or ``2_4``; any other name as it is."""
    match = re.fullmatch(r"(['\"]?)(\d+)[:_](\d+)\1", value)
    name = f"nm_{match[2]}_{match[3]}" if match else value
    return name if name in config_files("structure") else value
