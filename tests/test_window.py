"""Lengths of time, update windows and their schedules; every refusal in its own words."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsebench.errors import UserError
from sparsebench.sparsity import MethodSpec
from sparsebench.sparsity.time import Duration
from sparsebench.sparsity.window import Window, updates

SET = {"drop": "magnitude", "grow": "random"}


def window(total=100, per_epoch=10, **dials):
    return Window.of(MethodSpec(**dials), total, per_epoch)


# --- durations ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, steps",
    [
        ("0it", 0), ("5000it", 5000), ("30ep", 7500), ("0.5ep", 125), ("2.5ep", 625),
        ("75%", 7500), ("0%", 0), ("100%", 10000), ("33.3%", 3330), (" 12 it ", 12), ("1e", None),
    ],
)  # fmt: skip
def test_durations(text, steps):
    if steps is None:
        with pytest.raises(UserError):
            Duration.parse(text, "key")
    else:
        assert Duration.parse(text, "key").steps(10_000, 250) == steps


@given(st.integers(0, 10**9))
def test_whole_steps_are_kept(n):
    assert Duration.parse(f"{n}it", "key").steps(1, 1) == n


@pytest.mark.parametrize(
    "given_, said",
    [
        (100, "method.every=100: a time is written 30ep"),
        ("", "method.every=: a time is written"),
        ("-5it", "method.every=-5it: a time is written"),
        ("5 epochs", "method.every=5 epochs: a time is written"),
        ("nan%", "method.every=nan%: a time is written"),
        ("1e3it", "method.every=1e3it: a time is written"),
        ("2.5it", "method.every=2.5it: optimizer steps are whole numbers"),
        ("101%", "method.every=101%: at most 100% of training"),
    ],
)
def test_other_forms_are_refused(given_, said):
    with pytest.raises(UserError) as error:
        Duration.parse(given_, "method.every")
    assert str(error.value).startswith(said)


# --- windows -----------------------------------------------------------------------------------


def test_updates_come_every_so_often_and_stop_at_the_end():
    w = window(**SET, begin="10it", end="7ep", every="15it")
    assert [t for t in range(1, 101) if w.is_update(t)] == [25, 40, 55, 70]
    assert (w.begin, w.end, w.every, w.last) == (10, 70, 15, 70)
    assert window(**SET, begin="10it", end="69%", every="15it").last == 55


def test_one_shot_has_a_single_update():
    w = window(sparsity_schedule="once", begin="75%")
    assert [t for t in range(1, 101) if w.is_update(t)] == [75]
    spec = MethodSpec(sparsity_schedule="once", begin="75%", initial_sparsity=0.5)
    assert [w.sparsity(spec, 0.9, t) for t in (0, 74, 75, 100)] == [0.5, 0.5, 0.9, 0.9]


@pytest.mark.parametrize(
    "dials, changes",
    [
        ({}, False),
        (SET, True),
        ({"sparsity_schedule": "cubic"}, True),
        ({**SET, "sparse": False}, False),
    ],
)
def test_which_methods_update(dials, changes):
    assert updates(MethodSpec(**dials)) == changes


@pytest.mark.parametrize(
    "dials, said",
    [
        ({"every": "0it"}, "method.every must be at least one optimizer step"),
        ({"every": "0.01ep"}, "method.every must be at least one optimizer step"),
        ({"end": "101it"}, "method.end lies after the 100 steps of training"),
        ({"begin": "50it", "end": "40it"}, "method.end must come after method.begin"),
        ({"begin": "75%"}, "method.end must come after method.begin"),
        ({"begin": "1it", "end": "50it", "every": "50it"},
         "no update would happen, since method.every (50 steps) is longer than the window from "
         "method.begin to method.end (49 steps)"),
        ({"every": "1000it"},
         "no update would happen, since method.every (1000 steps) is longer than the window from "
         "method.begin to method.end (75 steps)"),
    ],
)  # fmt: skip
def test_windows_without_sense_name_the_keys(dials, said):
    dials = {"every": "5it", **dials}
    spec = MethodSpec(**SET, **dials)
    with pytest.raises(UserError) as error:
        Window.of(spec, 100, 10)
    keys = f"method.begin={spec.begin} method.end={spec.end} method.every={spec.every}: "
    assert str(error.value) == keys + said
    assert "\n" not in str(error.value)
    Window.of(MethodSpec(**dials), 100, 10)  # without updates there is nothing to refuse


@pytest.mark.parametrize("begin", ["0it", "101it"])
def test_one_shot_must_lie_within_training(begin):
    with pytest.raises(UserError, match="method.begin must lie within the 100 steps of training"):
        window(sparsity_schedule="once", begin=begin)


# --- schedules ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "start, expected",
    [
        (0.0, [0, 0.5203125, 0.7875, 0.8859375, 0.9]),
        (0.5, [0.5, 0.73125, 0.85, 0.89375, 0.9]),
    ],
)
def test_cubic_numbers(start, expected):
    dials = {"sparsity_schedule": "cubic", "begin": "20it", "end": "60it", "every": "10it"}
    spec, w = MethodSpec(**dials, initial_sparsity=start), window(**dials)
    assert [w.sparsity(spec, 0.9, 20 + 10 * q) for q in range(5)] == pytest.approx(expected)
    assert w.sparsity(spec, 0.9, 0) == start
    assert w.sparsity(spec, 0.9, 100) == pytest.approx(0.9)


def test_the_last_update_reaches_the_target_though_the_window_is_longer():
    for schedule in ("cubic", "linear"):
        dials = {"sparsity_schedule": schedule, "end": "75it", "every": "10it"}
        assert window(**dials).sparsity(MethodSpec(**dials), 0.9, 70) == pytest.approx(0.9)


def test_linear_numbers():
    dials = {"sparsity_schedule": "linear", "end": "40it", "every": "10it"}
    w = window(**dials)
    values = [w.sparsity(MethodSpec(**dials), 0.8, t) for t in (0, 10, 20, 30, 40)]
    assert values == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])


def test_constant_sparsity_is_there_from_the_start():
    assert window(**SET, every="5it").sparsity(MethodSpec(**SET), 0.9, 0) == 0.9


def test_cosine_numbers():
    spec = MethodSpec(**SET, end="100%", every="1it", drop_fraction=0.3)
    w = Window.of(spec, 100, 10)
    values = [w.drop_fraction(spec, t) for t in (0, 25, 50, 75, 100)]
    assert values == pytest.approx([0.3, 0.256066, 0.15, 0.043934, 0], abs=5e-7)
    early = MethodSpec(**SET, end="50%", every="1it", drop_fraction=0.3)
    assert Window.of(early, 100, 10).drop_fraction(early, 51) == 0.0


def test_cosine_to_a_floor_is_torchs_annealing():
    spec = MethodSpec(**SET, end="100%", every="1it", drop_fraction=0.5, drop_floor=0.005)
    w = Window.of(spec, 40, 10)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    annealing = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40, eta_min=0.005)
    for t in range(1, 41):
        optimizer.step()
        annealing.step()
        assert w.drop_fraction(spec, t) == pytest.approx(annealing.get_last_lr()[0])


@pytest.mark.parametrize(
    "schedule, expected", [("constant", [0.3, 0.3, 0.3]), ("linear", [0.3, 0.15, 0.0])]
)
def test_other_decays(schedule, expected):
    spec = MethodSpec(**SET, drop_schedule=schedule, begin="20it", end="60it", every="20it")
    w = Window.of(spec, 100, 10)
    assert [w.drop_fraction(spec, t) for t in (20, 40, 60)] == pytest.approx(expected)
    assert math.isclose(w.drop_fraction(spec, 61), 0.0)


def test_a_floor_above_the_fraction_is_no_rise():
    spec = MethodSpec(**SET, every="1it", drop_fraction=0.2, drop_floor=0.4)
    w = Window.of(spec, 100, 10)
    assert {w.drop_fraction(spec, t) for t in range(1, 76)} == {0.2}
