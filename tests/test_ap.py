"""AP and NeurRev: which negative weights go, against AP's code, and dead ReLUs counted by hand.

The golden calculation is written anew from Martin1937/AP-Activate-While-Pruning-, resnet_20.py
(``prune_by_percentile_lt``, then ``prune_by_percentile_ap`` among what is left). Its second half
removes one weight more than it counts; here its count is one lower.
"""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from sparsebench.config.compose import compose
from sparsebench.library import method
from sparsebench.run import run
from sparsebench.sparsity import Session
from sparsebench.sparsity.topology import dead_neuron_rate


class Weights(nn.Module):
    def __init__(self, **values) -> None:
        super().__init__()
        for name, flat in values.items():
            layer = nn.Linear(len(flat), 1, bias=False)
            layer.weight.data = torch.tensor([flat])
            self.add_module(name, layer)


def begin(net, engine, total=8):
    return Session(
        engine, net, torch.optim.SGD(net.parameters(), lr=1.0), total_steps=total, seed=0
    )


def move(session, **values):
    """One optimizer step that takes the weights to these values."""
    for name, parameter in session.masks.parameters.items():
        wanted = torch.tensor([values[name.split(".")[0]]])
        parameter.grad = parameter.detach() - wanted
    session.after_backward()
    session.state.optimizers[0].step()
    session.after_step()


def active(session, name):
    return session.masks[f"{name}.weight"].view(-1).nonzero().view(-1).tolist()


ONCE = {"every": "1it", "begin": "0%", "end": "100%", "drop_schedule": "constant"}


def test_the_negative_weight_that_moved_least_goes():
    net = Weights(a=[0.1, -0.2, -0.3, -0.4])
    dials = {"sparsity_schedule": "geometric", "initial": "dense", "rewind": "none"}
    engine = method(
        "imp", sparsity=0.25, also="still", also_share=1.0, every="1it", end="1it", **dials
    )
    session = begin(net, engine)
    move(session, a=[0.3, -0.25, -0.9, -0.41])  # changes of the negatives: .05 .6 .01
    assert active(session, "a") == [0, 1, 2]


def test_in_the_drop_half_the_share_goes_first_to_what_did_not_move():
    net = Weights(a=[0.5, -0.9, -0.2, 0.3, 0.0, 0.0, 0.0, 0.0])
    dials = {"initial": "magnitude", "also_share": 1.0, "drop_fraction": 0.25, "regrow": "never"}
    engine = method("neurrev", sparsity=0.5, distribution="strict_uniform", **{**ONCE, **dials})
    session = begin(net, engine)
    assert active(session, "a") == [0, 1, 2, 3]
    move(session, a=[0.4, -0.9, -0.5, 0.31, 0, 0, 0, -1.0])
    assert active(session, "a") == [0, 2, 3, 7]  # 1 did not move; 7 has the largest gradient


def test_of_weights_that_did_not_move_the_larger_goes():
    net = Weights(a=[-0.1, -0.5, -0.3, 0.2])
    engine = method(
        "imp", sparsity=0.25, also="still", also_share=1.0, every="1it", end="1it", rewind="none"
    )
    session = begin(net, engine)
    move(session, a=[-0.1, -0.5, -0.3, 0.2])
    assert active(session, "a") == [0, 2, 3]


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_positive_weights_are_never_its_choice(share):
    net = Weights(a=[0.1, 0.2, 0.3, -0.4])
    engine = method(
        "imp", sparsity=0.5, also="still", also_share=share, every="1it", end="1it", rewind="none"
    )
    session = begin(net, engine)
    move(session, a=[0.1, 0.2, 0.3, -0.5])
    assert active(session, "a") == [1, 2]  # one negative there is; magnitude finds the other


# --- against the authors' code -------------------------------------------------------------------


def authors(weights, before, masks, percent, number):
    """By magnitude a percentage of what is left, then some negatives by their change."""
    alive = np.concatenate([w[m] for w, m in zip(weights, masks, strict=True)])
    threshold = np.percentile(np.abs(alive), percent)
    masks = [m & ~(np.abs(w) < threshold) for w, m in zip(weights, masks, strict=True)]
    now = np.concatenate([w[m] for w, m in zip(weights, masks, strict=True)])
    then = np.concatenate([b[m] for b, m in zip(before, masks, strict=True)])
    threshold = np.sort(np.abs(now - then)[now < 0])[number]
    return [
        m & ~((np.abs(w - b) <= threshold) & (w < 0))
        for w, b, m in zip(weights, before, masks, strict=True)
    ]


@pytest.mark.parametrize("rewind", ["weights", "learning_rate"])
def test_two_rounds_of_ap_as_the_authors_prune(rewind):
    generator = np.random.default_rng(5)
    first = [generator.standard_normal(n).astype(np.float32) for n in (60, 40)]
    net = Weights(a=first[0].tolist(), b=first[1].tolist())
    engine = method("ap", sparsity=0.36, every="1it", end="2it", rewind=rewind)
    session = begin(net, engine)
    before, masks = first, [np.ones(60, bool), np.ones(40, bool)]
    # 20 of 100 go, 2 of them by their change; then 16 of 80, 1 of them (a tenth, rounded down)
    for percent, number in ((18, 2), (18.5, 1)):
        moved = [
            m * (b + 0.3 * generator.standard_normal(b.size).astype(np.float32))
            for b, m in zip(before, masks, strict=True)
        ]
        masks = authors(moved, before, masks, percent, number - 1)
        move(session, a=moved[0].tolist(), b=moved[1].tolist())
        assert active(session, "a") == np.flatnonzero(masks[0]).tolist()
        assert active(session, "b") == np.flatnonzero(masks[1]).tolist()
        now = first if rewind == "weights" else moved  # where the next round begins
        before = [w * m for w, m in zip(now, masks, strict=True)]
    assert session.masks.nonzeros["a.weight"] + session.masks.nonzeros["b.weight"] == 64


# --- with any pruner -----------------------------------------------------------------------------

PRUNERS = ["imp", "lrr", "gmp", "gmp_global", "one_shot", "set", "rigl", "granet", "granet_dense"]


@pytest.mark.parametrize("name", PRUNERS)
def test_it_chooses_its_share_of_what_any_pruner_removes(name):
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 10)) for _ in range(2)]
    nets[1].load_state_dict(copy.deepcopy(nets[0].state_dict()))
    window = {} if name == "one_shot" else {"every": "4it"}
    masks = []
    for net, also in zip(nets, ({}, {"also": "still", "also_share": 0.5}), strict=True):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
        session = Session(
            method(name, sparsity=0.8, **window, **also), net, optimizer, total_steps=40, seed=0
        )
        for t in range(40):
            generator = torch.Generator().manual_seed(t)
            x = torch.randn(16, 20, generator=generator)
            session.before_forward()
            nn.functional.cross_entropy(net(x), x[:, :10].argmax(1)).backward()
            session.after_backward()
            optimizer.step()
            optimizer.zero_grad()
            session.after_step()
        masks.append(session.masks)
    assert sum(masks[0].nonzeros.values()) == sum(masks[1].nonzeros.values()) == 120
    assert masks[0].digest() != masks[1].digest()


def test_with_rewinding_the_change_is_that_of_the_round():
    net = Weights(a=[0.5, -0.6, -0.7, 0.8])
    engine = method("ap", sparsity=0.5, every="2it", end="4it", also_share=1.0)
    session = begin(net, engine)
    move(session, a=[9.0, -9.0, -7.0, 9.0])
    move(session, a=[9.0, -9.0, -7.0, 9.0])
    assert active(session, "a") == [0, 1, 3]  # of 4 to .5: 2.83, rounded to 3; 2 came less far
    change = session.method.observers["change"]
    assert change.kept["a.weight"].view(-1).tolist() == pytest.approx([0.5, -0.6, 0, 0.8])


# --- dead neurons --------------------------------------------------------------------------------


class Mixed(nn.Module):
    """A ReLU as a module and one as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu = nn.Linear(2, 2, bias=False), nn.ReLU(inplace=True)
        self.first.weight.data = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])

    def forward(self, x):
        x = self.relu(self.first(x))
        return nn.functional.relu(x - 2.0)


def test_dead_pairs_by_hand():
    x = torch.tensor([[1.0, 0.0], [3.0, 0.0], [-5.0, 0.0]])
    # first (1, 0), (3, 0), (0, 5): 3 of 6 are 0; then (0, 0), (1, 0), (0, 3): 4 of 6
    assert dead_neuron_rate(Mixed(), [x]) == pytest.approx(7 / 12)
    assert dead_neuron_rate(Mixed(), [x[:1], x[1:]]) == pytest.approx(7 / 12)


def test_a_network_without_relus_has_no_rate_and_stays_in_its_mode():
    net = nn.Sequential(nn.Linear(2, 2), nn.GELU(), nn.Dropout(0.5)).train()
    assert dead_neuron_rate(net, [torch.ones(3, 2)]) is None
    assert net.training
    assert net[2].training


QUICK = [
    "data=digits", "model=tiny_mlp", "epochs=1", "data.subset=160", "batch_size=16", "plots=false",
    "quiet=true", "trainer.accelerator=cpu", "method=static",
]  # fmt: skip


def test_a_run_has_the_rate_if_asked(tmp_path):
    for number, asked in enumerate(([], ["+task.options.dead_neurons=true"])):
        result = run(compose([*QUICK, *asked, f"runs={tmp_path / str(number)}"]))
        assert result["status"] == "finished", result.get("error")
        assert ("dead_neurons/rate" in result["metrics"]) == bool(asked)
    assert 0 < result["metrics"]["dead_neurons/rate"] < 1
