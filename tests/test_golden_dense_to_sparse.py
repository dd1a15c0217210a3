"""The same small networks through the official algorithms, written anew; masks compared exactly.

Sources: huggingface/transformers examples/research_projects/movement-pruning (binarizer.py,
masked_nn.py, masked_run_glue.py); RAIVNLab/STR (utils/conv_type.py: STRConv, DNWConv, GMPConv);
IST-DASLab/ACDC (policies/pruners.py, policies/recyclers.py, utils/utils.py); for DPF algorithm 1
of arXiv 2006.07253. Where a count is rounded otherwise there, the test asks for the same count.
"""

import math

import pytest
import torch
from torch import Tensor, nn

from sparsebench.library import method
from sparsebench.sparsity import Session

STEPS = 24
NAMES = ("0.weight", "2.weight")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))


def loss(weights, net, t):
    """Of the network with these two weights in the place of its own."""
    generator = torch.Generator().manual_seed(t)
    x, y = torch.randn(16, 6, generator=generator), torch.randint(5, (16,), generator=generator)
    hidden = torch.relu(nn.functional.linear(x, weights[0], net[0].bias))
    return nn.functional.cross_entropy(nn.functional.linear(hidden, weights[1], net[2].bias), y)


def ours(name, optimizer, sparsity, steps=STEPS, **dials):
    """Masks, and weights as the forward pass sees them, at each step."""
    net = network()
    made = optimizer(list(net.parameters()))
    session = Session(
        method(name, sparsity=sparsity, **dials), net, made, total_steps=steps, seed=0
    )
    found = []
    for t in range(steps):
        found.append([(session.masks[n], session.masks.shown(n).clone()) for n in NAMES])
        session.before_forward()
        loss([net[0].weight, net[2].weight], net, t).backward()
        session.after_backward()
        made.step()
        made.zero_grad()
        session.after_step()
    found.append([(session.masks[n], session.masks.shown(n).clone()) for n in NAMES])
    return found, session


def compare(found, expected):
    """Masks exactly, weights to rounding; both after 0, 1, 2, ... steps."""
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        for (mask, weight), (their_mask, their_weight) in zip(mine, theirs, strict=True):
            assert torch.equal(mask, their_mask.bool())
            assert torch.allclose(weight, their_weight, atol=1e-6)
    changes = sum(
        not torch.equal(a[0], b[0])
        for before, after in zip(expected, expected[1:], strict=False)
        for a, b in zip(before, after, strict=True)
    )
    assert changes > 2  # a comparison of masks that never move says nothing


def parts(net) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    return [net[0].weight, net[2].weight], [net[0].bias, net[2].bias]


def kept_of(density):
    """One density for both layers: their sum is rounded, the larger remainder gets the rest.

    The official codes round each layer down instead.
    """
    exact = {size: density * size for size in (48, 40)}
    left = round(density * 88) - sum(int(e) for e in exact.values())
    by_rest = sorted(exact, key=lambda size: int(exact[size]) - exact[size])
    return {size: int(exact[size]) + (size in by_rest[:left]) for size in exact}


def sgd(**dials):
    return lambda parameters: torch.optim.SGD(parameters, **dials)


# --- movement pruning --------------------------------------------------------------------------


def their_threshold(step, first, last, warmup=3, initial=1, final=2):
    """schedule_threshold: constant, cubic, constant; warm-up phases in units of ``warmup``."""
    if step <= initial * warmup:
        return first
    if step > STEPS - final * warmup:
        return last
    left = 1 - (step - initial * warmup) / (STEPS - (initial + final) * warmup)
    return last + (first - last) * left**3


def train_scores(choose, threshold, penalty=None):
    """MaskedLinear with a mask from scores; both are trained, gradients pass straight through."""
    net = network()
    weights, biases = parts(net)
    scores = [nn.Parameter(torch.zeros_like(w)) for w in weights]
    for_weights = torch.optim.SGD([*weights, *biases], lr=0.3)
    for_scores = torch.optim.AdamW(scores, lr=0.2, weight_decay=0.0)
    seen = []
    for t in range(STEPS + 1):
        masks = [choose(s.detach(), threshold(t)) for s in scores]
        straight = [m + s - s.detach() for m, s in zip(masks, scores, strict=True)]
        shown = [m * w for m, w in zip(straight, weights, strict=True)]
        seen.append([(m, v.detach().clone()) for m, v in zip(masks, shown, strict=True)])
        if t == STEPS:
            break
        total = loss(shown, net, t)
        if penalty:
            means = [torch.norm(torch.sigmoid(s), p=1) / s.numel() for s in scores]
            total = total + penalty(t) * sum(means) / len(means)
        total.backward()
        for optimizer in (for_weights, for_scores):
            optimizer.step()
            optimizer.zero_grad()
    return seen


def test_hard_movement():
    def choose(scores, share):
        mask = torch.zeros(scores.numel())
        order = scores.flatten().sort(descending=True, stable=True).indices
        mask[order[: kept_of(share)[scores.numel()]]] = 1
        return mask.view_as(scores)

    window = {"begin": "3it", "sparsity_end": "18it", "every": "1it", "options": {"rate": 0.2}}
    found, session = ours(
        "movement", sgd(lr=0.3), 0.85, distribution={"name": "strict_uniform"}, **window
    )
    assert set(session.masks.nonzeros.values()) == {7, 6}  # 15 % of 48 and of 40
    compare(found, train_scores(choose, lambda t: their_threshold(t, 1.0, 0.15)))


def test_soft_movement():
    def choose(scores, threshold):
        mask = (torch.sigmoid(scores) > threshold).float()
        least = int(0.1 * scores.numel()) + 1
        if mask.sum() < least:
            lowest = scores.flatten().kthvalue(max(scores.numel() - least, 1)).values
            mask = (scores > lowest).float()
        return mask

    def threshold(t):
        return their_threshold(t, 0.0, 0.3)

    options = {"rate": 0.2, "threshold": 0.3, "penalty": 0.2, "floor": 0.1}
    window = {"begin": "3it", "sparsity_end": "18it", "every": "1it", "options": options}
    found, _ = ours("movement_soft", sgd(lr=0.3), 0.85, **window)
    compare(found, train_scores(choose, threshold, lambda t: 0.2 * threshold(t) / 0.3))


# --- the STR repository ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "made",
    [
        sgd(lr=0.2, momentum=0.875, weight_decay=0.01),
        lambda parameters: torch.optim.Adam(parameters, lr=0.02),
    ],
    ids=["sgd", "adam"],
)
def test_str(made):
    net = network()
    weights, biases = parts(net)
    limits = [nn.Parameter(-3.0 * torch.ones(1, 1)) for _ in weights]
    optimizer = made([*weights, *limits, *biases])
    seen = []
    for t in range(STEPS + 1):
        pairs = zip(weights, limits, strict=True)
        shown = [torch.sign(w) * torch.relu(w.abs() - torch.sigmoid(s)) for w, s in pairs]
        seen.append([((v.detach() != 0), v.detach().clone()) for v in shown])
        if t < STEPS:
            loss(shown, net, t).backward()
            optimizer.step()
            optimizer.zero_grad()
    found, session = ours("str", made, 0.5, options={"init": -3.0})
    compare(found, seen)
    for mine, theirs in zip(session.method._s.values.values(), limits, strict=True):
        assert torch.allclose(mine, theirs.detach().view(()), atol=1e-5)


class Chosen(torch.autograd.Function):
    """Zero for the smallest weights; the gradient passes to all (DNW), or is cut (GMP)."""

    @staticmethod
    def forward(ctx, weight: Tensor, gone: int, cut: bool) -> Tensor:
        smallest = weight.flatten().abs().sort().indices[:gone]
        mask = torch.ones(weight.numel()).index_fill(0, smallest, 0).view_as(weight)
        ctx.save_for_backward(mask if cut else torch.ones_like(mask))
        return weight * mask

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0], None, None


def train_chosen(made, gone, cut, every=1):
    """Weights masked in the forward pass; ``gone(t, size)`` of each layer are zero."""
    net = network()
    weights, biases = parts(net)
    optimizer = made([*weights, *biases])
    seen = []
    for t in range(STEPS + 1):
        shown = [Chosen.apply(w, gone(t, w.numel()), cut) for w in weights]
        seen.append([(v.detach() != 0, v.detach().clone()) for v in shown])
        if t < STEPS:
            loss(shown, net, t).backward()
            optimizer.step()
            optimizer.zero_grad()
    return seen


def test_dnw():
    made = sgd(lr=0.3, momentum=0.9, weight_decay=0.01)
    found, _ = ours("dnw", made, 0.75)
    compare(found, train_chosen(made, lambda t, size: int(0.75 * size), cut=False))


def test_gmp_with_resting_weights():
    def gone(t, size):
        return size - kept_of(1 - 0.75 * (1 - (1 - min(t, 16) / 16) ** 3))[size]

    made = sgd(lr=0.3)  # momentum and decay move absent weights there
    found, session = ours("gmp_frozen", made, 0.75, begin="0it", every="1it", end="16it")
    expected = train_chosen(made, gone, cut=True)
    for seen in (found, expected):
        del seen[17:]  # masks rest from there on in ours
    compare(found, expected)
    assert session.masks.nonzeros == {"0.weight": 12, "2.weight": 10}


# --- DPF ---------------------------------------------------------------------------------------


def test_dpf():
    made = sgd(lr=0.3, momentum=0.9, weight_decay=0.01, nesterov=True)
    net = network()
    weights, biases = parts(net)
    optimizer = made([*weights, *biases])
    size, period, masks, seen = 88, 3, [torch.ones_like(w) for w in weights], []
    for t in range(STEPS + 1):
        if t % period == 0:
            sparsity = 0.8 * (1 - (1 - min(t / 18, 1)) ** 3)
            size_kept = round((1 - sparsity) * size)
            sorted_ = torch.cat([w.detach().abs().flatten() for w in weights]).sort(descending=True)
            limit = sorted_.values[size_kept - 1]
            masks = [(w.detach().abs() >= limit).float() for w in weights]
        sparse = [(m * w.detach()).requires_grad_() for m, w in zip(masks, weights, strict=True)]
        seen.append([(m, v.detach().clone()) for m, v in zip(masks, sparse, strict=True)])
        if t == STEPS:
            break
        total = loss(sparse, net, t)
        gradients = torch.autograd.grad(total, [*sparse, *biases])
        for parameter, gradient in zip([*weights, *biases], gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
    found, _ = ours("dpf", made, 0.8, every="3it")
    compare(found, seen)


# --- AC/DC -------------------------------------------------------------------------------------


def above_the_percentile(weights, masks, sparsity):
    """UnstructuredMagnitudePruner: one threshold over all, and strictly above it."""
    scores = [(w.detach().abs() + 1e-4) * m for w, m in zip(weights, masks, strict=True)]
    flat = torch.cat([s.flatten() for s in scores])
    limit = flat.topk(math.ceil(flat.numel() * (1 - sparsity))).values[-1]
    return [(s > limit).float() for s in scores]


def test_acdc():
    made = sgd(lr=0.3, weight_decay=0.01)  # what momentum of pruned weights is left differs
    net = network()
    weights, biases = parts(net)
    optimizer = made([*weights, *biases])
    masks, seen = [torch.ones_like(w) for w in weights], []
    compress, restore = (2, 8, 14, 23), (5, 11, 17)  # the turn at 20 would be a compression
    for t in range(STEPS + 1):
        if t in compress:
            masks = above_the_percentile(weights, masks, 0.75)
        elif t in restore:
            masks = [torch.ones_like(m) for m in masks]
        for w, m in zip(weights, masks, strict=True):
            w.data *= m
        seen.append([(m, w.detach().clone()) for m, w in zip(masks, weights, strict=True)])
        if t < STEPS:
            loss(weights, net, t).backward()
            for w, m in zip(weights, masks, strict=True):
                w.grad *= m
            optimizer.step()
            optimizer.zero_grad()
    kept = math.ceil(88 * 0.25) - 1  # strictly above: one less than the percentile counts
    found, session = ours("acdc", made, 1 - kept / 88, begin="2it", every="3it", end="23it")
    compare(found, seen)
    assert sum(session.masks.nonzeros.values()) == kept
