"""PackNet: what a task keeps, what it leaves free, and that earlier tasks stay."""

import pytest
import torch
from test_continual_runs import go
from test_isolation import batch, network
from torch import nn

from sparsebench.errors import UserError
from sparsebench.library import method
from sparsebench.sparsity import Session
from sparsebench.sparsity.optimizer_state import forget
from sparsebench.sparsity.spec import SelectorSpec

W = [0.9, -0.1, 0.5, -0.4, 0.2, 0.05, -0.8, 0.3, 0.6, -0.7]
STEPS = 4


def session_of(model, **dials):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    return Session(
        method("packnet", **dials), model, optimizer, total_steps=STEPS, seed=0
    ), optimizer


def steps(session, optimizer, first=0, last=STEPS):
    model = session.state.model
    for _ in range(first, last):
        session.before_forward()
        model(torch.ones(3, model.in_features)).square().mean().backward()
        session.after_backward()
        optimizer.step()
        optimizer.zero_grad()
        session.after_step()


def one_layer(inputs=10, outputs=1):
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=False)


def test_half_of_the_free_weights_go_then_half_of_those():
    model = one_layer()
    session, _ = session_of(model, sparsity=0.5, options={"share": "free"})
    engine, masks = session.method, session.masks
    with torch.no_grad():
        model.weight.copy_(torch.tensor([W]))
    session.begin_task(0)
    engine.update(session.state)
    assert masks["weight"].view(-1).logical_not().nonzero().view(-1).tolist() == [1, 3, 4, 5, 7]
    session.end_task(0)
    session.begin_task(1)
    assert masks["weight"].all()
    free = [1, 3, 4, 5, 7]
    assert model.weight.view(-1)[free].tolist() == [0.0] * 5  # freed weights start from zero
    with torch.no_grad():
        model.weight.view(-1)[free] = torch.tensor([0.2, 0.1, 0.5, 0.4, 0.3])
    engine.update(session.state)  # round(2.5) is 2
    kept = masks["weight"].view(-1)
    assert kept.nonzero().view(-1).tolist() == [0, 2, 4, 5, 6, 7, 8, 9]


def test_equal_shares_fill_the_network():
    model = one_layer(100)
    session, optimizer = session_of(model, sparsity=0.8)
    session.method.check_tasks({"weight": torch.Size([1, 100])}, 5)
    for task in range(5):
        session.state.step = 0
        session.begin_task(task)
        owned = session.method.vault.owned["weight"]
        assert int((~owned).sum()) == 100 - 20 * task
        before = model.weight.detach()[owned].clone()
        assert session.masks["weight"].all()
        steps(session, optimizer, 0, 1)
        assert session.masks["weight"].all()
        steps(session, optimizer, 1, 2)
        assert int(session.masks["weight"].sum()) == 20 * (task + 1)
        steps(session, optimizer, 2)
        assert torch.equal(model.weight.detach()[owned], before)
        session.end_task(task)
    assert session.method.vault.owned["weight"].all()
    for task in range(5):
        assert int(session.method.vault.mask(task, "weight").sum()) == 20 * (task + 1)


def test_the_last_task_keeps_all_that_is_free():
    model = one_layer()
    session, optimizer = session_of(model, sparsity=0.5, options={"share": "free"})
    session.method.check_tasks({"weight": torch.Size([1, 10])}, 2)
    for task in range(2):
        session.state.step = 0
        session.begin_task(task)
        steps(session, optimizer)
        session.end_task(task)
    assert session.method.vault.owned["weight"].all()


def test_a_stream_that_does_not_fit_is_refused():
    shapes = {"a": torch.Size([10, 10]), "b": torch.Size([4])}
    method("packnet", sparsity=0.8, distribution="strict_uniform").check_tasks(shapes, 4)
    with pytest.raises(UserError, match=r"sparsity=0.5: task 2 of 3 .* no free weight in 'a'"):
        method("packnet", sparsity=0.5, distribution="strict_uniform").check_tasks(shapes, 3)
    with pytest.raises(UserError, match="task 1 of 2"):
        method("packnet", sparsity=0.0).check_tasks(shapes, 2)


@pytest.mark.parametrize("name", ["packnet", "wsn"])
def test_the_last_layer_is_a_dense_head_of_each_task(tmp_path, name):
    """Else the first task would own weights of classes it has never seen."""
    words = ["stream.scenario=task_il", "stream.tasks=2", "epochs=1", "sparsity=0.5"]
    result = go(tmp_path, f"method={name}", *words)
    assert list(result["layers"]) == ["fc1.weight", "fc2.weight"]


def test_tasks_are_learned_as_by_a_plain_loop():
    """Layers 12-16-6 by Adam, the last one a dense head: every weight is bitwise the same."""
    steps, share = 8, 0.4
    model, plain = network(), network()
    session = Session(
        method("packnet", sparsity=1 - share), model, adam := torch.optim.Adam(model.parameters()),
        total_steps=steps, seed=0, selector=SelectorSpec(last=False),
    )  # fmt: skip
    owner, weight = torch.zeros(16, 12, dtype=torch.int64), plain[0].weight
    for task in range(3):
        forget([adam])
        session.state.step = 0
        session.begin_task(task)
        own = slice(2 * task, 2 * task + 2)
        other = torch.optim.Adam(plain.parameters())
        free = owner == 0
        if task:
            weight.data[free] = 0.0
        for step in range(steps):
            x, y = batch(task, step)
            for net in (model, plain):
                nn.functional.cross_entropy(net(x)[:, own], y - 2 * task).backward()
            session.after_backward()
            weight.grad[~free] = 0.0
            for optimizer in (adam, other):
                optimizer.step()
                optimizer.zero_grad()
            session.after_step()
            if step + 1 == steps // 2:
                kept = min(round(share * weight.numel()), int(free.sum()))
                size = weight.detach().abs().masked_fill(~free, -1.0).flatten()
                gone = free & ~torch.zeros_like(free).flatten().index_fill_(
                    0, size.topk(kept).indices, True
                ).view_as(free)
                weight.data[gone] = 0.0
                free &= ~gone
                for moment in ("exp_avg", "exp_avg_sq"):
                    other.state[weight][moment][gone] = 0.0
        session.end_task(task)
        owner[free] = task + 1
        for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
            assert torch.equal(ours, theirs)
    assert [int((owner == task).sum()) for task in range(4)] == [0, 77, 77, 38]
