"""B13: checkpoints that are not this run's are refused, and nothing in them is run."""

import shutil
from pathlib import Path

import pytest
import torch

from sparsebench.cli import main

RUN = ["model=tiny_mlp", "data=digits", "method=static", "epochs=1", "plots=false", "quiet=true"]


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def trained(place, capsys):
    """A run, made to look unfinished."""

    def train(*words):
        with pytest.raises(SystemExit) as end:
            main([*RUN, *words])
        assert end.value.code == 0
        result = Path(capsys.readouterr().out.splitlines()[-1])
        result.unlink()
        return result.parent

    return train


def test_b13_a_checkpoint_of_another_run_is_refused(trained, place, capsys):
    ours, theirs = trained(), trained("seed=1")
    shutil.copy(theirs / "last.ckpt", ours / "last.ckpt")
    content = (ours / "last.ckpt").read_bytes()
    with pytest.raises(SystemExit) as end:
        main(RUN)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"last.ckpt: is a checkpoint of run '{theirs.name}', not of '{ours.name}'" in line
    assert line.endswith("move it away to start anew")
    assert (ours / "last.ckpt").read_bytes() == content


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 0}, "is a checkpoint of schema '0', not of '1'"),
        (None, "is a checkpoint of schema 'None', not of '1'"),
    ],
)
def test_b13_a_checkpoint_of_another_version_is_refused(trained, capsys, change, said):
    run = trained()
    content = torch.load(run / "last.ckpt", weights_only=True)
    if change:
        content["sparsebench"] |= change
    else:
        del content["sparsebench"]
    torch.save(content, run / "last.ckpt")
    with pytest.raises(SystemExit) as end:
        main(RUN)
    assert end.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("zipped", [True, False])
def test_b13_code_in_a_checkpoint_is_not_run(trained, place, capsys, zipped):
    run = trained()
    torch.save({"a": Bomb()}, run / "last.ckpt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(SystemExit) as end:
        main(RUN)
    (line,) = capsys.readouterr().err.splitlines()
    assert not (place / "exploded").exists()
    if zipped:
        assert end.value.code == 2
        assert "holds more than tensors and numbers, so it is not ours and is not loaded" in line
    else:  # no checkpoint at all
        assert end.value.code == 0
        assert "set aside as last.ckpt.damaged" in line
