"""Tables whose published scale is beyond a test: every cell is profiled, and makes one step."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from sparsebench.config.check import check
from sparsebench.config.compose import compose
from sparsebench.run import run
from sparsebench.sparsity import Session
from sparsebench.sweep.grid import table_grid
from sparsebench.sweep.spec_check import read_table
from sparsebench.tasks.build import build_method, network


def cells(name, column):
    """Rows of a table, and the overrides of their cell in one column, at the published scale."""
    node = compose([f"+table={name}"]).table
    node.scale = "paper"
    grid = table_grid(read_table(node, f"table/{name}.yaml"), [])
    for row in grid.rows:
        if place := grid.place(row.label, column):
            yield pytest.param(grid.overrides(row, grid.columns[place[1]]), id=row.label)


@pytest.mark.parametrize("overrides", cells("imagenet", 0.9))
def test_a_cell_of_imagenet_is_profiled(overrides, tmp_path):
    cfg = compose([*overrides, "task=profile", f"runs={tmp_path}", "quiet=true"])
    metrics = run(cfg)["metrics"]
    assert metrics["flops/inference_dense"] == 8178368512
    if cfg.method.name in ("dense", "small_dense"):
        share = 1.0 if cfg.method.name == "dense" else 0.1
    else:  # under uniform the first layer stays dense, as in the released models
        share = 0.24 if cfg.distribution.name == "erk" else 0.13
    near = 0.02 if cfg.method.name == "small_dense" else 0.005  # of a whole number of channels
    assert metrics["flops/inference_relative"] == pytest.approx(share, abs=near)
    steps = cfg.epochs * (1281167 // cfg.batch_size)
    assert metrics["steps"] == steps


@pytest.mark.parametrize("overrides", cells("imagenet", 0.8))
def test_a_cell_of_imagenet_makes_a_step(overrides):
    cfg = compose([*overrides, "seed=3"])
    check(cfg)
    model, _ = network(cfg, (3, 224, 224), 1000)
    optimizer = torch.optim.SGD(model.parameters(), lr=cfg.optimizer.lr, momentum=0.9)
    session = Session(build_method(cfg), model, optimizer, total_steps=32000, seed=3)
    session.before_forward()
    generator = torch.Generator().manual_seed(0)
    loss = cross_entropy(
        model(torch.randn(2, 3, 64, 64, generator=generator)), torch.tensor([7, 999])
    )
    loss.backward()
    session.after_backward()
    optimizer.step()
    session.after_step()
    assert torch.isfinite(loss)
    if cfg.method.name in ("static", "set", "rigl", "snfs", "rigl_itop"):
        for name, mask in session.masks.items():
            weight = model.get_parameter(name)
            assert int((weight != 0).sum()) <= int(mask.sum()) == session.masks.nonzeros[name]
        kept = sum(session.masks.nonzeros.values())
        total = sum(mask.numel() for _, mask in session.masks.items())
        first = 0 if cfg.distribution.name == "erk" else 9408  # dense under uniform
        assert kept == first + round(0.2 * (total - first))


@pytest.mark.parametrize("name", ["cifar", "random_pruning"])
def test_each_row_and_column_of_a_published_scale_is_allowed(name):
    node = compose([f"+table={name}"]).table
    node.scale = "paper"
    grid = table_grid(read_table(node, f"table/{name}.yaml"), [])
    firsts = {("row", i): (i, j) for i, j in reversed(grid.places)}
    firsts |= {("column", j): (i, j) for i, j in reversed(grid.places)}
    assert len(firsts) == len(grid.rows) + len(grid.columns)
    for i, j in set(firsts.values()):
        check(compose(grid.overrides(grid.rows[i], grid.columns[j])))
