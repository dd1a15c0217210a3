"""Published figures, relative ones, cells that are not there, and claims, beside the measured."""

from dataclasses import replace

import pytest
from test_table_render import ACCURACY, FIGURES, SPEC, build

from sparsebench.sweep.claims import decide
from sparsebench.sweep.formats import markdown
from sparsebench.sweep.picture import draw
from sparsebench.sweep.sheet import sheet
from sparsebench.sweep.spec import Claim, Metric, Picture, Published, Term

PUBLISHED = [
    Published({"set": [93.1, 0.2], "rigl": 94.0}, "A paper, table 2", 0.5, confirmed=True),
    Published({"set": 90.0}, "Another paper", 0.9, "test/accuracy", confirmed=False),
    Published({"nobody": 1.0}, "A paper, table 9", 0.9, confirmed=True),
]


def test_published_figures_stand_before_the_measured_ones(tmp_path):
    spec = replace(SPEC, published=PUBLISHED, differences=["few  runs", "other data"])
    text = markdown(sheet(build(tmp_path, FIGURES, spec), "x"))
    head = "| Method | accuracy (%), published (paper scale) | accuracy (%) | non-zeros |"
    assert text.count(head) == 2
    assert "| dense |   | 98.00 ± 2.48 (3) | 100 |" in text
    assert "| set | 93.10 ± 0.20 std | **92.00 ± 4.97 (3)** | 50 |" in text
    assert "| rigl | 94.00 | 86.00 ± 2.48 (3) | 50 |" in text
    assert "| set | 90.00 ? | 82.00 (2 of 3) | 10–11 |" in text
    assert "std: standard deviation over the runs of the source" in text
    sources = text.split("**Published figures:**")[1].split("**Differences")[0]
    assert "- A paper, table 2\n- Another paper (not read in the source itself: ?)\n" in sources
    assert "this scale is not a reproduction" in sources
    assert "table 9" not in text
    assert "**Differences from the published set-up:**\n\n- few runs\n- other data\n" in text


def test_at_paper_scale_published_is_published(tmp_path):
    spec = replace(SPEC, scale="paper", setup="", published=PUBLISHED[:1])
    shown = sheet(build(tmp_path, FIGURES, spec), "x")
    assert shown.title == "Mine & yours"
    assert shown.head == ("Method", "accuracy (%), published", "accuracy (%)", "non-zeros")
    assert shown.sources == ("A paper, table 2",)


def test_one_figure_has_published_beside_the_columns_that_have_it(tmp_path):
    spec = replace(SPEC, metric=[ACCURACY], published=PUBLISHED[:1])
    shown = sheet(build(tmp_path, FIGURES, spec), "x")
    published = "Sparsity 0.5, published (paper scale)"
    assert shown.head == ("Method", published, "Sparsity 0.5", "Sparsity 0.9")
    assert [field.text for field in shown.sections[0].rows[2]][:2] == ["rigl", "94.00"]
    assert [field.place for field in shown.sections[0].rows[2]] == [None, None, (2, 0), (2, 1)]


def test_figures_relative_to_a_row_are_paired_by_seed(tmp_path):
    relative = Metric("nonzeros", "share", ".2f", per="dense", summary="range")
    results = build(tmp_path, FIGURES, replace(SPEC, metric=[ACCURACY, relative]))
    assert results.entries[1, 0].values(relative) == {0: 0.5, 1: 0.5, 2: 0.5}
    assert results.entries[1, 1].values(relative) == {0: 0.10, 1: 0.11}
    assert results.entries[0, 1].values(relative) == {0: 1, 1: 1, 2: 1}


def test_cells_that_are_not_there_leave_their_fields_empty(tmp_path):
    results = build(tmp_path, FIGURES)
    entries = {place: e for place, e in results.entries.items() if place not in {(1, 1), (2, 1)}}
    shown = sheet(replace(results, entries=entries), "x")
    assert [row[0].text for row in shown.sections[1].rows] == ["dense"]
    assert [row[0].text for row in shown.sections[0].rows] == ["dense", "set", "rigl"]
    assert draw(replace(results, entries=entries)) is not None


def test_claims_stand_below_the_table_with_their_verdicts(tmp_path):
    terms = [Term("dense", 0.5), Term("set", 0.5, -1.0)]
    claims = [
        Claim("a", "dense is better", "A paper", terms=terms),
        Claim("b", "set is as good", "A paper", relation="same", by=0.5, terms=terms),
        Claim("c", "set is better at 0.9", "It", terms=[Term("set", 0.9), Term("rigl", 0.9, -1.0)]),
    ]
    results = build(tmp_path, FIGURES, replace(SPEC, claims=claims))
    shown = sheet(results, "x", decide(results))
    # differences 7, 6, 5: mean 6, deviation 1; half the interval is 4.3027 / sqrt(3)
    assert shown.claims[0][0] == "dense is better"
    assert shown.claims[0][2:] == ("+6.00 [+3.52, +8.48]", "3", "A paper")
    assert shown.claims[0][1].startswith("supported")
    assert shown.claims[1][1].startswith("refuted")
    assert shown.claims[2][1].startswith("not run") or shown.claims[2][3] == "0"
    text = markdown(shown)
    assert "| Claim | Verdict | Difference, 95 % interval | n | Source |" in text
    assert "| dense is better | supported" in text


def test_a_picture_over_a_metric_has_a_point_for_each_cell(tmp_path):
    spec = replace(SPEC, picture=Picture("nonzeros", "test/accuracy"))
    (axes,) = draw(build(tmp_path, FIGURES, spec)).axes
    labels = [container.get_label() for container in axes.containers]
    assert labels == ["dense", "set, 0.5", "set, 0.9", "rigl, 0.5"]
    points = [c.lines[0].get_xydata()[0].tolist() for c in axes.containers]
    assert points[1] == pytest.approx([50, 92.0])
    assert points[2] == pytest.approx([10.5, 82.0])
