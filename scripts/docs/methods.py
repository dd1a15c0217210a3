"""One page for each method of ``configs/method``, and their overview, drawn from the code."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from functools import cache
from importlib import import_module
from typing import Any

import cost
import pruners
import verdicts
from marks import HEAD, about, dial, may_be, plain, row, task_said, usual, yaml
from parts import GENERAL, ROLES, first_line, link, object_of, pages_of

from sparsebench import library
from sparsebench.config.paths import config_files
from sparsebench.sparsity.composed import Composed
from sparsebench.sparsity.kind import Kind, kind_of
from sparsebench.sparsity.spec import MethodSpec

_SOURCE = re.compile(r"arXiv:? ?\d{4}\.\d{4,5}|openreview \w+|doi\.org/\S+")
_BARE = "\n    options: {members: false, show_root_heading: false, show_root_toc_entry: false}\n"
#: How kinds are called, in the order of the pages.
GROUPS = {
    ("never", "dense"): "No sparsity (controls)",
    ("before", "sparse"): "Before training",
    ("during", "sparse"): "During training, from a sparse network",
    ("during", "dense"): "During training, from a dense network",
    ("during", "dense weights kept"): "During training, dense weights kept",
    ("after", "dense"): "After training",
}


@cache
def names() -> list[str]:
    """All methods that train, or are trained beside."""
    return [name for name in config_files("method") if name not in pruners.names()]


@cache
def built(name: str) -> Composed:
    """The method as its YAML says."""
    return library.method(name)


@cache
def kind(name: str) -> Kind:
    """Its kind."""
    return kind_of(built(name))


def groups() -> dict[str, list[str]]:
    """Methods by the group of their kind; a kind without a group of its own comes last."""
    found: dict[str, list[str]] = {title: [] for title in GROUPS.values()}
    for name in names():
        where = (kind(name).when, kind(name).start)
        title = GROUPS.get(where, f"{where[0].capitalize()} training, {where[1]}")
        found.setdefault(title, []).append(name)
    found[pruners.TITLE] = pruners.names()
    return {title: members for title, members in found.items() if members}


def overview() -> str:
    """The page of all methods: what a fair comparison must know of each."""
    text = (
        "# Methods\n\nMethods may be compared as equals within one kind (Ten Lessons, arXiv "
        "2302.02596): when weights go, from what network training starts, whether absent ones may "
        "come back, and how often the gradient of absent weights is computed. FLOPs are shares of "
        f"dense training and inference, counted for {cost.SETTING}, at 90 % or the sparsity of the "
        "pattern.\n"
    )
    for title, members in groups().items():
        text += f"\n## {title}\n\n| method | masks | pattern | dense gradient | training FLOPs | "
        text += "inference FLOPs | what |\n" + "| --- " * 7 + "|\n"
        for name in members:
            if name in pruners.names():
                text += row((f"[`{name}`]({name}.md)", *["-"] * 5, about(name)))
                continue
            known, flops = kind(name), cost.cost(name)
            shares = (f"{flops.training:.2f}", f"{flops.inference:.2f}") if flops else ("-", "-")
            text += row(
                (f"[`{name}`]({name}.md)", known.masks, known.pattern, known.dense_gradient)
                + (*shares, about(name))
            )
    return text


def page(name: str) -> str:
    """The page of a method.

    Raises:
        ValueError: the file of its engine names no paper.
    """
    if name in pruners.names():
        return pruners.page(name)
    method, known = built(name), kind(name)
    return "\n".join(
        (
            f"# {name}\n\n{plain(about(name))}\n",
            _at_a_glance(known),
            f"## What it does\n\n{_what(name, method)}",
            f"## When to use it\n\n{_when_to_use(name, method, known)}",
            f"## Cost\n\n{cost.section(name, method, known.dense_gradient)}",
            f"## Parts\n\n{_parts(method)}",
            f"## Defaults\n\n{_dials(method)}",
            f"## Run it\n\n{_run(name, method)}",
            f"## Verdicts so far\n\n{verdicts.section(name)}",
        )
    )


def _at_a_glance(known: Kind) -> str:
    titles = ("weights go", "training starts from", "masks", "pattern", "dense gradient")
    values = (known.when, known.start, known.masks, known.pattern, known.dense_gradient)
    if known.when != "never":
        values = (f"{known.when} training", *values[1:])
    return row(titles) + "| --- " * 5 + "|\n" + row(values)


# --- what it does -------------------------------------------------------------------------------


def _what(name: str, method: Composed) -> str:
    """Docstrings of the engine, and of parts that have a file to themselves."""
    engine = type(method)
    if engine is Composed:
        texts = [_in_words(method)]
    else:  # which may do otherwise than the dials say
        check_source(engine)
        texts = [f"::: {engine.__module__}{_BARE}"]
    for module in _special(method):
        if module != engine.__module__:
            texts.append(f"::: {module}{_BARE}")
    return "\n".join(texts)


def check_source(engine: type) -> None:
    """Refuse an engine whose file names no paper.

    Raises:
        ValueError: naming the file.
    """
    text = inspect.getdoc(inspect.getmodule(engine)) or ""
    if not _SOURCE.search(text):
        raise ValueError(f"{engine.__module__}: its docstring must name the source (arXiv id)")


def _special(method: Composed) -> list[str]:
    """Modules of parts whose docstring tells more than the part's own line."""
    modules = [object_of(part, key).__module__ for _, key, part in _used(method)]
    if method.spec.rewind != "none":
        modules.append("sparsebench.sparsity.methods.imp")
    return [
        module
        for module in dict.fromkeys(modules)
        if module not in GENERAL and "\n\n" in (inspect.getdoc(import_module(module)) or "")
    ]


def _in_words(method: Composed) -> str:
    """The course of a training, from the dials."""
    spec = method.spec
    if spec.shrink:
        return "All hidden widths shrink until the network has as many weights as asked.\n"
    if not spec.sparse:
        return "Nothing is removed.\n"
    first = "all weights" if spec.initial == "dense" else _shown("INITIAL", spec.initial)
    lines = [f"Training starts with {first}" + ("." if first == "all weights" else _first(spec))]
    if spec.sparsity_schedule != "constant":
        which = _shown("SPARSITY_SCHEDULES", spec.sparsity_schedule)
        start = f" from {spec.initial_sparsity:.0%}" if spec.initial_sparsity else ""
        lines.append(
            f"Sparsity follows {which}{start}, from {spec.begin} to {spec.sparsity_end or spec.end}"
            f" of training; {_shown('SCORES', spec.prune)} decides what stays"
            + (", over all layers together." if spec.scope == "global" else ", in each layer.")
        )
    elif spec.storage != "zeroed":
        lines.append(
            f"Every {spec.every} the masks are chosen anew among all weights, by "
            f"{_shown('SCORES', spec.prune)}."
        )
    if spec.drop and spec.grow:
        lines.append(
            f"Every {spec.every}, until {spec.end} of training, {spec.drop_fraction:.0%} of the "
            f"connections ({_shown('DROP_SCHEDULES', spec.drop_schedule)} over time) go by "
            f"{_shown('SCORES', spec.drop)} and as many come by {_shown('GROWERS', spec.grow)}."
        )
    if spec.also:
        lines.append(
            f"{spec.also_share:.0%} of what goes is chosen by {_shown('SCORES', spec.also)}."
        )
    return "- " + "\n- ".join(lines) + "\n"


def _first(spec: MethodSpec) -> str:
    where = ", over all layers together" if spec.initial_scope == "global" else ", in each layer"
    rounds = f", in {spec.initial_rounds} rounds" if spec.initial_rounds > 1 else ""
    shuffled = "; of these the counts of layers only, at random places" * spec.initial_shuffle
    return f" as first connections{where}{rounds}{shuffled}."


def _shown(registered: str, name: str) -> str:
    return link(name, registered)


# --- when to use it -----------------------------------------------------------------------------

_WHEN = {
    "never": "As a control, in the same code and on the same schedule as the methods beside it.",
    "before": "When the topology must be known before training and never change, and as the "
    "baseline that a dynamic method has to beat.",
    "after": "When a dense network is trained anyway, or there is time to train more than once, "
    "and the final network is what counts.",
}
_DURING = {
    "sparse": "When training itself should be cheap: the network is sparse from the first step on, "
    "and connections move while it trains.",
    "dense": "When only the final network has to be small: training starts dense and becomes "
    "cheaper as weights go.",
    "dense weights kept": "When inference has to be sparse and training may hold all weights: "
    "absent ones keep a value, so that a wrong choice can be taken back.",
}
_PATTERN = {
    "nm": "Where hardware runs N:M patterns.",
    "block": "Where kernels work on blocks.",
    "fan_in": "Where kernels want rows of equal length.",
    "channel": "Where no sparse kernel is at hand: whole channels go, and what is left is dense.",
}


def _when_to_use(name: str, method: Composed, known: Kind) -> str:
    lines = [_WHEN[known.when] if known.when in _WHEN else _DURING[known.start]]
    if pattern := _PATTERN.get(method.pattern.name):
        lines.append(pattern)
    if known.dense_gradient == "each step" and known.when != "never":
        lines.append(
            "Not to save computing in the backward pass: it takes the gradient of all weights in "
            "each step."
        )
    if task := task_of(name):
        lines.append(f"It is made for `task={task}`.")
    alike = [n for n in names() if kind(n) == known and n != name]
    if alike:
        shown = ", ".join(f"[`{n}`]({n}.md)" for n in alike)
        lines.append(f"Compare it, as an equal, with methods of its kind: {shown}.")
    else:
        lines.append("No other method here is of its kind.")
    return "- " + "\n- ".join(lines) + "\n"


def task_of(name: str) -> str | None:
    """The task that it is for, if it is for one: its YAML or all tables that judge it say so."""
    if said := task_said(name):
        return said
    judged = [
        table
        for table in verdicts.tables().values()
        if any(claim.get("method") == name for claim in table.get("claims") or [])
    ]
    tasks = {
        next((o.partition("=")[2] for o in _overrides(t) if o.startswith("task=")), None)
        for t in judged
    }
    return tasks.pop() if len(tasks) == 1 else None


def _overrides(table: dict[str, Any]) -> list[str]:
    return [str(entry) for entry in table.get("overrides") or []]


# --- parts, dials, command ----------------------------------------------------------------------


def _used(method: Composed) -> list[tuple[str, str, str]]:
    """Of each part: its role, the registry it is in, and its name."""
    spec = method.spec
    dials = {dial: getattr(spec, dial, None) for dial in ROLES}
    dials |= {"distribution": method.distribution.name, "structure": method.pattern.name}
    if not spec.drop:
        dials["drop_schedule"] = None
    if not spec.sparse or spec.shrink:
        dials = dict.fromkeys(dials)
    elif spec.sparsity_schedule == "constant" and spec.storage == "zeroed":
        dials["prune"] = None
    used = [(dial, ROLES[dial], part) for dial, part in dials.items() if part]
    observers = [("observer", "OBSERVERS", name) for name in method.observers if dials["initial"]]
    return [use for use in used if pages_of(use[1], use[2])] + observers


def _parts(method: Composed) -> str:
    rows = [
        (f"`{role}`", link(part, key), first_line(part, key)) for role, key, part in _used(method)
    ]
    if not rows:
        return "None.\n"
    if type(method) is not Composed:
        rows.insert(
            0,
            (
                "`engine`",
                link(method.spec.engine, "ENGINES"),
                first_line(method.spec.engine, "ENGINES"),
            ),
        )
    return "| role | part | what |\n| --- | --- | --- |\n" + "".join(map(row, rows))


def _dials(method: Composed) -> str:
    """Where the method differs from the defaults of a combination of parts."""
    text = ""
    for group, given in (
        ("method", method.spec),
        ("distribution", method.distribution),
        ("structure", method.pattern),
    ):
        for one in fields(given):
            value, named = getattr(given, one.name), one.name == "name"
            beside = group == "method" and one.name in ("name", "engine", "options")
            if value != usual(one) and not beside:
                key = group if named else f"{group}.{one.name}"
                text += dial(key, value, usual(one), one)
    text = HEAD + text if text else "All dials stand at the usual defaults.\n"
    if fields(method.Options):
        text += "\nOptions of its own:\n\n" + row(("option", "default", "may be", "what"))
        text += "| --- " * 4 + "|\n"
    for one in fields(method.Options):
        said = (f"`method.options.{one.name}`", f"`{yaml(getattr(method.options, one.name))}`")
        text += row((*said, may_be(one), one.metadata.get("doc", "")))
    return text + "\n[All other dials](../config.md#method) stand at their defaults.\n"


def command(name: str) -> list[str]:
    """The overrides of a run of the method, small enough to write down."""
    if name in pruners.names():
        return pruners.command(name)
    method, task = built(name), task_of(name)
    words_ = [f"task={task}"] if task else ["model=resnet20", "data=cifar10"]
    fixed = method.pattern.name == "nm" or kind(name).when == "never" and not method.spec.shrink
    return [*words_, f"method={name}", *([] if fixed else ["sparsity=0.9"])]


def _run(name: str, method: Composed) -> str:
    line = " ".join(command(name))
    here = [d for d in ("drop_fraction", "every") if getattr(method.spec, d) and method.spec.drop]
    dials = f" {' '.join(f'method.{d}={getattr(method.spec, d)}' for d in here)}" if here else ""
    fixed = "sparsity=0.9" not in line
    return (
        f"```bash\nsparsebench {line}\nsparsebench {line}{dials} seed=1\n"
        f"sparsebench --cfg job method={name}\n```\n\n"
        f"```python\nfrom sparsebench import Sparsify, library\n\n"
        f"callback = Sparsify(library.method({name!r}{'' if fixed else ', sparsity=0.9'}))\n```\n"
    )
