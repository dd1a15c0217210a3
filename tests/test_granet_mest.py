"""GraNet and MEST: the numbers of their papers, what they cost, and what they refuse."""

import pytest
import torch
from torch import nn

from sparsebench.errors import UserError
from sparsebench.library import method
from sparsebench.sparsity import Session
from sparsebench.sparsity.forecast import forecast


def session(engine, size=1000, total=32, weights=None):
    net = nn.Linear(size, 1, bias=False)
    if weights is not None:
        net.weight.data = torch.tensor([weights])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    return Session(engine, net, optimizer, total_steps=total, seed=0)


def step(run, gradient=None):
    weight = run.masks.parameters["weight"]
    weight.grad = torch.zeros_like(weight) if gradient is None else torch.tensor([gradient])
    run.after_backward()
    run.state.optimizers[0].step()
    run.after_step()


TIMES = {"every": "1it", "distribution": "strict_uniform"}


def test_granet_follows_the_cubic_from_half_the_weights():
    run = session(method("granet", sparsity=0.9, **{**TIMES, "sparsity_end": "4it"}), total=8)
    found = [run.masks.sparsity]
    for _ in range(8):
        step(run)
        found.append(run.masks.sparsity)
    expected = [0.5, 0.73125, 0.85, 0.89375, 0.9, 0.9, 0.9, 0.9, 0.9]
    assert found == pytest.approx(expected, abs=5e-4)


def test_granet_explores_after_its_sparsity_rests():
    run = session(method("granet", sparsity=0.9, **TIMES), total=8)
    for _ in range(4):
        step(run)
    settled = run.masks["weight"]
    step(run, gradient=torch.randn(1000).tolist())
    assert int((run.masks["weight"] ^ settled).sum()) > 0
    assert run.masks.nonzeros == {"weight": 100}


def test_a_layer_has_after_the_exchange_what_global_pruning_left_it():
    net = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False))
    net[0].weight.data = torch.arange(1.0, 101.0).view(10, 10) / 100
    net[1].weight.data = torch.arange(51.0, 151.0).view(10, 10) / 100
    engine = method("granet_dense", sparsity=0.75, every="1it", sparsity_end="1it")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    run = Session(engine, net, optimizer, total_steps=4, seed=0)
    for name, parameter in run.masks.parameters.items():
        parameter.grad = torch.rand_like(parameter)
        assert name in ("0.weight", "1.weight")
    run.after_backward()
    optimizer.step()
    run.after_step()
    assert run.masks.nonzeros == {"0.weight": 0, "1.weight": 50}  # the 50 largest: above 1.00


@pytest.mark.parametrize("value", ["5it", "200%", "0it"])
def test_a_sparsity_that_rests_too_early_or_late_is_refused(value):
    with pytest.raises(UserError, match=r"method\.sparsity_end="):
        session(method("granet", sparsity_end=value, every="6it"), total=30)


def test_a_rest_means_nothing_without_a_schedule():
    from sparsebench.config.check import check
    from sparsebench.config.compose import compose

    with pytest.raises(UserError, match=r"method\.sparsity_end=50%: has no effect"):
        check(compose(["method=rigl", "method.sparsity_end=50%"]))


# --- MEST ----------------------------------------------------------------------------------------


def test_the_counts_of_elastic_mutation():
    run = session(method("mest_em", sparsity=0.9, **TIMES), total=16)  # window of 12, stages 9, 12
    moves = []
    for _ in range(16):
        before = run.masks["weight"]
        step(run)
        assert run.masks.nonzeros == {"weight": 100}
        moves.append(int((before & ~run.masks["weight"]).sum()))
    assert all(14 <= m <= 20 for m in moves[:8])  # 20 go, of which a few are drawn again
    assert all(6 <= m <= 10 for m in moves[8:11])
    assert moves[11:] == [0] * 5


def test_the_counts_of_a_soft_bound():
    run = session(method("mest_ems", sparsity=0.9, **TIMES), total=16)
    found = [sum(run.masks.nonzeros.values())]
    for _ in range(16):
        step(run)
        found.append(sum(run.masks.nonzeros.values()))
    assert found == [150] * 9 + [125] * 3 + [100] * 5


def test_a_window_that_is_no_multiple_still_ends_at_the_target():
    dials = {**TIMES, "every": "5it"}
    run = session(method("mest_ems", sparsity=0.9, **dials), total=16)  # updates at 5 and 10 of 12
    for _ in range(16):
        step(run)
    assert run.masks.nonzeros == {"weight": 100}


def test_importance_by_hand():
    dials = {"initial": "magnitude", "regrow": "never", "drop_fraction": 0.5, "end": "100%"}
    engine = method("mest_em", sparsity=0.5, **TIMES, **dials)
    run = session(engine, size=4, total=8, weights=[0.1, 0.2, 0.05, 0.01])
    step(run, gradient=[20.0, 0.0, 99.0, 0.0])  # .1 + .01 x 20 = .3 against .2
    mask = run.masks["weight"].view(-1).tolist()
    assert mask[:2] == [True, False]


def test_no_dense_gradient_is_ever_needed_and_the_surplus_is_paid_for():
    shapes = {"weight": torch.Size((1, 1000))}
    for name, peak in (("mest_em", 100), ("mest_ems", 150)):
        engine = method(name, sparsity=0.9, **TIMES)
        stretches = list(forecast(engine, shapes, 16, 4))
        assert max(s.nonzeros["weight"] for s in stretches) == peak
        assert stretches[-1].nonzeros["weight"] == 100
        assert sum(s.dense_gradient_steps for s in stretches) == 0
    paid = sum(s.steps * s.nonzeros["weight"] for s in stretches)
    assert paid == 9 * 150 + 3 * 125 + 4 * 100  # the update at step 9 is after that step


@pytest.mark.parametrize(
    ("dials", "said"),
    [
        ({"drop": None, "grow": None}, r"method\.options\.surplus=0\.05: it needs a method\.grow"),
        ({"drop_fraction": 0.1}, r"method\.drop_fraction=0\.1: has no effect"),
        ({"options": {"surplus": 1.5}}, r"method\.options\.surplus=1\.5: .*\[0, 1\)"),
        ({"options": {"lambda": 1}}, r"options\.lambda=1: no such option; .* gradient_weight"),
    ],
)
def test_what_makes_no_sense_is_refused(dials, said):
    with pytest.raises(UserError, match=said):
        method("mest_ems", **dials)
