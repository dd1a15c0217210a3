"""A table from result files that are made up: every figure can be checked by hand."""

import csv
import io
import os
from dataclasses import replace
from pathlib import Path

import pytest

from sparsebench.files import write_json
from sparsebench.result import NAME, write_result
from sparsebench.sweep.cells import Cells, Run
from sparsebench.sweep.formats import comma_separated, latex, markdown, terminal
from sparsebench.sweep.grid import Grid, Line
from sparsebench.sweep.job import Report
from sparsebench.sweep.picture import draw, save
from sparsebench.sweep.provenance import provenance
from sparsebench.sweep.report import write
from sparsebench.sweep.results import collect, folder_of
from sparsebench.sweep.sheet import field_text, sheet
from sparsebench.sweep.spec import Axis, Metric, Picture, TableSpec

ACCURACY = Metric("test/accuracy", "accuracy (%)", ".2f", 100.0, "max")
WEIGHTS = Metric("nonzeros", "non-zeros", ",.0f", summary="range")
SPEC = TableSpec(
    name="mine",
    title="Mine & yours",
    scale="quick",
    setup="few runs",
    about="A test_table.",
    rows=Axis("method", "Method"),
    columns=Axis("sparsity", "Sparsity"),
    metric=[ACCURACY, WEIGHTS],
    picture=Picture("sparsity", "test/accuracy", "method"),
)
ENVIRONMENT = {
    "versions": {"sparsebench": "0.1.0", "torch": "2.9.0"},
    "python": "3.11.7",
    "machine": "x86_64",
    "cores": 2,
    "accelerators": 0,
    "threads": 1,
    "revision": "0123456789abcdef",
    "revision_diff": None,
}
NOON = 1_700_049_600  # 15 Nov 2023, 12:00 UTC


def finish(folder, accuracy, nonzeros, status="finished", error=None):
    folder.mkdir(parents=True)
    metrics = {"test/accuracy": accuracy, "nonzeros": nonzeros, "seconds/fit": 30.0}
    write_result(
        folder,
        identity=folder.name,
        status=status,
        config={},
        environment=ENVIRONMENT,
        metrics=metrics if status == "finished" else {},
        **({"error": error} if error else {}),
    )
    os.utime(folder / NAME, (NOON, NOON))


def build(tmp_path, figures, spec=SPEC, seeds=(0, 1, 2), reports=None, flat=("dense",)):
    """Results of ``figures[row][column] = [(accuracy, non-zeros) or a status, by seed]``."""
    rows, columns = list(figures), list(next(iter(figures.values())))
    cells = Cells()
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            for k, seed in enumerate(seeds):
                name = f"{row}-{seed}" if row in flat else f"{row}-{column}-{seed}"
                cells.of[i, j, seed] = name
                if name in cells.runs:
                    continue
                label = f"{row}, sparsity {column}, seed {seed}"
                cells.runs[name] = Run(name, tmp_path / name, (), label, 1, row not in flat)
                given = figures[row][column][k]
                if isinstance(given, tuple):
                    finish(tmp_path / name, *given)
                elif given:
                    finish(tmp_path / name, 0, 0, given, "why")
    grid = Grid(
        spec=spec,
        rows=tuple(Line(row, row, ()) for row in rows),
        columns=tuple(Line(str(c), c, ()) for c in columns),
        common=(),
        last=(),
        seeds=tuple(seeds),
        changed=False,
    )
    return collect(grid, cells, reports or {})


FIGURES = {
    "dense": {0.5: [(0.97, 100), (0.98, 100), (0.99, 100)]} | {0.9: [None] * 3},
    "set": {0.5: [(0.90, 50), (0.92, 50), (0.94, 50)], 0.9: [(0.80, 10), (0.84, 11), "diverged"]},
    "rigl": {0.5: [(0.85, 50), (0.86, 50), (0.87, 50)], 0.9: ["failed", None, "failed"]},
}

MARKDOWN = """\
# Mine & yours (quick scale: few runs)

A test_table.

## Sparsity 0.5

| Method | accuracy (%) | non-zeros |
| :-- | --: | --: |
| dense | 98.00 ± 2.48 (3) | 100 |
| set | **92.00 ± 4.97 (3)** | 50 |
| rigl | 86.00 ± 2.48 (3) | 50 |

## Sparsity 0.9

| Method | accuracy (%) | non-zeros |
| :-- | --: | --: |
| dense | 98.00 ± 2.48 (3) | 100 |
| set | 82.00 (2 of 3) | 10–11 |
| rigl | – (0 of 3) | – |

Mean ± half the 95 % t-interval over seeds (number of seeds); bold: the best mean of a sparse \
method, and means inside its interval.

**Without a result:**

- set, sparsity 0.9, seed 2: diverged: why
- rigl, sparsity 0.9, seed 0: failed: why
- rigl, sparsity 0.9, seed 1: refused: no room
- rigl, sparsity 0.9, seed 2: failed: why

![Mine & yours (quick scale: few runs)](table.png)

```text
command: sparsebench -m +table=mine
versions: Python 3.11.7, sparsebench 0.1.0, torch 2.9.0
source: git 0123456789ab
machine: x86_64, 2 cores, no GPUs, 1 thread per run
runs: 11 finished 2023-11-15, 5:30 min of computing in all
```
"""


@pytest.fixture
def results(tmp_path):
    reports = {"rigl-0.9-1": Report("refused", "no room")}
    return build(tmp_path, FIGURES, reports=reports)


def test_markdown_is_exactly_this(results):
    """t(0.975, 2) = 4.3027; for 97, 98, 99 the half width is 4.3027 / sqrt(3) = 2.48."""
    assert markdown(sheet(results, "sparsebench -m +table=mine"), "table.png") == MARKDOWN


def test_csv_is_exactly_this(results):
    lines = list(csv.DictReader(io.StringIO(comma_separated(results))))
    assert len(lines) == 3 * 2 * 2
    set_at_90 = lines[6]
    assert set_at_90 == {
        "row": "set",
        "column": "0.9",
        "metric": "test/accuracy",
        "asked": "3",
        "n": "2",
        "mean": repr((0.80 + 0.84) / 2),
        "low": "",
        "high": "",
        "min": "0.8",
        "max": "0.84",
        "by_seed": "0:0.8 1:0.84",
    }
    assert (lines[7]["min"], lines[7]["max"], lines[7]["by_seed"]) == ("10", "11", "0:10 1:11")
    rigl_at_90 = lines[10]
    assert (rigl_at_90["asked"], rigl_at_90["n"], rigl_at_90["mean"]) == ("3", "0", "")


def test_latex_is_a_booktabs_table(results):
    text = latex(sheet(results, "sparsebench -m +table=mine"))
    assert "    Method & accuracy (\\%) & non-zeros \\\\\n    \\midrule\n" in text
    assert "    \\multicolumn{3}{l}{\\emph{Sparsity 0.9}} \\\\\n" in text
    assert "    set & \\textbf{92.00 $\\pm$ 4.97 (3)} & 50 \\\\\n" in text
    assert "    set & 82.00 (2 of 3) & 10--11 \\\\\n" in text
    assert "\\caption{Mine \\& yours (quick scale: few runs). A test\\_table. Mean $\\pm$" in text
    assert text.startswith("% command: sparsebench -m +table=mine\n")
    assert text.count("{") == text.count("}")


def test_terminal_shows_the_same_figures(results):
    from rich.console import Console

    console = Console(width=100, file=io.StringIO())
    console.print(terminal(sheet(results, "sparsebench -m +table=mine")))
    shown = console.file.getvalue()
    assert shown.splitlines()[0].strip() == "Mine & yours (quick scale: few runs)"
    lines = [line.split() for line in shown.splitlines()]
    assert ["set", "92.00", "±", "4.97", "(3)*", "50"] in lines
    assert ["rigl", "–", "(0", "of", "3)", "–"] in lines
    assert "command:  sparsebench -m +table=mine" in shown


def test_one_figure_puts_columns_side_by_side(tmp_path):
    results = build(tmp_path, FIGURES, replace(SPEC, metric=[ACCURACY]))
    shown = sheet(results, "")
    assert shown.head == ("Method", "Sparsity 0.5", "Sparsity 0.9")
    assert [[f.text for f in row] for row in shown.sections[0].rows][1] == [
        "set",
        "92.00 ± 4.97 (3)",
        "82.00 (2 of 3)",
    ]


def test_figures_that_no_run_has_are_left_out(tmp_path):
    spec = replace(SPEC, metric=[ACCURACY, Metric("perplexity"), WEIGHTS])
    assert build(tmp_path, FIGURES, spec).metrics == (ACCURACY, WEIGHTS)


def test_nothing_finished_is_a_table_too(tmp_path):
    results = build(tmp_path, {"set": {0.9: ["failed", "diverged", None]}})
    shown = sheet(results, "x")
    assert [f.text for f in shown.sections[0].rows[0]][1] == "– (0 of 3)"
    assert len(shown.missing) == 3
    assert shown.made == ("command: x",)
    assert draw(results) is None


@pytest.mark.parametrize("better", ["max", "min"])
def test_leaders_are_the_best_and_those_inside_its_interval(tmp_path, better):
    """Means 90, 89.5 and 60 with intervals of about 2.5: the first two lead, or the last."""
    metric = replace(ACCURACY, better=better)
    near = {
        "dense": {0.5: [(1.0, 1), (1.0, 1), (1.0, 1)]},
        "a": {0.5: [(0.89, 1), (0.90, 1), (0.91, 1)]},
        "b": {0.5: [(0.885, 1), (0.895, 1), (0.905, 1)]},
        "c": {0.5: [(0.59, 1), (0.60, 1), (0.61, 1)]},
    }
    results = build(tmp_path, near)
    assert results.leaders(0, metric) == ({1, 2} if better == "max" else {3})
    assert results.leaders(0, WEIGHTS) == set()


def test_two_seeds_have_neither_interval_nor_leader(tmp_path):
    figures = {"a": {0.5: [(0.9, 1), (0.8, 1)]}, "b": {0.5: [(0.5, 1), (0.4, 1)]}}
    results = build(tmp_path, figures, seeds=(0, 1))
    assert results.leaders(0, ACCURACY) == set()
    assert field_text(results.entries[0, 0], ACCURACY) == "85.00 (2)"
    assert sheet(results, "").legend == "mean over seeds (number of seeds)"


def test_ranges_only_where_seeds_differ_as_shown(tmp_path):
    figures = {"a": {0.5: [(0.9, 1000), (0.9, 1000.4), (0.9, 1000)]}}
    entry = build(tmp_path, figures).entries[0, 0]
    assert field_text(entry, WEIGHTS) == "1,000"
    assert field_text(entry, replace(WEIGHTS, format=".1f")) == "1000.0–1000.4"


def test_provenance_tells_what_differs(tmp_path):
    results = build(tmp_path, {"a": {0.5: [(0.9, 1), (0.9, 1), (0.9, 1)]}})
    path = tmp_path / "a-0.5-2" / NAME
    from sparsebench.files import read_json

    content = read_json(path)
    content["environment"] |= {"revision_diff": "feedbeef00", "cores": 64, "accelerators": 1}
    write_json(path, content)
    os.utime(path, (NOON + 86_400, NOON + 86_400))
    lines = provenance(collect(results.grid, _cells(results), {}), "x")
    assert "source: git 0123456789ab | git 0123456789ab with changes feedbeef" in lines
    assert any("2 cores, no GPUs" in line and "64 cores, 1 GPU" in line for line in lines)
    assert lines[-1] == "runs: 3 finished 2023-11-15 to 2023-11-16, 1:30 min of computing in all"


def _cells(results):
    cells = Cells(runs={name: o.run for name, o in results.outcomes.items()})
    for (i, j), entry in results.entries.items():
        cells.of |= {(i, j, seed): o.run.identity for seed, o in entry.by_seed.items()}
    return cells


def test_picture_has_a_line_a_method_and_a_band_for_dense(results, tmp_path):
    figure = draw(results)
    (axes,) = figure.axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert sorted(labels) == ["dense", "rigl", "set"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.5", "0.9"]
    assert axes.get_ylabel() == "accuracy (%), mean and 95 % interval"
    lines = {c.get_label(): c.lines[0] for c in axes.containers}
    assert list(lines["set"].get_ydata()) == pytest.approx([92.0, 82.0])
    assert list(lines["rigl"].get_ydata()) == pytest.approx([86.0])  # no point where nothing is
    assert axes.lines[0].get_ydata()[0] == pytest.approx(98.0)


@pytest.mark.parametrize(("least", "scale"), [(0.0097, "log"), (0.0099, "linear"), (0.0, "linear")])
def test_means_that_differ_a_hundredfold_are_drawn_by_logarithm(least, scale, tmp_path):
    figures = {"set": {0.5: [(0.98, 1)] * 3, 0.9: [(least, 1)] * 3}}
    (axes,) = draw(build(tmp_path, figures)).axes
    assert axes.get_yscale() == scale


def test_two_dense_rows_among_points_have_a_marker_each(tmp_path):
    both = {0.5: [(0.9, 9)] * 3, 0.9: [None] * 3}
    figures = {"dense": both, "joint": both, "set": {0.5: [(0.8, 5)] * 3, 0.9: [(0.7, 1)] * 3}}
    spec = replace(SPEC, picture=Picture("nonzeros", "test/accuracy", "method"))
    (axes,) = draw(build(tmp_path, figures, spec, flat=("dense", "joint"))).axes
    marks = {c.get_label(): c.lines[0].get_marker() for c in axes.containers}
    assert marks == {"dense": "o", "joint": "s", "set, 0.5": "o", "set, 0.9": "s"}


def test_picture_of_one_column_is_points(tmp_path):
    figures = {m: {0.5: FIGURES[m][0.5]} for m in ("set", "rigl")}
    results = build(tmp_path, figures)
    (axes,) = draw(results).axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["set", "rigl"]
    assert [c.lines[0].get_xdata()[0] for c in axes.containers] == pytest.approx([92.0, 86.0])


def test_files_are_the_same_bytes_each_time(results, tmp_path):
    shown = sheet(results, "x")
    first, second = tmp_path / "one", tmp_path / "two"
    paths = write(results, shown, [], first)
    tables = [f"table.{e}" for e in ("csv", "md", "png", "svg", "tex")]
    assert sorted(p.name for p in paths) == ["claims.json", "report.html", *tables]
    write(results, shown, [], second)
    assert sorted(os.listdir(first)) == sorted(p.name for p in paths)  # nothing temporary is left
    for path in paths:
        assert path.read_bytes() == (second / path.name).read_bytes()
    assert save(draw(results), first, "table")[0].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_picture_of_before_does_not_stay(results, tmp_path):
    write(results, sheet(results, "x"), [], tmp_path / "t")
    plain = replace(results, grid=replace(results.grid, spec=replace(SPEC, picture=None)))
    write(plain, sheet(plain, "x"), [], tmp_path / "t")
    files = ["claims.json", "report.html", "table.csv", "table.md", "table.tex"]
    assert sorted(os.listdir(tmp_path / "t")) == files


def test_only_the_table_as_it_is_lands_in_results(results):
    assert folder_of(results, Path("runs"), "abc") == Path("results/mine/quick")
    changed = replace(results, grid=replace(results.grid, changed=True))
    assert folder_of(changed, Path("runs"), "abc") == Path("runs/tables/mine-abc")
