"""Pages of methods that prune a trained network and train nothing: those of another base."""

from __future__ import annotations

import inspect
from dataclasses import fields
from functools import cache
from typing import Any

import verdicts
import yaml
from hydra.core.config_store import ConfigStore
from marks import HEAD, about, dial, plain, task_said, usual
from marks import yaml as as_yaml
from omegaconf import OmegaConf

from sparsebench.config.paths import config_files, config_folder
from sparsebench.config.schema import register

TITLE = "After training, of a network that is given"


@cache
def said(name: str) -> tuple[str, dict[str, Any]]:
    """The base that a method's YAML is made from in the end, and all that is said on the way."""
    path = config_folder() / "method" / f"{name}.yaml"
    if not path.is_file():
        return name, {}
    values = yaml.safe_load(path.read_text())
    above, *_ = values.pop("defaults", [""])
    base, before = said(above)
    return base, {**before, **values}


@cache
def names() -> list[str]:
    """Methods that are not composed of the parts of training, nor a class of their own."""
    return [name for name in config_files("method") if said(name)[0] not in ("composed", "")]


def spec_of(base: str) -> type:
    """The dataclass behind a base."""
    register()
    found = OmegaConf.get_type(ConfigStore.instance().load(f"method/{base}.yaml").node)
    assert found is not None
    return found


def page(name: str) -> str:
    """The page of a method."""
    base, values = said(name)
    spec = spec_of(base)
    line = command(name)
    changed = [one for one in fields(spec) if one.name in values and one.name != "name"]
    rows = [dial(f"method.{one.name}", values[one.name], usual(one), one) for one in changed]
    rows = [row for one, row in zip(changed, rows, strict=True) if values[one.name] != usual(one)]
    parts = [one for one in fields(spec) if "names" in one.metadata]
    return "\n".join(
        (
            f"# {name}\n\n{plain(about(name))}\n",
            f"## What it does\n\n{inspect.getdoc(spec)}\n",
            "## When to use it\n\nWhen a network is trained already and there is no time, or no "
            f"data, to train it again: `task={task_said(name)}`.\n",
            "## Cost\n\nNothing is trained: the cost is to run the network on the data that layers "
            "are judged by, once.\n",
            "## Parts\n\n"
            + "".join(
                f"- `{one.name}`: `{as_yaml(values.get(one.name, usual(one)))}`, "
                f"{one.metadata['doc']} (one of {', '.join(one.metadata['names'])})\n"
                for one in parts
            ),
            "## Defaults\n\n"
            + (HEAD + "".join(rows) if rows else "All dials stand at the usual defaults.\n")
            + f"\n[All other dials](../config.md#method-{base}) stand at their defaults.\n",
            f"## Run it\n\n```bash\nsparsebench {' '.join(line)}\nsparsebench --cfg job "
            f"{' '.join(line)}\n```\n",
            f"## Verdicts so far\n\n{verdicts.section(name)}",
        )
    )


def command(name: str) -> list[str]:
    """The overrides of a run of the method."""
    share = "method.compression=0.3" if said(name)[0] == "factoriser" else "sparsity=0.5"
    return [f"task={task_said(name)}", f"method={name}", share]
