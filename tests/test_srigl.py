"""SRigL: constant fan-in at every step, ablation by hand, the condensed form, the official rule."""

import math

import pytest
import torch
from torch import nn

from sparsebench.errors import UserError
from sparsebench.library import method
from sparsebench.sparsity import Session

DIALS = {
    "begin": "0%", "end": "100%", "every": "1it", "drop_schedule": "constant",
    "distribution": "strict_uniform",
}  # fmt: skip


class Net(nn.Module):
    """Two layers; only the first can lose neurons."""

    def __init__(self, first: torch.Tensor, second: torch.Tensor) -> None:
        super().__init__()
        self.a = nn.Linear(first.shape[1], first.shape[0], bias=False)
        self.b = nn.Linear(second.shape[1], second.shape[0], bias=False)
        self.a.weight.data, self.b.weight.data = first.clone(), second.clone()


def begin(first, second, sparsity, steps=10, **dials):
    net = Net(first, second)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0, momentum=0.9)
    engine = method("srigl", sparsity=sparsity, **{**DIALS, **dials})
    return Session(engine, net, optimizer, total_steps=steps, seed=0)


def update(session, first, second):
    for name, gradient in (("a.weight", first), ("b.weight", second)):
        session.masks.parameters[name].grad = gradient.clone()
    session.after_backward()
    session.state.optimizers[0].step()
    session.after_step()


def fan_in(budget: int, active: int) -> int:
    """The official code's number of weights of a neuron: whole weights that go to each."""
    return budget // active


def official(weight, gradient, mask, budget, fraction, gamma, *, last, dense_fan_in=False):
    """One layer's update by the loops of calgaryml/condensed-sparsity, written anew.

    With the two things where we differ on purpose: of too many kept ones a neuron has its largest,
    and absent weights are not kept. Returns the mask and the ablated neurons.
    """
    rows, columns = weight.shape
    w, g = weight.abs().tolist(), gradient.abs().tolist()
    places = [(i, j) for i in range(rows) for j in range(columns)]
    ones = int(mask.sum())
    prune = int(ones * fraction)
    keep = ones - prune
    by_weight = sorted(places, key=lambda p: -w[p[0]][p[1]])
    by_gradient = sorted(places, key=lambda p: -g[p[0]][p[1]])
    ablated = []
    if not last and gamma:
        salient = set(by_weight[:keep]) | set(by_gradient[:prune])
        numbers = [sum(i == row for i, _ in salient) for row in range(rows)]
        total = columns if dense_fan_in else fan_in(budget, rows)
        needed = gamma if gamma >= 1 else max(1, int(gamma * total))
        needed = min(needed, sorted(numbers, reverse=True)[budget // columns])
        ablated = [row for row in range(rows) if numbers[row] < needed]
    each = fan_in(budget, rows - len(ablated))
    present = [p for p in by_weight if mask[p] and p[0] not in ablated][:keep]
    new = torch.zeros(rows, columns, dtype=torch.bool)
    for row in range(rows):
        if row in ablated:
            continue
        kept = [p for p in present if p[0] == row][:each]
        grown = [p for p in by_gradient if p[0] == row and p not in kept][: each - len(kept)]
        for p in kept + grown:
            new[p] = True
    return new, ablated


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "gamma, base",
    [(0.3, "constant"), (0.9, "constant"), (0.3, "dense"), (2, "dense"), (0, "dense")],
)
@pytest.mark.parametrize("sparsity", [0.5, 0.8])
def test_golden_masks_of_the_official_algorithm(seed, gamma, base, sparsity):
    torch.manual_seed(seed)
    scale = torch.rand(12, 1) ** 3  # some neurons matter much less
    weights = torch.randn(12, 10) * scale, torch.randn(4, 12)
    session = begin(
        *weights, sparsity, drop_fraction=0.3, options={"gamma_sal": gamma, "fan_in": base}
    )
    budgets = {"a.weight": round((1 - sparsity) * 120), "b.weight": round((1 - sparsity) * 48)}
    ever = 0
    for _ in range(4):
        before = {n: m.clone() for n, m in session.masks.items()}
        values = {n: p.detach().clone() for n, p in session.masks.parameters.items()}
        gradients = {"a.weight": torch.randn(12, 10) * scale, "b.weight": torch.randn(4, 12)}
        update(session, *gradients.values())
        for name, mask in session.masks.items():
            expected, ablated = official(
                values[name], gradients[name], before[name], budgets[name], 0.3, gamma,
                last=name == "b.weight", dense_fan_in=base == "dense",
            )  # fmt: skip
            assert torch.equal(mask, expected)
            ever += len(ablated)
            new = mask & ~before[name]
            assert not session.masks.parameters[name].detach()[new].any()
        # weights must differ again, as new ones are zero
        with torch.no_grad():
            for n, p in session.masks.parameters.items():
                p.copy_(
                    torch.randn_like(p)
                    * (scale if n == "a.weight" else 1)
                    * session.masks.factor(n)
                )
    assert ever > 0 if gamma else ever == 0


def test_ablation_by_hand():
    first = torch.tensor([[4.0, 3, 0, 0], [2, 1, 0, 0], [0.1, 0.2, 0, 0], [6, 5, 0, 0]])
    session = begin(first, torch.eye(4), 0.5, drop_fraction=0.25, initial="magnitude")
    assert session.masks["a.weight"].sum(1).tolist() == [2, 2, 2, 2]
    gradient = torch.zeros(4, 4)
    gradient[1, 3], gradient[0, 2], gradient[3, 3] = 9.0, 8.0, 1.0
    # 6 largest weights: none of neuron 2; 2 largest gradients: of 1 and 0. So 3 neurons share 8.
    update(session, gradient, torch.zeros(4, 4))
    assert session.masks["a.weight"].int().tolist() == [
        [1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0],
    ]  # fmt: skip
    assert session.masks["b.weight"].sum(1).tolist() == [2, 2, 2, 2]  # classes stay
    gradient = torch.zeros(4, 4)
    gradient[2, 0] = 9.0
    update(session, gradient, torch.zeros(4, 4))  # what is salient again returns
    assert session.masks["a.weight"].sum(1).tolist() == [2, 2, 2, 2]
    assert session.masks["a.weight"][2, 0]


@pytest.mark.parametrize("gamma", [0.3, 0.95, 3])
def test_rows_are_equal_and_hardly_a_weight_is_lost(gamma):
    torch.manual_seed(1)
    session = begin(
        torch.randn(40, 30) * torch.rand(40, 1) ** 4,
        torch.randn(10, 40),
        0.9,
        options={"gamma_sal": gamma},
    )
    for _ in range(8):
        update(session, torch.randn(40, 30) * torch.rand(40, 1) ** 4, torch.randn(10, 40))
        for name, budget in (("a.weight", 120), ("b.weight", 40)):
            rows = session.masks[name].sum(1)
            active = rows[rows > 0]
            assert len(set(active.tolist())) == 1
            assert 0 <= budget - int(active.sum()) < active.numel()
    assert session.masks["b.weight"].any(1).all()


def test_the_condensed_form_is_the_same_product():
    torch.manual_seed(2)
    session = begin(torch.randn(40, 30) * torch.rand(40, 1) ** 4, torch.randn(10, 40), 0.8)
    update(session, torch.randn(40, 30), torch.randn(10, 40))
    weight, mask = session.masks.parameters["a.weight"].detach(), session.masks["a.weight"]
    active = mask.any(1)
    k = int(mask[active].sum(1)[0])
    index = mask[active].nonzero()[:, 1].view(-1, k)
    values = weight[active].gather(1, index)
    assert values.shape == (int(active.sum()), k)
    x = torch.randn(5, 30)
    y = torch.zeros(5, 40)
    y[:, active] = (x[:, index] * values).sum(2)
    assert torch.allclose(y, x @ weight.T, atol=1e-5)


def test_room_for_few_neurons_only():
    """With next to no weight a neuron, as many neurons stay as there are weights."""
    torch.manual_seed(3)
    session = begin(torch.randn(20, 10), torch.randn(10, 20), 0.95, drop_fraction=0.5)
    update(session, torch.randn(20, 10), torch.randn(10, 20))
    assert int(session.masks["a.weight"].sum()) <= 10
    assert set(session.masks["a.weight"].sum(1).tolist()) <= {0, 1}


@pytest.mark.parametrize(
    "dials, words",
    [
        ({"structure": "unstructured"}, "structure=fan_in"),
        ({"drop": None, "grow": None}, "method.drop"),
        ({"storage": "shadow"}, "storage=shadow"),
        ({"options": {"gamma": 1}}, "method.options.gamma"),
        ({"options": {"gamma_sal": -1}}, "method.options.gamma_sal=-1"),
        ({"options": {"fan_in": "sparse"}}, "method.options.fan_in=sparse"),
    ],
)
def test_what_makes_no_sense_is_refused(dials, words):
    with pytest.raises(UserError) as error:
        method("srigl", **dials)
    assert words in str(error.value)


def test_the_drop_count_is_a_floor():
    """An exact product such as 0.3 x 10 is not lost to rounding."""
    assert math.floor(0.3 * 10 + 1e-9) == 3
    first = torch.arange(1.0, 21).view(2, 10)
    session = begin(
        first,
        torch.ones(2, 2),
        0.5,
        drop_fraction=0.3,
        initial="magnitude",
        options={"gamma_sal": 0},
    )
    gradient = torch.zeros(2, 10)
    gradient[0, :5] = 9.0
    update(session, gradient, torch.zeros(2, 2))
    # 3 of 10 go, all of the first neuron: 6, 7, 8; gradients of the first columns fill it up
    assert session.masks["a.weight"][0].nonzero().view(-1).tolist() == [0, 1, 2, 8, 9]
