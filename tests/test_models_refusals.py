"""Models: what is refused and how, weights from files, models of libraries and of the user."""

import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from sparsebench.errors import UserError
from sparsebench.models import build

CONFIGS = Path(__file__).parents[1] / "configs/model"
NAMED = {"timm": "test_vit", "torchvision": "shufflenet_v2_x0_5"}  # small ones
TINY = ("tiny_mlp", "tiny_conv", "tiny_vit")


def config(config_name, /, **changes):
    values = yaml.safe_load((CONFIGS / f"{config_name}.yaml").read_text())
    if config_name in NAMED:
        values["name"] = NAMED[config_name]
    return {**values, **changes}


def make(config_name, shape=None, classes=10, /, **changes):
    usual = (1, 8, 8) if config_name in TINY else (3, 32, 32)
    return build(config(config_name, **changes), shape or usual, classes)


def make_meta(*args, **changes):
    with torch.device("meta"):
        return make(*args, **changes)


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "line"),
    [
        ("mlp", {"num_classes": 100}, "model.num_classes=100: the data has 10 classes"),
        ("mlp", {"width": 0}, "model.width=0: a finite number above 0 is needed"),
        ("mlp", {"hidden": [0]}, "model.hidden=[0]: a list of whole numbers above 0"),
        ("mlp", {"dropout": 1.0}, "model.dropout=1.0: a number from 0 to below 1"),
        ("mlp", {"stem": "cifar"}, "sparsebench.models.mlp.mlp has no such dial; its dials are:"),
        ("mlp", {"pretrained": True}, "its dials are: width, hidden, dropout"),
        ("mlp", {"args": {"hiden": 3}}, "model.args.hiden=3: sparsebench.models.mlp.mlp has no"),
        (
            "mlp",
            {"width": 2.0, "args": {"width": 3}},
            "model.args.width=3: model.width says 2.0",
        ),
        ("mlp", {"args": {"num_classes": 3}}, "model.args.num_classes=3: this comes from the data"),
        ("resnet20", {"depth": 21}, "model.depth=21: 6n + 2 is needed"),
        ("wrn_28_2", {"depth": 20}, "model.depth=20: 6n + 4 is needed"),
        ("wrn_28_2", {"widen": 0}, "model.widen=0: a number above 0 is needed"),
        ("vgg19", {"depth": 12}, "model.depth=12: one of 11, 13, 16, 19"),
        ("resnet18", {"depth": 20}, "model.depth=20: one of 18, 34, 50"),
        ("resnet18", {"stem": "cifra"}, "cifar or imagenet; did you mean 'cifar'?"),
        ("vit", {"depth": 0}, "model.depth=0: a whole number above 0"),
        ("vit", {"args": {"patch_size": 5}}, "model.args.patch_size=5: does not divide images of"),
        (
            "vit",
            {"args": {"embed_dim": 100}},
            "model.args.embed_dim=100: a multiple of num_heads=3",
        ),
        ("vit", {"args": {"patchsize": 2}}, "did you mean 'patch_size'?"),
        ("timm", {"width": 0.5}, "model.width=0.5: test_vit has no width to change"),
        ("timm", {"name": "vit_tiny_patch16_225"}, "did you mean 'vit_tiny_patch16_224'?"),
        ("timm", {"name": None}, "model.name is missing: sparsebench.models.libraries.timm_model"),
        ("timm", {"args": {"nonsense": 1}}, "model.args: test_vit does not take them"),
        ("torchvision", {"name": "resnet81"}, "did you mean 'resnet18'?"),
        ("torchvision", {"name": "fasterrcnn_resnet50_fpn"}, "torchvision has no such classifier"),
        ("torchvision", {"args": {"nonsense": 1}}, "does not take them"),
        ("custom", {}, "model._target_=???: an import path is needed"),
        ("custom", {"_target_": "torch.pi"}, "model._target_=torch.pi: neither a class nor"),
        ("custom", {"_target_": "torch.nn.ReLUU"}, "did you mean 'ReLU'?"),
        ("custom", {"_target_": "torch.zeros_like"}, "wrap it in a function"),
        ("custom", {"_target_": "torch.nn.Linear"}, "model.args.in_features is missing"),
        ("custom", {"_target_": "pathlib.Path"}, "package 'pathlib' is not allowed"),
    ],
)
def test_refusals_are_one_line(name, changes, line):
    with pytest.raises(UserError) as caught:
        make(name, **changes)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "shape", "line"),
    [
        ("resnet20", (40,), "model=resnet20: takes images (channels, height, width), the data"),
        ("vgg16", (1, 8, 8), "at least 16x16 pixels, the data has 8x8"),
        ("lenet5", (1, 15, 15), "at least 16x16 pixels, the data has 15x15"),
        ("torchvision", (1, 32, 32), "the data's input (1, 32, 32), it is made for (3, 224, 224)"),
    ],
)
def test_inputs_a_model_refuses(name, shape, line):
    with pytest.raises(UserError) as caught:
        make(name, shape)
    assert line in str(caught.value)


def test_timm_builds_one_size_models_for_the_datas_images():
    model = make_meta("timm", (1, 28, 28), name="vit_tiny_patch16_224")
    assert model.patch_embed.img_size == (28, 28)
    assert model.patch_embed.proj.in_channels == 1
    with pytest.raises(UserError) as caught:  # one convolution too many for so few pixels
        make("timm", (3, 32, 32), name="inception_v4")
    assert "input (3, 32, 32), it is made for (3, 299, 299) (" in str(caught.value)


def test_outputs_that_are_no_logits_are_refused():
    with pytest.raises(UserError, match="it gives GoogLeNetOutputs, one tensor of logits is need"):
        make_meta("torchvision", (3, 64, 64), name="googlenet", args={"init_weights": False})
    args = {"init_weights": False, "aux_logits": False}
    assert make_meta("torchvision", (3, 64, 64), name="googlenet", args=args).fc.out_features == 10


def test_library_models_draw_random_numbers_once():
    from torchvision.models import get_model

    torch.manual_seed(5)
    expected = get_model("shufflenet_v2_x0_5", num_classes=10).fc.weight
    torch.manual_seed(5)
    assert torch.equal(make("torchvision").fc.weight, expected)


# --- weights from a file ----------------------------------------------------------------------


def write(path, state):
    from safetensors.torch import save_file

    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)


@pytest.mark.parametrize("name", ["tiny_conv", "timm", "torchvision"])
@pytest.mark.parametrize("file", ["w.pt", "w.safetensors"])
def test_checkpoint_is_loaded(tmp_path, name, file):
    torch.manual_seed(0)
    saved = make(name).state_dict()
    write(tmp_path / file, saved)
    loaded = make(name, checkpoint=str(tmp_path / file)).state_dict()
    assert all(torch.equal(loaded[key], saved[key]) for key in saved)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}, "epoch": 3},
        lambda s: {"model": {f"module._orig_mod.{k}": v for k, v in s.items()}},
    ],
)
def test_checkpoint_of_a_wrapped_model(tmp_path, wrap):
    saved = make("tiny_mlp").state_dict()
    torch.save(wrap(saved), tmp_path / "w.ckpt")
    loaded = make("tiny_mlp", checkpoint=str(tmp_path / "w.ckpt")).state_dict()
    assert all(torch.equal(loaded[key], saved[key]) for key in saved)


@pytest.mark.parametrize("name", ["tiny_conv", "timm", "torchvision"])
def test_checkpoint_of_another_shape_or_head(tmp_path, name):
    path = tmp_path / "w.pt"
    source = make(name, None, 7)
    torch.save(source.state_dict(), path)
    head = "head" if name == "timm" else "fc"
    shapes = [tuple(getattr(m, head).weight.shape) for m in (source, make(name))]
    with pytest.raises(UserError) as caught:
        make(name, checkpoint=str(path))
    assert str(caught.value) == (
        f"model.checkpoint={path}: '{head}.weight' has the shape {shapes[0]}, "
        f"the model's is {shapes[1]}"
    )
    loaded = make(name, checkpoint=str(path), pretrained=True)  # a new classifier on old features
    same = {k for k, v in loaded.state_dict().items() if torch.equal(v, source.state_dict()[k])}
    assert loaded.state_dict().keys() - same == {f"{head}.weight", f"{head}.bias"}


def test_a_new_head_is_not_an_excuse_for_other_features(tmp_path):
    path = tmp_path / "w.pt"
    torch.save(make("tiny_conv", width=2.0).state_dict(), path)
    with pytest.raises(UserError, match=r"'conv1\.weight' has the shape \(16, 1, 3, 3\)"):
        make("tiny_conv", checkpoint=str(path), pretrained=True)
    state = make("tiny_mlp", hidden=None).state_dict()
    state["fc2.weight"] = state["fc2.weight"][:5]
    state["fc3.weight"] = state["fc3.weight"][:5]
    torch.save(state, path)  # 16 classes: the hidden layer of 16 units looks like a classifier too
    with pytest.raises(UserError, match=r"'fc3\.weight' has the shape \(5, 16\)"):
        make("tiny_mlp", None, 16, checkpoint=str(path), pretrained=True)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "no such file"),
        (b"", "cannot be read as weights ("),
        (b"not a checkpoint", "cannot be read as weights ("),
        ([1, 2], "holds no dictionary of tensors"),
        ({"fc1.weight": torch.zeros(32, 64)}, "has no 'fc1.bias'; the model's is (32,)"),
        (nn.Linear(2, 2), "cannot be read as weights (Weights only load failed"),
    ],
)
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_checkpoint_files_that_cannot_be_used(tmp_path, content, line, name):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif name.endswith("safetensors") and content is not None and not isinstance(content, dict):
        path.write_bytes(b"\x08\0\0\0\0\0\0\0notajson")
        line = "cannot be read as weights ("
    elif content is not None:
        write(path, content)
    with pytest.raises(UserError) as caught:
        make("tiny_mlp", checkpoint=str(path))
    assert str(caught.value).startswith(f"model.checkpoint={path}: {line}")
    assert "\n" not in str(caught.value)


def test_checkpoint_with_a_parameter_too_many(tmp_path):
    state = {**make("tiny_mlp").state_dict(), "mask": torch.ones(2)}
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(UserError, match="has 'mask', which the model does not have"):
        make("tiny_mlp", checkpoint=str(tmp_path / "w.pt"))


def test_pretrained_without_network_is_one_line(monkeypatch):
    import timm
    import torchvision

    def no_network(*_, **__):
        raise OSError("Name or service not known\nmore")

    monkeypatch.setattr(
        torchvision.models.ShuffleNet_V2_X0_5_Weights.DEFAULT.__class__,
        "get_state_dict",
        no_network,
    )
    monkeypatch.setattr("timm.models._builder.load_pretrained", no_network)
    assert timm.is_model("test_vit")
    for name in NAMED:
        with pytest.raises(UserError, match=r"model\.pretrained=True: no weights of .* \(Name or "):
            make(name, pretrained=True)


def test_torchvisions_weights_get_a_new_head(monkeypatch):
    import torchvision

    source = make("torchvision", None, 1000).state_dict()
    weights = torchvision.models.ShuffleNet_V2_X0_5_Weights
    monkeypatch.setattr(weights, "get_state_dict", lambda *_, **__: source)
    got = make("torchvision", pretrained=True).state_dict()
    same = {key for key in got if torch.equal(got[key], source[key])}
    assert got.keys() - same == {"fc.weight", "fc.bias"}


# --- models of the user -----------------------------------------------------------------------


class Head(nn.Module):
    """A user's module that wants to know the data, and has a width of its own kind."""

    def __init__(self, num_classes, input_shape, width=64, scale=1.0):
        super().__init__()
        self.scale = scale
        self.hidden = nn.Linear(input_shape[0], width)
        self.out = nn.Linear(width, num_classes)


def test_custom_class_by_import_path(tmp_path, monkeypatch):
    linear = make(
        "custom", (5,), _target_="torch.nn.Linear", args={"in_features": 5, "out_features": 10}
    )
    assert linear.weight.shape == (10, 5)
    module = types.ModuleType("their_nets")
    module.Head = Head
    module.nothing = lambda: None
    monkeypatch.setitem(sys.modules, "their_nets", module)
    values = config("custom", _target_="their_nets.Head", args={"scale": 2.0})
    with pytest.raises(UserError, match="package 'their_nets' is not allowed"):
        build(values, (5,), 10)
    head = build(values, (5,), 10, allow=["their_nets"])
    assert (head.hidden.weight.shape, head.out.out_features, head.scale) == ((64, 5), 10, 2.0)
    with pytest.raises(UserError, match="gave NoneType, a torch.nn.Module is needed"):
        build({"_target_": "their_nets.nothing"}, (5,), 10, allow=["their_nets"])


def test_importing_the_zoo_does_not_import_torch():
    code = "import sys, sparsebench.models; assert not {'torch', 'timm'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
