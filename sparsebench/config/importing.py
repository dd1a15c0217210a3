"""The one place where a name in a config becomes a Python object."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from sparsebench.errors import UserError, nearest

ALLOWED = ("sparsebench", "torch", "torchvision", "timm", "lightning")


def check_allowed(path: str, key: str, allow: Sequence[str] = ()) -> None:
    """Refuse what is no import path, or is in a package that is not on the list.

    Raises:
        UserError: with the key.
    """
    parts = path.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise UserError(f"{key}={path}: an import path is needed, such as my_package.module.Name")
    if parts[0] not in (*ALLOWED, *allow):
        raise UserError(
            f"{key}={path}: package '{parts[0]}' is not allowed to run "
            f"({', '.join((*ALLOWED, *allow))} are); if you trust it, add 'allow=[{parts[0]}]'"
        )


def resolve(path: str, key: str, allow: Sequence[str] = ()) -> object:
    """Import the object that an import path names.

    Only packages on the list may be named, so that a config from a stranger cannot run
    what its reader did not agree to.

    Args:
        path: import path such as ``my_package.nets.Net``.
        key: config key the path stood at, for the message.
        allow: packages the user allows beside those of ``ALLOWED`` (config key ``allow``).

    Returns:
        The class or function.

    Raises:
        UserError: the package is not allowed, or there is nothing of this name.
    """
    check_allowed(path, key, allow)
    module_path, _, name = path.rpartition(".")
    if "" not in sys.path:  # a console script does not look into the folder it is run from
        sys.path.append("")
    try:
        module = importlib.import_module(module_path)
    except ImportError as error:
        raise UserError(f"{key}={path}: cannot import '{module_path}' ({error})") from error
    try:
        return getattr(module, name)
    except AttributeError:
        near = nearest(name, [n for n in vars(module) if not n.startswith("_")])
        hint = f"; did you mean '{near}'?" if near else ""
        raise UserError(f"{key}={path}: '{module_path}' has no '{name}'{hint}") from None
