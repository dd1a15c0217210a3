"""Models: sizes against papers and own arithmetic, layers, widths."""

from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparsebench.errors import UserError
from sparsebench.models import build, matched_width
from sparsebench.models.common import scaled

CONFIGS = {path.stem: path for path in (Path(__file__).parents[1] / "configs/model").glob("*.yaml")}
#: Networks of tasks other than classification, tested with these.
OTHERS = {
    "autoencoder", "matrix_factorisation", "forecaster", "relu_dynamics",
    *(name for name, path in CONFIGS.items() if "sparsebench.llm." in path.read_text()),
}  # fmt: skip
KEYS = "name _target_ width num_classes pretrained checkpoint hidden depth widen stem dropout args"
SHAPES = {"mlp": (1, 28, 28), "lenet_300_100": (1, 28, 28), "lenet5": (1, 28, 28)}
SHAPES |= dict.fromkeys(("tiny_mlp", "tiny_conv", "tiny_vit"), (1, 8, 8))
SHAPES |= {name: (40,) for name in CONFIGS if name.startswith("mnist1d")}
NAMED = {"timm": "test_vit", "torchvision": "shufflenet_v2_x0_5"}  # small ones


def config(config_name, /, **changes):
    values = yaml.safe_load(CONFIGS[config_name].read_text())
    if config_name in NAMED:
        values["name"] = NAMED[config_name]
    return {**values, **changes}


def shape_of(name):
    return SHAPES.get(name, (3, 32, 32))


def make(config_name, shape=None, classes=10, /, **changes):
    return build(config(config_name, **changes), shape or shape_of(config_name), classes)


def make_meta(*args, **changes):
    with torch.device("meta"):
        return make(*args, **changes)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def weights(model):
    kinds = nn.Conv1d | nn.Conv2d | nn.Linear
    return [m.weight.numel() for m in model.modules() if isinstance(m, kinds)]


# --- sizes, counted again by hand -------------------------------------------------------------


def conv_bn(fan_in, channels, kernel):
    return fan_in * channels * kernel**2 + 2 * channels


def linear(fan_in, units):
    return fan_in * units + units


def cifar_resnet_size(depth):
    n = (depth - 2) // 6
    total = conv_bn(3, 16, 3) + linear(64, 10)
    for fan_in, channels in ((16, 16), (16, 32), (32, 64)):
        total += conv_bn(fan_in, channels, 3) + (2 * n - 1) * conv_bn(channels, channels, 3)
    return total


def wrn_size(depth, k):
    n = (depth - 4) // 6
    total = 3 * 16 * 9 + 2 * 64 * k + linear(64 * k, 10)
    for fan_in, out in ((16, 16 * k), (16 * k, 32 * k), (32 * k, 64 * k)):
        changes = fan_in != out or out != 16 * k
        total += fan_in * out * 9 + (fan_in * out if changes else 0) + (2 * n - 1) * out * out * 9
        total += 2 * fan_in + (2 * n - 1) * 2 * out  # a norm before every convolution
    return total


def vgg_size(convs):
    channels, total, fan_in = (64, 128, 256, 512, 512), linear(512, 10), 3
    for out, number in zip(channels, convs, strict=True):
        total += conv_bn(fan_in, out, 3) + (number - 1) * conv_bn(out, out, 3)
        fan_in = out
    return total


def vit_size(dim, depth, tokens, patch_values, hidden):
    block = linear(dim, 3 * dim) + linear(dim, dim) + linear(dim, hidden) + linear(hidden, dim)
    ends = linear(patch_values, dim) + dim + (tokens + 1) * dim + 2 * dim + linear(dim, 10)
    return depth * (block + 4 * dim) + ends


GRU = 2 * (3 * 6 * 1 + 3 * 6 * 6 + 2 * 3 * 6)  # two directions, three gates, two biases
SIZES = {  # name: (figure of the paper or of its code, own arithmetic)
    "lenet_300_100": (266_610, linear(784, 300) + linear(300, 100) + linear(100, 10)),
    "alexnet_cifar": (
        6_519_808 + 2 * (64 + 128 + 256 + 2 * 2048),
        3 * 64 * 16 + 64 * 128 * 9 + 128 * 256 * 4 + 1024 * 2048 + 2048 * 2048 + 20_480 + 9_088,
    ),
    "small_cnn": (24_112, 9 * (3 * 16 + 16 * 32 + 32 * 64) + 64 * 10),
    "lenet5": (431_080, 20 * 26 + 50 * 501 + linear(800, 500) + linear(500, 10)),
    "mnist1d_logistic": (410, linear(40, 10)),
    "mnist1d_mlp": (15_210, linear(40, 100) + linear(100, 100) + linear(100, 10)),
    "mnist1d_cnn": (5_210, 25 * 6 + 2 * 25 * 76 + linear(125, 10)),
    "mnist1d_gru": (5_134, GRU + linear(2 * 6 * 40, 10)),
    "resnet20": (269_722, cifar_resnet_size(20)),
    "resnet32": (464_154, cifar_resnet_size(32)),
    "resnet44": (658_586, cifar_resnet_size(44)),
    "resnet56": (853_018, cifar_resnet_size(56)),
    "resnet110": (1_727_962, cifar_resnet_size(110)),
    "wrn_10_1": (77_850, wrn_size(10, 1)),
    "wrn_16_8": (10_961_370, wrn_size(16, 8)),
    "wrn_22_2": (1_079_642, wrn_size(22, 2)),
    "wrn_22_8": (17_158_106, wrn_size(22, 8)),
    "wrn_28_2": (1_467_610, wrn_size(28, 2)),
    "wrn_28_10": (36_479_194, wrn_size(28, 10)),
    "vgg11": (9_228_362, vgg_size((1, 1, 2, 2, 2))),
    "vgg13": (9_413_066, vgg_size((2, 2, 2, 2, 2))),
    "vgg16": (14_724_042, vgg_size((2, 2, 3, 3, 3))),
    "vgg19": (20_035_018, vgg_size((2, 2, 4, 4, 4))),
    "vit": (2_693_578, vit_size(192, 6, 64, 48, 768)),
    "vit_tiny": (5_362_762, vit_size(192, 12, 64, 48, 768)),
    "vit_small": (21_342_346, vit_size(384, 12, 64, 48, 1536)),
    "tiny_mlp": (2_778, linear(64, 32) + linear(32, 16) + linear(16, 10)),
    "tiny_conv": (1_442, conv_bn(1, 8, 3) + conv_bn(8, 16, 3) + linear(16, 10)),
    "tiny_vit": (5_018, vit_size(16, 2, 16, 4, 32)),
}


@pytest.mark.parametrize("name", SIZES)
def test_parameter_count(name):
    published, arithmetic = SIZES[name]
    assert published == arithmetic
    assert parameters(make_meta(name)) == published


@pytest.mark.parametrize(
    ("name", "count"),  # torchvision's documentation; the MobileNet V1 paper says 4.2M
    [
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("mobilenet_v1", 4_231_976),
        ("mobilenet_v2", 3_504_872),
    ],
)
def test_parameter_count_imagenet(name, count):
    assert parameters(make_meta(name, (3, 224, 224), 1000)) == count


def test_weights_that_sparse_training_counts():
    assert weights(make_meta("lenet5")) == [500, 25_000, 400_000, 5_000]
    assert weights(make_meta("lenet_300_100")) == [235_200, 30_000, 1_000]
    resnet50 = weights(make_meta("resnet50", (3, 224, 224), 1000))
    assert (len(resnet50), sum(resnet50)) == (54, 25_502_912)


@pytest.mark.parametrize(("alpha", "millions"), [(0.75, 2.6), (0.5, 1.3), (0.25, 0.5)])
def test_mobilenet_v1_widths_of_the_paper(alpha, millions):
    count = parameters(make_meta("mobilenet_v1", (3, 224, 224), 1000, width=alpha))
    assert round(count / 1e6, 1) == millions


# --- every shipped config ---------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_config_file(name):
    text = CONFIGS[name].read_text()
    values = yaml.safe_load(text)
    assert text.startswith("# ")
    assert {"name", "_target_"} <= values.keys() <= set(KEYS.split())
    assert values["name"] == ("???" if name in NAMED else name)


@pytest.mark.parametrize("name", sorted(CONFIGS.keys() - OTHERS - {"custom"}))
def test_forward_and_backward_on_the_meta_device(name):
    model = make_meta(name, None, 7)
    logits = model(torch.empty(2, *shape_of(name), device="meta"))
    assert logits.shape == (2, 7)
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


SMALL = sorted(
    {n for n, (count, _) in SIZES.items() if count < 2_800_000} - {"resnet56", "resnet110"}
    | {"resnet18_reduced", "mobilenet_v2", "timm", "torchvision"}
)


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_learns(name):
    torch.manual_seed(0)
    model = make(name)
    loss = nn.functional.cross_entropy(
        model(torch.randn(4, *shape_of(name))), torch.tensor([0, 1, 2, 3])
    )
    loss.backward()
    assert torch.isfinite(loss)
    assert [n for n, p in model.named_parameters() if not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("name", ["resnet20", "wrn_10_1", "vgg11", "resnet18_reduced", "tiny_conv"])
def test_channels_last_gives_the_same_logits(name):
    torch.manual_seed(0)
    model = make(name).double().eval()
    images = torch.randn(2, *shape_of(name), dtype=torch.float64)
    expected = model(images)
    channels_last = model.to(memory_format=torch.channels_last)
    got = channels_last(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["mlp", "resnet20", "wrn_22_2", "vgg11", "tiny_vit", "lenet5"])
def test_same_seed_same_model(name):
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(torch.nn.utils.parameters_to_vector(make(name).parameters()))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_state_dict_keys_are_stable():
    assert list(make_meta("mlp").state_dict()) == [
        f"fc{i}.{kind}" for i in (1, 2, 3) for kind in ("weight", "bias")
    ]
    bn = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    keys = list(make_meta("resnet20").state_dict())
    assert keys[:7] == ["conv1.weight", *(f"bn1.{k}" for k in bn), "layer1.0.conv1.weight"]
    assert keys[-2:] == ["fc.weight", "fc.bias"]
    assert "layer2.0.shortcut.weight" in make_meta("wrn_22_2").state_dict()
    assert "features.conv5_4.weight" in make_meta("vgg19").state_dict()
    assert "blocks.0.attn.qkv.weight" in make_meta("vit").state_dict()
    assert "layer4.1.conv2.weight" in make_meta("resnet18").state_dict()


# --- what the papers say of the layers --------------------------------------------------------


def test_option_a_shortcut_subsamples_and_pads_with_zeros():
    block = make("resnet20").layer2[0]
    x = torch.randn(2, 16, 8, 8)
    skip = block.shortcut(x)
    assert torch.equal(skip[:, :16], x[:, :, ::2, ::2])
    assert skip.shape == (2, 32, 4, 4)
    assert not skip[:, 16:].any()


@pytest.mark.parametrize(
    ("name", "layer", "deviation"),
    [
        ("resnet20", "layer3.2.conv2", (2 / (64 * 9)) ** 0.5),  # He, fan-in
        ("wrn_22_2", "layer3.0.conv1", (2 / (128 * 9)) ** 0.5),  # He, fan-out
        ("vgg11", "features.conv2_1", (2 / (128 * 9)) ** 0.5),
        ("lenet_300_100", "fc1", (2 / (784 + 300)) ** 0.5),  # Glorot
        ("lenet5", "fc1", (2 / (800 + 500)) ** 0.5),
    ],
)
def test_initialisation_has_the_papers_deviation(name, layer, deviation):
    torch.manual_seed(0)
    weight = make(name).get_submodule(layer).weight
    tolerance = 5 * deviation / (2 * weight.numel()) ** 0.5  # five standard errors
    assert weight.std().item() == pytest.approx(deviation, abs=tolerance)
    assert weight.mean().item() == pytest.approx(0, abs=5 * deviation / weight.numel() ** 0.5)


def test_resnet_is_torchvisions_bit_for_bit():
    from torchvision.models import resnet18

    torch.manual_seed(1)
    expected = resnet18(num_classes=10).state_dict()
    torch.manual_seed(1)
    got = make("resnet18", stem="imagenet").state_dict()
    assert list(got) == list(expected)
    assert all(torch.equal(got[key], expected[key]) for key in expected)


def test_stem_follows_the_image_unless_asked_for():
    def first(name, side, stem):
        model = make_meta(name, (1, side, side), stem=stem)
        return next(m for m in model.modules() if isinstance(m, nn.Conv2d))

    for stem, side, kernel in [(None, 64, 3), (None, 65, 7), ("imagenet", 32, 7), ("cifar", 96, 3)]:
        conv = first("resnet18", side, stem)
        assert (conv.kernel_size, conv.in_channels) == ((kernel, kernel), 1)
    for name in ("mobilenet_v1", "mobilenet_v2"):
        assert first(name, 32, None).stride == (1, 1)
        assert first(name, 32, "imagenet").stride == (2, 2)


def test_wrn_22_2_has_rigls_dropout():
    torch.manual_seed(0)
    model, images = make("wrn_22_2"), torch.randn(2, 3, 8, 8)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


# --- width ------------------------------------------------------------------------------------


@given(units=st.integers(1, 4096), width=st.floats(1e-6, 8))
def test_scaled_is_the_nearest_whole_number_and_at_least_one(units, width):
    got = scaled(units, width)
    assert got >= 1
    assert got == 1 or abs(got - units * width) <= 0.5 + 1e-9
    assert scaled(units, 1.0) == units


def test_width_multiplies_hidden_sizes_only():
    model = make_meta("mlp", width=0.5)
    assert [tuple(p.shape) for p in model.parameters()][::2] == [(150, 784), (50, 150), (10, 50)]
    reduced = make_meta("resnet18_reduced")
    stages = [getattr(reduced, f"layer{i}")[0] for i in (1, 2, 3, 4)]
    assert [stage.conv1.out_channels for stage in stages] == [20, 40, 80, 160]
    vit = make_meta("tiny_vit", width=0.5)  # 2 heads of 8 features become 2 of 4
    assert vit.blocks[0].attn.qkv.weight.shape == (24, 8)


@pytest.mark.parametrize(
    "name", sorted(CONFIGS.keys() - OTHERS - {"custom", "timm", "torchvision"})
)
def test_width_changes_every_model_that_has_one(name):
    if name == "mnist1d_logistic":
        with pytest.raises(UserError, match=r"model\.width=2\.0: .* its dials are: none"):
            make_meta(name, width=2.0)
        return
    sizes = [parameters(make_meta(name, width=w)) for w in (0.01, 0.5, 1.0, 2.0)]
    assert sizes == sorted(set(sizes))
    logits = make_meta(name, width=0.01)(torch.empty(2, *shape_of(name), device="meta"))
    assert logits.shape == (2, 10)


def test_mobilenet_v2_never_shrinks_with_the_width():
    """What ``matched_width`` rests on, where torchvision rounds in steps of 8."""
    sizes = [parameters(make_meta("mobilenet_v2", width=0.01 + w / 16)) for w in range(17)]
    assert sizes == sorted(sizes)


def test_widen_need_not_be_whole():
    model = make_meta("wrn_10_1", widen=1.5)
    groups = (model.layer1, model.layer2, model.layer3)
    assert [group[0].conv1.out_channels for group in groups] == [24, 48, 96]
    assert model.conv1.out_channels == 16


def test_width_argument_replaces_the_configs():
    narrow = build(config("mlp", width=3.0), (1, 28, 28), 10, width=0.5)
    assert narrow.fc1.out_features == 150


def widths_of_mlp(limit):
    """All sizes an MLP of 30 and 10 hidden units can have: it changes at halves only."""
    steps = sorted({(k + 0.5) / units for units in (30, 10) for k in range(limit)})
    return [(a + b) / 2 for a, b in zip([0.0, *steps], [*steps, steps[-1] + 1], strict=False)]


def mlp_at(width):
    return build(config("mlp", hidden=[30, 10]), (8,), 3, width=width)


def count(model):
    return sum(weights(model))


@settings(deadline=None, max_examples=25)
@given(target=st.integers(12, 3000))
def test_matched_width_is_the_largest_that_fits(target):
    def by_hand(width):
        a, b = (max(1, int(units * width + 0.5)) for units in (30, 10))
        return 8 * a + a * b + 3 * b

    best = max(size for w in widths_of_mlp(150) if (size := by_hand(w)) <= target)
    width = matched_width(mlp_at, target, count)
    assert by_hand(width) == best
    assert count(mlp_at(width)) == best


@pytest.mark.parametrize("name", ["wrn_10_1", "tiny_vit", "mnist1d_gru"])
def test_matched_width_of_real_models(name):
    def size(width):
        return parameters(make_meta(name, width=width))

    def at(width):
        return build(config(name), shape_of(name), 10, width=width)

    target = size(1.0) // 3
    before = torch.get_rng_state()
    width = matched_width(at, target, parameters)
    assert torch.equal(torch.get_rng_state(), before)
    assert 0 < width < 1
    around = [size(width * (1 + step / 20)) for step in range(-6, 7)]
    assert size(width) == max(found for found in around if found <= target)
    assert matched_width(at, size(1.0), parameters) == 1.0


def test_matched_width_refuses_and_ends_without_a_width():
    with pytest.raises(UserError, match=r"gives 11 weights, the narrowest model has 12 already"):
        matched_width(mlp_at, 11, count)
    constant = matched_width(lambda _: nn.Linear(4, 3), 100, count)
    assert constant > 0
