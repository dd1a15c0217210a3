"""N:M methods against calculations written from the authors' algorithms, on the same numbers.

* NM-sparsity/NM-sparsity (SR-STE, arXiv 2102.04010): a masked copy of the weight in the graph,
  and a backward pass that adds decay x (1 - mask) x weight to what arrives. Its groups are cut
  from the flattened weight (of a convolution: channels last); the same as ours where M divides the
  inputs, and weights here are all of different size, so that its unstable sort can't matter.
* abhibambhaniya/progressive_gradient_flow_nm_sparsity (arXiv 2402.04744): the masks of the moment,
  mask + (1 - mask) x decay in the forward pass, the gradient passed on as it is.
* NVIDIA/apex, contrib/sparsity, m4n2_1d (ASP, arXiv 2104.08378): of all six patterns of two in four
  the one that keeps the largest sum of magnitudes. Of equal sums it takes whichever its list has
  first; here numbers differ.
"""

import itertools
import math

import pytest
import torch
from torch import nn

from sparsebench.library import method
from sparsebench.sparsity import Session

LR, MOMENTUM, DECAY = 0.02, 0.9, 0.01


def model_of(kind):
    torch.manual_seed(1)
    if kind == "conv":
        return nn.Sequential(
            nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 2), nn.Flatten(), nn.Linear(32, 4)
        )
    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8))


def batch(kind, t):
    generator = torch.Generator().manual_seed(t)
    return torch.randn(6, *((8, 5, 5) if kind == "conv" else (16,)), generator=generator)


def smallest_out(weight, n, m):
    """Mask of the algorithm: in each piece of M, channels last, the M - N smallest become 0."""
    last = weight.detach().abs()
    if last.ndim == 4:
        last = last.permute(0, 2, 3, 1)
    kept = []
    for piece in last.reshape(-1).split(m):
        order = sorted(range(m), key=lambda i: float(piece[i]))
        gone = set(order[: m - n])
        kept += [float(i not in gone) for i in range(m)]
    found = torch.tensor(kept).reshape(last.shape)
    return found.permute(0, 3, 1, 2) if weight.ndim == 4 else found


class Pruned(torch.autograd.Function):
    """Sees weight x scale; passes the gradient on, with a pull on what the mask leaves out."""

    @staticmethod
    def forward(ctx, weight, mask, scale, pull):
        ctx.save_for_backward(weight, mask)
        ctx.pull = pull
        return weight * scale

    @staticmethod
    def backward(ctx, gradient):
        weight, mask = ctx.saved_tensors
        return gradient + ctx.pull * (1 - mask) * weight, None, None, None


def original(kind, steps, pattern_of, share_of, pull):
    """Dense weights after each step of the authors' way of training."""
    model = model_of(kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    layers = {f"{n}.weight": m for n, m in model.named_modules() if hasattr(m, "weight")}
    found = []
    for t in range(steps):
        shown = {}
        for name, layer in layers.items():
            mask = smallest_out(layer.weight, *pattern_of(t))
            scale = mask + (1 - mask) * share_of(t)
            shown[name] = Pruned.apply(layer.weight, mask, scale, pull)
        out = torch.func.functional_call(model, shown, (batch(kind, t),))
        optimizer.zero_grad()
        out.square().sum().backward()
        optimizer.step()
        found.append({name: layer.weight.detach().clone() for name, layer in layers.items()})
    return found


def ours(kind, steps, name, **dials):
    """The same by a method: dense weights and masks after each step."""
    model = model_of(kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    session = Session(method(name, **dials), model, optimizer, total_steps=steps)
    found = []
    for t in range(steps):
        session.before_forward()
        optimizer.zero_grad()
        model(batch(kind, t)).square().sum().backward()
        session.after_backward()
        optimizer.step()
        session.after_step()
        weights = {n: p.detach().clone() for n, p in session.masks.parameters.items()}
        found.append((weights, dict(session.masks.items())))
    return found


def compare(theirs, mine, pattern_after):
    for t, (dense, (weights, masks)) in enumerate(zip(theirs, mine, strict=True)):
        for name, weight in dense.items():
            assert torch.allclose(weights[name], weight, atol=1e-6)
            assert torch.equal(masks[name], smallest_out(weight, *pattern_after(t)).bool())


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("n, m", [(2, 4), (1, 8)])
def test_sr_ste(kind, n, m):
    theirs = original(kind, 6, lambda t: (n, m), lambda t: 0.0, 0.05)
    structure = {"name": "nm", "n": n, "m": m}
    mine = ours(kind, 6, "sr_ste", structure=structure, absent_decay=0.05)
    compare(theirs, mine, lambda t: (n, m))
    first, last = mine[0][1], mine[-1][1]
    assert any(not torch.equal(first[name], last[name]) for name in first)  # they have moved


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("decay", ["linear", "exponential"])
def test_mask_decay(kind, decay):
    beta, until = 0.3, 6

    def share(t):
        if t >= until:
            return 0.0
        return max(0.0, 1 - beta * t) if decay == "linear" else math.exp(-beta * t)

    def after(t):  # masks are full while anything outside the pattern is seen
        return (8, 8) if share(t + 1) > 0 else (1, 8)

    theirs = original(kind, 8, lambda t: (1, 8), share, 0.0)
    options = {"decay": decay, "beta": beta, "until": "75%"}
    compare(theirs, ours(kind, 8, "pgf_mask_decay", options=options), after)


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_structure_decay(kind):
    stages = [(7, 8), (4, 8), (2, 8), (1, 8)]
    theirs = original(kind, 8, lambda t: stages[t // 2], lambda t: 0.0, 0.0)
    mine = ours(kind, 8, "pgf_structure_decay", options={"until": "100%"})
    compare(theirs, mine, lambda t: stages[min((t + 1) // 2, 3)])


def best_pattern(row):
    """Of the six ways to keep two of four weights the one with the largest sum."""
    keep = max(itertools.combinations(range(4), 2), key=lambda pair: sum(abs(row[i]) for i in pair))
    return [i in keep for i in range(4)]


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_asp(kind):
    model = model_of(kind)
    session = Session(
        method("asp", every="1it"), model, torch.optim.SGD(model.parameters(), lr=0.0),
        total_steps=2,
    )  # fmt: skip
    before = {n: p.detach().clone() for n, p in session.masks.parameters.items()}
    model(batch(kind, 0)).square().sum().backward()
    session.after_backward()
    session.state.optimizers[0].step()
    session.after_step()
    for name, mask in session.masks.items():
        rows = (before[name], mask)
        if mask.ndim == 4:
            rows = tuple(tensor.permute(2, 3, 0, 1) for tensor in rows)
        dense, found = (tensor.reshape(-1, 4).tolist() for tensor in rows)
        assert found == [best_pattern(row) for row in dense]
