"""Movement pruning, DPF, DNW, AC/DC and resting GMP: weights, gradients and masks by hand.

All numbers are worked out from the papers' equations; nothing here trains a network.
"""

import pytest
import torch
from given_weights import ALWAYS, SPARSE, Layers, active, begin, dense, shown, step

from sparsebench.errors import UserError
from sparsebench.library import method
from sparsebench.sparsity.forecast import forecast
from sparsebench.sparsity.schedules import alternating
from sparsebench.sparsity.training_flops import (
    TrainingFlops,
    phases_closed_form,
    snfs_closed_form,
)
from sparsebench.sparsity.window import Window

# --- movement pruning --------------------------------------------------------------------------

BY_HAND = {"options": {"optimizer": "sgd", "rate": 1.0}, "sparsity_end": None}


def test_movement_scores_by_hand():
    session = begin(Layers(a=[1.0, -2.0]), "movement", lr=0.1, **ALWAYS, **BY_HAND, steps=1)
    step(session, a=[0.5, 0.5])
    scores = session.method.observers["movement"].values(session.state)
    assert scores["a.weight"].tolist() == [[-0.5, 1.0]]  # -2 moves away from 0: it stays
    assert active(session) == [1]
    assert dense(session) == pytest.approx([0.95, -2.05])  # the other rests at what it was
    assert shown(session) == pytest.approx([0.0, -2.05])


def test_absent_weights_rest_while_their_scores_go_on_and_they_return():
    net = Layers(a=[1.0, -2.0, 0.5, 3.0])
    session = begin(net, "movement", lr=0.0, steps=2, initial_sparsity=0.0, **ALWAYS, **BY_HAND)
    step(session, a=[1.0, 0.5, 1.0, -1.0])  # scores -1, 1, -.5, 3; 4 (1 - .5 (1 - .5^3)) = 2.25
    assert active(session) == [1, 3]
    step(session, a=[-4.0, 1.0, 0.0, 1.0])  # 3, 3, -.5, 0: index 0 is back with its value
    assert active(session) == [0, 1]
    assert shown(session) == [1.0, -2.0, 0.0, 0.0]


def test_absent_weights_of_movement_pruning_do_not_decay():
    net = Layers(a=[1.0, -2.0])
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.5)
    session = begin(net, "movement", optimizer=optimizer, steps=3, **ALWAYS, **BY_HAND)
    for _ in range(3):  # 2 - (1 - (1 - t / 3)^3) is 1.30, 1.04 and 1: one weight is left at once
        step(session, a=[0.5, 0.5])
        assert active(session) == [1]
    before = 1.0 * (1 - 0.1 * 0.5) - 0.1  # one step of AdamW, and then it was absent
    assert dense(session)[0] == pytest.approx(before, rel=1e-5)


def test_scores_follow_the_schedule_of_the_learning_rate():
    net = Layers(a=[1.0, -2.0])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.5**t)
    session = begin(net, "movement", optimizer=optimizer, **ALWAYS, **BY_HAND)
    weights, score = [], 0.0
    for t in range(3):
        weights.append(dense(session)[0])
        step(session, a=[0.1, 0.0])
        schedule.step()
        score -= 0.5**t * weights[-1] * 0.1
    scores = session.method.observers["movement"].values(session.state)["a.weight"]
    assert float(scores[0, 0]) == pytest.approx(score)


def test_movement_can_choose_nothing_before_anything_moved():
    with pytest.raises(UserError, match="method.prune=movement: nothing has moved before training"):
        begin(Layers(a=[1.0, 2.0]), "movement", initial_sparsity=0.25)


def test_movement_is_a_score_for_any_method():
    dials = {**ALWAYS, "prune": "movement", "initial": "dense"}
    session = begin(Layers(a=[1.0, -2.0]), "gmp", lr=0.1, steps=1, **dials)
    step(session, a=[0.5, 0.5])
    assert active(session) == [1]
    assert dense(session)[0] == 0.0


SOFT = {"rate": 1.0, "optimizer": "sgd", "threshold": 0.4, "penalty": 0.0, "floor": 0.0}


def test_soft_movement_by_hand():
    dials = {**ALWAYS, "sparsity_end": None, "steps": 2, "lr": 0.0}
    session = begin(Layers(a=[1.0, -2.0, 1.0]), "movement_soft", options=SOFT, **dials)
    # thresholds .4 (1 - .5^3) = .35 and .4, that is scores of -.6190 and -.4055
    step(session, a=[0.7, 0.5, 0.5])
    assert active(session) == [1, 2]  # scores -.7, 1, -.5
    step(session)
    assert active(session) == [1]
    assert shown(session) == [0.0, -2.0, 0.0]
    assert session.state.notes[-1].startswith("soft movement pruning reached a sparsity of 0.6667")


def test_the_penalty_of_soft_movement_is_the_mean_sigmoid():
    options = {**SOFT, "penalty": 6.0}
    dials = {**ALWAYS, "sparsity_end": None, "steps": 2, "lr": 0.0}
    net = Layers(a=[1.0, -2.0, 1.0], b=[1.0])
    session = begin(net, "movement_soft", options=options, **dials)
    step(session)  # its weight is 0 before the schedule begins
    step(session)  # and 6 (1 - .5^3) = 5.25 in the second step; sigmoid'(0) = 1/4
    scores = session.method.observers["movement"].values(session.state)
    expected = {"a.weight": -5.25 / 2 / 3 / 4, "b.weight": -5.25 / 2 / 1 / 4}
    for name, value in expected.items():
        assert scores[name].view(-1).tolist() == pytest.approx([value] * scores[name].numel())


def test_soft_movement_keeps_a_floor():
    dials = {**ALWAYS, "sparsity_end": None, "steps": 1, "lr": 0.0}
    values = [float(i) for i in range(1, 401)]
    options = {**SOFT, "floor": 0.005}
    session = begin(Layers(a=values), "movement_soft", options=options, **dials)
    step(session, a=[1.0] * 400)  # all fall below: int(.005 x 400) + 1 = 3 fell least
    assert active(session) == [0, 1, 2]


@pytest.mark.parametrize(
    ("dials", "said"),
    [
        ({"structure": "nm_2_4"}, "structure=nm: scores that pass the threshold decide"),
        ({"structure": "block"}, "structure=block: scores"),
        ({"structure": "channel"}, "structure=channel: scores"),
        ({"prune": "magnitude"}, r"method\.prune=magnitude: .*only movement will do"),
        ({"drop": "magnitude", "grow": "random"}, r"method\.drop=magnitude: .*only None"),
        ({"also": "magnitude"}, r"method\.also=magnitude"),
        ({"scope": "global"}, r"method\.scope=global: .*each by itself"),
    ],
)
def test_soft_movement_refuses_what_has_no_effect(dials, said):
    with pytest.raises(UserError, match=said):
        method("movement_soft", **dials)


# --- DPF and DNW -------------------------------------------------------------------------------


def test_dpf_flips_by_feedback():
    """Loss |m w - y|^2 / 2 with y = (1, 1): the absent weight grows until it takes over."""
    seen: dict[str, list[float]] = {}
    session = begin(Layers(a=[1.0, 0.1]), "dpf", lr=0.5, **SPARSE)
    for forward, after in [([1.0, 0.0], [1.0, 0.6]), ([1.0, 0.0], [1.0, 1.1])]:
        step(session, seen, a=lambda w: w - 1.0)
        assert seen["a"] == pytest.approx(forward)
        assert dense(session) == pytest.approx(after)
    assert active(session) == [1]
    step(session, seen, a=lambda w: w - 1.0)
    assert seen["a"] == pytest.approx([0.0, 1.1])


def test_decay_and_momentum_act_on_absent_weights_of_dpf():
    net = Layers(a=[1.0, 0.5])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.5, weight_decay=0.2)
    session = begin(net, "dpf", optimizer=optimizer, **SPARSE)
    step(session, a=[0.0, 1.0])  # .5 - .1 (1 + .2 x .5) = .39, velocity 1.1
    assert dense(session)[1] == pytest.approx(0.39)
    step(session, a=[0.0, 1.0])  # velocity .5 x 1.1 + 1 + .2 x .39 = 1.628
    assert dense(session)[1] == pytest.approx(0.39 - 0.1628)


def test_dnw_is_dpf_at_every_step_and_a_constant_sparsity():
    torch.manual_seed(0)
    weights = {"a": torch.randn(30).tolist(), "b": torch.randn(10).tolist()}
    gradients = [{"a": torch.randn(30).tolist(), "b": torch.randn(10).tolist()} for _ in range(5)]
    runs = [
        begin(Layers(**weights), "dnw", 0.8, lr=0.2),
        begin(Layers(**weights), "dpf", 0.8, lr=0.2, scope="layer", **SPARSE),
    ]
    flips = set()
    for each in gradients:
        for session in runs:
            step(session, **each)
        assert active(runs[0]) == active(runs[1])
        assert (active(runs[0], "b"), dense(runs[0])) == (active(runs[1], "b"), dense(runs[1]))
        flips.add(tuple(active(runs[0])))
    assert len(flips) > 1


def test_weights_that_learn_while_absent_cost_a_dense_gradient():
    """2 f_S + f_D a step (RigL's appendix H for SNFS); twice forward and once dense."""
    session = begin(Layers(a=[float(i) for i in range(1, 11)]), "dnw", 0.8, steps=4)
    flops = TrainingFlops(dense_forward=1.0)
    for _ in range(4):
        step(session)
        flops.add(0.2, 1, dense_gradient=session.dense_gradient)
    assert flops.total == pytest.approx(4 * snfs_closed_form(0.2, 1.0))
    engine = method("dnw", sparsity=0.8, distribution="strict_uniform")
    (stretch, *more) = forecast(engine, {"a": torch.Size([1, 10])}, 4, 4)
    steps = stretch.dense_gradient_steps + sum(s.dense_gradient_steps for s in more)
    assert steps == flops.dense_gradient_steps == 4


# --- AC/DC -------------------------------------------------------------------------------------


def sparse_steps(total, **dials):
    """Steps after which the network is sparse, by the YAML's schedule."""
    spec = method("acdc", **dials).spec
    window = Window.of(spec, total, 1)
    return [t for t in range(total) if window.sparsity(spec, 0.9, t) > 0]


def test_phases_of_the_papers_runs():
    imagenet = [*range(10, 15), *range(20, 25), *range(30, 35), *range(40, 45), *range(50, 55)]
    imagenet += [*range(60, 65), *range(70, 75), *range(85, 100)]
    assert sparse_steps(100) == imagenet
    cifar = [t for start in (10, 50, 90, 130) for t in range(start, start + 20)]
    cifar += range(170, 200)
    assert sparse_steps(200, begin="10it", every="20it", end="170it") == cifar


def test_alternating_by_number():
    assert [alternating(n, 5) for n in range(7)] == [0, 1, 0, 1, 0, 1, 1]
    assert [alternating(n, 6) for n in range(8)] == [0, 1, 0, 1, 0, 0, 1, 1]
    assert [alternating(n, 1) for n in (-3, 0, 1, 2)] == [0, 0, 1, 1]
    assert [alternating(n, 2) for n in (0, 1, 2)] == [0, 0, 1]


def test_cost_of_acdc_is_half_dense_and_half_sparse():
    """(50 + 50 f_S / f_D) / 100 of dense training, for the ResNet-50 phases."""
    session = begin(Layers(a=[float(i) for i in range(1, 11)]), "acdc", 0.8, steps=100, lr=0.0)
    flops = TrainingFlops(dense_forward=1.0)
    for _ in range(100):
        forward = session.masks.densities["a.weight"]
        step(session)
        flops.add(forward, 1, dense_gradient=session.dense_gradient)
    assert flops.relative == pytest.approx((50 + 50 * 0.2) / 100)
    assert flops.total / 100 == pytest.approx(phases_closed_form([(0.5, 1.0), (0.5, 0.2)]))
    engine = method("acdc", sparsity=0.8)
    found = list(forecast(engine, {"a": torch.Size([1, 10])}, 100, 1))
    assert sum(s.steps * s.nonzeros["a"] for s in found) == 50 * 10 + 50 * 2
    assert not any(s.dense_gradient_steps for s in found)


def momentum(session):
    (state,) = session.state.optimizers[0].state.values()
    return state.get("momentum_buffer")


@pytest.mark.parametrize("reset", [False, True])
def test_acdc_by_hand(reset):
    net = Layers(a=[1.0, -0.2, 0.5, 0.1])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.5)
    session = begin(
        net, "acdc", 0.5, steps=8, optimizer=optimizer, options={"reset_momentum": reset},
        begin="2it", every="2it", end="6it",
    )  # fmt: skip
    masks = []
    for _ in range(8):
        step(session, a=[0.0, 1.0, 0.0, 1.0] if session.state.step < 2 else [1.0, 1.0, 1.0, 1.0])
        masks.append(active(session))
        if session.state.step == 4:  # decompressed: what was absent begins at exactly 0
            assert shown(session)[1] * shown(session)[2] == 0.0
            cleared = not session.state.optimizers[0].state
            assert cleared == reset
        if session.state.step == 6:
            model = session.method.dense_model["a.weight"]
            assert torch.count_nonzero(model) == 4
    # -.2 -> -.3 -> -.45 and .1 -> 0 -> -.15 by momentum: 0 and 2 are kept for two steps
    assert masks[:4] == [[0, 1, 2, 3], [0, 2], [0, 2], [0, 1, 2, 3]]
    assert masks[4] == [0, 1, 2, 3]
    assert all(len(mask) == 2 for mask in masks[5:])
    assert masks[5] == masks[6] == masks[7]


def test_the_dense_network_of_acdc_is_in_the_state():
    net = Layers(a=[1.0, -0.2, 0.5, 0.1])
    window = {"begin": "1it", "every": "1it", "end": "3it"}
    session = begin(net, "acdc", 0.5, steps=4, lr=0.1, **window)
    for _ in range(3):
        step(session, a=[1.0, 1.0, 1.0, 1.0])
    state = session.state_dict()
    model = state["method"]["dense_model"]
    assert list(model) == list(net.state_dict())
    # 1 and .5 take three steps of -.1; the others are cut after the first and take the third
    assert model["a.weight"].view(-1).tolist() == pytest.approx([0.7, -0.1, 0.2, -0.1])
    assert session.state.notes == [
        "the dense network of step 3 is in the checkpoint: state of the callback Sparsify, under "
        "method, dense_model"
    ]
    again = begin(Layers(a=[0.0] * 4), "acdc", 0.5, steps=4, resume=state, **window)
    assert torch.equal(again.method.dense_model["a.weight"], model["a.weight"])
    off = begin(
        Layers(a=[1.0, 2.0]), "acdc", 0.5, steps=4, options={"dense_model": False}, **window
    )
    for _ in range(4):
        step(off)
    assert off.method.dense_model == {}
    assert off.state.notes == []


# --- GMP with resting weights ------------------------------------------------------------------


def test_pruned_weights_of_gmp_frozen_rest_and_return():
    session = begin(Layers(a=[4.0, 3.0, 2.0, 1.0]), "gmp_frozen", steps=2, lr=1.0, **ALWAYS)
    step(session, a=[0.0, 0.0, 0.0, 0.0])  # keeps 2 of 4 (.4375 of them go: round(2.25))
    assert active(session) == [0, 1]
    step(session, a=[0.0, 2.5, 9.0, 9.0])  # 3 falls to .5; what rests does not move
    assert active(session) == [0, 2]
    assert dense(session) == [4.0, 0.5, 2.0, 1.0]
    assert shown(session) == [4.0, 0.0, 2.0, 0.0]


def test_gmp_frozen_is_gmp_where_nothing_returns():
    weights = [float(i) for i in range(1, 21)]
    runs = [
        begin(Layers(a=weights), n, 0.9, steps=9, lr=0.0, **ALWAYS) for n in ("gmp", "gmp_frozen")
    ]
    for _ in range(9):
        for session in runs:
            step(session, a=[1.0] * 20)
        assert active(runs[0]) == active(runs[1])
        assert shown(runs[0]) == shown(runs[1])
