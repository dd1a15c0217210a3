"""Every command and every program of the README runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


COMMANDS = [
    line.split(" #")[0].strip()
    for block in blocks("bash")
    for line in block.splitlines()
    if line.strip()
]

# What makes a command small enough for a test, without leaving out any of its own words.
SMALLER = {
    "task=profile": [],
    "task=prune_llm": ["--cfg", "job"],  # needs a model and a text: composing is tried
    "stream=split_digits": ["epochs=4", "model=tiny_mlp", "method.every=2it"],
    "task=continual": ["--cfg", "job"],  # needs whole sets of images
    "training_flops": ["epochs=2", "method.every=5it", "model=tiny_mlp"],
    "+table=cifar": [
        *("hydra/launcher=basic", "seed=0", "sparsity=0.8", "epochs=1", "batch_size=16"),
        *("method.every=1it", "data.validation=0", "data.subset=null", "data.train_size=null"),
        "+model.args.width=0.125",
    ],
    "push ": [],
    "-m +table=quick": ["method=static", "sparsity=0.9", "seed=0", "epochs=1"],
    "-m ": ["epochs=1", "method.every=5it", "model=tiny_mlp"],
    "method=gmp": [],
    "list ": [],
    "where ": [],
    "data=cifar10": [
        "epochs=1",
        "batch_size=16",
        "method.every=1it",
        "data.validation=0",
        "data.train_size=null",
    ],
    "": ["epochs=20", "trainer.threads=1"],
}


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    """CIFAR-10 in the hub's layout, with a few random images in place of the real ones."""
    from datasets import ClassLabel, Dataset, Features, Image

    root = tmp_path_factory.mktemp("data")
    (root / "cifar10").mkdir()
    features = Features({"img": Image(), "label": ClassLabel(num_classes=10)})
    for split, n in (("train", 60), ("test", 20)):
        images = np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
        rows = {"img": list(images), "label": np.arange(n) % 10}
        Dataset.from_dict(rows, features=features).to_parquet(root / "cifar10" / f"{split}.parquet")
    return root


def test_the_readme_has_its_commands():
    assert len(COMMANDS) >= 14
    assert len(blocks("python")) == 2


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_make_targets_exist(command):
    target = command.split()[1]
    made = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert f"make {target}" in subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True
    ).stdout.replace("  ", " ")


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("sparsebench")])
def test_commands_run(command, tmp_path, data_root, monkeypatch):
    words = shlex.split(command)[1:]
    extra = next(more for key, more in SMALLER.items() if key in command)
    monkeypatch.setenv("SPARSEBENCH_DATA", str(data_root))
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "cache"))
    program = [sys.executable, "-m", "sparsebench"]
    if words[:1] == ["push"]:  # there has to be a run
        subprocess.run([*program, "epochs=20"], cwd=tmp_path, check=True, capture_output=True)
    done = subprocess.run([*program, *words, *extra], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()


@pytest.mark.parametrize("program", blocks("python"), ids=["lightning", "bare"])
def test_programs_run(program, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_refusal_shown_is_the_one_given(tmp_path):
    (shown,) = blocks("console")
    command, said = shown.strip().splitlines()
    words = shlex.split(command.removeprefix("$ "))[1:]
    done = subprocess.run(
        [sys.executable, "-m", "sparsebench", *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    start, end = said.split("...")
    given = done.stderr.strip()
    assert given.startswith(start.strip())
    assert given.endswith(end.strip().lstrip("; "))
    assert not list(tmp_path.iterdir())


def test_the_yaml_shown_is_a_method(tmp_path):
    (text,) = blocks("yaml")
    folder = tmp_path / "my_configs" / "method"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(text)
    words = ["--config-dir", "my_configs", "method=mine", "--cfg", "job"]
    done = subprocess.run(
        [sys.executable, "-m", "sparsebench", *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "name: mine" in done.stdout
