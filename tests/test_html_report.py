"""The HTML report: what is in the page, against what was put into the runs."""

import base64
import hashlib
import re
from dataclasses import replace
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_runs import COLUMNS, LAYERS, ROWS, SEEDS, SPEC, Page, accuracy, build, config, curve

from sparsebench.sweep.html.curves import read_curves
from sparsebench.sweep.html.data import Budget, flat, page_data, t_factors
from sparsebench.sweep.html.page import report_html
from sparsebench.sweep.html.pareto import front, trade_offs
from sparsebench.sweep.sheet import sheet
from sparsebench.sweep.spec import Metric

SVG = "<svg xmlns='http://www.w3.org/2000/svg'><text>a & b</text></svg>"
WRONG = {
    (1, 1, 2): ("ValueError: </script><script>alert(1)</script>", "Traceback </script> line 1\n"),
    (2, 1, 0): None,
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return build(tmp_path_factory.mktemp("runs"), failed=WRONG)


def shown(results, *verdicts):
    return sheet(results, "sparsebench -m +table=mine", *verdicts)


@pytest.fixture(scope="module")
def text(results):
    return report_html(results, shown(results), SVG)


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def run_of(page, name):
    (found,) = [run for run in page.data["runs"] if run["id"] == name]
    return found


# --- the table ------------------------------------------------------------------------------


def test_every_measured_field_is_there_and_leads_to_its_cell(page, results):
    expected = {}
    for section in shown(results).sections:
        for row in section.rows:
            for field in row:
                if field.place:
                    expected.setdefault("{}-{}".format(*field.place), []).append(field.text)
    assert page.cells == expected
    known = {"{}-{}".format(*cell["at"]) for cell in page.data["cells"]}
    assert known == set(expected) == {f"{i}-{j}" for i in range(3) for j in range(2)}


def test_title_published_figures_and_differences_are_said(page):
    assert page.texts.count("Mine & yours (quick scale: an MLP on few images)") == 3
    assert "93.10 ± 0.20 std" in page.texts
    assert "Accuracy (%), published (paper scale)" in page.texts
    assert "A paper, arXiv 0000.00000, Table 1" in page.texts
    assert "20 epochs instead of 100" in page.texts


def test_how_it_was_made_is_said(page):
    assert "sparsebench -m +table=mine" in page.texts
    assert "Python 3.11.7, torch 2.9.0" in page.texts
    assert any(text.startswith("13 finished 2023-11-15") for text in page.texts)


def test_claims_have_a_badge_by_their_verdict(results):
    lines = (("RigL beats SET", "inconclusive (about 9 seeds (or so))", "+1.0", "3", "A paper"),)
    found = report_html(results, replace(shown(results), claims=lines), None)
    assert '<li class="inconclusive">' in found
    page = Page(found)
    assert {"RigL beats SET", "+1.0", "3", "A paper"} <= set(page.texts)
    assert "about 9 seeds (or so)" in page.texts
    not_run = (("A claim", "not run", "–", "0", ""),)
    assert '<li class="not-run">' in report_html(
        results, replace(shown(results), claims=not_run), None
    )


def test_runs_without_a_result_are_listed_with_their_error(page):
    assert "2 of 15 runs" in page.text
    assert "ValueError: </script><script>alert(1)</script>" in page.text
    links = [a["href"] for tag, a in page.elements if tag == "a" and a["href"].startswith("#run/")]
    assert links == ["#run/mlp-1-1-2", "#run/mlp-2-1-0"]


# --- one file that is safe to open ----------------------------------------------------------


def test_nothing_comes_from_elsewhere(page):
    for tag, attributes in page.elements:
        assert tag not in ("iframe", "object", "embed", "base")
        for name in ("src", "href", "action", "srcset"):
            if name in attributes:
                assert attributes[name].startswith(("#", "data:")), (tag, attributes)


def test_only_the_script_of_the_page_may_run(page):
    (policy,) = [a["content"] for tag, a in page.elements if a.get("http-equiv")]
    (script,) = [text for kind, text in page.scripts if kind is None]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.split("; ")[0] == "default-src 'none'"
    assert f"script-src 'sha256-{digest}'" in policy


def test_what_users_write_is_text(tmp_path):
    evil = "</script><script>alert('1')</script>\"'&<b>"
    names = (f"dense{evil}", f"set{evil}")
    spec = replace(SPEC, title=evil, about=evil, differences=[evil], published=[], claims=[])
    failed = {(1, 0, 0): (evil, evil)}
    results = build(tmp_path, names, (evil,), (0, 1), spec, failed=failed)
    page = Page(report_html(results, shown(results), SVG))
    assert [tag for tag, _ in page.elements if tag == "script"] == ["script", "script"]
    assert not [a for tag, a in page.elements if tag == "b" and a]
    assert page.data["rows"] == list(names)
    assert run_of(page, "mlp-1-0-0")["error"] == evil
    assert run_of(page, "mlp-1-0-0")["detail"]["log"] == evil
    assert f"set{evil}" in "".join(page.texts)


def test_picture_is_inside_as_an_image(page):
    (image,) = [a for tag, a in page.elements if tag == "img"]
    kind, _, content = image["src"].partition(",")
    assert kind == "data:image/svg+xml;base64"
    assert base64.b64decode(content).decode() == SVG


def test_a_file_name_that_is_no_text_does_no_harm(results):
    odd = replace(shown(results), about="runs/\udcff")
    assert "runs/?" in report_html(results, odd, None)


def test_the_same_results_give_the_same_bytes(results, text):
    assert report_html(results, shown(results), SVG) == text


def test_scripts_style_and_templates_are_files_of_the_package():
    folder = files("sparsebench.sweep.html")
    for name in ("report.html.jinja", "report.css", "chart.js", "report.js"):
        assert (folder / name).is_file()
    used = "".join((folder / name).read_text() for name in ("chart.js", "report.js"))
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|eval\(|</script", used)


# --- the runs behind it ---------------------------------------------------------------------


def test_a_cell_has_its_runs_by_seed(page):
    assert page.data["seeds"] == list(SEEDS)
    for cell in page.data["cells"]:
        i, j = cell["at"]
        names = [page.data["runs"][k]["id"] for k in cell["runs"]]
        assert names == [f"mlp-{i}-{j if i else 0}-{seed}" for seed in SEEDS]
    assert page.data["flat"] == [0]


def test_figures_by_seed_are_the_table_s(tmp_path):
    """Accuracy as it is, and divided by that of the dense run of the same seed."""
    relative = Metric("test/accuracy", "relative", ".4f", better="max", per="dense")
    spec = replace(SPEC, metric=[SPEC.metric[0], relative])
    data = page_data(build(tmp_path, spec=spec, failed={(2, 0, 2): None}))
    cell = next(cell for cell in data["cells"] if cell["at"] == [2, 0])
    assert data["metrics"] == ["Accuracy (%)", "relative"]
    assert cell["by_seed"] == [["92.00", f"{0.92 / 0.95:.4f}"], ["93.00", f"{0.93 / 0.96:.4f}"],
                               ["–", "–"]]  # fmt: skip
    assert cell["figures"][0] == ["92.50 (2 of 3)", "94.50", "A paper, arXiv 0000.00000, Table 1"]


def test_figures_of_a_run_are_what_it_ended_with(page):
    run = run_of(page, "mlp-2-1-1")
    found = dict(zip(page.data["keys"], run["figures"], strict=True))
    assert found["test/accuracy"] == pytest.approx(accuracy(2, 1, 1), rel=1e-9)
    assert (found["nonzeros"], found["weights_sha256"]) == (2220, "ab" * 32)
    assert run["written"] == "2023-11-15 12:00 UTC"
    assert "figures" not in run_of(page, "mlp-1-1-2")


def test_common_part_and_differences_make_the_whole_config(page):
    common = page.data["common"]
    assert common == {
        "model.name": "mlp",
        "model.hidden": "[300, 100]",
        "model.args": "{}",
        "method.every": "5it",
    }
    differs = run_of(page, "mlp-1-1-0")["detail"]["differs"]
    assert differs == {"method.name": "set", "sparsity": "0.9", "seed": "0"}
    assert common | differs == flat(config("set", 0.9, 0))
    assert run_of(page, "mlp-1-1-0")["overrides"] == ["method=set", "sparsity=0.9", "seed=0"]


def test_curves_and_layers_are_those_of_the_files(page):
    detail = run_of(page, "mlp-1-1-1")["detail"]
    assert detail["curves"]["epoch"] == list(range(1, 21))
    assert detail["curves"]["validation/accuracy"] == pytest.approx(
        [curve(1, 1, 1, epoch) for epoch in range(1, 21)], rel=1e-4
    )
    assert detail["curves"]["sparsity"] == 0.9  # it never changes
    assert "step" not in detail["curves"]
    assert detail["density"]["fc2.weight"] == 0.2
    assert [layer[0] for layer in detail["layers"]] == list(LAYERS)
    assert detail["layers"][0] == ["fc1.weight", [300, 64], 19_200, 1920]
    assert detail["notes"] == ["a note of seed 1"]


def test_a_failed_run_has_its_log_and_config(page):
    run = run_of(page, "mlp-1-1-2")
    assert (run["status"], run["detail"]["log"]) == ("failed", "Traceback </script> line 1\n")
    assert run["detail"]["differs"]["seed"] == "2"
    assert run_of(page, "mlp-2-1-0")["status"] == "missing"


def test_a_long_log_keeps_its_end(tmp_path):
    failed = {(0, 0, 0): ("E", "x" * 10_000 + "the cause")}
    results = build(tmp_path, ("dense",), (0.5,), (0,), failed=failed)
    (run,) = page_data(results)["runs"]
    assert run["detail"]["log"].endswith("the cause")
    assert len(run["detail"]["log"]) < 7000


def test_the_first_seed_of_each_cell_comes_before_any_other(results):
    data = page_data(results, Budget(runs=6))
    kept = [run["id"] for run in data["runs"] if "detail" in run]
    assert kept == ["mlp-0-0-0", "mlp-0-0-1", "mlp-1-0-0", "mlp-1-1-0", "mlp-2-0-0", "mlp-2-1-0"]
    assert len(data["runs"]) == 15
    text = report_html(results, shown(results), None, Budget(runs=6))
    assert "6 of 15 have their curves in this file" in text


def test_characters_are_a_limit_too(results):
    data = page_data(results, Budget(characters=1))
    assert sum("detail" in run for run in data["runs"]) == 1


def test_fifty_runs_stay_far_below_a_megabyte(tmp_path):
    results = build(tmp_path, ("dense", "a", "b", "c", "d"), (0.5, 0.8, 0.9), range(4))
    text = report_html(results, shown(results), SVG)
    assert len(results.outcomes) == 52
    assert len(text.encode()) < 300_000


# --- numbers --------------------------------------------------------------------------------


def test_curves_are_thinned_with_both_ends_and_rounded(tmp_path):
    lines = [f"{e},{e * e}" for e in range(1, 402)]
    (tmp_path / "m.csv").write_text("\n".join(["epoch,x", *lines]))
    found = read_curves(tmp_path / "m.csv", 5)
    assert found == {"epoch": [1, 101, 201, 301, 401], "x": [1, 10201, 40401, 90601, 160800]}


def test_what_is_no_number_is_a_gap_and_a_half_written_line_is_none(tmp_path):
    (tmp_path / "m.csv").write_text("epoch,a,b,c\n1,nan,,0.123456789\n2,1e-7,inf,0.123456789\n3,4")
    found = read_curves(tmp_path / "m.csv", 200)
    assert found == {"epoch": [1, 2], "a": [None, 1e-7], "b": None, "c": 0.12346}


@pytest.mark.parametrize("content", [None, b"", b"a,b\n1,2\n", b"\xff\xfe\x00", b"epoch,a\n"])
def test_a_file_that_holds_no_curves_gives_none(tmp_path, content):
    if content is not None:
        (tmp_path / "m.csv").write_bytes(content)
    assert read_curves(tmp_path / "m.csv", 200) == {}


def test_t_factors_are_those_of_the_tables():
    """t(0.975) is 4.3027 for 2 and 2.7764 for 4 degrees of freedom."""
    found = t_factors(5)
    assert found[:3] == [None, None, None]
    assert found[3] == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert found[5] == pytest.approx(2.776445 / 5**0.5, rel=1e-6)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_the_front_is_what_nothing_beats(points):
    def beaten(one):
        return any(other[0] <= one[0] and other[1] >= one[1] and other != one for other in points)

    assert front(points) == [not beaten(one) for one in points]


def test_trade_offs_are_means_over_seeds_and_dense_is_there_once(results):
    training, inference = trade_offs(results)
    assert (training["cost"], inference["cost"]) == ("Training FLOPs", "Inference FLOPs")
    places = [tuple(point["at"]) for point in training["points"]]
    assert places == [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1)]
    set_at_80 = training["points"][1]
    assert set_at_80["cost"] == pytest.approx(0.2 + 0.01)
    assert set_at_80["gain"] == pytest.approx(91.0)
    assert set_at_80["half"] == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    marked = {tuple(p["at"]) for p in inference["points"] if p["front"]}
    assert marked == {(0, 0), (2, 0), (2, 1)}  # SET costs as much as RigL and is worse


def test_a_metric_that_shall_be_small_has_its_front_below(results):
    less = [replace(SPEC.metric[0], better="min")]
    turned = replace(results, metrics=tuple(less))
    marked = {tuple(p["at"]) for p in trade_offs(turned)[1]["points"] if p["front"]}
    assert marked == {(1, 1)}


def test_without_flops_or_without_a_better_end_there_is_no_front(results):
    assert trade_offs(replace(results, metrics=(replace(SPEC.metric[0], better=None),))) == []


def test_rows_and_columns_are_named(page):
    assert page.data["rows"] == list(ROWS)
    assert page.data["columns"] == [f"Sparsity {column}" for column in COLUMNS]


def test_folders_of_the_machine_stay_out_of_the_page(text):
    assert "/a/b" not in text
    assert "seed=1" in text
