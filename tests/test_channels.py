"""Chase and group channel pruning: counts, schedules and thresholds by hand, official rules."""

import copy
import math

import pytest
import torch
from torch import nn

from sparsebench.errors import UserError
from sparsebench.library import method
from sparsebench.models.cifar_resnet import resnet20
from sparsebench.models.tiny import tiny_conv, tiny_mlp
from sparsebench.models.vgg import vgg11
from sparsebench.sparsity import Session
from sparsebench.sparsity.compact import chains, compact
from sparsebench.sparsity.examples import Examples
from sparsebench.sparsity.methods.group_channels import attention, lowest

NETWORKS = {
    "conv": lambda: tiny_conv((3, 16, 16), 10, width=2.0),
    "vgg": lambda: vgg11((3, 16, 16), 10, width=0.0625),
    "resnet": lambda: resnet20((3, 16, 16), 10, width=0.25),
    "mlp": lambda: tiny_mlp((3, 16, 16), 10),
}
STEPS = 40
CHASE = {"every": "4it"}


def batch(t: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(t)
    return torch.randn(8, 3, 16, 16, generator=generator), torch.arange(8)


def begin(name, network, sparsity=0.8, state=None, **dials):
    torch.manual_seed(0)
    dials = {**(CHASE if name == "chase" else {}), **dials}
    model = NETWORKS[network]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    if state:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    return Session(
        method(name, sparsity=sparsity, **dials), model, optimizer, total_steps=STEPS,
        steps_per_epoch=STEPS, seed=0, resume=state and state["session"],
        examples=Examples(lambda seed: (batch(1000 + seed % 997 + t) for t in range(2))),
    )  # fmt: skip


def train(session, steps):
    """Steps on noise; the masks after each."""
    model, (optimizer,) = session.state.model, session.state.optimizers
    history = []
    for _ in range(steps):
        x, y = batch(session.state.step)
        session.before_forward()
        nn.functional.cross_entropy(model(x), y).backward()
        session.after_backward()
        optimizer.step()
        optimizer.zero_grad()
        session.after_step()
        history.append(dict(session.masks.items()))
    return history


def state_of(session):
    state = {
        "model": session.state.model.state_dict(),
        "optimizer": session.state.optimizers[0].state_dict(),
        "session": session.state_dict(),
    }
    return copy.deepcopy(state)


# --- Chase ---------------------------------------------------------------------------------------

CHANNELS = {
    "channel_every": "4it",
    "channels": 0.3,
    "stop_channels": "80%",
    "stop_overshoot": "80%",
}


@pytest.mark.parametrize("network", ["conv", "vgg", "resnet"])
def test_channels_follow_the_cubic_and_weights_the_bound(network):
    session = begin("chase", network, 0.9, options=CHANNELS)
    total = sum(session.masks.sizes.values())
    channels = sum(session.masks[n].shape[0] for n in chains(session.state.model))
    for t, masks in enumerate(train(session, STEPS), start=1):
        update = t // 4 * 4
        removed = sum(int(d.sum()) for d in session.method.dead.values()) if t == STEPS else None
        extra = 0.025 * (1 + math.cos(math.pi * update / 32)) if 0 < update < 32 else 0.0
        found = sum(int(m.sum()) for m in masks.values())
        assert abs(found - (0.1 + extra) * total) <= 0.5 + 1e-6
    assert removed == round(0.3 * channels)


def test_the_bound_at_the_middle_and_the_end_of_the_handbook():
    engine = begin("chase", "conv", 0.9, options=CHANNELS, every="1it")
    at = {}
    for step in (0, 16, 31, 32, 40):
        engine.state.step = step
        at[step] = engine.method.density(engine.state)
    assert at[0] == pytest.approx(0.15)
    assert at[16] == pytest.approx(0.125)
    assert 0.1 < at[31] < 0.101
    assert at[32] == at[40] == pytest.approx(0.1)


def test_live_channels_after_each_removal():
    session = begin("chase", "vgg", 0.8, options={**CHANNELS, "channels": 0.5})
    total = sum(d.numel() for d in session.method.dead.values())
    for event in range(1, 11):
        train(session, 4)
        share = 0.5 * (1 - (1 - min(event, 8) / 8) ** 3)
        assert sum(int(d.sum()) for d in session.method.dead.values()) == round(share * total)
    for dead in session.method.dead.values():  # half of a proportional number at least
        assert int((~dead).sum()) >= math.floor(dead.numel() * 0.5 * 0.5)


def test_removed_channels_are_gone_for_good_and_really_removable():
    session = begin("chase", "resnet", 0.8, options={**CHANNELS, "channels": 0.5})
    history = train(session, STEPS)
    model = session.state.model.eval()
    small = compact(model)
    dead = {n: int(d.sum()) for n, d in session.method.dead.items() if d.any()}
    assert sum(dead.values()) == round(0.5 * sum(d.numel() for d in session.method.dead.values()))
    assert all(small.removed[n] >= number for n, number in dead.items())
    assert all(".conv1." in n for n in dead)  # the inner convolutions of blocks
    x, _ = batch(7)
    assert torch.allclose(small.model(x), model(x), atol=1e-5)
    for name, channels in session.method.dead.items():
        rows = [masks[name].flatten(1).any(1)[channels] for masks in history[-8:]]
        assert not torch.stack(rows).any()


def test_scores_of_channels_by_hand():
    session = begin("chase", "conv", 0.5, options={"score": "umm"})
    name = "conv1.weight"
    with torch.no_grad():
        weight = session.masks.parameters[name]
        weight.zero_()
        mask = torch.zeros_like(weight, dtype=torch.bool)
        mask.view(16, -1)[0, :2] = True
        weight.view(16, -1)[0, :2] = torch.tensor([1.0, -1.0])
        session.masks.set(name, mask)
    umm = session.method.channel_scores(session.state, name)
    assert umm[0] == pytest.approx(2 / 27)
    mmm = begin("chase", "conv", 0.5, options={"score": "mmm"})
    mmm.masks.set(name, mask)
    with torch.no_grad():
        mmm.masks.parameters[name].copy_(weight)
    assert mmm.method.channel_scores(mmm.state, name)[:2].tolist() == [1.0, 0.0]


def official_channels(weights, dead, number, floors):
    """Which filters luuyin/chase removes next, by its mean |w| (``mag_wise``), written anew.

    A threshold over all layers that still may lose filters takes those at or below it; a layer that
    would fall below its floor gives its lowest ones only and is left out of the next round.
    """
    gone = {n: set(torch.nonzero(d).view(-1).tolist()) for n, d in dead.items()}
    first = {n: set(s) for n, s in gone.items()}
    closed = set()
    while number > 0:
        score = {
            (n, i): float(w[i].detach().abs().mean())
            for n, w in weights.items()
            if n not in closed
            for i in range(len(w))
            if i not in gone[n]
        }
        threshold = sorted(score.values())[number - 1]
        for n, w in weights.items():
            if n in closed:
                continue
            below = sorted((s, i) for (m, i), s in score.items() if m == n and s <= threshold)
            room = len(w) - len(gone[n]) - floors[n]
            if len(below) >= room:
                closed.add(n)
            for _, i in below[:room]:
                gone[n].add(i)
                number -= 1
    return {n: gone[n] - first[n] for n in gone}


@pytest.mark.parametrize("seed", range(5))
def test_golden_channels_of_the_official_algorithm(seed):
    session = begin("chase", "vgg", 0.5, options={**CHANNELS, "channels": 0.6, "floor": 0.9})
    torch.manual_seed(seed)
    engine = session.method
    weights = {n: session.masks.parameters[n] for n in engine.dead}
    with torch.no_grad():
        for weight in weights.values():
            weight.copy_(
                torch.randn_like(weight)
                * torch.rand(1)
                * session.masks.factor(next(n for n, w in weights.items() if w is weight))
            )
    floors = {n: max(1, int(len(w) * 0.4 * 0.9)) for n, w in weights.items()}
    found = engine._lowest(session.state, 60)
    expected = official_channels(weights, engine.dead, 60, floors)
    assert {n: set(torch.nonzero(c).view(-1).tolist()) for n, c in found.items()} == expected
    assert any(len(w) - len(expected[n]) == floors[n] for n, w in weights.items())  # floors bind


def test_golden_weights_prune_then_grow_over_all_layers():
    """Global |w| down to dN, then global |gradient| up to the bound, by sorting lists."""
    session = begin("chase", "conv", 0.8, every="1it", options={**CHANNELS, "channels": 0.0})
    train(session, 3)
    masks = session.masks
    total = sum(masks.sizes.values())
    names = list(masks)
    for name, parameter in masks.parameters.items():
        generator = torch.Generator().manual_seed(len(name))
        parameter.grad = torch.randn(parameter.shape, generator=generator).contiguous()
    flat = [(n, i) for n in names for i in range(masks.sizes[n])]
    before = torch.cat([masks[n].view(-1) for n in names]).tolist()
    gradients = torch.cat([masks.parameters[n].grad.abs().view(-1) for n in names]).tolist()
    session.after_backward()
    for group in session.state.optimizers[0].param_groups:
        group["lr"] = 0.0
    session.state.optimizers[0].step()
    weights = torch.cat([p.detach().abs().view(-1) for p in masks.parameters.values()]).tolist()
    session.after_step()
    present = sorted((k for k in range(total) if before[k]), key=lambda k: -weights[k])
    kept = set(present[: round(0.2 * total)])
    bound = 0.2 + 0.025 * (1 + math.cos(math.pi * 4 / 32))
    absent = sorted((k for k in range(total) if k not in kept), key=lambda k: -gradients[k])
    expected = kept | set(absent[: round(bound * total) - len(kept)])
    found = {k for k, (n, i) in enumerate(flat) if masks.factor(n).view(-1)[i]}
    assert found == expected


def test_a_network_without_removable_channels_trains_with_a_note():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = Session(method("chase", every="4it"), model, optimizer, total_steps=STEPS, seed=0)
    assert session.state.notes == ["chase: no channel of this network can be removed"]
    train(session, 8)


# --- groups of channels --------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.25, 0.3, 0.5, 0.7])
def test_each_group_loses_the_floor_of_its_share_by_its_own_quantile(share):
    torch.manual_seed(1)
    scales = {"a": torch.rand(10), "b": torch.rand(6) * 9, "c": torch.rand(7) * 0.1}
    dead = lowest(scales, [["a", "b"], ["c"]], share)
    assert int(dead["a"].sum() + dead["b"].sum()) == math.floor(share * 16)
    assert int(dead["c"].sum()) == math.floor(share * 7)
    ranked = torch.cat([scales["a"], scales["b"]]).sort().values
    removed = torch.cat([scales[n][dead[n]] for n in "ab"]).sort().values
    spared = min(scales["a"].max(), scales["b"].max())
    if not len(removed) or removed.max() < spared:
        assert torch.equal(removed, ranked[: len(removed)])


def test_one_threshold_for_all_empties_a_layer_of_small_scales_but_for_its_best():
    scales = {"a": torch.arange(1.0, 11), "b": torch.arange(1.0, 11) * 0.01}
    dead = lowest(scales, [["a", "b"]], 0.6)
    assert dead["b"].tolist() == [True] * 9 + [False]
    assert int(dead["a"].sum()) == 3
    dead = lowest(scales, [["a"], ["b"]], 0.6)
    assert [int(dead[n].sum()) for n in "ab"] == [6, 6]


GROUPS = {"options": {"penalty": 0.01}}


@pytest.mark.parametrize("network", ["conv", "vgg", "resnet"])
@pytest.mark.parametrize("groups", ["width", "layer", "global"])
def test_channels_go_once_and_the_rest_is_a_smaller_network(network, groups):
    session = begin("group_channels", network, 0.5, options={"penalty": 0.01, "groups": groups})
    history = train(session, STEPS)
    sizes = session.masks.sizes
    for t, masks in enumerate(history, start=1):
        assert all(torch.equal(masks[n], history[-1][n]) or t < 20 for n in masks)
        assert t >= 20 or sum(int(m.sum()) for m in masks.values()) == sum(sizes.values())
    model = session.state.model.eval()
    small = compact(model)
    x, _ = batch(3)
    assert torch.allclose(small.model(x), model(x), atol=1e-5)
    left = sum(p.numel() for n, p in small.model.named_parameters() if n in sizes)
    assert left == sum(session.masks.nonzeros.values())
    assert abs(session.masks.sparsity - 0.5) < 0.1
    assert session.state.notes[-1].startswith("group_channels: removed the share")


def test_a_share_of_ones_own_and_groups_by_name():
    groups = {"early": ["features.conv1*", "features.conv2*"], "late": ["features.conv[345]*"]}
    session = begin("group_channels", "vgg", 0.5, options={"share": 0.4, "map": groups})
    train(session, 20)
    dead = {
        n: int((~session.masks[n].flatten(1).any(1)).sum()) for n in chains(session.state.model)
    }
    widths = {n: session.masks[n].shape[0] for n in dead}
    for stages in ("12", "345"):
        names = [n for n in dead if n.removeprefix("features.conv")[0] in stages]
        assert sum(dead[n] for n in names) == math.floor(0.4 * sum(widths[n] for n in names))


def test_the_rate_rises_linearly_and_falls_along_a_cosine():
    session = begin("group_channels", "conv", options={"penalty": 0.4, "rise": 0.25})
    rate = session.method.rate  # pruning is at step 20, the peak at 5
    assert [rate(s) for s in (0, 1, 5)] == pytest.approx([0.0, 0.08, 0.4])
    assert rate(12.5) == pytest.approx(0.2)
    assert rate(19) == pytest.approx(0.2 * (1 + math.cos(math.pi * 14 / 15)))
    assert rate(20) == rate(39) == 0.0


def test_the_penalty_is_the_sign_of_the_scale_and_of_nothing_else():
    plain = begin("group_channels", "resnet", options={"penalty": 0.0})
    session = begin("group_channels", "resnet", options={"penalty": 0.4, "rise": 0.0})
    for run in (plain, session):
        run.state.step = 10
        for parameter in run.state.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        with torch.no_grad():
            run.state.model.layer1[0].bn1.weight[0] = -2.0
        run.after_backward()
    grads = dict(session.state.model.named_parameters())
    assert grads["layer1.0.bn1.weight"].grad[:2].tolist() == pytest.approx([-0.2, 0.2])
    touched = {n for n, p in grads.items() if p.grad.any()}
    assert touched == {f"layer{s}.{b}.bn1.weight" for s in (1, 2, 3) for b in range(3)}
    assert not any(p.grad.any() for p in plain.state.model.parameters())


def test_attention_by_hand():
    features = torch.tensor([[[[1.0, 2.0]], [[-1.0, 0.0]]]])  # 2 channels of 1 x 2 pixels
    assert attention(features, 2.0).tolist() == [pytest.approx([5**-0.5, 2 * 5**-0.5])]


def test_attention_is_learned_from_the_unpruned_network_and_training_is_left_alone():
    def distance(distill):
        session = begin("group_channels", "conv", 0.6, options={"distill": distill, "penalty": 0})
        train(session, 20)
        teacher = {n: t.clone() for n, t in session.state.model.state_dict().items()}
        if distill:
            teacher = {n: t.clone() for n, t in session.method._teacher.items()}
        train(session, 20)
        return session, teacher

    session, teacher = distance(50.0)
    plain, _ = distance(0.0)
    engine = session.method

    def loss(model):
        with engine._watched(model) as look, torch.no_grad():
            goal = look(teacher, batch(5)[0])
            found = look(dict(model.state_dict()), batch(5)[0])
        return sum(float(((a - b) ** 2).sum(1).mean()) for a, b in zip(found, goal, strict=True))

    assert loss(session.state.model) < loss(plain.state.model)
    assert not plain.method._teacher


@pytest.mark.parametrize("at", [19, 20, 30])
def test_resuming_with_attention_is_bitwise(at):
    whole = begin("group_channels", "conv", 0.6, options={"distill": 5.0})
    train(whole, at)
    state = state_of(whole)
    resumed = begin("group_channels", "conv", 0.6, state=state, options={"distill": 5.0})
    train(whole, 3)
    train(resumed, 3)
    for (name, a), b in zip(
        whole.state.model.state_dict().items(),
        resumed.state.model.state_dict().values(),
        strict=True,
    ):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    "name, dials, words",
    [
        ("chase", {"structure": "block"}, "structure=unstructured"),
        ("chase", {"drop": None, "grow": None}, "method.drop"),
        ("chase", {"options": {"channels": 1.0}}, "method.options.channels=1.0"),
        ("chase", {"options": {"score": "mean"}}, "method.options.score=mean"),
        ("chase", {"options": {"channel_every": "often"}}, "method.options.channel_every"),
        ("group_channels", {"structure": "channel"}, "structure=unstructured"),
        ("group_channels", {"sparsity_schedule": "cubic"}, "sparsity_schedule=once"),
        ("group_channels", {"options": {"groups": "stage"}}, "method.options.groups=stage"),
        ("group_channels", {"options": {"share": 1.0}}, "method.options.share=1.0"),
    ],
)
def test_what_makes_no_sense_is_refused(name, dials, words):
    with pytest.raises(UserError) as error:
        method(name, **dials)
    assert words in str(error.value)


def test_a_network_without_normalisation_has_no_scales():
    with pytest.raises(UserError, match="no channel that can be removed"):
        begin("group_channels", "mlp")
