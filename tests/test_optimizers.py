"""Optimizers and learning-rate schedules of the config, against torch's own."""

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from sparsebench.config.compose import compose
from sparsebench.errors import UserError
from sparsebench.models.tiny import tiny_conv
from sparsebench.run import run
from sparsebench.training.optimizers import build_optimizer, build_schedule

QUICK = [
    "data=digits", "model=tiny_mlp", "epochs=3", "data.subset=160", "batch_size=16",
    "plots=false", "quiet=true", "trainer.accelerator=cpu", "method.every=2it",
]  # fmt: skip


def rates(name, total=100, **dials):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4)
    config = compose([f"schedule={name}", *(f"schedule.{k}={v}" for k, v in dials.items())])
    schedule = build_schedule(optimizer, config.schedule, total, 10)
    return walk(optimizer, schedule, total)


def walk(optimizer, schedule, total):
    found = []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


TORCHS = {
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 100, eta_min=0.004),
    "linear": lambda o: lr_scheduler.LinearLR(o, 1.0, 0.01, total_iters=100),
    "step": lambda o: lr_scheduler.MultiStepLR(o, [30, 75], gamma=0.2),
    "one_cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.4, total_steps=101, cycle_momentum=False),
    "constant": lambda o: lr_scheduler.ConstantLR(o, factor=1.0),
}
DIALS = {
    "cosine": {"final": 0.01},
    "linear": {"final": 0.01},
    "step": {"gamma": 0.2, "milestones": "[3ep,75%]"},
}


@pytest.mark.parametrize("name", TORCHS)
def test_a_schedule_is_torchs(name):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4)
    theirs = walk(optimizer, TORCHS[name](optimizer), 100)
    total = 101 if name == "one_cycle" else 100  # torch's counts the step that is never taken
    assert rates(name, total, **DIALS.get(name, {}))[:100] == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("name", TORCHS)
def test_warmup_rises_in_equal_steps_and_shifts_the_rest(name):
    warm = rates(name, 110, warmup="10it", **({} if name == "step" else DIALS.get(name, {})))
    assert warm[:10] == pytest.approx([0.4 * k / 11 for k in range(1, 11)])
    if name != "step":  # whose milestones are times of the whole training
        assert warm[10:] == pytest.approx(rates(name, 100, **DIALS.get(name, {})))


def test_a_warmup_longer_than_training_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"schedule\.warmup=3ep"):
        run(compose([*QUICK, f"runs={tmp_path}", "schedule.warmup=3ep"]))
    assert not list(tmp_path.iterdir())


def test_norms_and_biases_are_spared_the_decay():
    model = tiny_conv((1, 8, 8), 10)
    cfg = compose(["optimizer.decay_norms=false", "optimizer.weight_decay=0.01"])
    decayed, spared = build_optimizer(model, cfg.optimizer).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.01, 0.0)
    assert [tuple(p.shape) for p in decayed["params"]] == [(8, 1, 3, 3), (16, 8, 3, 3), (10, 16)]
    assert [tuple(p.shape) for p in spared["params"]] == [(8,), (8,), (16,), (16,), (10,)]
    (group,) = build_optimizer(model, compose([]).optimizer).param_groups
    assert len(group["params"]) == 8


@pytest.mark.parametrize(
    ("overrides", "kind", "dials"),
    [
        (["optimizer=sgd"], "SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
        (["optimizer.momentum=0"], "SGD", {"momentum": 0, "nesterov": False}),
        (["optimizer=adam", "optimizer.beta1=0.8"], "Adam", {"betas": (0.8, 0.999), "lr": 1e-3}),
        (["optimizer=adamw"], "AdamW", {"weight_decay": 0.05, "eps": 1e-8}),
        (["optimizer.name=torch.optim.RMSprop"], "RMSprop", {"lr": 0.1, "weight_decay": 5e-4}),
    ],
)
def test_an_optimizer_has_the_dials_of_its_config(overrides, kind, dials):
    optimizer = build_optimizer(nn.Linear(2, 2), compose(overrides).optimizer)
    assert type(optimizer).__name__ == kind
    assert {dial: optimizer.param_groups[0][dial] for dial in dials} == dials


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sgdd", "did you mean 'sgd'"),
        ("torch.optim.LBFGS", "LBFGS"),
        ("torch.optim.ASGD", "register_optimizer"),
        ("torch.nn.Linear", "Linear"),
    ],
)
def test_an_optimizer_that_cannot_work_is_refused(tmp_path, name, said):
    with pytest.raises(UserError, match=said):
        run(compose([*QUICK, f"runs={tmp_path}", f"optimizer.name={name}"]))
    assert not list(tmp_path.iterdir())
