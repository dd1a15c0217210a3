"""One run: its folder, its result, what asking again does, and what a user brings."""

import csv
import hashlib
import json
import math
import os
from pathlib import Path

import pytest
import torch
import yaml

from sparsebench.cli import main
from sparsebench.result import read_result, write_result
from sparsebench.sparsity.masks import unpack

RUN = [
    "model=tiny_mlp", "data=digits", "method=rigl", "method.every=4it", "sparsity=0.75",
    "epochs=2", "trainer.threads=1", "trainer.accelerator=cpu",
]  # fmt: skip
SHAPES = {"fc1.weight": (32, 64), "fc2.weight": (16, 32), "fc3.weight": (10, 16)}
WEIGHTS = sum(math.prod(shape) for shape in SHAPES.values())
FILES = {
    *("config.yaml", "metrics.csv", "density.csv", "seconds.csv"),
    *("last.ckpt", "result.json", ".owner-1"),
}
PICTURES = {"curves.png", "density.png"}

OWN = '''
import os

import torch
from torch import nn

from sparsebench.sparsity.masks import Masks


class Net(nn.Module):
    """Two layers, and a count of how often it was trained."""

    def __init__(self, input_shape, num_classes, width=1.0, bias=True):
        super().__init__()
        self.a = nn.Linear(64, int(16 * width), bias=bias)
        self.b = nn.Linear(int(16 * width), num_classes, bias=bias)
        self.c = nn.Linear(int(16 * width), num_classes, bias=False)
        self.c.weight = self.b.weight

    def forward(self, x):
        if self.training and len(x) > 2:
            with open("steps", "a") as file:
                file.write(".")
            if os.environ.get("FAULT") == "raise":
                raise RuntimeError("the disk of the\\nnetwork is broken")
        x = torch.relu(self.a(x.flatten(1)))
        return (self.b(x) + self.c(x)) / 2


class Halves:
    """Keeps the left half of each weight, and swaps the halves after a step."""

    storage = "zeroed"

    def __init__(self, sparsity, swap_at):
        self.sparsity, self.swap_at, self.swaps = sparsity, swap_at, 0

    def start(self, state):
        for name, parameter in state.masks.parameters.items():
            mask = torch.zeros(parameter.shape, dtype=torch.bool)
            mask[:, : parameter.shape[1] // 2] = True
            state.masks.set(name, mask)

    def after_backward(self, state):
        return False

    def after_step(self, state):
        if state.step == self.swap_at:
            self.swaps += 1
            for name, mask in state.masks.items():
                flat = mask.flatten()
                dropped, grown = flat.nonzero().flatten(), (~flat).nonzero().flatten()
                state.masks.move(name, dropped, grown, state.optimizers)

    def wants_dense_gradient(self, state):
        return False

    def loss(self, state):
        return None

    def state_dict(self):
        return {"swaps": self.swaps}

    def load_state_dict(self, state):
        self.swaps = state["swaps"]


def blocks(config):
    """Images that are bright in one of four corners; the corner is the class."""
    count = config["args"].get("count", 80)
    labels = torch.arange(count) % 4
    images = torch.zeros(count, 1, 8, 8, dtype=torch.uint8)
    for i, label in enumerate(labels.tolist()):
        images[i, 0, 4 * (label // 2) :, 4 * (label % 2) :][:4, :4] = 200 + i % 8
    return (images, labels), (images[:20], labels[:20])
'''


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "own_run.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture
def ask(place, capsys):
    """Give words to the command line: exit code, lines on stdout, lines on stderr."""

    def asked(*words):
        with pytest.raises(SystemExit) as end:
            main([*words])
        out, err = capsys.readouterr()
        return end.value.code, out.splitlines(), err.splitlines()

    return asked


def run(ask, *words):
    """A run that goes well; its folder and its result."""
    code, out, err = ask(*RUN, "plots=false", *words)
    assert code == 0, err
    path = Path(out[-1])
    return path.parent, json.loads(path.read_text())


# --- the result --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run with everything, looked at from many sides."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("finished")
        patch.chdir(folder)
        with pytest.raises(SystemExit) as end:
            main(RUN)
        assert end.value.code == 0
        (found,) = (folder / "runs").iterdir()
    return found, json.loads((found / "result.json").read_text())


def test_the_result_has_what_readers_of_it_count_on(finished):
    folder, result = finished
    assert {
        "schema", "identity", "status", "config", "environment", "metrics", "layers", "notes",
    } <= result.keys()  # fmt: skip
    assert (result["schema"], result["status"], result["identity"]) == (1, "finished", folder.name)
    assert result["config"]["sparsity"] == 0.75
    assert {"versions", "python", "machine", "revision", "threads", "command"} <= result[
        "environment"
    ].keys()
    assert torch.__version__.startswith(result["environment"]["versions"]["torch"])
    assert {
        "test/accuracy", "test/loss", "parameters", "nonzeros", "sparsity", "flops/inference",
        "flops/inference_relative", "flops/training_relative", "seconds/training", "seconds/step",
        "memory/peak_bytes", "weights_sha256", "validation/accuracy", "steps", "epochs",
    } <= result["metrics"].keys()  # fmt: skip


def test_the_config_kept_beside_it_is_that_of_the_result(finished):
    folder, result = finished
    assert yaml.safe_load((folder / "config.yaml").read_text()) == result["config"]


def test_the_counts_are_those_of_the_shapes(finished):
    _, result = finished
    metrics = result["metrics"]
    assert metrics["parameters"] == WEIGHTS + 32 + 16 + 10
    assert metrics["weights"] == WEIGHTS
    assert metrics["nonzeros"] == round(0.25 * WEIGHTS)
    assert metrics["sparsity"] == 1 - metrics["nonzeros"] / WEIGHTS
    assert metrics["steps"] == 20
    assert {name: tuple(layer["shape"]) for name, layer in result["layers"].items()} == SHAPES
    assert sum(layer["nonzeros"] for layer in result["layers"].values()) == metrics["nonzeros"]
    inference = sum(2 * layer["nonzeros"] for layer in result["layers"].values())
    assert metrics["flops/inference"] == inference
    assert metrics["flops/inference_relative"] == inference / (2 * WEIGHTS)


def test_the_digest_is_that_of_the_weights_and_masks_of_the_checkpoint(finished):
    folder, result = finished
    kept = torch.load(folder / "last.ckpt", weights_only=True)
    weights = {
        name.removeprefix("model."): value
        for name, value in kept["state_dict"].items()
        if name.startswith("model.")
    }
    masks = kept["callbacks"]["Sparsify"]["masks"]["packed"]
    digest = hashlib.sha256()
    for entries in (weights, masks):
        for entry in sorted(entries):
            digest.update(entry.encode())
            digest.update(entries[entry].contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    assert digest.hexdigest() == result["metrics"]["weights_sha256"]
    for entry, bits in masks.items():
        assert not weights[entry][~unpack(bits, weights[entry].shape)].any()


def test_the_folder_holds_what_it_should_and_nothing_else(finished):
    folder, result = finished
    diff = {"source.diff"} if result["environment"]["revision_diff"] else set()
    assert {path.name for path in folder.iterdir()} == FILES | PICTURES | diff


def test_the_rows_are_one_for_each_epoch(finished):
    folder, result = finished
    for file in ("metrics.csv", "density.csv", "seconds.csv"):
        rows = list(csv.DictReader((folder / file).open()))
        assert [row["epoch"] for row in rows] == ["1", "2"]
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert [row["step"] for row in rows] == ["10", "20"]
    for key in ("nonzeros", "sparsity", "validation/accuracy", "flops/training_relative"):
        assert float(rows[-1][key]) == result["metrics"][key]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_figure_that_is_none_is_null(tmp_path, value):
    write_result(
        tmp_path, identity="a", status="finished", config={}, environment={},
        metrics={"test/loss": value, "nested": [{"x": value}]},
    )  # fmt: skip
    metrics = read_result(tmp_path)["metrics"]
    assert metrics == {"test/loss": None, "nested": [{"x": None}]}
    assert "NaN" not in (tmp_path / "result.json").read_text()


# --- what is said, and asking again -------------------------------------------------------------


def test_the_last_line_is_the_path_and_the_second_ask_trains_nothing(ask, place):
    code, out, err = ask(*RUN, "plots=false")
    assert (code, err) == (0, [])
    path = Path(out[-1])
    assert path.is_absolute()
    assert path.name == "result.json"
    assert path.parent.parent == place / "runs"
    assert "test/accuracy=" in out[-2]
    before = {p: p.stat().st_mtime_ns for p in path.parent.iterdir()}
    assert ask(*RUN, "plots=false") == (code, out, err)
    assert {p: p.stat().st_mtime_ns for p in path.parent.iterdir()} == before
    assert ask(*RUN, "quiet=true") == (0, [str(path)], [])


def test_quiet_prints_the_path_alone(ask):
    code, out, err = ask(*RUN, "plots=false", "quiet=true")
    assert (code, len(out), err) == (0, 1, [])
    assert json.loads(Path(out[0]).read_text())["status"] == "finished"


def test_force_trains_again_from_the_start(ask):
    folder, first = run(ask, "epochs=1")
    written = (folder / "result.json").stat().st_mtime_ns
    kept = (folder / "last.ckpt").stat().st_ino
    _, again = run(ask, "epochs=1", "force=true")
    assert (folder / "result.json").stat().st_mtime_ns > written
    assert (folder / "last.ckpt").stat().st_ino != kept
    assert again["metrics"]["weights_sha256"] == first["metrics"]["weights_sha256"]
    again_claimed = FILES - {".owner-1"} | {".owner-2"}
    assert {path.name for path in folder.iterdir()} - {"source.diff"} == again_claimed


def own(*words):
    return ["model=custom", "model._target_=own_run.Net", "allow=[own_run]", *words]


def steps(place):
    return len((place / "steps").read_text())


def test_a_forced_run_that_was_interrupted_goes_on(ask, place, monkeypatch):
    run(ask, *own())
    assert steps(place) == 20
    monkeypatch.setenv("FAULT", "raise")
    code, _, _ = ask(*RUN, "plots=false", *own("force=true"))
    assert (code, steps(place)) == (1, 21)
    monkeypatch.delenv("FAULT")
    (folder,) = (place / "runs").iterdir()
    (folder / "result.json").unlink()  # as if it had been killed before it could fail
    run(ask, *own("force=true"))
    assert steps(place) == 41


def test_a_failed_run_is_recorded_told_in_one_line_and_tried_again(ask, place, monkeypatch):
    monkeypatch.setenv("FAULT", "raise")
    code, out, (line,) = ask(*RUN, *own())
    assert code == 1
    assert line.endswith(" failed: RuntimeError: the disk of the network is broken")
    path = Path(out[-1])
    result = json.loads(path.read_text())
    assert (result["status"], result["metrics"]) == ("failed", {})
    assert 'raise RuntimeError("the disk' in (path.parent / "error.txt").read_text()
    monkeypatch.delenv("FAULT")
    folder, result = run(ask, *own())
    assert folder == path.parent
    assert result["status"] == "finished"
    assert not (folder / "error.txt").exists()


def test_a_run_that_diverges_is_recorded_and_not_asked_again(ask, place):
    words = own("optimizer.lr=1e30", "plots=false")
    code, out, (line,) = ask(*RUN, *words)
    assert code == 1
    assert " diverged: training diverged at step 10: loss " in line
    result = json.loads(Path(out[-1]).read_text())
    assert result["status"] == "diverged"
    assert result["metrics"] == {"diverged/step": 10}
    trained = steps(place)
    assert ask(*RUN, *words) == (code, out, [line])
    assert steps(place) == trained
    code, out, _ = ask(*RUN, *words, "trainer.checkpoint_every=0", "force=true")
    assert code == 1
    step = json.loads(Path(out[-1]).read_text())["metrics"]["diverged/step"]
    assert step < 10  # noticed before such a step could be kept
    (kept,) = Path(out[-1]).parent.glob("*.ckpt")
    assert torch.load(kept, weights_only=True)["global_step"] == step - 1


# --- what a user brings --------------------------------------------------------------------------


def test_a_model_of_ones_own_and_its_shared_weight(ask):
    _, result = run(ask, *own("model.width=2", "+model.args.bias=false"))
    assert result["metrics"]["weights"] == 64 * 32 + 32 * 10  # the shared one is counted once
    assert result["metrics"]["parameters"] == 64 * 32 + 32 * 10
    assert set(result["layers"]) == {"a.weight", "b.weight"}
    kept = round(0.25 * (64 * 32 + 32 * 10))
    assert result["metrics"]["nonzeros"] == kept


def test_data_of_ones_own(ask):
    words = [
        "allow=[own_run]", "data._target_=own_run.blocks", "data.name=blocks", "batch_size=8",
        "data.num_classes=4", "data.train_size=80", "+data.args.count=80", "data.augment=none",
        "optimizer.lr=0.02", "epochs=6",
    ]  # fmt: skip
    folder, result = run(ask, *words)
    assert folder.name.startswith("blocks-tiny_mlp-rigl-")
    assert result["layers"]["fc3.weight"]["shape"] == [4, 16]
    assert result["metrics"]["steps"] == 9 * 6
    assert result["metrics"]["test/accuracy"] == 1.0


def test_a_method_of_ones_own_from_a_folder_of_ones_own(ask, place):
    (place / "my" / "method").mkdir(parents=True)
    (place / "my" / "method" / "halves.yaml").write_text(
        "# Left half, then right half\nname: halves\n_target_: own_run.Halves\nswap_at: 15\n"
    )
    words = [word for word in RUN if "every" not in word and word != "method=rigl"]
    words = [*words, "method=halves", "sparsity=0.5", "allow=[own_run]", "plots=false"]
    code, out, err = ask("--config-dir", "my", *words)
    assert code == 0, err
    folder = Path(out[-1]).parent
    assert folder.name.startswith("digits-tiny_mlp-halves-0.5-0-")
    kept = torch.load(folder / "last.ckpt", weights_only=True)["callbacks"]["Sparsify"]
    for entry, bits in kept["masks"]["packed"].items():
        mask = unpack(bits, torch.Size(SHAPES[entry]))
        half = mask.shape[1] // 2
        assert mask[:, half:].all()
        assert not mask[:, :half].any()
    assert kept["method"] == {"swaps": 1}
    code, out, _ = ask("--config-dir", "my", *words, "method.swap_at=3")
    assert Path(out[-1]).parent != folder


def test_a_method_yaml_of_ones_own_is_held_to_the_schema(ask, place):
    (place / "my" / "method").mkdir(parents=True)
    text = "# Mine\ndefaults: [composed]\nname: mine\ndrop: magnitude\ngrow: random\n"
    (place / "my" / "method" / "mine.yaml").write_text(text)
    words = [*RUN[:2], *RUN[3:], "method=mine", "plots=false"]
    code, out, err = ask("--config-dir", str(place / "my"), *words)
    assert code == 0, err
    result = json.loads(Path(out[-1]).read_text())
    assert result["metrics"]["nonzeros"] == round(0.25 * WEIGHTS)
    assert 0 < float(result["metrics"]["survived"]) < 1
    assert os.listdir(place / "runs") == [Path(out[-1]).parent.name]
