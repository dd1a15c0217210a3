"""The built package: installed elsewhere, it finds its configs and runs without the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the checkout with what is installed (no network)."""
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(out), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder it is installed to, and an empty folder of an awkward name to work in."""
    target = tmp_path_factory.mktemp("site")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    done = subprocess.run(
        [*install, "--target", str(target), str(wheel)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return target, tmp_path_factory.mktemp("Arbeit ünd 数据")


def call(installed, *words):
    """Python in the empty folder, where only the target can be found before site-packages."""
    target, folder = installed
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COV_", "PYTEST"))}
    environment = keep | {"PYTHONPATH": str(target), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True,
        encoding="utf-8",
    )  # fmt: skip


def cli(installed, *words):
    return call(installed, "-m", "sparsebench", *words)


def test_the_wheel_holds_package_and_configs_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for path in (ROOT / "configs").rglob("*.yaml"):
        assert f"sparsebench/configs/{path.relative_to(ROOT / 'configs').as_posix()}" in names
    for path in (ROOT / "sparsebench").rglob("*.*"):  # with the report's templates and scripts
        if path.is_file() and path.suffix != ".pyc":
            assert path.relative_to(ROOT).as_posix() in names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} <= {
        "sparsebench",
        "hydra_plugins",
    }
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


def test_the_installed_package_is_what_is_found(installed):
    code = "import sparsebench, sparsebench.config.paths as p; print(sparsebench.__file__); " \
           "print(p.config_folder())"  # fmt: skip
    done = call(installed, "-c", code)
    module, configs = done.stdout.splitlines()
    assert Path(module) == installed[0] / "sparsebench" / "__init__.py"
    assert Path(configs) == installed[0] / "sparsebench" / "configs"


def test_it_prints_a_config(installed):
    done = cli(installed, "method=set", "sparsity=0.8", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "sparsity: 0.8" in lines
    assert "  grow: random" in lines


def test_it_lists_the_methods(installed):
    done = cli(installed, "list", "methods")
    assert done.returncode == 0, done.stderr
    listed = [line.split()[0] for line in done.stdout.splitlines()]
    assert listed == sorted(path.stem for path in (ROOT / "configs" / "method").glob("*.yaml"))


def test_a_wrong_override_is_one_line_and_leaves_nothing(installed):
    before = sorted(installed[1].iterdir())
    done = cli(installed, "method=rigll")
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("sparsebench: method=rigll: no such option")
    assert "did you mean 'rigl'" in line
    assert sorted(installed[1].iterdir()) == before


def test_it_trains_in_a_folder_of_any_name(installed):
    done = cli(
        installed, "model=tiny_mlp", "epochs=1", "method.every=3it", "plots=false",
        "trainer.accelerator=cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = Path(done.stdout.splitlines()[-1])
    assert result.parent.parent == installed[1] / "runs"
    assert result.name == "result.json"
    assert result.exists()


def test_it_sweeps(installed):
    done = cli(installed, "-m", "task=profile", "model=tiny_mlp", "sparsity=0.5,0.8")
    assert done.returncode == 0, done.stderr
    found = {path.parent.name.split("-")[4] for path in installed[1].glob("runs/profile-*/*.json")}
    assert found == {"0.5", "0.8"}
