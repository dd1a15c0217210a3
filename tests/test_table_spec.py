"""What a table may say in its YAML, and what is refused with file and field."""

import pytest
import yaml
from omegaconf import OmegaConf

from sparsebench.config.compose import compose
from sparsebench.config.paths import config_files
from sparsebench.errors import UserError
from sparsebench.sweep.spec import Choice
from sparsebench.sweep.spec_check import read_table, seeds_of

GOOD = """
name: mine
title: Mine
scales: {quick: {setup: small}}
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
    assert seeds_of(spec) == [0, 1, 2]
    assert spec.metric[0].key == "test/accuracy"


@pytest.mark.parametrize("name", config_files("table"))
def test_shipped_tables(name):
    node = compose([f"+table={name}"]).table
    spec = read_table(node, f"table/{name}.yaml")
    assert spec.name
    for scale in node.scales:
        asked = OmegaConf.merge(node, {"scale": scale})
        spec = read_table(asked, f"table/{name}.yaml")
        assert spec.scale == scale
        assert all(group.confirmed for group in spec.published)
    assert seeds_of(spec)


REFUSED = [
    ({"titel": "x"}, "titel: there is no such field of name, title, scale, setup,", "'title'?"),
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


FILE = """\
name: mine
title: Mine
scale: quick
overrides: [epochs=9]
seeds: 3
rows:
  key: method
  values:
    - set
    - {value: rigl, label: RigL, only: [big]}
columns:
  values:
    - {label: big, overrides: [sparsity=0.9]}
    - {label: small, overrides: [sparsity=0.5]}
published:
  - {source: A paper, column: big, confirmed: true, values: {set: 90.1, RigL: [91.5, 0.2]}}
claims:
  - id: first
    claim: RigL is better
    source: A paper, table 1
    terms: [{row: rigl, column: big}, {row: set, column: big, weight: -1}]
scales:
  quick:
    setup: few epochs
    seeds: 2
    overrides: [epochs=1]
  paper:
    differences: [none]
"""


def read_file(tmp_path, text=FILE, last=(), **changes):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    node = OmegaConf.create({**yaml.safe_load(text), **changes})
    return read_table(node, "table/mine.yaml", path, last)


def test_scales_replace_fields_and_add_overrides(tmp_path):
    quick, paper = read_file(tmp_path), read_file(tmp_path, scale="paper")
    assert (quick.scale, quick.seeds, quick.setup) == ("quick", 2, "few epochs")
    assert quick.overrides == ["epochs=9", "epochs=1"]
    assert (paper.scale, paper.seeds, paper.overrides) == ("paper", 3, ["epochs=9"])
    assert paper.differences == ["none"]
    assert paper.published[0].values == {"set": 90.1, "RigL": [91.5, 0.2]}
    assert [term.weight for term in paper.claims[0].terms] == [1.0, -1]


def test_the_command_line_has_the_last_word(tmp_path):
    assert read_file(tmp_path, seeds=7).seeds == 2
    assert read_file(tmp_path, seeds=7, last=["seeds"]).seeds == 7
    with pytest.raises(UserError, match="table.scale=papre: one of quick, paper is needed; did"):
        read_file(tmp_path, scale="papre")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("label: RigL, only: [big]", "label: RigL, only: []", "10: rows.values.1.only: no cell"),
        ("only: [big]", "only: [bug]", "10: rows.values.1.only=bug: one of the columns big, small"),
        ("source: A paper, column", "column", "16: published.0.source: is missing: a published"),
        (
            "{set: 90.1",
            "{sett: 90.1",
            "16: published.0.values.sett: there is no cell of row 'sett'",
        ),
        ("set: 90.1", "set: '90'", "16: published.0.values.set=90: a number, or [mean, standard"),
        ("column: big, confirmed", "column: small, confirmed", "RigL: there is no cell of row"),
        ("  - id: first\n    claim", "  - claim", "18: claims.0.id: is missing"),
        ("{row: set, column: big, w", "{row: set, column: bug, w", "21: claims.0.terms.1=set, bug"),
        ("{row: rigl, column: big}", "{row: rigl, column: small}", "21: claims.0.terms.0=rigl, sm"),
        ("terms:", "relation: same\n    terms:", "18: claims.0.by=0.0: more than 0: it is the m"),
        ("terms:", "relation: abuve\n    terms:", "21: claims.0.relation=abuve: one of above"),
        ("    setup: few epochs\n", "", "setup: is missing: the title of a scale"),
        ("    seeds: 2\n", "    seeds: 0\n", "25: seeds=0: a number of seeds"),
        ("    seeds: 2\n", "    seed: 2\n", "25: seed: there is no such field of"),
    ],
)
def test_refusals_name_the_line(tmp_path, old, new, said):
    assert FILE.count(old) == 1
    with pytest.raises(UserError) as caught:
        read_file(tmp_path, FILE.replace(old, new))
    assert said in str(caught.value)
    assert str(caught.value).startswith("table/mine.yaml:")


def test_a_claim_about_a_published_figure_needs_one(tmp_path):
    old = "{row: set, column: big, weight: -1}"
    good = FILE.replace(old, "{row: set, column: big, weight: -1, published: true}")
    assert read_file(tmp_path, good).claims[0].terms[1].published
    bad = good.replace("{set: 90.1, RigL: [91.5, 0.2]}", "{RigL: 91.5}")
    with pytest.raises(UserError, match="claims.0.terms.1=set, big: there is no published figure"):
        read_file(tmp_path, bad)
