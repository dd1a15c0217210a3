"""Trials at the beginning of a task: they choose, and leave no other trace."""

import copy

import pytest
import torch
from test_isolation import STEPS, batch, network
from torch import nn

from sparsebench.errors import UserError
from sparsebench.library import method
from sparsebench.sparsity import Session
from sparsebench.sparsity.examples import Examples

GROWTHS = ["random", "gradient"]


def loss(model, pair):
    x, y = pair
    return nn.functional.cross_entropy(model(x), y)


def session_of(task=0, **dials):
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    options = {"growths": GROWTHS, "trial": 0.5, **dials.pop("options", {})}
    return Session(
        method("cl_dst_adaptive", sparsity=0.8, every="1it", options=options, **dials),
        model, optimizer, total_steps=STEPS, seed=0,
        examples=Examples(lambda seed: (batch(task, seed % 1000 + t) for t in range(50)), loss),
    )  # fmt: skip


def test_the_candidate_of_the_lowest_loss_is_trained(monkeypatch):
    for best in range(4):
        session = session_of(options={"distributions": ["erk", "strict_uniform"]})
        engine = session.method
        scores = [1.0] * 4
        scores[best] = 0.5
        monkeypatch.setattr(engine, "_try_all", lambda state, scores=scores: scores)
        session.begin_task(0)
        assert (engine.distribution.name, engine.spec.grow) == [
            ("erk", "random"), ("erk", "gradient"),
            ("strict_uniform", "random"), ("strict_uniform", "gradient"),
        ][best]  # fmt: skip
        assert session.state.notes[-1].endswith("was chosen")
        even = {"0.weight": 39, "2.weight": 19}
        assert (session.masks.nonzeros == even) == (best > 1)


def test_a_trial_scores_what_training_the_candidate_would_give():
    session = session_of()
    engine, state = session.method, session.state
    kept = copy.deepcopy((state.model.state_dict(), state.generator.get_state()))
    found = engine._try_all(state)
    assert state.looked_at == 2 * 4 * 10  # two candidates, half of eight steps, ten samples
    for (name, now), before in zip(state.model.state_dict().items(), kept[0].values(), strict=True):
        assert torch.equal(now, before), name
    state.generator.set_state(kept[1])
    batches = state.data.take(state, 5)
    seed = int(torch.randint(2**62, (), generator=state.generator))
    for growth, score in zip(GROWTHS, found, strict=True):
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        alone = Session(
            method("cl_dst", sparsity=0.8, every="1it", grow=growth),
            model, optimizer, total_steps=STEPS, seed=seed,
        )  # fmt: skip
        alone.method._begin(alone.state)
        for pair in batches[:4]:
            loss(model, pair).backward()
            alone.after_backward()
            optimizer.step()
            optimizer.zero_grad()
            alone.after_step()
        with torch.no_grad():
            assert float(loss(model, batches[4])) == score
    assert found[0] != found[1]


def test_what_was_chosen_survives_a_checkpoint():
    session = session_of()
    session.begin_task(0)
    session.method.chosen = 1
    session.method._adopt(session.state)
    kept = session.state_dict()
    assert kept["method"]["chosen"] == 1
    again = session_of()
    assert again.method.spec.grow == "random"
    resumed = Session(
        again.method, again.state.model, again.state.optimizers, total_steps=STEPS, resume=kept
    )
    assert resumed.method.spec.grow == "gradient"
    assert set(resumed.method.observers) == {"gradient"}


def test_a_wrong_candidate_is_refused_at_once():
    with pytest.raises(UserError, match="method.grow=gradiant.*gradient"):
        method("cl_dst_adaptive", options={"growths": ["gradiant"]})
    with pytest.raises(UserError, match="distribution.name=erq"):
        method("cl_dst_adaptive", options={"distributions": ["erq"]})
