"""A task is one file: what it says, and what it gets for nothing."""

import csv
import sys
import types

import pytest
import torch
from torchmetrics import MeanMetric

from sparsebench.config.compose import compose
from sparsebench.config.identity import identity
from sparsebench.errors import UserError
from sparsebench.run import run
from sparsebench.tasks import TASKS, load, task
from sparsebench.training.learner import Learner

QUICK = [
    "epochs=3", "batch_size=16", "method.every=2it", "plots=false", "quiet=true",
    "trainer.accelerator=cpu", "trainer.checkpoint_every=0",
]  # fmt: skip
ALL = {
    "classification": ["data=digits", "data.subset=160", "model=tiny_mlp"],
    "feature_selection": [
        "task=feature_selection", "data=planted", "data.args.features=24", "data.args.train=120",
        "data.args.test=40", "model.hidden=[12]", "task.options.k=5",
    ],
    "recommend": [
        "task=recommend", "data.args.users=20", "data.args.items=30", "data.args.least=8",
        "data.args.most=12", "model.args.dimensions=6", "task.options.top=5",
    ],
    "forecast": [
        "task=forecast", "data.args.height=8", "data.args.width=8", "data.args.train=120",
        "data.args.test=40", "data.args.rows=2", "data.args.columns=2", "model.hidden=[12]",
    ],
    "dynamics": [
        "task=dynamics", "data.args.train=120", "data.args.test=40", "data.args.starts=1",
        "model.hidden=[8,6]", "task.options.relus=3", "task.options.steps=2",
    ],
    "gates": [
        "task=gates", "data=digits", "data.subset=160", "model=tiny_conv",
        "task.options.warmup=1ep", "task.options.cooldown=2ep",
    ],
    "compress": ["task=compress", "data=digits", "data.subset=160", "model=tiny_mlp"],
}  # fmt: skip


def train(folder, *words):
    result = run(compose([*QUICK, f"runs={folder}", *words]))
    assert result["status"] == "finished", result.get("error")
    return result


def test_the_tasks_that_train_are_all_tested_here():
    others = {"profile", "prune_llm"}  # these train nothing
    elsewhere = {"continual", "train_llm"}  # a stream, and text; each has tests of its own
    assert set(ALL) == set(TASKS) - others - elsewhere


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("method", ["rigl", "snip", "gmp"])
def test_any_method_trains_in_any_task_at_the_exact_budget(tmp_path, name, method):
    metrics = train(tmp_path, *ALL[name], f"method={method}", "sparsity=0.75")["metrics"]
    assert metrics["nonzeros"] == pytest.approx(0.25 * metrics["weights"], abs=0.5)
    assert 0 < metrics["flops/inference_relative"] < 1
    assert metrics["flops/training_relative"] > 0
    assert all(key in metrics for key in ("train/loss", "itop_rate", "weights_sha256"))


@pytest.mark.parametrize("name", ALL)
def test_an_interrupted_run_goes_on_bitwise(tmp_path, monkeypatch, name):
    words = [*ALL[name], "method=rigl", "sparsity=0.75", "epochs=3"]
    whole = train(tmp_path / "whole", *words)
    steps, step = whole["metrics"]["steps"], Learner.training_step
    calls = iter(range(1000))

    def mortal(self, *args):
        if next(calls) == steps // 2:
            raise RuntimeError("power cut")
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "training_step", mortal)
        cut = run(compose([*QUICK, f"runs={tmp_path / 'cut'}", *words]))
    assert cut["status"] == "failed"
    assert "power cut" in cut["error"]
    again = train(tmp_path / "cut", *words)
    same = {k: v for k, v in whole["metrics"].items() if not k.startswith(("seconds", "memory"))}
    assert same == {k: again["metrics"][k] for k in same}
    rows = [
        (tmp_path / w / whole["identity"] / "metrics.csv").read_text() for w in ("whole", "cut")
    ]
    assert rows[0] == rows[1]


def test_a_small_dense_network_of_any_task_is_no_larger_than_the_sparse_one(tmp_path):
    for name in set(ALL) - {"forecast"}:  # a narrower forecaster has no fewer sensors
        words = ALL[name]
        metrics = train(tmp_path, *words, "method=small_dense", "sparsity=0.5")["metrics"]
        sparse = train(tmp_path, *words, "method=static", "sparsity=0.5")["metrics"]
        assert metrics["weights"] <= sparse["nonzeros"], name
        assert metrics["flops/inference_dense"] == sparse["flops/inference_dense"], name


def test_early_stopping_watches_the_figure_of_the_task(tmp_path):
    words = [*ALL["recommend"], "trainer.patience=1", "optimizer.lr=1e-12", "epochs=9"]
    metrics = train(tmp_path, *words, "method=static")["metrics"]
    assert metrics["epochs"] == 2  # a network that does not learn gets no better


def test_options_are_part_of_the_identity_and_checked(tmp_path):
    base = ALL["recommend"]
    assert identity(compose(base)) != identity(compose([*base, "task.options.top=6"]))
    assert identity(compose()) == identity(compose(["task=classification"]))
    for words, said in (
        ([*base, "task.options.top=0"], "task.options.top=0: a whole number of at least 1"),
        ([*base, "task.options.top=2.5"], "task.options.top=2.5: a whole number"),
        ([*base, "+task.options.topp=3"], "no such option; there are: top, test, decay"),
        ([*base, "trainer.mixup=0.5"], "trainer.mixup=0.5: has no effect without task=class"),
        (["task=profile", "+task.options.k=3"], "has no effect with this task"),
        (["task.name=classfication"], "did you mean 'classification'"),
    ):
        with pytest.raises(UserError, match=said):
            run(compose([f"runs={tmp_path}", *words]))
    assert not list(tmp_path.iterdir())


class Parity(Learner):
    """Regression to the number of the class, to show how little a task needs."""

    def train_loss(self, batch):
        x, y = batch
        return (self(x).mean(1) - y).square().mean()

    def evaluate(self, batch):
        self.evaluation["loss"].update(self.train_loss(batch))


class Own(task.Task):
    def learner(self, prepared):
        return Parity(prepared.model, self.cfg, {"loss": MeanMetric()}, prepared.method)

    def figures(self, prepared, learner):
        return {"test/samples": len(prepared.data.test)}


def test_a_task_needs_a_loss_and_a_test_and_no_more(tmp_path, monkeypatch):
    module = types.ModuleType("sparsebench.tasks.own")
    module.prepare, module.run = task.entry(Own)
    monkeypatch.setitem(sys.modules, "sparsebench.tasks.own", module)
    monkeypatch.setattr("sparsebench.run.TASKS", (*TASKS, "own"))
    assert load("own") is module
    result = train(tmp_path, *ALL["classification"], "task.name=own", "method=set")
    assert result["metrics"]["test/samples"] == 360
    assert result["metrics"]["test/loss"] < 25
    folder = tmp_path / result["identity"]
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert {"train/loss", "validation/loss", "sparsity", "flops/training"} <= set(rows[-1])
    assert torch.load(folder / "last.ckpt", weights_only=True)["callbacks"]["Sparsify"]
