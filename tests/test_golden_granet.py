"""GraNet and MEST against calculations written anew from their authors' algorithms.

GraNet: Shiweiliuiiiiiii/GraNet, CIFAR/sparselearning/core.py (``pruning``, ``truncate_weights``).
It keeps one weight less than its count says (strictly above the threshold), which is allowed for
here by a threshold one place lower. MEST: boone891214/MEST, prune_utils (``weight_pruning`` and
``weight_growing``, irregular sparsity).
"""

import math

import numpy as np
import pytest
import torch
from torch import nn

from sparsebench.library import method
from sparsebench.sparsity import Session

SIZES = {"a": (12, 20), "b": (10, 12), "c": (4, 11)}
LR, EVERY, TOTAL = 0.1, 2, 16


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        for name, (out, fan_in) in SIZES.items():
            self.add_module(name, nn.Linear(fan_in, out, bias=False))


def begin(how, sparsity, **dials):
    net = Layers()
    optimizer = torch.optim.SGD(net.parameters(), lr=LR)
    times = {"begin": "0%", "end": "100%", "every": f"{EVERY}it"}
    engine = method(how, sparsity=sparsity, **{**times, **dials})
    return Session(engine, net, optimizer, total_steps=TOTAL, seed=0)


def gradients(t):
    generator = np.random.default_rng(t)
    return {f"{n}.weight": generator.standard_normal(s, np.float32) for n, s in SIZES.items()}


def step(session, grads):
    for name, parameter in session.masks.parameters.items():
        parameter.grad = torch.from_numpy(grads[name].copy())
    session.after_backward()
    session.state.optimizers[0].step()
    session.after_step()


def state(session):
    weights = {n: p.detach().numpy().copy() for n, p in session.masks.parameters.items()}
    return weights, {n: m.numpy().copy() for n, m in session.masks.items()}


def prune_globally(weights, masks, keep):
    """The largest over all layers, strictly above a threshold."""
    sizes = np.sort(np.concatenate([np.abs(w).ravel() for w in weights.values()]))[::-1]
    threshold = sizes[keep] if keep < sizes.size else -1.0
    for name, weight in weights.items():
        masks[name] = masks[name] & (np.abs(weight) > threshold)
        weight *= masks[name]


def regenerate(weights, masks, grads, rate):
    """In each layer, drop by magnitude and grow as many by gradient."""
    for name, weight in weights.items():
        present = int(masks[name].sum())
        k = masks[name].size - present + math.ceil(rate * present)
        kept = np.abs(weight) > np.sort(np.abs(weight).ravel())[k - 1]
        score = np.abs(grads[name] * ~kept).ravel()
        grown = np.argsort(-score, kind="stable")[: present - int(kept.sum())]
        kept.ravel()[grown] = True
        masks[name] = kept
        weight *= kept


@pytest.mark.parametrize(
    ("how", "first", "options"),
    [("granet", 0.5, {}), ("granet_dense", 0.0, {}), ("granet", 0.4, {"initial_sparsity": 0.4})],
)
def test_granet(how, first, options):
    session = begin(how, 0.9, drop_rounding="ceil", **options)
    weights, masks = state(session)
    total = sum(m.size for m in masks.values())
    assert sum(int(m.sum()) for m in masks.values()) == round((1 - first) * total)
    for t in range(1, TOTAL + 1):
        grads = gradients(t)
        step(session, grads)
        for name, weight in weights.items():
            weight -= np.float32(LR) * grads[name] * masks[name]
        if t % EVERY == 0:
            left = 1 - min(t // EVERY, 4) / 4  # pruning is done at half of training
            keep = round((0.1 + (0.9 - first) * left**3) * total)
            if keep < sum(int(m.sum()) for m in masks.values()):
                prune_globally(weights, masks, keep)
            cosine = 0.005 + 0.495 * (1 + math.cos(math.pi * t / TOTAL)) / 2
            regenerate(weights, masks, grads, cosine)
        found, active = state(session)
        for name in masks:
            assert np.array_equal(active[name], masks[name]), (t, name)
            assert np.allclose(found[name], weights[name], atol=1e-6)


def important(weight, gradient, mask, weighting, sparsity):
    """What is strictly above the percentile of the importance."""
    score = np.abs(weight) + weighting * np.abs(gradient * mask)
    return score > np.percentile(score, 100 * sparsity)


STAGES = {2: 1.0, 4: 1.0, 6: 1.0, 8: 1.0, 10: 1.0, 12: 0.5, 14: 0.5, 16: 0.0}


@pytest.mark.parametrize("weighting", [0.0, 0.3])
def test_mest_with_elastic_mutation(weighting):
    options = {"gradient_weight": weighting}
    session = begin("mest_em", 0.9, distribution="strict_uniform", options=options)
    for t in range(1, TOTAL + 1):
        grads, (before, masks) = gradients(t), state(session)
        step(session, grads)
        weights, now = state(session)
        for name, mask in masks.items():
            moved = before[name] - np.float32(LR) * grads[name] * mask
            moves = math.floor(0.2 * STAGES.get(t, 0.0) * int(mask.sum()) + 1e-9)
            lower = 1 - (int(mask.sum()) - moves) / mask.size
            kept = important(moved, grads[name], mask, weighting, lower)
            if moves == 0:
                assert np.array_equal(now[name], mask)
                continue
            assert now[name][kept].all()
            assert int(now[name].sum()) == int(mask.sum()) == int(kept.sum()) + moves
            assert not weights[name][now[name] & ~kept].any()


def test_mest_with_a_soft_bound_judges_after_training():
    options = {"gradient_weight": 0.3}
    session = begin("mest_ems", 0.9, distribution="strict_uniform", options=options)
    target = {"a.weight": 24, "b.weight": 12, "c.weight": 4}
    upper = {"a.weight": 36, "b.weight": 18, "c.weight": 7}
    half = {"a.weight": 30, "b.weight": 15, "c.weight": 5}
    assert session.masks.nonzeros == upper
    for t in range(1, TOTAL + 1):
        grads, (before, masks) = gradients(t), state(session)
        step(session, grads)
        weights, now = state(session)
        wanted = upper if t < 12 else half if t < 16 else target
        assert session.masks.nonzeros == wanted
        if t % EVERY:
            assert all(np.array_equal(now[n], masks[n]) for n in masks)
            continue
        for name, mask in masks.items():
            moved = before[name] - np.float32(LR) * grads[name] * mask
            lower = 1 - target[name] / mask.size
            kept = important(moved, grads[name], mask, 0.3, lower)
            assert int(kept.sum()) == target[name]
            assert now[name][kept].all()
            assert not weights[name][now[name] & ~kept].any()
