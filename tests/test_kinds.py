"""The kind of each method: what Ten Lessons (arXiv 2302.02596) asks to be said of a comparison."""

from dataclasses import asdict

import pytest

from sparsebench.library import method
from sparsebench.sparsity.kind import Kind, kind_of
from sparsebench.sweep.kinds import _from_config

#: Name, when pruned, start, masks, pattern, gradient of absent weights; from the papers.
PUBLISHED = [
    ("dense", "never", "dense", "none", "none", "each step"),
    ("static", "before", "sparse", "static", "unstructured", "never"),
    ("set", "during", "sparse", "dynamic", "unstructured", "never"),
    ("rigl", "during", "sparse", "dynamic", "unstructured", "at updates"),
    ("snfs", "during", "sparse", "dynamic", "unstructured", "each step"),
    ("gmp", "during", "dense", "only pruned", "unstructured", "never"),
    ("one_shot", "after", "dense", "only pruned", "unstructured", "never"),
    ("imp", "after", "dense", "only pruned", "unstructured", "never"),
    ("snip", "before", "sparse", "static", "unstructured", "once"),
    ("synflow", "before", "sparse", "static", "unstructured", "never"),
    ("random_search", "before", "sparse", "static", "unstructured", "never"),
    ("g2g_static", "before", "sparse", "static", "unstructured", "never"),
    ("soup", "after", "dense", "only pruned", "unstructured", "never"),
    ("acdc", "during", "dense", "dynamic", "unstructured", "never"),
    ("granet", "during", "sparse", "dynamic", "unstructured", "at updates"),
    ("granet_dense", "during", "dense", "dynamic", "unstructured", "at updates"),
    ("mest_ems", "during", "sparse", "dynamic", "unstructured", "never"),
    ("dpf", "during", "dense weights kept", "dynamic", "unstructured", "each step"),
    ("sr_ste", "during", "dense weights kept", "dynamic", "2:4", "each step"),
    ("srigl", "during", "sparse", "dynamic", "constant fan-in", "at updates"),
    ("cht", "during", "sparse", "dynamic", "unstructured", "never"),
]


@pytest.mark.parametrize("name, when, start, masks, pattern, gradient", PUBLISHED)
def test_kinds_are_those_of_the_papers(name, when, start, masks, pattern, gradient):
    assert kind_of(method(name)) == Kind(when, start, masks, pattern, gradient)


def test_a_class_of_ones_own_says_what_it_is_or_not():
    class Mine:
        kind = {"when": "during", "masks": "dynamic"}

    assert kind_of(Mine()) == Kind("during", "not said", "dynamic", "not said", "not said")


def test_results_of_before_kinds_were_written_down_have_one_too():
    spec = {"name": "rigl", "sparse": True, "drop": "magnitude", "grow": "gradient"}
    config = {
        "method": spec, "sparsity": 0.9, "distribution": {"name": "erk"},
        "structure": {"name": "unstructured"}, "allow": [],
    }  # fmt: skip
    expected = asdict(kind_of(method("rigl")))
    assert _from_config(config) == expected
    assert _from_config({**config, "method": {**spec, "drop": "gone"}}) is None
