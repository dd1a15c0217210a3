"""What a table may say in its YAML, and what is refused with file and field."""

import pytest
import yaml
from omegaconf import OmegaConf

from sparsebench.config.compose import compose
from sparsebench.config.paths import config_files
from sparsebench.errors import UserError
from sparsebench.sweep.spec import Choice, read_table, seeds_of

GOOD = """
name: mine
title: Mine
scale: quick
seeds: 3
rows: {key: method, values: [set, {value: rigl, label: RigL, overrides: [method.every=5it]}]}
columns: {key: sparsity, values: [0.9]}
"""


def read(text, **changes):
    node = OmegaConf.create({**yaml.safe_load(text), **changes})
    return read_table(node, "table/mine.yaml")


def test_bare_values_and_labels():
    spec = read(GOOD)
    assert spec.rows.values == [
        Choice("set", "set", []),
        Choice("rigl", "RigL", ["method.every=5it"]),
    ]
    assert spec.columns.values == [Choice(0.9, "0.9", [])]
    assert seeds_of(spec, "") == [0, 1, 2]
    assert spec.metric[0].key == "test/accuracy"


@pytest.mark.parametrize("name", config_files("table"))
def test_shipped_tables(name):
    spec = read_table(compose([f"+table={name}"]).table, f"table/{name}.yaml")
    assert spec.name
    assert seeds_of(spec, name)
    assert spec.command == f"sparsebench -m +table={name}"


REFUSED = [
    ({"titel": "x"}, "titel: there is no such field of name, title, scale,", "'title'?"),
    ({"title": ""}, "title: is missing", ""),
    ({"name": "a/b"}, "name=a/b: a word of letters", ""),
    ({"name": ".."}, "name=..: a word of letters", ""),
    ({"seeds": 0}, "seeds=0: a number of seeds, or a list of different ones", ""),
    ({"seeds": [1, 1]}, "seeds=[1, 1]: a number of seeds, or a list of different ones", ""),
    ({"seeds": [-1]}, "seeds=[-1]: a number of seeds", ""),
    ({"seeds": "five"}, "seeds=five: a number of seeds", ""),
    ({"rows": {"key": "method", "values": []}}, "rows.values: at least one is needed", ""),
    ({"rows": {"key": "seed", "values": [1]}}, "rows.key=seed: seeds are replicates", ""),
    ({"rows": {"key": "sparsity", "values": [0.5]}}, "columns.key=sparsity: the rows have", ""),
    (
        {"rows": {"key": "method", "values": ["set", "set"]}},
        "rows.values.1.label=set: is there twice",
        "",
    ),
    (
        {"rows": {"key": "method", "values": [{"label": "x"}]}},
        "rows.values.0.value: is missing",
        "",
    ),
    ({"rows": {"values": [{"label": "x"}]}}, "rows.values.0.overrides: needed", ""),
    (
        {"rows": {"key": "method", "values": [{"vlaue": 1}]}},
        "rows.values.0.vlaue: there is no",
        "'value'?",
    ),
    ({"overrides": "epochs=1"}, "overrides=epochs=1: a list is needed", ""),
    ({"overrides": [1]}, "overrides.0=1: text is needed", ""),
    ({"rows": "method"}, "rows=method: fields with values are needed", ""),
    ({"metric": []}, "metric: at least one figure is needed", ""),
    ({"metric": [{"format": ".2q"}]}, "metric.0.format=.2q: a Python format of one number", ""),
    ({"metric": [{"better": "higher"}]}, "metric.0.better=higher: one of max, min", ""),
    (
        {"metric": [{"summary": "intervall"}]},
        "metric.0.summary=intervall: one of interval",
        "'interval'?",
    ),
    ({"metric": [{"factor": "x"}]}, "metric.0.factor=x: a number is needed", ""),
    ({"picture": {"x": "epochs"}}, "picture.x=epochs: the key of an axis (method, sparsity)", ""),
    (
        {"picture": {"x": "sparsity", "series": "sparsity", "y": "test/accuracy"}},
        "picture.series=sparsity: the key of the other axis",
        "",
    ),
    (
        {"picture": {"x": "sparsity", "series": "method", "y": "test/acuracy"}},
        "picture.y=test/acuracy: one of test/accuracy",
        "'test/accuracy'?",
    ),
]


@pytest.mark.parametrize(("changes", "said", "hint"), REFUSED)
def test_refusals_name_file_and_field(changes, said, hint):
    with pytest.raises(UserError) as caught:
        read(GOOD, **changes)
    message = str(caught.value)
    assert message.startswith(f"table/mine.yaml: {said}")
    assert hint in message
    assert "\n" not in message
