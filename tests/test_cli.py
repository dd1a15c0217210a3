"""The command line itself: names, places, Hydra's own flags, pipes, locales, what is imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import sparsebench
from sparsebench.cli import main
from sparsebench.config.paths import config_files

PROGRAM = [sys.executable, "-m", "sparsebench"]
RUN = ["model=tiny_mlp", "data=digits", "method=static", "epochs=1", "plots=false"]
HEAVY = {"torch", "lightning", "wandb", "numpy", "scipy", "sklearn", "timm", "matplotlib", "pandas"}


@pytest.fixture
def ask(tmp_path, monkeypatch, capsys):
    """Give words to the command line, in an empty folder; what it printed."""
    monkeypatch.chdir(tmp_path)

    def asked(*words):
        with pytest.raises(SystemExit) as end:
            main(list(words))
        out, err = capsys.readouterr()
        assert (end.value.code, err) == (0, "")
        return out

    return asked


def program(*words, folder, **options):
    return subprocess.run(
        [*PROGRAM, *words], cwd=folder, capture_output=True, text=True, timeout=120, **options
    )


# --- names and places -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "group"), [("methods", "method"), ("models", "model"), ("data", "data")]
)
def test_list_names_all_options_with_what_they_are(ask, kind, group):
    lines = ask("list", kind).splitlines()
    assert [line.split()[0] for line in lines] == config_files(group)
    assert all(len(line.split()) > 2 for line in lines)


def test_list_takes_a_pattern(ask):
    names = [line.split()[0] for line in ask("list", "methods", "rig*").splitlines()]
    assert names == [name for name in config_files("method") if name.startswith("rig")]
    assert "rigl" in names


def test_where_prints_the_folder_and_makes_none(ask, tmp_path):
    place = Path(ask("where", "method=set", "seed=3", "runs=elsewhere").strip())
    assert place.parent == tmp_path / "elsewhere"
    assert place.name.startswith("digits-mlp-set-0.9-3-")
    assert list(tmp_path.iterdir()) == []


def test_where_is_where_the_run_goes(ask):
    place = Path(ask("where", *RUN).strip())
    assert ask(*RUN).splitlines()[-1] == str(place / "result.json")


def test_where_knows_a_folder_of_ones_own(ask, tmp_path):
    (tmp_path / "my" / "method").mkdir(parents=True)
    (tmp_path / "my" / "method" / "mine.yaml").write_text("defaults: [composed]\nname: mine\n")
    place = Path(ask("where", "--config-dir", "my", "method=mine").strip())
    assert place.name.startswith("digits-mlp-mine-0.9-0-")


# --- Hydra's own ------------------------------------------------------------------------------


def test_cfg_job_prints_a_config_that_yaml_reads(ask, tmp_path):
    config = yaml.safe_load(ask("--cfg", "job", "method=gmp", "sparsity=0.7"))
    assert config["method"]["sparsity_schedule"] == "cubic"
    assert config["sparsity"] == 0.7
    assert "hydra" not in config
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"]])
def test_help_says_what_can_be_asked(ask, words):
    text = ask(*words)
    for part in (
        "sparsebench -m ",
        "list methods|models|data|tables",
        "where OVERRIDES",
        "--cfg job",
    ):
        assert part in text


def test_info_and_hydra_help(ask):
    assert "Config search path" in ask("--info", "searchpath")
    assert "--multirun" in ask("--hydra-help")


@pytest.mark.parametrize(
    ("shell", "line"),
    [
        ("bash", "-F hydra_bash_completion sparsebench"),
        ("fish", "complete -c sparsebench "),
        ("zsh", "COMP_WORDBREAKS"),
    ],
)
def test_completion_installs(ask, monkeypatch, shell, line):
    monkeypatch.setattr(sys, "argv", ["sparsebench"])
    assert line in ask("-sc", f"install={shell}")


def test_completion_knows_the_options(tmp_path):
    """As bash asks: the line so far, and which word the cursor is in."""
    env = os.environ | {
        "COMP_LINE": "sparsebench method=rig",
        "COMP_POINT": "22",
        "COMP_CWORD": "1",
    }
    done = program("-sc", "query=bash", folder=tmp_path, env=env)
    offered = done.stdout.split()
    assert "method=rigl" in offered
    assert not any(word.startswith("method=set") for word in offered)


# --- what is imported -------------------------------------------------------------------------


def test_nothing_heavy_is_imported_for_small_questions(tmp_path):
    """One after the other in one process: none of them may bring torch in."""
    questions = [
        ["--help"], ["--cfg", "job"], ["list", "methods"], ["list", "models"], ["where"],
        ["where", "method=set"], ["--info", "searchpath"], ["sparsity=2"],
        ["-sc", "install=bash"],
    ]  # fmt: skip
    text = (
        "import contextlib, io, json, sys\n"
        "from sparsebench.cli import main\n"
        "seen = []\n"
        "for words in json.load(sys.stdin):\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "        main(words)\n"
        "    seen.append(sorted({name.partition('.')[0] for name in sys.modules}))\n"
        "print(json.dumps(seen))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", text], input=json.dumps(questions), capture_output=True, text=True,
        check=True, cwd=tmp_path,
    )  # fmt: skip
    for words, modules in zip(questions, json.loads(done.stdout), strict=True):
        assert (words, HEAVY & set(modules)) == (words, set())


def test_a_run_that_is_done_imports_nothing_heavy(ask, tmp_path):
    said = ask(*RUN).splitlines()[-1]
    text = (
        "import sys\nfrom sparsebench.cli import main\ntry:\n    main(sys.argv[1:])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", text, *RUN], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    *_, path, modules = done.stdout.splitlines()
    assert path == said
    assert HEAVY & set(json.loads(modules.replace("'", '"'))) == set()


def test_the_package_itself_imports_nothing_heavy():
    text = "import sys, sparsebench\nassert sparsebench.__version__\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    modules = {name.partition(".")[0] for name in done.stdout.split()}
    assert HEAVY & modules == set()
    assert sparsebench.__version__


# --- surroundings -----------------------------------------------------------------------------


def test_any_folder_any_locale_no_home(tmp_path):
    folder = tmp_path / "Ein Ördner mit ✓"
    folder.mkdir()
    env = {k: v for k, v in os.environ.items() if k not in ("HOME", "LANG", "PYTHONUTF8")}
    done = program(*RUN, folder=folder, env=env | {"LC_ALL": "C"})
    assert (done.returncode, done.stderr) == (0, "")
    path = done.stdout.splitlines()[-1]
    assert Path(path).parent.parent == folder / "runs"
    assert json.loads(Path(path).read_text())["status"] == "finished"


def test_a_terminal_without_unicode(tmp_path):
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = program("list", "data", folder=tmp_path, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    done = program("method=Erdős", folder=tmp_path, env=env)
    assert done.returncode == 2
    assert done.stderr.startswith("sparsebench: override 'method=Erd?s'")


@pytest.mark.parametrize("words", [["list", "models"], ["--cfg", "job"], ["--help"]])
def test_a_pipe_that_closed_is_no_traceback(tmp_path, words):
    read, write = os.pipe()
    os.close(read)  # as head does once it has its lines
    done = subprocess.run(
        [*PROGRAM, *words],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        timeout=60,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
