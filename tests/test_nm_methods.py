"""SR-STE, progressive gradient flow and BDWP: their formulas by hand, their costs, their times."""

import math

import pytest
import torch
from torch import nn

from sparsebench.errors import UserError
from sparsebench.library import method
from sparsebench.sparsity import Session
from sparsebench.sparsity.flops import layer_flops
from sparsebench.sparsity.forecast import forecast
from sparsebench.sparsity.method import gradient_densities
from sparsebench.sparsity.methods.bdwp import TwoWay
from sparsebench.sparsity.methods.pgf import Fading, Frames, patterns
from sparsebench.sparsity.nm import mask
from sparsebench.sparsity.training_flops import TrainingFlops, bdwp_closed_form


class Row(nn.Module):
    """One linear layer of given weights."""

    def __init__(self, *rows: list[float]) -> None:
        super().__init__()
        self.layer = nn.Linear(len(rows[0]), len(rows), bias=False)
        self.layer.weight.data.copy_(torch.tensor(rows))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def begin(model, name, steps=8, lr=1.0, **dials):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return Session(method(name, **dials), model, optimizer, total_steps=steps, seed=0)


def step(run, *gradient):
    """One step with a given gradient, zero if none is given; the weights the forward pass saw."""
    (parameter,) = run.masks.parameters.values()
    run.before_forward()
    seen = parameter.detach().clone()
    parameter.grad = torch.tensor(gradient or [0.0] * parameter.numel()).view_as(parameter)
    run.after_backward()
    run.state.optimizers[0].step()
    run.after_step()
    return seen.view(-1).tolist()


def values(run):
    """The dense weights."""
    (name,) = run.masks.parameters
    return run.masks.dense(name).view(-1).tolist()


# --- SR-STE -----------------------------------------------------------------------------------


def test_sr_ste_by_hand():
    run = begin(Row([1.0, 0.2, -0.5, 0.1]), "sr_ste", absent_decay=0.1)
    assert step(run) == pytest.approx([1.0, 0.0, -0.5, 0.0])
    assert values(run) == pytest.approx([1.0, 0.18, -0.5, 0.09])


def test_the_gradient_reaches_absent_weights_and_the_mask_follows():
    run = begin(Row([1.0, 0.2, -0.5, 0.1]), "ste_nm")
    step(run, 0.0, -1.0, 0.0, 0.0)
    assert values(run) == pytest.approx([1.0, 1.2, -0.5, 0.1])
    assert step(run) == pytest.approx([1.0, 1.2, 0.0, 0.0])


def test_its_weight_gradient_is_dense_at_each_step():
    run = begin(Row([1.0, 0.2, -0.5, 0.1]), "sr_ste")
    assert run.method.wants_dense_gradient(run.state)
    shapes = {n: p.shape for n, p in run.masks.parameters.items()}
    assert sum(s.dense_gradient_steps for s in forecast(run.method, shapes, 8, 8)) == 8


# --- mask decay -------------------------------------------------------------------------------

TIMES = {"begin": 0, "end": 100, "every": 1, "one_shot": False, "until": 100}


def test_the_shares_of_a_decay():
    linear = Fading(**TIMES, linear=True, beta=0.01)
    assert linear.share(50) == pytest.approx(0.5)
    exponential = Fading(**TIMES, linear=False, beta=0.01)
    assert exponential.share(50) == pytest.approx(0.60653, abs=1e-5)
    assert linear.share(0) == exponential.share(0) == 1.0
    assert exponential.share(100) == 0.0  # cut: from `until` on nothing is left


def test_a_decay_of_its_own_rate_ends_where_it_should():
    assert Fading(**TIMES, linear=True, beta=None).share(75) == pytest.approx(0.25)
    assert Fading(**TIMES, linear=False, beta=None).share(50) == pytest.approx(0.1)


def fading(gradient="ste", **dials):
    options = {"decay": "linear", "until": "100%", "gradient": gradient}
    rows = [1.0, 0.2, -0.5, 0.1]
    return begin(Row(rows), "pgf_mask_decay", 4, structure="nm_2_4", options=options, **dials)


def test_what_is_outside_the_pattern_fades_linearly():
    run = fading()
    for t in range(4):
        assert run.masks.sparsity == 0.0  # all weights take part, and cost their FLOPs
        share = 1 - t / 4
        assert step(run) == pytest.approx([1.0, 0.2 * share, -0.5, 0.1 * share])
    assert run.masks.sparsity == 0.5
    assert step(run) == pytest.approx([1.0, 0.0, -0.5, 0.0])


def test_the_gradient_passes_whole_or_by_the_rule_of_the_product():
    for gradient, share in (("ste", 1.0), ("product", 0.75)):
        run = fading(gradient)
        step(run)
        step(run, 0.1, 0.1, 0.1, 0.1)
        expected = [0.9, 0.2 - 0.1 * share, -0.6, 0.1 - 0.1 * share]
        assert values(run) == pytest.approx(expected)


def test_dense_training_comes_first_if_asked():
    run = fading(begin="50%")
    assert step(run) == step(run) == pytest.approx([1.0, 0.2, -0.5, 0.1])
    step(run)
    assert step(run) == pytest.approx([1.0, 0.1, -0.5, 0.05])


def test_times_in_the_wrong_order_are_refused():
    options = {"until": "25%"}
    with pytest.raises(UserError, match=r"method.options.until=25%: must come after"):
        begin(Row([1.0] * 8), "pgf_mask_decay", begin="50%", options=options)
    with pytest.raises(UserError, match="method.options.decay=cosine"):
        method("pgf_mask_decay", options={"decay": "cosine"})


# --- structure decay --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "n, m, kind, expected",
    [
        (1, 8, "stepwise", [(7, 8), (4, 8), (2, 8), (1, 8)]),
        (1, 16, "stepwise", [(15, 16), (8, 16), (4, 16), (2, 16), (1, 16)]),
        (2, 4, "stepwise", [(3, 4), (2, 4)]),
        (1, 2, "stepwise", [(1, 2)]),
        (3, 8, "stepwise", [(7, 8), (4, 8), (3, 8)]),
        (1, 8, "geometric", [(8, 64), (4, 32), (2, 16), (1, 8)]),
    ],
)
def test_the_frames(n, m, kind, expected):
    assert list(patterns(n, m, kind)) == expected


def test_frames_are_of_equal_length():
    frames = Frames(**TIMES, patterns=patterns(1, 8, "stepwise"))
    assert [frames.pattern(t)[0] for t in (0, 24, 25, 49, 50, 74, 75, 100)] == [
        7, 7, 4, 4, 2, 2, 1, 1,
    ]  # fmt: skip
    assert frames.sparsity(None, 0.875, 30) == 0.5


def test_structure_decay_in_training():
    options = {"until": "100%"}
    torch.manual_seed(0)
    run = begin(Row(*torch.randn(3, 16).tolist()), "pgf_structure_decay", options=options)
    found = []
    for _ in range(8):
        seen = torch.tensor(step(run)).view(-1, 8)
        (kept,) = set((seen != 0).sum(1).tolist())
        found.append(kept)
    assert found == [7, 7, 4, 4, 2, 2, 1, 1]
    assert run.masks["layer.weight"].view(-1, 8).sum(1).eq(1).all()


def test_coarse_patterns_are_as_coarse_as_a_layer_allows():
    options = {"until": "100%", "frames": "geometric"}
    torch.manual_seed(0)
    run = begin(Row(*torch.randn(2, 48).tolist()), "pgf_structure_decay", options=options)
    seen = torch.tensor(step(run))
    assert (seen.view(-1, 16) != 0).sum(1).eq(2).all()  # 48 divides by 16, not by 64 or 32
    assert not (seen.view(-1, 8) != 0).sum(1).eq(1).all()


# --- BDWP -------------------------------------------------------------------------------------


def test_bdwp_by_hand():
    rows = [[4.0, 3, 2, 1], [1, 2, 3, 4], [0, 9, 0, 9], [8, 0, 8, 0]]
    model = Row(*rows)
    run = begin(model, "bdwp", structure="nm_2_4", absent_decay=0.0)
    run.before_forward()
    x = torch.ones(1, 4, requires_grad=True)
    y = model(x)
    assert y.tolist() == [[7, 7, 18, 16]]  # 4+3, 3+4, 9+9, 8+8
    y.backward(torch.tensor([[1.0, 10, 100, 1000]]))
    # by columns stay (4, 8), (3, 9), (3, 8), (4, 9); of equal ones the first
    assert x.grad.tolist() == [[4 + 8000, 3 + 900, 30 + 8000, 40 + 900]]
    expected = torch.tensor([1.0, 10, 100, 1000]).repeat(4, 1).t()
    assert torch.equal(model.layer.weight.grad, expected)  # dense


@pytest.mark.parametrize("groups", [1, 2])
def test_bdwp_of_a_convolution_is_that_of_its_definition(groups):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=groups))
    run = begin(model, "bdwp", structure="nm_1_4")
    dense = model[0].weight.detach().clone()
    run.before_forward()
    x = torch.randn(2, 8, 5, 5, requires_grad=True)
    y = model(x)
    dy = torch.randn_like(y)
    y.backward(dy)
    forward, backward = dense * mask(dense, 1, 4), dense * mask(dense, 1, 4, dim=0)
    options = {"stride": 2, "padding": 1, "groups": groups}
    bias = model[0].bias
    assert torch.allclose(y, nn.functional.conv2d(x, forward, bias, **options), atol=1e-6)
    dx = torch.nn.grad.conv2d_input(x.shape, backward, dy, **options)
    dw = torch.nn.grad.conv2d_weight(x, dense.shape, dy, **options)
    assert torch.allclose(x.grad, dx, atol=1e-5)
    assert torch.allclose(model[0].weight.grad, dw, atol=1e-5)
    assert torch.allclose(bias.grad, dy.sum((0, 2, 3)), atol=1e-5)


@pytest.mark.parametrize("layout", [None, ((1, 1), (1, 1), (1, 1), 1)])
def test_gradcheck_holds_only_if_both_ways_have_the_same_weights(layout):
    torch.manual_seed(0)
    shape = (4, 4) if layout is None else (4, 4, 3, 3)
    at = (3, 4) if layout is None else (2, 4, 3, 3)
    weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    x = torch.randn(at, dtype=torch.float64, requires_grad=True)

    def layer(x, other):
        return TwoWay.apply(x, weight, None, other, layout)

    same, pruned = weight.detach(), weight.detach() * mask(weight, 2, 4, dim=0)
    assert torch.autograd.gradcheck(lambda x: layer(x, same), (x,))
    assert torch.autograd.gradcheck(
        lambda w: TwoWay.apply(x.detach(), w, None, same, layout), (weight,)
    )
    wrong = torch.autograd.gradcheck(lambda x: layer(x, pruned), (x,), raise_exception=False)
    assert not wrong


def test_weights_backward_are_those_of_the_moment():
    model = Row([4.0, 3, 2, 1], [1, 2, 3, 4], [0, 9, 0, 9], [8, 0, 8, 0])
    run = begin(model, "bdwp", structure="nm_2_4", absent_decay=0.0)
    for _ in range(2):
        dense = run.masks.dense("layer.weight").clone()
        run.before_forward()
        x = torch.randn(3, 4, requires_grad=True)
        y = model(x)
        y.square().sum().backward()
        backward = dense * mask(dense, 2, 4, dim=0)
        assert torch.allclose(x.grad, 2 * y.detach() @ backward, atol=1e-3)
        run.after_backward()
        run.state.optimizers[0].step()
        run.state.optimizers[0].zero_grad()
        run.after_step()


def test_evaluation_is_that_of_the_sparse_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    run = begin(model, "bdwp", structure="nm_2_4")
    run.before_forward()
    x = torch.randn(3, 8)
    with torch.no_grad():
        evaluated = model(x)
    assert torch.equal(evaluated, model(x))
    assert not model[0].weight[~run.masks["0.weight"]].any()


def test_bdwp_at_2_8_costs_half_of_dense_training():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 8))
    run = begin(model, "bdwp")
    flops = layer_flops(model, (16,), names=list(run.masks))
    found = gradient_densities(run.method, run.state)
    assert found == {"input_gradient": {"0.weight": 0.25, "1.weight": 0.25}}
    counted = TrainingFlops(flops.total)
    forward = flops.forward(run.masks.densities)
    parts = {name: flops.forward(densities) for name, densities in found.items()}
    dense = run.method.wants_dense_gradient(run.state)
    counted.add(forward, 64, dense_gradient=dense, **parts)
    assert counted.relative == pytest.approx(0.5)
    closed = bdwp_closed_form(0.25 * flops.total, 0.25 * flops.total, flops.total)
    assert counted.total == pytest.approx(64 * closed)
    shapes = {n: p.shape for n, p in run.masks.parameters.items()}
    (stretch, *_) = forecast(run.method, shapes, 8, 8)
    assert stretch.gradients == found
    assert stretch.dense_gradient_steps == stretch.steps


def test_outputs_that_do_not_divide_are_dense_backward():
    model = Row(*torch.randn(3, 8).tolist())
    run = begin(model, "bdwp", structure="nm_2_4")
    found = gradient_densities(run.method, run.state)
    assert found == {"input_gradient": {"layer.weight": 1.0}}
    dense = run.masks.dense("layer.weight").clone()
    run.before_forward()
    x = torch.randn(2, 8, requires_grad=True)
    model(x).sum().backward()
    assert torch.allclose(x.grad, dense.sum(0).expand(2, 8), atol=1e-6)


def test_padding_that_is_not_in_zeros_is_refused():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"))
    with pytest.raises(UserError, match=r"the padding of '0.weight' \(circular"):
        begin(model, "bdwp", structure="nm_2_4")


def test_mixed_precision():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 4))
    run = begin(model, "bdwp", structure="nm_2_4")
    run.before_forward()
    with torch.autocast("cpu", torch.bfloat16):
        y = model(torch.randn(5, 8))
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())
    assert all(math.isfinite(float(p.grad.sum())) for p in model.parameters())
