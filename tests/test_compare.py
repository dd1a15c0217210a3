"""Two tables whose figures are made up: every difference can be checked by hand or by scipy."""

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sparsebench.errors import UserError
from sparsebench.files import write_json
from sparsebench.sweep.cells import Run
from sparsebench.sweep.compare import compare_command
from sparsebench.sweep.differences import (
    Difference,
    VerdictChange,
    differences,
    read_figures,
    verdict_changes,
)
from sparsebench.sweep.formats import comma_separated
from sparsebench.sweep.grid import Grid, Line
from sparsebench.sweep.results import Entry, Outcome, Results
from sparsebench.sweep.spec import Metric, TableSpec

ACCURACY = ("RigL", "0.9", "test/accuracy")
SPEED = ("SET", "0.9", "test/accuracy")
WEIGHTS = ("RigL", "0.9", "nonzeros")
OLD = {0: 0.90, 1: 0.92, 2: 0.94, 3: 0.93}
NEW = {0: 0.91, 1: 0.935, 2: 0.952, 3: 0.938}


def table(figures):
    """A table.csv as ``formats.comma_separated`` writes it."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = "row column metric asked n mean low high min max by_seed"
    writer.writerow(names.split())
    for place, values in figures.items():
        by_seed = " ".join(f"{seed}:{value!r}" for seed, value in values.items())
        writer.writerow([*place, 3, len(values), *5 * [""], by_seed])
    return out.getvalue()


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Folders ``old`` and ``new`` with the two tables, in the working folder."""
    monkeypatch.chdir(tmp_path)
    for name, values in (("old", OLD), ("new", NEW)):
        (tmp_path / name).mkdir()
        figures = {ACCURACY: values, WEIGHTS: {0: 100, 1: 100}}
        (tmp_path / name / "table.csv").write_text(table(figures))
    return tmp_path


def test_equal_tables_do_not_differ():
    assert differences({ACCURACY: OLD, WEIGHTS: {0: 5}}, {ACCURACY: OLD, WEIGHTS: {0: 5}}) == []


def test_the_same_seeds_are_paired():
    (found,) = differences({ACCURACY: OLD}, {ACCURACY: NEW})
    expected = stats.ttest_rel(list(NEW.values()), list(OLD.values()))
    assert (found.status, found.test, found.old_n, found.new_n) == ("changed", "paired", 4, 4)
    assert (found.old, found.new) == pytest.approx((0.9225, 0.93375))
    assert found.difference == pytest.approx(0.01125)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert found.p == pytest.approx(expected.pvalue)
    assert found.significant is True
    # by their own means the tables could not be told apart
    assert stats.ttest_ind(list(NEW.values()), list(OLD.values())).pvalue > 0.3


def test_other_seeds_are_not_paired():
    shifted = {seed + 1: value for seed, value in NEW.items()}
    (found,) = differences({ACCURACY: OLD}, {ACCURACY: shifted})
    expected = stats.ttest_ind(list(NEW.values()), list(OLD.values()), equal_var=False)
    assert found.test == "welch"
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert found.significant is False


def test_new_and_gone_come_in_the_order_of_the_tables():
    old = {SPEED: {0: 1.0}, ACCURACY: {0: 0.5, 1: 0.7}, WEIGHTS: {0: 3}}
    new = {WEIGHTS: {0: 3}, ("Top", "0.9", "nonzeros"): {2: 8}, SPEED: {}}
    assert differences(old, new) == [
        Difference(*SPEED, "gone", old=1.0, old_n=1),
        Difference(*ACCURACY, "gone", old=0.6, old_n=2),
        Difference("Top", "0.9", "nonzeros", "new", new=8.0, new_n=1),
    ]


def test_counts_are_reported_and_not_tested():
    (found,) = differences({WEIGHTS: {0: 100, 1: 100, 2: 100}}, {WEIGHTS: {0: 97, 1: 97}})
    assert found == Difference(*WEIGHTS, "changed", 100.0, 97.0, 3, 2, "exact", difference=-3.0)
    assert differences({WEIGHTS: {0: 100, 1: 100}}, {WEIGHTS: {3: 100, 4: 100, 5: 100}}) == []


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_seeds_for_a_test(n):
    old, new = ({s: v for s, v in values.items() if s < n} for values in (OLD, NEW))
    (found,) = differences({ACCURACY: old}, {ACCURACY: new})
    assert (found.test, found.p, found.low, found.significant) == (
        "too few seeds",
        None,
        None,
        None,
    )
    assert found.difference == pytest.approx([0.01, 0.0125][n - 1])


def test_a_shift_of_all_seeds_alike_is_no_chance():
    new = {seed: value + 0.25 for seed, value in OLD.items()}
    (found,) = differences({ACCURACY: OLD}, {ACCURACY: new})
    assert found.p < 1e-12
    assert (found.low, found.high) == pytest.approx((0.25, 0.25))


def test_holms_correction_over_what_was_tested():
    """Of two tests only the clearer one stays; figures that did not change don't count."""
    near = {0: 0.901, 1: 0.923, 2: 0.942, 3: 0.9315}
    same = {("same", str(k), "test/accuracy"): OLD for k in range(50)}
    old = {**same, ACCURACY: OLD, SPEED: OLD}
    clear, second = differences(old, {**same, ACCURACY: NEW, SPEED: near})
    p = [stats.ttest_rel(list(v.values()), list(OLD.values())).pvalue for v in (NEW, near)]
    assert (clear.p, second.p) == pytest.approx(tuple(p))
    low, high = sorted((clear, second), key=lambda one: one.p)
    assert low.p_holm == pytest.approx(2 * low.p)
    assert high.p_holm == pytest.approx(max(2 * low.p, high.p))


values = st.dictionaries(st.integers(0, 6), st.integers(0, 100).map(float), max_size=6)


@settings(deadline=None)
@given(values, values)
def test_the_other_way_round_is_the_same_with_the_sign_changed(old, new):
    one, other = (
        differences({ACCURACY: old}, {ACCURACY: new}),
        differences({ACCURACY: new}, {ACCURACY: old}),
    )
    assert len(one) == len(other) == (len(one) and 1)
    for a, b in zip(one, other, strict=True):
        assert (a.old, a.new, a.test) == (b.new, b.old, b.test)
        assert (a.p, a.p_holm) == pytest.approx((b.p, b.p_holm))
        if a.difference is not None:
            assert a.difference == pytest.approx(-b.difference)
        if a.low is not None:
            assert (a.low, a.high) == pytest.approx((-b.high, -b.low))


def test_verdicts():
    old = [{"id": "a", "claim": "A.", "verdict": "supported"}, {"id": "b", "verdict": "refuted"}]
    new = [{"id": "a", "claim": "A!", "verdict": "refuted"}, {"id": "b", "verdict": "refuted"}]
    more = [*new, {"id": "c", "claim": "C.", "verdict": "not run"}]
    assert verdict_changes(old, new) == [VerdictChange("a", "A!", "supported", "refuted")]
    assert verdict_changes(new, more) == [VerdictChange("c", "C.", None, "not run")]
    assert verdict_changes(more, new) == [VerdictChange("c", "C.", "not run", None)]
    assert verdict_changes(old, old) == []


def test_reading_gives_back_what_was_written():
    figures = {ACCURACY: OLD, ("a, b", 'x"y', "nonzeros"): {3: 7.0}}
    written = table({**figures, SPEED: {}, WEIGHTS: {0: float("nan")}})
    assert read_figures(written) == figures


def test_the_files_of_sweeps_are_read():
    """Every digit comes back, and a run without figures is left out."""
    metrics = (Metric("test/accuracy", factor=100.0), Metric("nonzeros", summary="range"))
    run = Run("x", Path(), (), "", 1, True)
    found = {0: {"test/accuracy": 0.1 + 0.2, "nonzeros": 7}, 4: {"nonzeros": 7}, 5: {}}
    entry = Entry({s: Outcome(run, "finished", "", m, {}, 0.0) for s, m in found.items()})
    rows = (Line("A, or B", "a", ()), Line("C", "c", ()))
    grid = Grid(TableSpec(), rows, (Line("", None, ()),), (), (), seeds=(0, 4, 5), changed=False)
    empty = Entry({})
    text = comma_separated(Results(grid, {(0, 0): entry, (1, 0): empty}, {}, metrics))
    assert read_figures(text) == {
        ("A, or B", "", "test/accuracy"): {0: 0.1 + 0.2},
        ("A, or B", "", "nonzeros"): {0: 7.0, 4: 7.0},
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "t.csv: no table of sparsebench: it has no column by_seed, column, metric, row"),
        ("row,column,metric\n", "t.csv: no table of sparsebench: it has no column by_seed"),
        (
            "row,column,metric,by_seed\na,b,c,0:1.0\na,b,d,0:zero\n",
            "t.csv, line 3: by_seed=0:zero: pairs of seed and figure such as 0:0.95 are needed",
        ),
        (
            "row,column,metric,by_seed\na,b\n",
            "t.csv, line 2: by_seed=: pairs of seed and figure such as 0:0.95 are needed",
        ),
        ("row,column,metric,by_seed\na,b,c,0:1.0,0:2\n", "t.csv, line 2: too many fields"),
    ],
)
def test_damaged_tables(text, said):
    with pytest.raises(UserError) as error:
        read_figures(text, "t.csv")
    assert str(error.value) == said


def test_for_machines(folders, capsys):
    write_json(folders / "old" / "claims.json", [{"id": "a", "claim": "A.", "verdict": "refuted"}])
    assert compare_command(["--json", "old", "new"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["old"], shown["new"], shown["figures"]) == ("old", "new", 2)
    assert shown["verdicts"] == [{"id": "a", "claim": "A.", "old": "refuted", "new": None}]
    (one,) = shown["differences"]
    assert (one["row"], one["test"], one["significant"]) == ("RigL", "paired", True)
    assert one["difference"] == pytest.approx(0.01125)


def test_for_the_eye(folders, capsys):
    for name, verdict in (("old", "supported"), ("new", "inconclusive")):
        claims = [{"id": "rigl-set", "claim": "RigL beats [SET].", "verdict": verdict}]
        write_json(folders / name / "claims.json", claims)
    assert compare_command(["old", "new"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    expected = stats.ttest_rel(list(NEW.values()), list(OLD.values()))
    half = expected.confidence_interval().high - 0.01125
    assert lines[:2] == ["old → new", "figures that differ: 1 of 2, 1 significantly"]
    assert (
        f"RigL 0.9 test/accuracy 0.9225 (4) 0.9337 (4) 0.01125 ± {half:.2g} "
        f"{expected.pvalue:.2g}* paired"
    ) in lines
    assert "verdicts that differ: 1" in lines
    assert "rigl-set RigL beats [SET]. supported inconclusive" in lines


def test_nothing_differs(folders, capsys):
    assert compare_command(["old", "old"]) == 0
    assert capsys.readouterr().out == (
        "old → old\nfigures that differ: 0 of 2, 0 significantly\nverdicts that differ: 0\n"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["olb", "new"],
            "compare OLD=olb: a folder with a table.csv is needed; did you mean 'old'?",
        ),
        (["old", "elsewhere/x"], "compare NEW=elsewhere/x: a folder with a table.csv is needed"),
        (
            ["old"],
            "compare=old: two folders with tables are needed, OLD and NEW; --json and "
            "--html FILE if wanted",
        ),
        (["old", "new", "--jsn"], "compare=old new --jsn: two folders with tables are needed"),
        ([], "compare=: two folders with tables are needed"),
    ],
)
def test_what_is_not_there(folders, words, said):
    with pytest.raises(UserError) as error:
        compare_command(words)
    assert str(error.value).startswith(said)
    if not said.endswith(("needed", " if ")):
        assert str(error.value) == said


def test_the_nearest_table_in_a_folder_of_tables(folders):
    (folders / "results" / "cifar").mkdir(parents=True)
    (folders / "new").rename(folders / "results" / "cifar" / "quick")
    with pytest.raises(UserError, match=r"did you mean 'results/cifar/quick'\?$"):
        compare_command(["old", "results/cifr/quick"])


def test_the_nearest_table_beside_a_folder_without_one(folders):
    (folders / "olf").mkdir()
    with pytest.raises(UserError, match=r"did you mean 'old'\?$"):
        compare_command(["olf", "new"])


@pytest.mark.parametrize("text", ["{", "{}", '["a"]', '[{"verdict": "refuted"}]'])
def test_damaged_claims(folders, text):
    (folders / "new" / "claims.json").write_text(text)
    with pytest.raises(UserError, match=r"^new/claims.json: damaged: a list of claims is needed$"):
        compare_command(["old", "new"])


def test_a_table_that_is_no_text(folders):
    (folders / "new" / "table.csv").write_bytes(b"\xff\xfe\x00row")
    with pytest.raises(UserError, match=r"^new/table.csv: can't be read"):
        compare_command(["old", "new"])


def test_as_a_page(folders, capsys):
    assert compare_command(["old", "new", "--html", "page.html"]) == 0
    page = Path("page.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "old" in page
    assert "RigL" in page
    with pytest.raises(UserError, match=r"nowhere/page.html: can't be written"):
        compare_command(["old", "new", "--html", "nowhere/page.html"])
