"""Whole runs over a stream: what they report, what they refuse, killed and resumed."""

import csv
import json

import pytest
import torch
from mortal_runs import OFTEN, assert_same, die, finish, home, load

from sparsebench.config.check import check
from sparsebench.config.compose import compose
from sparsebench.config.identity import identity, run_folder
from sparsebench.config.paths import config_files
from sparsebench.errors import UserError
from sparsebench.run import run

BASE = [
    "task=continual", "stream=split_digits", "model=tiny_mlp", "epochs=2", "batch_size=32",
    "plots=false", "quiet=true", "trainer.accelerator=cpu", "optimizer=adam", "optimizer.lr=0.003",
    "optimizer.weight_decay=0", "data.validation=0", "schedule=constant",
]  # fmt: skip
STEPS = 1437 // 5 // 32
RIGL = ("method=rigl", "method.every=4it", "sparsity=0.5")
DENSE = ("method=dense",)


def go(tmp_path, *overrides):
    result = run(compose([*BASE, f"runs={tmp_path}", *overrides]))
    assert result["status"] == "finished", result.get("error")
    return result


@pytest.fixture(scope="module")
def replayed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("er")
    return go(folder, *RIGL, "replay=er", "replay.size=40", "plots=true"), folder


# --- what a run reports -----------------------------------------------------------------------


def test_a_run_reports_its_matrix_and_figures_of_each_scenario(replayed):
    result, folder = replayed
    metrics, matrix = result["metrics"], result["accuracy_matrix"]
    assert result["scenario"] == "class_il"
    assert matrix == result["accuracy_matrices"]["class_il"]
    assert [[a is None for a in row] for row in matrix] == [
        [j > i for j in range(5)] for i in range(5)
    ]
    assert metrics["continual/acc"] == metrics["continual/class_il/acc"] == sum(matrix[4]) / 5
    told = result["accuracy_matrices"]["task_il"]
    for i in range(5):
        assert all(told[i][j] >= matrix[i][j] for j in range(i + 1))
    assert metrics["continual/task_il/bwt"] == sum(told[4][j] - told[j][j] for j in range(4)) / 4
    assert result["accuracy_matrices"]["domain_il"] is metrics["continual/domain_il/acc"] is None
    assert metrics["continual/fwt"] is metrics["continual/intransigence"] is None
    assert metrics["continual/task_il/fwt"] is not None
    with next(folder.glob("*/accuracy_matrix.csv")).open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 25 + 15
    for line in lines:
        row = result["accuracy_matrices"][line["scenario"]][int(line["after_task"])]
        assert float(line["accuracy"]) == row[int(line["on_task"])]
    assert next(folder.glob("*/accuracy_matrix.png")).stat().st_size > 1000


def test_the_test_at_the_end_agrees_with_the_last_row(replayed):
    metrics = replayed[0]["metrics"]
    assert metrics["test/accuracy"] == pytest.approx(metrics["continual/acc_weighted"] / 100)


def test_curves_by_task_are_in_the_rows_of_epochs(replayed):
    result, folder = replayed
    with next(folder.glob("*/metrics.csv")).open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["task"]) for row in rows] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    for task in range(5):
        seen = [float(row["continual/task_0"]) for row in rows[2 * task + 1 : 2 * task + 3]]
        assert set(seen) == {result["accuracy_matrix"][task][0]}


def test_replay_costs_flops_and_bytes(replayed, tmp_path):
    with_replay = replayed[0]["metrics"]
    without = go(tmp_path, *RIGL)["metrics"]
    assert with_replay["steps"] == without["steps"] == 10 * STEPS
    assert with_replay["flops/training_relative"] == pytest.approx(
        without["flops/training_relative"], abs=0.01
    )
    presented = (2 * 32 * 10 * STEPS - 32) / (32 * 10 * STEPS)  # nothing to replay at first
    assert with_replay["flops/training"] / without["flops/training"] == pytest.approx(
        presented, rel=0.01
    )
    assert (without["bytes/buffer"], with_replay["bytes/buffer"]) == (0, 40 * (64 + 8))
    layers = replayed[0]["layers"].values()
    sparse = sum(layer["weights"] for layer in layers if layer["sparsity"] > 0)
    for metrics in (with_replay, without):
        assert metrics["bytes/weights"] == 4 * metrics["nonzeros"]
        assert metrics["bytes/masks"] == sparse / 8
        kinds = ("weights", "masks", "dense", "buffer")
        assert metrics["bytes/total"] == sum(metrics[f"bytes/{kind}"] for kind in kinds)


def test_bounds_are_runs_that_others_are_measured_against(replayed, tmp_path):
    told = ("stream.scenario=task_il", *DENSE, "epochs=1")
    bounds = {
        mode: go(tmp_path, *told, f"task.options.mode={mode}") for mode in ("joint", "independent")
    }
    folders = {
        mode: next(f for f in tmp_path.iterdir() if json.loads((f / "result.json").read_text())
                   ["config"]["task"]["options"]["mode"] == mode)
        for mode in bounds
    }  # fmt: skip
    run_ = go(tmp_path, *told, *(f"task.options.{m}={f}" for m, f in folders.items()))
    matrix, metrics = run_["accuracy_matrix"], run_["metrics"]
    best = bounds["joint"]["accuracy_matrix"][-1]
    alone = [row[j] for j, row in enumerate(bounds["independent"]["accuracy_matrix"])]
    assert metrics["continual/intransigence"] == pytest.approx(
        sum(best[j] - matrix[j][j] for j in range(5)) / 5
    )
    assert metrics["continual/transfer"] == pytest.approx(
        sum(matrix[j][j] - alone[j] for j in range(5)) / 5
    )
    one = run_["metrics"]["bytes/weights"]
    assert bounds["independent"]["metrics"]["bytes/weights"] == 5 * one
    for wrong in ("nowhere", str(folders["independent"])):
        with pytest.raises(UserError, match="task.options.joint=.*run.* is needed"):
            go(tmp_path, *told, f"task.options.joint={wrong}")


def test_shares_of_the_network_are_those_of_its_masks(replayed):
    shares = replayed[0]["tasks"]
    assert [task["classes"] for task in shares] == [[str(2 * t), str(2 * t + 1)] for t in range(5)]
    for task in shares:
        assert task["used"] == pytest.approx(0.5, abs=1e-3)
        assert task["new"] + task["reused"] == pytest.approx(task["used"])
    free = [task["free"] for task in shares]
    assert free == sorted(free, reverse=True)
    assert free[-1] < free[0]


# --- each task anew ---------------------------------------------------------------------------


def test_learning_rate_and_mask_schedule_begin_anew_with_each_task(tmp_path):
    words = ("schedule=linear", "method=set", "method.every=4it", "sparsity=0.5", "method.end=75%")
    go(tmp_path, *words)
    with next(tmp_path.glob("*/metrics.csv")).open() as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file)]
    last = 0.003 * (1 - (2 * STEPS - 1) / (2 * STEPS))
    assert rates[1::2] == pytest.approx([last] * 5)
    kept = load(next(tmp_path.glob("*/last.ckpt")))["callbacks"]["Sparsify"]
    assert kept["step"] == 2 * STEPS
    over = go(tmp_path / "stream", *words, "task.options.method_over=stream")
    assert over["status"] == "finished"
    kept = load(next(tmp_path.glob("stream/*/last.ckpt")))["callbacks"]["Sparsify"]
    assert kept["step"] == 10 * STEPS


def test_gradual_pruning_goes_over_the_stream(tmp_path):
    go(tmp_path, "method=gmp", "method.every=4it", "sparsity=0.5")
    with next(tmp_path.glob("*/metrics.csv")).open() as file:
        sparsities = [float(row["sparsity"]) for row in csv.DictReader(file)]
    assert sparsities == sorted(sparsities)
    assert sparsities[1] < 0.4
    assert sparsities[-1] == pytest.approx(0.5, abs=1e-3)


def test_the_optimizer_forgets_between_tasks_unless_it_is_not_to(tmp_path):
    digests = set()
    for reset in ("true", "false"):
        go(tmp_path / reset, *DENSE, f"task.options.reset_optimizer={reset}")
        state = load(next(tmp_path.glob(f"{reset}/*/last.ckpt")))["optimizer_states"][0]["state"]
        steps = {int(kept["step"]) for kept in state.values()}
        assert steps == {2 * STEPS if reset == "true" else 10 * STEPS}
        digests.add(next(iter(state.values()))["exp_avg"].sum())
    assert len(digests) == 2


# --- bounds and scenarios ---------------------------------------------------------------------


def test_joint_training_takes_as_many_steps_and_knows_all(tmp_path):
    result = go(tmp_path, *DENSE, "task.options.mode=joint", "epochs=10")
    matrix, metrics = result["accuracy_matrix"], result["metrics"]
    assert metrics["steps"] == 50 * STEPS
    assert matrix[:4] == [[None] * 5] * 4
    assert metrics["continual/acc"] == sum(matrix[4]) / 5 > 85
    assert metrics["continual/bwt"] is metrics["continual/learning_accuracy"] is None


def test_independent_networks_start_from_the_same_weights_and_masks(tmp_path):
    words = ("stream.scenario=task_il", "task.options.mode=independent", "stream.tasks=2",
             "stream.classes=[0,1,2,3]", "model.checkpoint=null")  # fmt: skip
    result = go(tmp_path / "both", *RIGL, *words)
    matrix = result["accuracy_matrix"]
    assert matrix[0][1] is matrix[1][0] is None
    assert result["metrics"]["continual/acc"] == (matrix[0][0] + matrix[1][1]) / 2
    assert result["metrics"]["continual/bwt"] is result["metrics"]["test/accuracy"] is None
    assert result["tasks"][0]["used"] == pytest.approx(0.5, abs=1e-3)
    assert result["tasks"][1]["reused"] > 0.4


def test_domain_incremental_has_shared_outputs_and_forward_transfer(tmp_path):
    result = go(tmp_path, *DENSE, "stream=permuted_digits", "stream.tasks=3")
    metrics = result["metrics"]
    assert result["accuracy_matrices"]["task_il"] is result["accuracy_matrices"]["class_il"] is None
    assert all(a is not None for row in result["accuracy_matrix"] for a in row)
    assert metrics["continual/fwt"] is not None
    assert result["layers"]["fc3.weight"]["shape"][0] == 10


def test_a_sliced_loss_leaves_other_outputs_as_they_were(tmp_path):
    words = ("stream.scenario=task_il", "stream.tasks=1", "stream.classes=[4,7]")
    result = go(tmp_path, *DENSE, *words)
    assert result["metrics"]["continual/acc"] > 80
    assert result["metrics"]["continual/task_il/acc"] == result["metrics"]["continual/acc"]
    assert result["tasks"][0]["classes"] == ["4", "7"]


def test_no_replay_of_an_unseen_class_and_constant_memory(tmp_path):
    sizes = []
    for tasks in (2, 5):
        words = (f"stream.tasks={tasks}", "replay=derpp", "replay.size=40", "epochs=1")
        go(tmp_path / str(tasks), *DENSE, *words)
        path = next(tmp_path.glob(f"{tasks}/*/last.ckpt"))
        kept = load(path)["continual"]["buffer"]["kept"]
        sizes.append({name: tuple(tensor.shape) for name, tensor in kept.items()})
        assert len(kept["y"].unique()) > 5
    assert sizes[0] == sizes[1] == {"images": (40, 1, 8, 8), "y": (40,), "logits": (40, 10)}


@pytest.mark.parametrize("method", ["static", "set", "snfs", "gmp", "sr_ste", "snip", "str"])
def test_methods_of_each_kind_run_under_replay(tmp_path, method):
    assert method in config_files("method")
    every = () if method in ("static", "snip", "sr_ste", "str") else ("method.every=4it",)
    words = ("structure=nm_2_4",) if method == "sr_ste" else ("sparsity=0.5",)
    result = go(tmp_path, f"method={method}", *every, *words, "replay=der", "epochs=1")
    assert result["metrics"]["continual/acc"] is not None


# --- killed and resumed -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "at"),
    [
        (["method=rigl", "method.every=4it", "replay=er", "replay.size=50"], "55+0"),
        (["method=set", "method.every=4it", "replay=er", "replay.size=50"], "48+2"),
        (["method=gmp", "method.every=4it", "replay=derpp", "replay.size=50"], "140+0"),
        (["method=dpf", "method.every=4it", "optimizer=adamw"], "49+0"),
        (["stream.scenario=task_il", "task.options.mode=independent", "method.every=4it"], "60+0"),
        (["method=wsn", "sparsity=0.5"], "55+0"),
        (
            ["method=supsup", "sparsity=0.5", "stream.scenario=class_il"]
            + ["method.options={infer: true, rest: first, scores: mean}"],
            "48+2",
        ),
    ],
    ids=["within", "testing", "gradual", "shadow", "independent", "learned", "untold"],
)
def test_killed_within_a_stream_it_ends_as_if_it_had_not_been(tmp_path, words, at):
    stream = ["task=continual", "batch_size=32", "epochs=3", *words]
    whole, _ = finish(home(tmp_path / "whole"), *stream)
    dead = die(home(tmp_path / "killed"), OFTEN, *stream, DIE_AT=at)
    finish(tmp_path / "killed", OFTEN, *stream)
    assert_same(dead, whole)
    first, second = (json.loads((run / "result.json").read_text()) for run in (dead, whole))
    assert first["accuracy_matrices"] == second["accuracy_matrices"]
    assert (dead / "accuracy_matrix.csv").read_bytes() == (
        whole / "accuracy_matrix.csv"
    ).read_bytes()


def test_a_checkpoint_of_another_order_of_classes_is_refused(tmp_path):
    words = [*DENSE, "stream.tasks=2", "epochs=1"]
    go(tmp_path, *words)
    cfg = compose([*BASE, f"runs={tmp_path}", *words])
    other = compose([*BASE, f"runs={tmp_path}", *words, "stream.class_order_seed=1"])
    assert identity(cfg) != identity(other)
    kept = load(run_folder(cfg) / "last.ckpt")
    kept["sparsebench"]["identity"] = identity(other)
    run_folder(other).mkdir()
    torch.save(kept, run_folder(other) / "last.ckpt")
    with pytest.raises(UserError, match="can't be resumed"):
        run(other)


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stream=none"], "stream=none: task=continual needs a stream"),
        (["stream.tasks=4"], "stream.tasks=4: 10 classes can't be shared out evenly"),
        (["stream.classes=[0,1,2,cat]", "stream.tasks=2"], "stream.classes=cat: no such class"),
        (["replay=er", "replay.size=31"], "replay.size=31: smaller than a batch"),
        (["replay=er", "replay.size=20", "replay.batch=21"], "replay.batch=21"),
        (["replay=er", "task.options.mode=joint"], "nothing to replay"),
        (["replay=er", "trainer.accumulate=2"], "trainer.accumulate=2"),
        (["replay=lwf"], "lwf"),
        (["task.options.mode=independent"], "can't tell classes of different tasks apart"),
        (["trainer.ema=0.9"], "trainer.ema=0.9"),
        (["trainer.patience=2", "data.validation=0.1"], "trainer.patience=2"),
        (["trainer.devices=2"], "trainer.devices=2"),
        (["method=imp", "method.every=4it"], "goes back to earlier weights"),
        (["batch_size=300"], "batch_size=300"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path, words, said):
    method = [] if any(word.startswith("method=") for word in words) else DENSE
    with pytest.raises(UserError, match=said):
        run(compose([*BASE, f"runs={tmp_path / 'runs'}", *method, *words]))
    assert not list((tmp_path / "runs").glob("*"))


def test_a_stream_needs_its_task():
    with pytest.raises(UserError, match="without task=continual"):
        check(compose(["stream=split_digits", "method=static"]))


def test_runs_without_a_stream_keep_their_names():
    found = {"data=digits": "digits-mlp-rigl-0.9-0"}
    for words, begin in found.items():
        name = identity(compose([words]))
        assert name.rpartition("-")[0] == begin
        assert name == identity(compose([words, "replay=none", "stream=none"]))
