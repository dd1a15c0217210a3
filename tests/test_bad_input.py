"""B1 to B15: what is refused in one line, with exit code 2, before anything is written."""

import json
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest
import torch

from sparsebench.cli import main
from sparsebench.models.mlp import mlp

OWN = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, input_shape, num_classes, outputs=None):
        super().__init__()
        self.a, self.b = nn.Linear(64, 64), nn.Linear(64, outputs or num_classes)

    def forward(self, x):
        return self.b(torch.relu(self.a(x.flatten(1))))


class Frozen(Net):
    def __init__(self, input_shape, num_classes):
        super().__init__(input_shape, num_classes)
        self.a.weight.requires_grad_(False)


class Lazy(Net):
    def __init__(self, input_shape, num_classes):
        super().__init__(input_shape, num_classes)
        self.a = nn.LazyLinear(64)


class Complex(Net):
    def __init__(self, input_shape, num_classes):
        super().__init__(input_shape, num_classes)
        self.a = nn.Linear(64, 64, dtype=torch.complex64)


class Seven(Net):
    def __init__(self, input_shape, num_classes):
        super().__init__(input_shape, num_classes, outputs=7)


class Bare(nn.Module):
    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(num_classes))

    def forward(self, x):
        return self.scale.expand(len(x), -1)


class Broken(Net):
    def __init__(self, input_shape, num_classes):
        raise RuntimeError("no network today")


class Sharpened(torch.optim.Optimizer):
    def __init__(self, params, lr, weight_decay):
        super().__init__(params, {"lr": lr})


class Method:
    def __init__(self, sparsity):
        pass


def data(classes, shape=(1, 8, 8)):
    images = torch.zeros(20, *shape, dtype=torch.uint8)
    return images, torch.arange(20) % classes


def one_class(config):
    return data(1), data(1)


def three_classes(config):
    return data(3), data(3)
"""
NET = ["model=custom", "allow=[own]"]
DATA = [
    "allow=[own]", "data.name=mine", "data.train_size=null", "data.input_shape=null",
    "batch_size=4", "model=tiny_mlp", "data.num_classes=null",
]  # fmt: skip

Case = namedtuple("Case", "words said")


def case(words, *said):
    words = words if isinstance(words, list) else words.split()
    return pytest.param(Case(words, said), id=" ".join(words)[:60])


#: Refused before torch is imported.
QUICK = [
    # B1
    case("method=rigI", "method=rigI: no such option; there are ", "did you mean 'rigl'?"),
    case("model=resnet_20", "model=resnet_20", "did you mean 'resnet20'?"),
    case("data=imgenet", "data=imgenet", "did you mean 'imagenet'?"),
    case("distribution=erkk", "distribution=erkk", "did you mean 'erk'?"),
    case("optimizer=sdg", "optimizer=sdg: no such option; there are adam, adamw, sgd"),
    case("task=nothing", "task=nothing: no such option; there are classification, "),
    case("+table=nosuch", "table=nosuch: no such option; there are "),
    case("hydra/launcher=jobli", "hydra/launcher=jobli", "did you mean 'joblib'?"),
    # B2
    case("sparsty=0.9", "sparsty=0.9: there is no key 'sparsty'; did you mean 'sparsity'?"),
    case("method.drop_fracton=0.3", "did you mean 'method.drop_fraction'?"),
    case("mehtod.every=3it", "there is no key 'mehtod'; did you mean 'method'?"),
    case("trainer.device=2", "did you mean 'trainer.devices'?"),
    case("+method.foo=1", "method.foo=1: no such key"),
    case("+foo=1", "foo=1: no such key"),
    case("~sparsity", "~sparsity: the key can't be left out; a number in [0, 1) is needed"),
    case("~method.every", "~method.every: the key can't be left out; a time is written 30ep"),
    # B3
    case("sparsity=1.5", "sparsity=1.5: a number in [0, 1) is needed"),
    case("sparsity=-0.1", "sparsity=-0.1: a number in [0, 1) is needed"),
    case("sparsity=1", "sparsity=1.0: a number in [0, 1) is needed"),
    case("sparsity=nan", "sparsity=nan: a number in [0, 1) is needed"),
    case("sparsity=inf", "sparsity=inf: a number in [0, 1) is needed"),
    case("sparsity=ninety", "sparsity=ninety: a number in [0, 1) is needed"),
    case("sparsity=null", "sparsity=null: a number in [0, 1) is needed"),
    case("sparsity=90", "sparsity=90.0: a number in [0, 1) is needed; did you mean 0.90?"),
    case("sparsity=[0.9]", "sparsity=[0.9]: a number in [0, 1) is needed"),
    case("sparsity=0.8,0.9", "sparsity=0.8,0.9: several values make a sweep, which needs -m"),
    case("seed=range(0,3)", "seed=range(0,3): several values make a sweep, which needs -m"),
    # B4
    case("structure=3_7", "structure=3_7: ", "N:M is written structure=2_4"),
    case("structure=[2,4]", "structure=[2,4]: the name of one option is needed"),
    case("structure.n=2", "structure.n=2: has no effect without an N:M structure"),
    # B5
    case("method.drop_fraction=0", "method.drop_fraction=0.0: a number in (0, 1) is needed"),
    case("method.drop_fraction=1", "method.drop_fraction=1.0: a number in (0, 1) is needed"),
    case("method.drop_fraction=30", "a number in (0, 1) is needed; did you mean 0.30?"),
    case("method.every=0it", "method.every=0it: method.every must be at least one"),
    case("method.every=0", "method.every=0: a time is written 30ep (epochs), 5000it"),
    case("method.every=100000it", "method.every (100000 steps) is longer than the window from "
         "method.begin to method.end"),
    case("method.begin=80%", "method.begin=80% method.end=75%", "must come after method.begin"),
    case("method.begin=75%", "method.end must come after method.begin"),
    case("method.end=101%", "method.end=101%: at most 100% of training"),
    case("method.end=90ep epochs=2", "method.end lies after the ", "steps of training"),
    case("method=one_shot method.begin=0%", "method.begin must lie within the "),
    case("method.drop=magnitud", "method.drop=magnitud", "did you mean 'magnitude'?"),
    case("method.scope=globl", "method.scope=globl: one of layer, global"),
    # B8
    case("model.num_classes=7", "model.num_classes=7: data 'digits' has 10 classes"),
    case("model=custom", "model._target_"),
    case("selector.kinds=[convs]", "selector.kinds=convs: any of linear, conv, embedding"),
    # B10
    case("seed=abc", "seed=abc: a whole number from 0 to 9223372036854775807 is needed"),
    case("seed=-1", "seed=-1: a whole number from 0"),
    case("seed=1.5", "seed=1.5: a whole number from 0"),
    case("seed=9223372036854775808", "seed=9223372036854775808: a whole number from 0"),
    # B15
    case("epochs=0", "epochs=0: a whole number of at least 1 is needed"),
    case("batch_size=0", "batch_size=0: a whole number of at least 1 is needed"),
    case("batch_size=1438", "batch_size=1438: 'digits' has 1437 images to train on"),
    case("batch_size=1400", "batch_size=1400: 1293 images are left to train on"),
    case("data.subset=100", "batch_size=128: 90 images are left to train on"),
    case("data.validation=2.5", "data.validation=2.5: a share up to 1.0, or a whole number"),
    case("data.validation=-1", "data.validation=-1.0: a share up to 1.0"),
    case("data.subset=nan", "data.subset=nan: a share up to 1.0"),
    case("batch_size=127 trainer.accumulate=2", "batch_size=127", "must divide by trainer.devices"),
    # the rest of what can be wrong with a value
    case("optimizer.lr=0", "optimizer.lr=0.0: a number in (0, inf) is needed"),
    case("optimizer.lr=inf", "optimizer.lr=inf: a number in (0, inf) is needed"),
    case("quiet=maybe", "quiet=maybe: true or false is needed"),
    case("trainer.precision=8", "trainer.precision=8: one of 32, bf16, 16, 64"),
    case("trainer.accelerator=tpu", "trainer.accelerator=tpu: one of auto, cpu"),
    case("trainer.threads=0", "trainer.threads=0: a whole number of at least 1 is needed"),
    case("model.hidden=a", "model.hidden=a: a list is needed, such as [a,b]"),
    case("model.hidden=[a]", "model.hidden[0]=a: a whole number is needed"),
    case("distribution.fixed=3", "distribution.fixed=3: keys and values are needed"),
    case("schedule=step schedule.milestones=[5]", "schedule.milestones=5: a time is written 30ep"),
    case("method=null", "method=null: the name of one option is needed"),
    case("~method", "method=None: a method is needed"),
    case(["sparsity=${nowhere}"], "sparsity: Interpolation key 'nowhere' not found"),
    case(["a b=1"], "override 'a b=1' can't be read"),
    case("=3", "=3: a key is needed before '='"),
    case("-x", "unrecognized arguments: -x"),
    case("--config-dir nowhere", "nowhere' not found"),
    case("where -x", "where: takes overrides and --config-dir only"),
    case("list methds", "list=methds: one of methods, models, data, tables", "'methods'?"),
    case("list methods nothing*", "list methods=nothing*: no name matches"),
    case("runs=", "runs=: the folder that runs are kept in is needed"),
    case("runs=own.py", "own.py' is a file, and a folder is needed"),
    case("runs=own.py/below", "own.py' is a file, and a folder is needed"),
]  # fmt: skip

#: Refused once the model, the data or the machine has been looked at.
SLOW = [
    # devices and precisions that are not here
    case("trainer.accelerator=cuda", "trainer.accelerator=cuda: there is no GPU here"),
    case("trainer.accelerator=mps", "trainer.accelerator=mps: there is none here"),
    case("trainer.precision=16", "trainer.precision=16: needs a GPU"),
    case("trainer.devices=1024 batch_size=1024 method=static", "trainer.devices=1024: there are ",
         "cores, and each process needs one"),
    # B6
    case("model=tiny_mlp sparsity=0.9999", "sparsity=0.9999: leaves 0 weights for 3 layers",
         "'fc3.weight'", "at most 0.998897"),
    # B7
    case("selector.include=[nothing*]", "selector: include=['nothing*']", "matches no weight",
         "it has fc3.weight, fc2.weight, fc1.weight"),
    case(["selector.exclude=['*']"], "selector: include=['*'] exclude=['*']", "matches no weight"),
    # B8
    case("model=timm model.name=resnet18x", "timm has no such model; did you mean 'resnet18'?"),
    case("model=torchvision model.name=resnt18", "no such classifier; did you mean 'resnet18'?"),
    case("model=timm model.name=vgg11", "model.name=vgg11: cannot be trained on the data's input"),
    case([*NET, "model._target_=own.Seven"], "does not fit data=digits", "in 10 classes: it gives "
         "(2, 7) for two examples, not (2, 10)"),
    case([*NET, "model._target_=own.Net", "data=mnist1d"], "does not fit data=mnist1d", "[40]"),
    case("data.num_classes=11", "data.num_classes=11: digits has 10 classes"),
    case([*DATA, "data._target_=own.three_classes", "data.num_classes=2"], "data.num_classes=2",
         "has 3 classes"),
    case([*NET, "model._target_=own.Broken"], "RuntimeError: no network today (own.py:"),
    case([*NET, "model._target_=own.Nett"], "'own' has no 'Nett'; did you mean 'Net'?"),
    case("model=custom model._target_=own.Net", "package 'own' is not allowed", "allow=[own]"),
    # B9
    case("data=cifar10 data.root=nowhere", "data=cifar10: not found", "hf download"),
    case("data=cifar10 data.root=empty", "data=cifar10: not found", "hf download"),
    case("data=cifar10 data.root=half", "train.parquet: damaged or incomplete", "copy it again"),
    # B11
    case([*NET, "model._target_=own.Net", "optimizer.name=own.Sharpened"], "optimizer=Sharpened",
         "can't be cleared", "register_optimizer"),
    case("optimizer.name=torch.optim.LBFGS", "optimizer.name=torch.optim.LBFGS", "weight_decay"),
    # B12
    case([*NET, "model._target_=own.Frozen"], "weight 'a.weight' is frozen", "selector.exclude"),
    case([*NET, "model._target_=own.Lazy"], "weight 'a.weight' has no shape yet"),
    case([*NET, "model._target_=own.Complex"], "weight 'a.weight' is complex"),
    case([*NET, "model._target_=own.Bare"], "matches no weight of the model; it has scale"),
    # B15
    case([*DATA, "data._target_=own.one_class"], "data=mine: all training images are of one class"),
    case("data.validation=0.0001", "of 1437 images leaves none to validate on"),
    # weights of elsewhere
    case("model.checkpoint=nowhere.pt", "model.checkpoint=nowhere.pt: no such file"),
    case("model.checkpoint=own.py", "model.checkpoint=own.py: cannot be read as weights"),
    case("model=tiny_mlp model.checkpoint=other.pt", "model.checkpoint=other.pt", "'fc1.weight'",
         "(300, 64)", "(32, 64)"),
]  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to stand in, with code and data of a user's own."""
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "empty").mkdir()
    (tmp_path / "half" / "cifar10").mkdir(parents=True)
    for name in ("train", "test"):
        (tmp_path / "half" / "cifar10" / f"{name}.parquet").write_bytes(b"PAR1 and no end")
    torch.save(mlp((1, 8, 8), 10, hidden=[300, 16]).state_dict(), tmp_path / "other.pt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own", raising=False)
    monkeypatch.delenv("SPARSEBENCH_DATA", raising=False)
    return tmp_path


def everything(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if "__pycache__" not in str(p)}


def refused(words, capsys, place):
    """The one line that a command line is refused with."""
    before = everything(place)
    with pytest.raises(SystemExit) as end:
        main(words)
    out, err = capsys.readouterr()
    assert end.value.code == 2, err
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("sparsebench: ")
    assert everything(place) == before
    return line


@pytest.mark.parametrize("case", SLOW)
def test_it_is_refused_in_one_line(case, place, capsys):
    line = refused(case.words, capsys, place)
    for part in case.said:
        assert part in line


@pytest.fixture(scope="module")
def quickly(tmp_path_factory):
    """What became of all the quick ones, asked one after the other in a process of their own."""
    program = """
import contextlib, io, json, os, sys
from sparsebench.cli import main

told = []
for words in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(words)
            code = None
        except SystemExit as end:
            code = end.code
    heavy = {"torch", "lightning", "numpy", "wandb", "matplotlib"} & set(sys.modules)
    told.append([code, out.getvalue(), err.getvalue(), os.listdir(), sorted(heavy)])
print(json.dumps(told))
"""
    folder = tmp_path_factory.mktemp("quick")
    (folder / "own.py").write_text(OWN)
    asked = [param.values[0].words for param in QUICK]
    done = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(asked), capture_output=True, text=True,
        check=True, cwd=folder,
    )  # fmt: skip
    return {param.id: answer for param, answer in zip(QUICK, json.loads(done.stdout), strict=True)}


@pytest.mark.parametrize("case", QUICK)
def test_it_is_refused_in_one_line_without_torch(case, quickly, request):
    code, out, err, there, heavy = quickly[request.node.callspec.id]
    (line,) = err.splitlines()
    assert line.startswith("sparsebench: ")
    for part in case.said:
        assert part in line
    assert (code, out, there, heavy) == (2, "", ["own.py"], [])


# --- what needs a file or a folder of its own --------------------------------------------------


def config_dir(place, group, text):
    (place / "my" / group).mkdir(parents=True)
    (place / "my" / group / "mine.yaml").write_text(text)
    return ["--config-dir", str(place / "my"), f"+{group}=mine" if group == "experiment" else ""]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("structure: 2:4", "structure=124: YAML reads 2:4 as the number 124 (base 60)"),
        ("structure: 16:32", "structure=992: YAML reads 2:4 as the number 124 (base 60)"),
        ("trainer: 5", "trainer=5: it is a group; its keys are accelerator, devices"),
        ("method: {drop_fracton: 0.2}", "did you mean 'method.drop_fraction'?"),
        ("sparsity: [1", "a config can't be read: while parsing"),
    ],
)
def test_b4_yaml_of_ones_own(place, capsys, text, said):
    words = config_dir(place, "experiment", f"# @package _global_\n{text}\n")
    line = refused(words, capsys, place)
    assert said in line


def test_b1_the_options_of_ones_own_folder_are_options_too(place, capsys):
    words = config_dir(place, "method", "defaults: [composed]\nname: mine\n")
    line = refused([*words[:2], "method=mime"], capsys, place)
    assert "did you mean 'mine'?" in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: mine\n_target_: own.Method\n", "package 'own' is not allowed to run"),
        ("name: mine\n_target_: own.Method\ndial: 3\nallow: 1\n", "is not allowed to run"),
    ],
)
def test_a_method_of_ones_own_must_be_allowed(place, capsys, text, said):
    words = config_dir(place, "method", text)
    assert said in refused([*words[:2], "method=mine"], capsys, place)


def test_a_method_of_ones_own_must_have_the_interface(place, capsys):
    words = config_dir(place, "method", "name: mine\n_target_: own.Method\n")
    line = refused([*words[:2], "method=mine", "allow=[own]"], capsys, place)
    assert "its objects have no start, after_backward, after_step" in line
    line = refused([*words[:2], "method=mine", "allow=[own]", "+method.dial=3"], capsys, place)
    assert "unexpected keyword argument 'dial'" in line


def test_a_disk_that_is_too_full_for_two_checkpoints(place, capsys, monkeypatch):
    usage = shutil.disk_usage(place)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    line = refused(["model=tiny_mlp"], capsys, place)
    weights = 64 * 32 + 32 + 32 * 16 + 16 + 16 * 10 + 10
    needed = 2 * (3 * 4 * weights + 100_000)
    assert f"the disk is full: 1000 bytes are free, and about {needed} are needed" in line


def test_a_folder_that_cannot_be_written(place, capsys, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # the tests may run as root
    line = refused(["model=tiny_mlp"], capsys, place)
    assert f"runs={place}/runs: '{place}' can't be written to" in line
