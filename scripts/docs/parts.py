"""The page of all parts that methods are composed of, drawn from the registry."""

from __future__ import annotations

import inspect
from typing import Any

from docstrings import sentence
from marks import plain

from sparsebench.sparsity import registry

_HERE = "sparsebench.sparsity."
#: Dials of a method that name a part, and the registry that knows it.
ROLES = {
    "initial": "INITIAL",
    "sparsity_schedule": "SPARSITY_SCHEDULES",
    "prune": "SCORES",
    "also": "SCORES",
    "drop": "SCORES",
    "grow": "GROWERS",
    "drop_schedule": "DROP_SCHEDULES",
    "redistribute": "SHARES",
    "grown": "GROWN",
    "distribution": "DISTRIBUTIONS",
    "structure": "STRUCTURES",
}
#: Modules of many parts, whose docstring is about no one of them.
GENERAL = {
    _HERE + name
    for name in (
        "scores", "observers", "schedules", "shares", "distributions", "structure", "grown",
        "blocks", "composed",
    )
}  # fmt: skip
#: Each section of the page: registry, title, how a part is named in a config, what it is.
SECTIONS = {
    "SCORES": ("Scores", "`method.prune`, `method.drop`, `method.grow`, `method.also`, "
               "`method.initial`", "What is worth keeping or growing: of a `Layer` a number for "
               "each weight, higher is better."),
    "GROWERS": ("Growers", "`method.grow`", "Any score, and these, which only choose among absent "
                "weights."),
    "INITIAL": ("First masks", "`method.initial`", "Any score, `dense`, and these, which place the "
                "masks of all layers themselves."),
    "GROWN": ("Values of new connections", "`method.grown`", "Beside `zero`."),
    "SHARES": ("Shares of layers in growth", "`method.redistribute`", "How many of the new "
               "connections each layer gets."),
    "SPARSITY_SCHEDULES": ("Sparsity schedules", "`method.sparsity_schedule`",
                           "The sparsity over the update window."),
    "DROP_SCHEDULES": ("Drop schedules", "`method.drop_schedule`", "The drop fraction over the "
                       "update window."),
    "DISTRIBUTIONS": ("Distributions", "`distribution`", "How much each layer keeps; counts are "
                      "exact."),
    "STRUCTURES": ("Structures", "`structure`", "Which patterns of zeros are allowed."),
    "OBSERVERS": ("Observers", "`@needs(name)` on a score", "What a score looks at beside the "
                  "weights, and who gathers it."),
    "ENGINES": ("Engines", "`method.engine`", "Methods that are more than a combination of parts; "
                "all but the first are told on the pages of their methods."),
}  # fmt: skip
#: Classes that one's own are built on, and that are shown with their members.
_BUILT_ON = (_HERE + "composed.Composed", _HERE + "structure.Unstructured")
_SHORT = "\n    options: {members: false, heading_level: 3}\n"


def object_of(part: str, key: str) -> Any:
    """The function or class that a name stands for."""
    return registry.find(part, getattr(registry, key), key)


def pages_of(key: str, part: str) -> bool:
    """Whether a name stands for an object; ``dense`` and ``zero`` are words only."""
    return bool(getattr(registry, key).get(part))


def path(part: str, key: str) -> str:
    """Where an object is written, which is its place in the reference."""
    found = object_of(part, key)
    return f"{found.__module__}.{found.__qualname__}"


def link(part: str, key: str) -> str:
    """A link to a part, as Markdown."""
    return f"[`{part}`][{path(part, key)}]" if pages_of(key, part) else f"`{part}`"


def first_line(part: str, key: str) -> str:
    """What a part is, in a sentence."""
    return sentence(inspect.getdoc(object_of(part, key)) or "")


def page() -> str:
    """The page; an object that several registries know is shown once, with all its names."""
    text = (
        "# Parts\n\nA method is a combination of these. Each is a name in a YAML; one of your own "
        "is given by its import path (`method.grow=my_package.scores.curvature "
        "allow=[my_package]`). [How to write one](extend.md).\n"
    )
    shown: set[str] = set()
    for key, (title, dial, what) in SECTIONS.items():
        text += f"\n## {title}\n\n{what} Given as {dial}.\n\n"
        fresh = {
            name: path(name, key)
            for name in getattr(registry, key)
            if pages_of(key, name) and path(name, key) not in shown
        }
        text += "".join(f"- `{name}`: {_said(name, key, where)}\n" for name, where in fresh.items())
        for where in dict.fromkeys(fresh.values()):
            if where not in shown:
                text += f"\n::: {where}{'' if where in _BUILT_ON else _SHORT}\n"
                shown.add(where)
    return text + _files(shown)


def _said(name: str, key: str, where: str) -> str:
    return f"[{where.removeprefix(_HERE)}][{where}]. {plain(first_line(name, key))}"


def _files(shown: set[str]) -> str:
    """Docstrings of the files that have a source or an equation to tell."""
    modules = dict.fromkeys(where.rpartition(".")[0] for where in sorted(shown))
    text = "\n## Files of parts\n\nWhat a file says of its parts together.\n"
    for module in modules:
        text += f"\n::: {module}{_SHORT}"
    return text
