"""SNIP, GraSP, SynFlow, FORCE and iterative SNIP, calculated anew as in their official code.

Sources: ganguli-lab/Synaptic-Flow (Pruners/pruners.py, prune.py) for the first three, naver/force
(pruning/pruning_algos.py) for the others. The calculations know nothing of this package: weights
are plain tensors, masks are variables of their own, thresholds are those of the official code.
Its counts are floors, ours are rounded; the densities here give both the same.
"""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparsebench.library import method
from sparsebench.sparsity import Session
from sparsebench.sparsity.examples import Examples

BATCHES = [
    (torch.randn(16, 12, generator=torch.Generator().manual_seed(n)), torch.arange(16) % 4)
    for n in range(2)
]


def network(bias: float = 0.0) -> nn.Sequential:
    """12-20-8-4, 432 weights."""
    torch.manual_seed(3)
    layers = nn.Linear(12, 20), nn.Linear(20, 8), nn.Linear(8, 4)
    for layer in layers:
        nn.init.constant_(layer.bias, bias)
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


def ours(name, density, batches=1, bias=0.0, **dials):
    net = network(bias)
    examples = Examples(lambda seed: iter(BATCHES[:batches]))
    made = method(name, sparsity=1 - density, initial_batches=batches, **dials)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    session = Session(made, net, optimizer, total_steps=10, seed=0, examples=examples)
    return [mask for _, mask in session.masks.items()]


def weights() -> list[torch.Tensor]:
    return [layer.weight.detach().clone() for layer in network() if isinstance(layer, nn.Linear)]


def forward(x, tensors):
    for number, tensor in enumerate(tensors):
        x = F.linear(x if number == 0 else F.relu(x), tensor)
    return x


def above_threshold(scores, density):
    """Synaptic-Flow: remove all scores up to the k-th smallest of all layers."""
    everything = torch.cat([score.flatten() for score in scores])
    k = int((1.0 - density) * everything.numel())
    if k < 1:
        return [torch.ones_like(score) for score in scores]
    threshold = everything.kthvalue(k).values
    return [(score > threshold).to(score.dtype) for score in scores]


def top(scores, number):
    """naver/force: keep all scores from the number-th largest on."""
    last = torch.cat([score.flatten() for score in scores]).topk(number).values[-1]
    return [(score >= last).float() for score in scores]


def same(masks, expected):
    return all(torch.equal(a, b.bool()) for a, b in zip(masks, expected, strict=True))


@pytest.mark.parametrize("density", [0.5, 0.25, 0.125])
@pytest.mark.parametrize("batches", [1, 2])
def test_snip(density, batches):
    masks = [torch.ones_like(w, requires_grad=True) for w in weights()]
    for x, y in BATCHES[:batches]:
        out = forward(x, [w * m for w, m in zip(weights(), masks, strict=True)])
        F.cross_entropy(out, y).backward()
    scores = [m.grad.abs() for m in masks]
    scores = [score / sum(s.sum() for s in scores) for score in scores]
    assert same(ours("snip", density, batches), above_threshold(scores, density))


@pytest.mark.parametrize("density", [0.5, 0.25, 0.125])
@pytest.mark.parametrize("batches", [1, 2])
@pytest.mark.parametrize("name", ["grasp", "grasp_abs"])
def test_grasp(name, density, batches):
    tensors = [w.requires_grad_() for w in weights()]

    def gradient(x, y, **options):
        found = torch.autograd.grad(
            F.cross_entropy(forward(x, tensors) / 200, y), tensors, **options
        )
        return torch.cat([g.flatten() for g in found])

    stopped = sum(gradient(x, y) for x, y in BATCHES[:batches])
    for x, y in BATCHES[:batches]:
        (stopped * gradient(x, y, create_graph=True)).sum().backward()
    scores = [(w.grad * w).detach() for w in tensors]
    scores = [score.abs() for score in scores] if name == "grasp_abs" else scores
    assert same(ours(name, density, batches), above_threshold(scores, density))


@pytest.mark.parametrize("rounds", [1, 3, 100])
@pytest.mark.parametrize("bias", [0.0, 0.5])
def test_synflow(rounds, bias):
    density = 0.125
    tensors = [w.double().abs().requires_grad_() for w in weights()]
    masks = [torch.ones_like(w) for w in tensors]
    for number in range(rounds):
        out = forward(
            torch.ones(1, 12, dtype=torch.float64),
            [w * m for w, m in zip(tensors, masks, strict=True)],
        )
        gradients = torch.autograd.grad(out.sum(), tensors)
        scores = [(g * w).detach() for g, w in zip(gradients, tensors, strict=True)]
        kept = round(density ** ((number + 1) / rounds) * 432)
        masks = above_threshold(scores, kept / 432 - 1e-9)
    # the official networks begin with biases of 0; others take no part here
    assert same(ours("synflow", density, bias=bias, initial_rounds=rounds), masks)


@pytest.mark.parametrize("name", ["force", "iterative_snip"])
@pytest.mark.parametrize("rounds", [1, 2, 10])
def test_force_and_iterative_snip(name, rounds):
    density, mask, nested = 1 / 16, None, []
    for number in range(rounds):
        share = math.exp((number + 1) * math.log(density) / rounds)
        seen = [w.clone() if mask is None else w * m for w, m in _pairs(weights(), mask)]
        seen = [w.requires_grad_() for w in seen]
        x, y = BATCHES[0]
        gradients = torch.autograd.grad(F.nll_loss(F.log_softmax(forward(x, seen), 1), y), seen)
        at = weights() if name == "force" else [w.detach() for w in seen]
        scores = [(w * g).abs() for w, g in zip(at, gradients, strict=True)]
        if mask is not None and name == "iterative_snip":
            least = min(float(score.min()) for score in scores)
            scores = [torch.where(m > 0, s, least) for s, m in zip(scores, mask, strict=True)]
        before, mask = mask, top(scores, round(share * 432))
        nested.append(
            before is None or all((a >= b).all() for a, b in zip(before, mask, strict=True))
        )
    assert same(ours(name, density, initial_rounds=rounds), mask)
    assert all(nested) == (name == "iterative_snip" or rounds == 1)  # FORCE takes weights back
    if rounds == 1:
        assert same(ours("snip", density), mask)


def _pairs(tensors, masks):
    return zip(tensors, masks or [None] * len(tensors), strict=True)
