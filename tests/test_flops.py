"""FLOPs and sizes against hand formulas."""

import copy

import pytest
import torch
from torch import nn

from sparsebench.errors import UserError
from sparsebench.sparsity.flops import LayerFlops, layer_flops, model_size_bytes
from sparsebench.sparsity.training_flops import (
    TrainingFlops,
    bdwp_closed_form,
    gmp_closed_form,
    gmp_mean_density,
    phases_closed_form,
    rigl_closed_form,
    snfs_closed_form,
    static_closed_form,
    top_kast_closed_form,
)


class Convnet(nn.Module):
    """Strides, groups, a transposed and a 1-D convolution, and a layer used twice."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.group = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.norm = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.line = nn.Conv1d(4, 6, 5)
        self.twice = nn.Linear(6, 6)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.calls += 1
        x = self.up(self.norm(self.group(self.stem(x))))
        x = self.line(x.flatten(2)).mean(2)
        return self.twice(self.twice(x).relu())


def test_every_kind_of_layer_by_hand():
    flops = layer_flops(Convnet(), (3, 8, 8))
    assert flops.dense == {
        "stem.weight": 2 * 4 * 4 * 8 * 27,
        "group.weight": 2 * 4 * 4 * 8 * (2 * 9),
        "up.weight": 2 * 4 * 4 * 8 * 4 * 4,  # every input position meets every weight
        "line.weight": 2 * 60 * 6 * 20,
        "twice.weight": 2 * (2 * 6 * 6),
    }
    assert flops.other == 0
    listed = layer_flops(Convnet(), (3, 8, 8), names=["line.weight"])
    assert listed.dense == {"line.weight": 14400}
    assert listed.total == flops.total


def test_forward_at_given_densities():
    flops = LayerFlops({"a": 100, "b": 1000}, other=7)
    assert (flops.total, flops.forward({}), flops.forward({"b": 0.1})) == (1107, 1107.0, 207.0)
    assert flops.forward({"a": 0.5, "b": 0.0}) == 57.0
    with pytest.raises(ValueError, match="'c'"):
        flops.forward({"c": 0.5})


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match=r"stem\.wieght.*did you mean 'stem\.weight'"):
        layer_flops(Convnet(), (3, 8, 8), names=["stem.wieght"])


class Values(Convnet):
    """Looks at values and draws numbers, which the meta device can't."""

    def forward(self, x):
        return super().forward(x + torch.rand(())) if x.sum().item() == 0 else x


@pytest.mark.parametrize("kind", [Convnet, Values])
def test_the_model_is_left_as_it_was(kind):
    model, other = kind().train(), Convnet()
    model.norm.eval()  # a frozen norm in a net in training
    before, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    flops = layer_flops(model, (3, 8, 8))
    assert flops == layer_flops(other, (3, 8, 8))
    assert [m.training for m in model.modules()] == [m is not model.norm for m in model.modules()]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.device.type == "cpu" and p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), rng)


def test_wrong_input_is_still_an_error():
    with pytest.raises(RuntimeError, match="channels"):
        layer_flops(Convnet(), (4, 8, 8))


class OnCpu(nn.Module):
    """Runs ``inner`` where the meta device can't follow."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        float(x.sum())
        return self.inner(x)


@pytest.mark.parametrize("wrapper", [nn.Sequential, OnCpu])
def test_attention_counts_its_products(wrapper):
    tokens, width = 7, 16
    model = wrapper(nn.TransformerEncoderLayer(width, 2, 32, dropout=0.5, batch_first=True))
    flops = layer_flops(model, (tokens, width))
    assert sorted(flops.dense.values()) == [2 * tokens * n for n in (width**2, 512, 512)]
    fused = next(name for name, _ in model.named_parameters() if name.endswith("in_proj_weight"))
    in_projection, products = 2 * tokens * 3 * width**2, 2 * (2 * tokens**2 * width)
    assert flops.other == in_projection + products
    with_fused = layer_flops(model, (tokens, width), names=[*flops.dense, fused])
    assert with_fused.dense == flops.dense | {fused: in_projection}
    assert with_fused.other == products


@pytest.mark.parametrize("wrapper", [nn.Identity, OnCpu])
@pytest.mark.parametrize(("kind", "gates"), [(nn.RNN, 1), (nn.GRU, 3), (nn.LSTM, 4)])
def test_recurrent_weights_count_at_every_step(kind, gates, wrapper):
    model = kind(8, 16, num_layers=2, batch_first=True)
    weights = [name for name, p in model.named_parameters() if p.ndim == 2]
    inner = model if wrapper is nn.Identity else OnCpu(model)
    names = weights if inner is model else [f"inner.{name}" for name in weights]
    flops = layer_flops(inner, (5, 8), names=names)
    expected = [2 * 5 * gates * 16 * n for n in (8, 16, 16, 16)]
    assert (list(flops.dense.values()), flops.other) == (expected, 0)
    assert layer_flops(inner, (5, 8)).other == sum(expected)  # not a layer by default


def test_tokens_and_a_tied_head():
    class Lm(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(50, 8)
            self.head = nn.Linear(8, 50, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens):
            return self.head(self.embed(tokens))

    flops = layer_flops(Lm(), (6,), dtype=torch.long)
    assert flops == LayerFlops({"embed.weight": 2 * 6 * 8 * 50}, 0)
    by_alias = layer_flops(Lm(), (6,), dtype=torch.long, names=["head.weight"])
    assert by_alias.dense == {"head.weight": 2 * 6 * 8 * 50}
    both = layer_flops(Lm(), (6,), dtype=torch.long, names=["embed.weight", "head.weight"])
    assert both == LayerFlops({"embed.weight": 2 * 6 * 8 * 50, "head.weight": 0}, 0)


def test_a_layer_that_derives_its_weight_still_counts():
    class Standardised(nn.Linear):
        def forward(self, x):
            return nn.functional.linear(x, self.weight - self.weight.mean(), self.bias)

    model = nn.Sequential(Standardised(4, 6), nn.Linear(6, 5))
    assert layer_flops(model, (4,)) == LayerFlops({"0.weight": 48, "1.weight": 60}, 0)


def test_the_input_has_the_dtype_of_the_model():
    model = nn.Sequential(nn.Linear(4, 6)).bfloat16()
    assert layer_flops(model, (4,)).dense == {"0.weight": 48}


def test_compiled_models_keep_their_names():
    model = torch.compile(nn.Sequential(nn.Linear(4, 6)))
    assert layer_flops(model, (4,)).dense == {"0.weight": 48}


@pytest.mark.parametrize(
    ("interval", "expected"), [(100, 0.2026403), (1000, 0.2002664), (1, 1 / 3)]
)
def test_rigl_steps_add_up_to_the_papers_formula(interval, expected):
    assert rigl_closed_form(0.2, 1.0, interval) / 3 == pytest.approx(expected, abs=5e-8)
    counted = TrainingFlops(dense_forward=1.0)
    for _ in range(3):
        for step in range(interval + 1):
            counted.add(0.2, samples=4, dense_gradient=step == interval)
    assert counted.relative == pytest.approx(rigl_closed_form(0.2, 1.0, interval) / 3, rel=1e-12)
    assert (counted.steps, counted.samples) == (3 * (interval + 1), 12 * (interval + 1))
    assert counted.dense_gradient_steps == 3
    assert counted.dense_total == 3 * counted.samples


def counted(steps):
    """FLOPs per sample of steps given as arguments of ``add``, with f_D = 1."""
    training = TrainingFlops(1.0)
    for forward, arguments in steps:
        training.add(forward, 8, **arguments)
    return training.total / training.samples


def test_other_methods_add_up_to_their_closed_forms():
    assert counted([(0.2, {})] * 5) == pytest.approx(static_closed_form(0.2))
    dense_gradient = counted([(0.2, {"dense_gradient": True})] * 5)
    assert dense_gradient == pytest.approx(snfs_closed_form(0.2, 1.0))
    assert dense_gradient / 3 == pytest.approx(0.4666667, abs=5e-8)
    top_kast = counted([(0.1, {"weight_gradient": 0.5})] * 5)
    assert top_kast == pytest.approx(top_kast_closed_form(0.1, 0.5)) == pytest.approx(0.7)
    bdwp = counted([(0.25, {"input_gradient": 0.25, "dense_gradient": True})] * 5)
    assert bdwp == pytest.approx(bdwp_closed_form(0.25, 0.25, 1.0)) == pytest.approx(3 * 0.5)
    acdc = counted([(1.0, {})] * 50 + [(0.1, {})] * 50)
    assert acdc == pytest.approx(phases_closed_form([(0.5, 1.0), (0.5, 0.1)]))
    assert acdc / 3 == pytest.approx((50 + 50 * 0.1) / 100)


def test_gradual_pruning_is_the_integral_of_its_schedule():
    assert gmp_mean_density(0.9) == pytest.approx(0.325)
    assert gmp_mean_density(0.9, initial_sparsity=0.5, begin=0.2, end=0.7) == pytest.approx(
        0.2 * 0.5 + 0.5 * (0.1 + 0.1) + 0.3 * 0.1
    )
    steps = 4000
    density = []
    for step in range(steps):
        progress = min(1.0, max(0.0, ((step + 0.5) / steps - 0.25) / 0.5))
        density.append(1 - 0.9 * (1 - (1 - progress) ** 3))
    flops = LayerFlops({"a": 900}, other=100)
    total = TrainingFlops(flops.total)
    for d in density:
        total.add(flops.forward({"a": d}), 1)
    closed = gmp_closed_form(900, 100, gmp_mean_density(0.9, begin=0.25, end=0.75))
    assert total.total / steps == pytest.approx(closed, rel=1e-6)


def test_training_flops_go_on_from_a_checkpoint():
    whole, first = TrainingFlops(10.0), TrainingFlops(10.0)
    assert first.relative == 0.0
    whole.add(3.0, 2)
    first.add(3.0, 2)
    resumed = TrainingFlops(0.0)
    resumed.load_state_dict(first.state_dict())
    for training in (whole, resumed):
        training.add(4.0, 5, dense_gradient=True)
    assert resumed == whole
    assert whole.total == 2 * 9 + 5 * (4 + 4 + 10)


def test_size_is_values_and_a_mask_of_the_layers_that_are_not_dense():
    sizes = {"a": 80, "b": 16}
    assert model_size_bytes(sizes, {"a": 10, "b": 16}) == 26 * 4 + 10
    assert model_size_bytes(sizes, sizes, dense_values=3, value_bits=16) == 99 * 2
