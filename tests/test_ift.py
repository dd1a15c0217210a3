"""Sparse-IFT: sizes and FLOPs of the transformed layers, and training them.

Sizes after cifar_resnet18.py of github.com/CerebrasResearch/Sparse-IFT.
"""

import csv
import json
import math

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from sparsebench.config.paths import config_folder
from sparsebench.errors import UserError
from sparsebench.models.cifar_resnet import resnet20
from sparsebench.models.common import rounded_down, scaled
from sparsebench.models.ift import (
    Doped,
    Factorized,
    Parallel,
    branches,
    doped_rank,
    factor_units,
    transformed,
)
from sparsebench.models.mlp import mlp
from sparsebench.sparsity.flops import layer_flops
from sparsebench.sparsity.selector import select
from sparsebench.sparsity.spec import SelectorSpec

HIDDEN = SelectorSpec(first=False, last=False)
SPARSITIES = (0.5, 0.75, 0.9)


@pytest.mark.parametrize(
    "sparsity, wide, parallel, units, rank",
    [(0.5, 90, 2, 116, 28), (0.75, 128, 4, 231, 43), (0.9, 202, 10, 577, 51)],
)
def test_sizes_at_64_channels(sparsity, wide, parallel, units, rank):
    with rounded_down():
        assert scaled(64, math.sqrt(1 / (1 - sparsity))) == wide
    assert branches(sparsity) == parallel
    assert factor_units(9, 64, 64, sparsity) == units
    assert doped_rank(9, 64, 64, sparsity) == rank


def official_units(i, o, s):
    return int(math.ceil(9 * i * o / ((1 - s) * (9 * i + o))))


def official_rank(i, o, s):
    return int(math.floor(s * (9 * (i * o)) / (9 * i + o)))


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_sizes_are_those_of_the_official_code(sparsity):
    for i, o in [(3, 64), (64, 64), (64, 128), (128, 128), (256, 512), (512, 512)]:
        assert factor_units(9, i, o, sparsity) == official_units(i, o, sparsity)
        assert doped_rank(9, i, o, sparsity) == official_rank(i, o, sparsity)


def test_widths_are_rounded_down_only_where_asked():
    assert scaled(64, math.sqrt(2)) == 91
    with rounded_down():
        assert [scaled(64, math.sqrt(2)), scaled(10, math.sqrt(9)), scaled(1, 0.5)] == [90, 30, 1]
        assert scaled(64, math.sqrt(1 / (1 - 8 / 9))) == 192  # 2.9999999999999996 x 64
    assert scaled(64, math.sqrt(2)) == 91


def network(kind, sparsity, net="mlp"):
    shape = (1, 28, 28) if net == "mlp" else (3, 8, 8)

    def make(width):
        torch.manual_seed(0)
        if net == "mlp":
            return mlp(shape, 10, width=width or 1.0, hidden=(96, 64, 64))
        return resnet20(shape, 10, width=width or 1.0)

    return make(None), transformed(kind, make, sparsity, HIDDEN), shape


def relative(before, after, shape, sparsity):
    """FLOPs of each inner layer of a sparse transformed network, in those of the layer before."""
    inner = list(select(before, HIDDEN))
    sparse = select(after, HIDDEN)
    dense = layer_flops(before, shape, names=inner).dense
    every = [n for n, p in after.named_parameters() if p.ndim > 1]
    now = layer_flops(after, shape, names=every).dense
    shares = {}
    for name in inner:
        path = name.removesuffix(".weight")
        own = [n for n in every if n == name or n.startswith(f"{path}.")]
        cost = sum(now[n] * (1 - sparsity if n in sparse else 1) for n in own)
        shares[path] = cost / dense[name]
    return shares


@pytest.mark.parametrize(
    "net, sparsity", [("mlp", 0.5), ("mlp", 0.75), ("mlp", 0.9), ("resnet20", 0.9)]
)
def test_flops_are_equal_but_for_rounding(net, sparsity):
    for kind in ("wide", "parallel", "factorized", "doped"):
        before, after, shape = network(kind, sparsity, net)
        for path, share in relative(before, after, shape, sparsity).items():
            outputs, inputs, *taps = before.get_submodule(path).weight.shape
            taps = math.prod(taps)
            one = (taps * inputs + outputs) / (taps * inputs * outputs)  # a unit between factors
            if kind == "wide":
                k = math.sqrt(1 / (1 - sparsity))
                assert 1 - 2 / (min(inputs, outputs) * k) < share <= 1 + 1e-9
            elif kind == "parallel":
                assert share == pytest.approx(1, abs=1e-9)
            elif kind == "factorized":
                assert 1 - 1e-9 <= share <= 1 + one * (1 - sparsity) + 1e-9
            else:
                assert 1 - one < share <= 1 + 1e-9


def test_first_and_last_layer_stay_as_they_were():
    for kind in ("parallel", "factorized", "doped"):
        before, after, _ = network(kind, 0.75)
        for name in ("fc1.weight", "fc4.weight"):
            assert torch.equal(after.get_parameter(name), before.get_parameter(name))
        assert not isinstance(after.fc2, nn.Linear)


CONV = {"kernel_size": 3, "stride": 2, "padding": 1, "bias": False}


@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Conv2d(6, 4, **CONV)], ids=["fc", "conv"])
def test_outputs_are_the_sums_they_should_be(layer):
    linear = isinstance(layer, nn.Linear)
    x = torch.randn(5, 6) if linear else torch.randn(5, 6, 8, 8)
    expected = layer(x)
    doped = Doped(layer, 3)
    down, up = doped.down, doped.up
    product = up.flatten(1) @ down.flatten(1)  # one dense layer of rank 3
    twin = nn.Linear(6, 4, bias=False) if linear else nn.Conv2d(6, 4, **CONV)
    twin.weight.data.copy_(product.view_as(twin.weight))
    torch.testing.assert_close(doped(x), expected + twin(x))
    factors = Factorized(layer, 7)
    twin.weight.data.copy_(
        (factors[1].weight.flatten(1) @ factors[0].weight.flatten(1)).view_as(twin.weight)
    )
    bias = 0 if factors[1].bias is None else factors[1].bias
    torch.testing.assert_close(factors(x), twin(x) + bias)
    parallel = Parallel(layer, 4)
    each = [norm(branch(x)) for branch, norm in zip(parallel.branches, parallel.norms, strict=True)]
    torch.testing.assert_close(parallel(x), sum(each))
    assert parallel(x).shape == expected.shape
    values = [branch.weight.flatten().sort().values for branch in parallel.branches]
    assert all(torch.equal(value, values[0]) for value in values)
    assert not torch.equal(parallel.branches[0].weight, parallel.branches[1].weight)


def test_the_dense_part_of_a_doped_layer_is_no_sparse_weight():
    _, after, _ = network("doped", 0.9)
    assert list(select(after, HIDDEN)) == ["fc2.layer.weight", "fc3.layer.weight"]
    _, after, _ = network("factorized", 0.9)
    assert list(select(after, HIDDEN))[:2] == ["fc2.0.weight", "fc2.1.weight"]
    small = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    same = transformed("doped", lambda width: small, 0.5, HIDDEN)  # rank 0.5: there is no room
    assert isinstance(same[1], nn.Linear)


@pytest.mark.parametrize(
    "kind, sparsity, net, said",
    [
        ("wider", 0.5, nn.Linear(2, 2), "model.ift=wider: one of wide.*did you mean 'wide'"),
        ("wide", 0.0, nn.Linear(2, 2), "sparsity=0: model.ift=wide needs one above 0"),
        ("parallel", 0.7, nn.Sequential(nn.Linear(2, 2)), "sparsity=0.7: .*nearest is 0.6667"),
        ("doped", 0.5, nn.Linear(2, 2), "the network is one layer"),
        ("doped", 0.5, nn.Sequential(nn.Conv2d(4, 4, 3, groups=4)), "'0' is neither .* groups"),
    ],
)
def test_what_makes_no_sense_is_refused(kind, sparsity, net, said):
    with pytest.raises(UserError, match=said):
        transformed(kind, lambda width: net, sparsity, SelectorSpec())


def config(*overrides):
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return compose("config", overrides=list(overrides))


BASE = (
    "data=digits", "model=mlp", "model.hidden=[40,40]", "sparsity=0.75", "epochs=2",
    "selector=hidden", "distribution=strict_uniform", "method.every=5it", "plots=false",
)  # fmt: skip


@pytest.mark.parametrize(
    "kind, method",
    [
        ("wide", "rigl"), ("wide", "static"), ("parallel", "rigl"), ("factorized", "set"),
        ("doped", "rigl"),
    ],
)  # fmt: skip
def test_a_run_counts_against_the_network_before(tmp_path, monkeypatch, kind, method):
    from sparsebench.cli import main

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="0"):
        main([*BASE, f"method={method}", f"model.ift={kind}"])
    (folder,) = (tmp_path / "runs").iterdir()
    found = json.loads((folder / "result.json").read_text())["metrics"]
    first, inner, last = 64 * 40, 40 * 40, 40 * 10
    dense = 2 * (first + inner + last)
    assert found["flops/inference_dense"] == dense
    size = {
        "wide": 2 * (first + inner + last),  # twice as wide at the ends, 4 / 4 between
        "parallel": 1, "factorized": 80 * 80 / 4 / inner, "doped": 0.25 + 15 * 80 / inner,
    }[kind]  # fmt: skip
    sparse = (
        2 * (2 * first + inner + 2 * last)
        if kind == "wide"
        else (2 * (first + size * inner + last))
    )
    assert found["flops/inference"] == pytest.approx(sparse)
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    steps, dense_steps = int(rows[-1]["step"]), found["flops/dense_gradient_steps"]
    assert bool(dense_steps) == (method == "rigl")
    whole = {  # the gradient of all weights there are, not of the smaller network's
        "wide": 2 * (2 * first + 4 * inner + 2 * last),
        "parallel": 2 * (first + 4 * inner + last),
        "factorized": 2 * (first + 80 * 80 + last),
        "doped": 2 * (first + inner + 15 * 80 + last),
    }[kind]
    total = (3 * steps - dense_steps) * sparse + dense_steps * whole
    assert found["flops/training_relative"] == pytest.approx(total / (3 * steps * dense))


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["method=dense"], "model.ift=wide: method=dense trains no sparse network"),
        (["method=small_dense"], "model.ift=wide: method=small_dense trains no sparse network"),
        (["model.checkpoint=x.pt"], "model.checkpoint=x.pt: model.ift=wide replaces"),
    ],
)
def test_configs_that_make_no_sense(overrides, said):
    from sparsebench.tasks.build import network as from_config

    plain = [text for text in BASE if not text.startswith(("selector", "distribution", "method"))]
    with pytest.raises(UserError, match=said):
        from_config(config(*plain, "model.ift=wide", *overrides), (1, 8, 8), 10)


def test_a_config_without_it_keeps_its_name():
    from sparsebench.config.identity import identity, significant

    assert "model.ift" not in significant(config(*BASE))
    assert identity(config(*BASE)) != identity(config(*BASE, "model.ift=wide"))
