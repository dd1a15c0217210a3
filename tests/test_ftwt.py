"""Gates on the filters of a CNN (FTWT): truths, gradients, FLOPs by brute force, and whole runs."""

import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparsebench.config.compose import compose
from sparsebench.errors import UserError
from sparsebench.models.cifar_resnet import cifar_resnet
from sparsebench.models.gates import Gates, Rule, top_mass
from sparsebench.models.mlp import mlp
from sparsebench.models.tiny import tiny_conv
from sparsebench.models.vgg import vgg
from sparsebench.run import run
from sparsebench.sparsity.flops import layer_flops
from sparsebench.tasks.gates import spread

QUICK = [
    "task=gates", "method=dense", "data=digits", "model=tiny_conv", "epochs=3", "data.subset=160",
    "batch_size=16", "plots=false", "quiet=true", "trainer.accelerator=cpu", "optimizer.lr=0.05",
    "task.options.warmup=1ep", "task.options.cooldown=2ep",
]  # fmt: skip
SHAPE = (3, 16, 16)


def train(folder, *words):
    result = run(compose([*QUICK, f"runs={folder}", *words]))
    assert result["status"] == "finished", result.get("error")
    return result["metrics"]


def gated(model, shape=SHAPE, **dials):
    rule = Rule(**dials)
    return Gates(model, rule, layer_flops(model, shape))


def warmed(model):
    """A network whose norms have seen something, so that filters differ; in eval mode."""
    torch.manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.3)
        model.train()
        model(torch.randn(8, *SHAPE))
    return model.eval()


# --- which filters an input needs -----------------------------------------------------------------


def test_the_crossing_filter_is_dropped_or_kept():
    strength = torch.tensor([[2.0, 5.0, 3.0]])  # shares 0.2, 0.5, 0.3
    assert top_mass(strength, 0.8).tolist() == [[False, True, True]]
    assert top_mass(strength, 0.75).tolist() == [[False, True, False]]
    assert top_mass(strength, 0.75, include_crossing=True).tolist() == [[False, True, True]]
    assert top_mass(strength, 0.8, include_crossing=True).tolist() == [[False, True, True]]


def test_a_mass_below_the_first_share_leaves_none_unless_the_crossing_is_kept():
    strength = torch.tensor([[6.0, 4.0]])
    assert top_mass(strength, 0.5).tolist() == [[False, False]]
    assert top_mass(strength, 0.5, include_crossing=True).tolist() == [[True, False]]


def test_the_whole_mass_drops_the_dead_only():
    strength = torch.tensor([[1.0, 0.0, 1e-6, 2.0], [0.0, 0.0, 0.0, 0.0]])
    assert top_mass(strength, 1.0).tolist() == [[True, False, False, True], [False] * 4]


def test_more_mass_never_keeps_fewer():
    strength = 0.1 + torch.rand(50, 30, generator=torch.Generator().manual_seed(0))
    for crossing in (False, True):
        kept = [top_mass(strength, m / 20, include_crossing=crossing) for m in range(1, 21)]
        assert all((less & ~more).sum() == 0 for less, more in zip(kept, kept[1:], strict=False))
        assert kept[-1].all()


def test_truths_are_those_of_an_independent_calculation():
    """From the official algorithm (selkerdawy/FTWT, utils/layers.py), in numpy, one at a time."""
    outputs = np.random.default_rng(3).normal(size=(20, 12, 4, 4)).astype(np.float32)
    model = tiny_conv((3, 8, 8), 4)
    gates = gated(model, (3, 8, 8), mass=0.85)
    gate = next(iter(gates.of.values()))
    gate.logits = torch.zeros(20, 12)
    gate.close(nn.Identity(), (), torch.from_numpy(outputs))
    assert gate.rectified
    for image, truth in zip(outputs, gate.truth.numpy(), strict=True):
        highest = [max(float(v) for v in plane.clip(0).ravel()) for plane in image]
        reached, kept = 0.0, set()
        for filter_ in sorted(range(12), key=lambda c: -highest[c]):
            reached += highest[filter_] / sum(highest)
            if reached - 0.85 > 1e-5:
                break
            kept.add(filter_)
        assert set(np.flatnonzero(truth)) == kept


def test_random_gates_pass_as_many_filters_as_are_needed():
    model = warmed(vgg(SHAPE, 10, width=0.125, depth=11))
    gates = gated(model, kind="random", mass=0.9, shut=True)
    torch.manual_seed(0)
    model(torch.randn(6, *SHAPE))
    for name, passed in gates.passed().items():
        assert torch.equal(passed.sum(1), gates.truth()[name].sum(1))
    assert any(not torch.equal(p, gates.truth()[n]) for n, p in gates.passed().items())


# --- the network with gates -----------------------------------------------------------------------


@pytest.mark.parametrize("build", [tiny_conv, cifar_resnet, vgg], ids=lambda build: build.__name__)
def test_open_gates_change_no_bit(build):
    model = warmed(build(SHAPE, 10))
    x = torch.randn(4, *SHAPE)
    before = model(x)
    names = {name for name, _ in model.named_parameters()}
    gates = gated(model, mass=0.8)
    assert torch.equal(model(x), before)
    assert names < {name for name, _ in model.named_parameters()}  # a checkpoint still fits
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(gates.of) == len(convolutions)
    gates.rule.shut = True
    assert not torch.equal(model(x), before)


def test_the_whole_mass_of_a_network_without_dead_filters_is_the_network():
    model = cifar_resnet(SHAPE, 10, depth=8).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.bias, 3.0)  # each filter is alive for each input
    x = torch.randn(4, *SHAPE)
    before = model(x)
    gates = gated(model, kind="truth", mass=1.0, shut=True)
    assert torch.equal(model(x), before)
    assert all(bool(passed.all()) for passed in gates.passed().values())
    assert gates.flops(gates.passed()).tolist() == [layer_flops_of(model)] * 4


def layer_flops_of(model):
    plain = cifar_resnet(SHAPE, 10, depth=8)
    return float(layer_flops(plain, SHAPE).total)


def test_a_residual_block_is_gated_before_its_sum_and_judged_by_what_follows():
    model = cifar_resnet(SHAPE, 10, depth=8)
    gates = gated(model)
    assert gates.of["layer1.0.conv1"].rectified
    assert not gates.of["layer1.0.conv2"].rectified  # a sum comes first: by magnitude
    assert gates.sources == {
        f"layer{stage}.0.conv2": f"layer{stage}.0.conv1" for stage in (1, 2, 3)
    } | {"layer1.0.conv1": "conv1"}
    x = torch.randn(2, *SHAPE)
    gates.rule.shut = True
    with torch.no_grad():
        for gate in gates.of.values():
            gate.bias.fill_(-9.0)
        out, stem = model.eval()(x), F.relu(torch.zeros(1))
    assert torch.equal(out, model.fc.bias.expand(2, -1))  # nothing passes at all
    assert not stem.any()


def test_a_predictor_learns_from_its_own_loss_and_the_network_from_its_own():
    model = warmed(cifar_resnet(SHAPE, 10, depth=8))
    gates = gated(model, mass=0.8, shut=True)
    predictors = {id(p) for p in gates.parameters()}
    logits = model(torch.randn(4, *SHAPE))
    gates.loss().backward(retain_graph=True)
    assert all(p.grad is not None for p in gates.parameters())
    assert all(p.grad is None for p in model.parameters() if id(p) not in predictors)
    model.zero_grad()
    F.cross_entropy(logits, torch.arange(4)).backward()
    assert all(p.grad is None for p in gates.parameters())
    assert model.conv1.weight.grad.any()


def test_joint_predictors_move_the_network_too():
    model = warmed(cifar_resnet(SHAPE, 10, depth=8))
    gates = gated(model, mass=0.8, joint=True)
    model(torch.randn(4, *SHAPE))
    gates.loss().backward()
    assert model.conv1.weight.grad.any()


def test_the_loss_is_a_sum_over_filters_and_a_mean_over_inputs_and_gates():
    model = tiny_conv((3, 8, 8), 4)
    gates = gated(model, (3, 8, 8))
    total = []
    for filters, gate in zip((8, 16), gates.of.values(), strict=True):
        gate.logits = torch.linspace(-2, 2, 5 * filters).view(5, filters)
        gate.truth = torch.arange(5 * filters).view(5, filters) % 3 == 0
        z, t = gate.logits.double().numpy(), gate.truth.numpy()
        chance = 1 / (1 + np.exp(-z))
        total.append(-np.where(t, np.log(chance), np.log(1 - chance)).sum(1).mean())
    assert float(gates.loss()) == pytest.approx(np.mean(total), rel=1e-5)


def test_the_prediction_is_linear_in_the_softmax_of_the_mean():
    model = tiny_conv((3, 8, 8), 4)
    gates = gated(model, (3, 8, 8))
    gate, x = gates.of["conv1"], torch.randn(2, 3, 8, 8)
    gate.look(model.conv1, (x,))
    shares = np.exp(x.numpy().mean((2, 3)))
    shares /= shares.sum(1, keepdims=True)
    by_hand = shares @ gate.weight.detach().numpy().T + gate.bias.detach().numpy()
    assert np.allclose(gate.logits.detach().numpy(), by_hand, atol=1e-6)


# --- FLOPs ----------------------------------------------------------------------------------------


def test_flops_are_those_of_a_count_by_brute_force():
    """Each multiplication by a weight that is there, of a filter that passes, by an input that
    passed; of a network with pruned weights as well."""
    model = warmed(cifar_resnet(SHAPE, 10, depth=8, width=0.25))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.mul_(torch.rand_like(module.weight) > 0.4)
    plain = layer_flops(model, SHAPE).total
    gates = gated(model, kind="truth", mass=0.7, shut=True)
    model(torch.randn(5, *SHAPE))
    passed = {name: mask.numpy() for name, mask in gates.passed().items()}
    side = {"conv1": 16, "layer1": 16, "layer2": 8, "layer3": 4}
    before = {f"layer{s}.0.conv2": f"layer{s}.0.conv1" for s in (1, 2, 3)}
    before["layer1.0.conv1"] = "conv1"
    for image in range(5):
        count = 2 * model.fc.weight.numel()
        for name, mask in passed.items():
            weight = model.get_submodule(name).weight.detach().numpy()
            for filter_, taps in enumerate(weight):
                for channel, plane in enumerate(taps):
                    read = passed[before[name]][image][channel] if name in before else True
                    if mask[image][filter_] and read:
                        count += 2 * np.count_nonzero(plane) * side[name.split(".")[0]] ** 2
        assert float(gates.flops(gates.passed())[image]) == pytest.approx(count)
        assert count < plain


def test_the_classifier_of_a_vgg_reads_fewer_filters_and_predictors_cost():
    model = vgg(SHAPE, 10, width=0.125, depth=11)
    total = layer_flops(model, SHAPE).total
    gates = gated(model)
    assert gates.sources["fc"] == "features.conv5_2"
    overhead = 2 * sum(m.weight[:, :, 0, 0].numel() for m in model.features if hasattr(m, "stride")
                       and isinstance(m, nn.Conv2d))  # fmt: skip
    assert gates.overhead == overhead
    everything = {n: torch.ones(1, len(g.bias), dtype=torch.bool) for n, g in gates.of.items()}
    assert gates.flops(everything).tolist() == [total + overhead]
    everything["features.conv5_2"] = torch.arange(64)[None] < 16  # a quarter of the filters
    layers = layer_flops(vgg(SHAPE, 10, width=0.125, depth=11), SHAPE).dense
    saved = 0.75 * (layers["features.conv5_2.weight"] + layers["fc.weight"])
    assert gates.flops(everything).tolist() == [total + overhead - saved]


# --- runs -----------------------------------------------------------------------------------------


def test_a_run_says_what_gates_leave_and_what_was_promised(tmp_path):
    found = train(tmp_path, "task.options.mass=0.8")
    dense = found["flops/inference_dense"]
    assert found["flops/inference_gated_relative"] == found["flops/inference_gated"] / dense
    assert found["flops/predictors"] == 2 * (1 * 8 + 8 * 16)
    assert 0 < found["flops/inference_promised"] < dense
    off = (found["flops/inference_gated"] - found["flops/predictors"]) / found[
        "flops/inference_promised"
    ] - 1
    assert found["flops/promise_error"] == pytest.approx(abs(off))
    assert 0 < found["gates/open"] < 1
    assert 0.5 < found["gates/agreement"] <= 1


def test_gates_off_are_plain_classification_bit_for_bit(tmp_path):
    off = train(tmp_path / "off", "task.options.gates=off", "method=static", "sparsity=0.5")
    plain = [w for w in QUICK if "task" not in w]
    result = run(compose([*plain, f"runs={tmp_path / 'plain'}", "method=static", "sparsity=0.5"]))
    assert off["weights_sha256"] == result["metrics"]["weights_sha256"]
    assert off["flops/inference_gated"] == pytest.approx(off["flops/inference"])


def weights_of(folder, *, gates):
    kept = torch.load(next(folder.glob("*/last.ckpt")), weights_only=True)["state_dict"]
    return {name: value for name, value in kept.items() if (".gate." in name) == gates}


def test_gates_that_only_watch_leave_training_as_it_is(tmp_path):
    train(tmp_path / "a", "task.options.warmup=100%", "task.options.cooldown=100%")
    train(tmp_path / "b", "task.options.gates=off")
    watched, off = (weights_of(tmp_path / name, gates=False) for name in "ab")
    assert watched.keys() == off.keys()
    assert all(torch.equal(watched[name], off[name]) for name in off)
    assert len(weights_of(tmp_path / "a", gates=True)) == 4


def test_frozen_predictors_do_not_move_and_others_do(tmp_path):
    words = ["optimizer.weight_decay=0.1", "task.options.warmup=0ep"]
    short = train(
        tmp_path / "a", "epochs=1", "schedule=constant", "task.options.cooldown=1ep", *words
    )
    long = train(
        tmp_path / "b", "epochs=3", "schedule=constant", "task.options.cooldown=1ep", *words
    )
    last = train(
        tmp_path / "c", "epochs=3", "schedule=constant", "task.options.cooldown=3ep", *words
    )
    first, frozen, moved = (weights_of(tmp_path / name, gates=True) for name in "abc")
    assert len({m["weights_sha256"] for m in (short, long, last)}) == 3
    assert all(torch.equal(first[name], frozen[name]) for name in first)
    assert not any(torch.equal(first[name], moved[name]) for name in first)


def test_a_run_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    from sparsebench.training import gated as module

    whole = train(tmp_path / "whole")
    steps, original = [], module.GatedClassifier.train_loss

    def fails(self, batch):
        steps.append(self.global_step)
        if self.global_step == 22:  # in the third epoch of nine steps
            raise KeyboardInterrupt
        return original(self, batch)

    monkeypatch.setattr(module.GatedClassifier, "train_loss", fails)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(tmp_path / "cut")
    monkeypatch.setattr(module.GatedClassifier, "train_loss", original)
    again = train(tmp_path / "cut")
    for key in ("weights_sha256", "test/loss", "flops/inference_gated", "flops/inference_promised"):
        assert again[key] == whole[key]
    assert json.loads(next((tmp_path / "cut").glob("*/result.json")).read_text())["metrics"]
    shutil.rmtree(tmp_path / "cut")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["task.options.mass=1.5"], r"task\.options\.mass=1\.5: a number in \(0, 1\]"),
        (["task.options.gates=predict"], "did you mean 'predicted'"),
        (["task.options.warmup=3"], r"task\.options\.warmup=3: a time is written"),
        (["+task.options.mas=0.5"], r"task\.options\.mas=0\.5: no such option"),
        (["model=tiny_mlp"], "no convolution followed by batch norm"),
        (["method=static", "structure=channel", "sparsity=0.5"], "removes filters for good"),
        (["trainer.compile=true"], "trainer.compile=true"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_training(tmp_path, words, said):
    with pytest.raises(UserError, match=said) as found:
        run(compose([*QUICK, f"runs={tmp_path}", *words]))
    assert "\n" not in str(found.value)
    assert not list(tmp_path.glob("*/metrics.csv"))


def test_what_torch_can_not_follow_is_refused():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.norm(self.conv(x)) if x.sum() > 0 else x

    with pytest.raises(UserError, match=r"torch\.fx can't follow"):
        gated(Branching())
    with pytest.raises(UserError, match="no convolution"):
        gated(mlp((3, 16, 16), 4))


def test_positions_are_spread_over_a_set():
    assert spread(9, 3).tolist() == [0, 4, 8]
    assert spread(3, 100).tolist() == [0, 1, 2]
