"""From a table and a command line to cells: axes, narrowing, duplicates, refusals."""

import re

import pytest
from omegaconf import OmegaConf

from sparsebench.config.compose import compose
from sparsebench.config.identity import identity
from sparsebench.errors import UserError
from sparsebench.sweep.cells import lay_out
from sparsebench.sweep.grid import free_grid, read_overrides, table_grid, unique
from sparsebench.sweep.spec_check import read_table

TABLE = {
    "name": "mine",
    "title": "Mine",
    "scales": {"quick": {"setup": "small"}},
    "about": "Ten epochs.",
    "overrides": ["epochs=10", "method.every=5it"],
    "seeds": 2,
    "rows": {
        "key": "method",
        "values": ["dense", {"value": "static", "label": "ER", "overrides": ["distribution=er"]}],
    },
    "columns": {"key": "sparsity", "values": [0.5, 0.9]},
}


def table(*words, **changes):
    spec = read_table(OmegaConf.create({**TABLE, **changes}), "table/mine.yaml")
    return table_grid(spec, read_overrides(words))


def free(*words):
    return free_grid(read_overrides(words), "mlp on digits", "rigl", 7)


def labels(lines):
    return [line.label for line in lines]


def every(grid):
    return [grid.overrides(grid.rows[i], grid.columns[j]) for i, j in grid.places]


def test_the_table_as_it_is():
    grid = table()
    assert every(grid)[0] == ["epochs=10", "method.every=5it", "method=dense", "sparsity=0.5"]
    assert every(grid)[3][2:] == ["method=static", "distribution=er", "sparsity=0.9"]
    assert (grid.seeds, grid.changed, grid.spec.about) == ((0, 1), False, "Ten epochs.")


@pytest.mark.parametrize(
    "word", ["runs=elsewhere", "force=True", "trainer.threads=1", "logger=wandb"]
)
def test_what_changes_no_result_leaves_it_the_same_table(word):
    assert not table(word).changed
    assert word in every(table(word))[0]


def test_command_line_narrows_and_replaces():
    grid = table("method=static,rigl", "sparsity=0.9", "seed=range(3,5)", "epochs=2")
    assert labels(grid.rows) == ["ER", "rigl"]
    assert labels(grid.columns) == ["0.9"]
    assert grid.seeds == (3, 4)
    assert every(grid) == [
        ["method.every=5it", "method=static", "distribution=er", "sparsity=0.9", "epochs=2"],
        ["method.every=5it", "method=rigl", "sparsity=0.9", "epochs=2"],
    ]
    assert grid.changed
    assert "other settings" in grid.spec.about


def kept(grid):
    return [(grid.rows[i].label, grid.columns[j].label) for i, j in grid.places]


@pytest.mark.parametrize(
    ("where", "left"),
    [
        ("method in [dense]", [("dense", "0.5"), ("dense", "0.9")]),
        ("method == static and sparsity > 0.6", [("ER", "0.9")]),
        ("row == 'ER'", [("ER", "0.5"), ("ER", "0.9")]),
        ("not (method == dense or sparsity <= 0.5)", [("ER", "0.9")]),
        (
            "method != static or column == '0.5'",
            [("dense", "0.5"), ("dense", "0.9"), ("ER", "0.5")],
        ),
        ("0.4 < sparsity < 0.6", [("dense", "0.5"), ("ER", "0.5")]),
    ],
)
def test_where_keeps_the_cells_it_is_true_of(where, left):
    grid = table(where=where)
    assert kept(grid) == left
    assert grid.changed


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("method in [rigl]", "is true of no cell (method is one of dense, static)"),
        ("methd == dense", "compares none of column, method, row, sparsity"),
        ("method.upper() == 'X'", "compare by ==, !=, <, <=, >, >=, in, not in"),
        ("__import__('os').getcwd() == method", "compare by =="),
        ("method in [", "compare by =="),
        ("method < 3", "can't be compared like this"),
    ],
)
def test_where_refuses(where, said):
    with pytest.raises(UserError, match=re.escape(said)):
        table(where=where)


def test_a_row_may_have_cells_in_some_columns_only():
    rows = {"key": "method", "values": ["dense", {"value": "set", "only": [0.9]}]}
    grid = table(rows=rows)
    assert kept(grid) == [("dense", "0.5"), ("dense", "0.9"), ("set", "0.9")]
    assert grid.place("set", 0.5) is None
    assert grid.place("set", 0.9) == (1, 1)


def test_a_further_sweep_multiplies_the_rows():
    grid = table("method=dense", "optimizer.lr=0.1,0.2", "sparsity=0.5")
    assert labels(grid.rows) == ["dense, optimizer.lr=0.1", "dense, optimizer.lr=0.2"]
    assert "optimizer.lr=0.2" in every(grid)[1]


def test_free_grid_puts_the_last_swept_key_in_columns():
    grid = free("method=set,rigl", "optimizer=adam", "sparsity=0.8,0.9", "seed=0,1")
    assert labels(grid.rows) == ["set", "rigl"]
    assert [line.value for line in grid.columns] == [0.8, 0.9]
    assert grid.seeds == (0, 1)
    assert grid.overrides(grid.rows[1], grid.columns[0]) == [
        "method=rigl",
        "sparsity=0.8",
        "optimizer=adam",
    ]
    assert grid.spec.picture.x == "sparsity"


def test_free_grid_of_three_keys_and_of_none():
    grid = free("method=set,rigl", "optimizer.lr=0.1,0.2", "sparsity=choice(0.8,0.9)")
    assert labels(grid.rows) == ["set, 0.1", "set, 0.2", "rigl, 0.1", "rigl, 0.2"]
    grid = free("seed=range(0,4)", "epochs=3")
    assert labels(grid.rows) == ["rigl"]
    assert labels(grid.columns) == [""]
    assert grid.seeds == (0, 1, 2, 3)
    assert free("method=set,rigl").seeds == (7,)


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("sparsity=range(0.5,0.75,0.1)", ["0.5", "0.6", "0.7"]),
        ("model.hidden=[10,20],[30]", ["[10,20]", "[30]"]),
        ("+model.args.x='a,b',c", ["'a,b'", "c"]),
        ("sparsity=0.5,0.5", ["0.5"]),
    ],
)
def test_hydras_sweeps(word, values):
    (row_texts,) = [[line.overrides[0].partition("=")[2] for line in free(word).rows]]
    assert row_texts == values


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["optimizer.lr=interval(0,1)"], "an interval has no grid; range(start, stop, step)"),
        (["seed=a,b"], "seed=a,b: whole numbers of at least 0"),
        (["seed=-1"], "seed=-1: whole numbers"),
        (["method=glob(x*)"], "no value to sweep over"),
    ],
)
def test_refused(words, said):
    class Loader:
        def get_group_options(self, *args, **kwargs):
            return ["set", "rigl"]

    with pytest.raises(UserError, match=re.escape(said)):
        free_grid(read_overrides(words, Loader()), "", "", 0)


def test_unique_keeps_the_last():
    assert unique(["a=1", "b=2", "+a=3"]) == ["b=2", "+a=3"]


def test_cells_are_checked_named_and_shared(tmp_path):
    words = ["method=dense,static", "sparsity=0.5,0.9", "seed=0,1", f"runs={tmp_path}"]
    grid = free(*words)
    cells = lay_out(grid, compose)
    assert len(cells.of) == 8
    assert len(cells.runs) == 6  # dense is the same at both sparsities
    assert cells.of[0, 0, 1] == cells.of[0, 1, 1]
    same = compose(["method=static", "sparsity=0.9", "seed=1", f"runs={tmp_path}"])
    assert cells.of[1, 1, 1] == identity(same)
    run = cells.runs[cells.of[1, 1, 1]]
    assert run.folder == tmp_path / run.identity
    assert (run.label, run.sparse, run.epochs) == ("static, sparsity 0.9, seed 1", True, 50)
    assert list(cells.of)[:4] == [(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0)]  # seeds outermost
    assert not cells.done


@pytest.mark.parametrize(
    ("words", "said", "cell"),
    [
        (["sparsity=0.5,1.5"], "sparsity=1.5: a number in [0, 1)", "(cell: sparsity=1.5)"),
        (["method=set,rigI"], "did you mean 'rigl'?", "(cell: method=rigI)"),
        (["sparsty=0.5,0.6"], "did you mean 'sparsity'?", "(cell: sparsty=0.5)"),
        (["epochs=1,x", "method=dense"], "epochs", "(cell: epochs=x method=dense)"),
    ],
)
def test_a_bad_cell_is_named(words, said, cell):
    with pytest.raises(UserError) as caught:
        lay_out(free(*words), compose)
    assert said in str(caught.value)
    assert str(caught.value).endswith(cell)
