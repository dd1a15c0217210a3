"""A session in bare loops: storages, optimizers, tied weights, gradients that are not finite."""

import copy
import io
import math

import pytest
import torch
from torch import nn

from sparsebench.errors import UserError
from sparsebench.library import method
from sparsebench.sparsity import SelectorSpec, Session

RIGL = {"sparsity": 0.8, "every": "2it", "end": "100%", "drop_fraction": 0.5}


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.LayerNorm(10), nn.Linear(10, 4))


def batch(t: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 + t)
    return torch.randn(8, 6, generator=generator), torch.randint(4, (8,), generator=generator)


def train(session: Session, steps: int, spoil=None) -> None:
    """As the docstring of Session says; ``spoil`` may touch the gradients of a step."""
    model, (optimizer,) = session.state.model, session.state.optimizers
    for t in range(session.state.step, session.state.step + steps):
        session.before_forward()
        x, y = batch(t)
        nn.functional.cross_entropy(model(x), y).backward()
        if spoil:
            spoil(t + 1, session)
        session.after_backward()
        optimizer.step()
        optimizer.zero_grad()
        session.after_step()


def start(how="rigl", optimizer=torch.optim.SGD, steps=12, seed=0, dials=None, **settings):
    model = network()
    settings = settings or {"lr": 0.1}
    engine = method(how, **(RIGL if dials is None else dials))
    made = optimizer(model.parameters(), **settings)
    return Session(engine, model, made, total_steps=steps, seed=seed)


def everything(session: Session) -> dict:
    """All there is to a run, as a checkpoint would hold it."""
    return copy.deepcopy(
        {
            "session": session.state_dict(),
            "model": session.state.model.state_dict(),
            "optimizer": session.state.optimizers[0].state_dict(),
        }
    )


def same(a, b) -> bool:
    """Bitwise equality of nested states."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


# --- the loop ----------------------------------------------------------------------------------


def test_a_step_behind_the_sessions_back_is_an_error():
    session = start()
    with pytest.raises(RuntimeError, match="after_backward must be called before each optimizer"):
        session.after_step()
    train(session, 1)
    with pytest.raises(RuntimeError, match="after_backward must be called before each optimizer"):
        session.after_step()


def test_accumulated_gradients_are_those_of_the_large_batch():
    # in quarters, the sum of the gradients of four micro-batches is exact
    sessions = [start("snfs", dials={**RIGL, "drop_fraction": 0.4}) for _ in range(2)]
    for t in range(8):
        x = (batch(t)[0] * 2).round() / 4
        for session, parts in zip(sessions, (1, 4), strict=True):
            for piece in x.chunk(parts):
                session.before_forward()
                session.state.model[0](piece).sum().backward()
            session.after_backward()
            session.state.optimizers[0].step()
            session.state.optimizers[0].zero_grad()
            session.after_step()
    large, small = sessions
    assert large.masks.digest() == small.masks.digest()
    assert same(large.method.state_dict(), small.method.state_dict())


def test_evaluating_changes_nothing():
    session = start()
    train(session, 3)
    before = everything(session)
    session.state.model.eval()
    for t in range(5):
        session.before_forward()
        session.state.model(batch(t)[0])
    session.state.model.train()
    assert same(before, everything(session))


def test_the_global_generator_is_left_alone():
    session = start("set")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for t in range(12):
        x, y = batch(t)
        nn.functional.cross_entropy(session.state.model(x), y).backward()
        session.after_backward()
        session.state.optimizers[0].step()
        session.after_step()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_default_seed_is_torchs():
    digests = []
    for seed, given in ((3, None), (3, None), (4, None), (9, 3)):
        model = network()
        torch.manual_seed(seed)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        session = Session(method("static"), model, optimizer, total_steps=9, seed=given)
        digests.append(session.masks.digest())
    assert digests[0] == digests[1] == digests[3] != digests[2]


def test_counts_and_clock():
    session = start()
    assert session.masks.sparsity == pytest.approx(0.8)
    changes = 0
    for t in range(1, 13):
        version = session.masks.version
        train(session, 1)
        assert session.dense_gradient == (t % 2 == 0)
        assert session.state.step == t
        changes += session.masks.version != version
    assert changes == 5  # at 2, 4, ... 10; the cosine is at 0 at 12
    assert session.update_seconds > 0


# --- storages ----------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["frozen", "shadow"])
def test_absent_weights_have_lives_of_their_own(storage):
    session = start(dials={**RIGL, "storage": storage}, momentum=0.9, lr=0.1, weight_decay=0.01)
    masks, parameters = session.masks, session.masks.parameters
    seen = []
    session.state.model[3].register_forward_pre_hook(
        lambda module, _: seen.append(module.weight.detach().clone())
    )
    dense = {name: p.detach().clone() for name, p in parameters.items()}
    for _ in range(12):
        before = {name: p.detach().clone() for name, p in parameters.items()}
        then = dict(masks.items())
        train(session, 1)
        assert torch.equal(seen[-1] != 0, then["3.weight"])
        for name, parameter in parameters.items():
            moved = (parameter.detach() != before[name]) & ~then[name]
            assert not moved.any() if storage == "frozen" else moved.any()
    assert all((dense[name] != 0).all() for name in parameters)
    session.before_forward()  # to evaluate
    assert torch.equal(session.state.model[3].weight != 0, masks["3.weight"])


def test_a_shadow_gradient_is_that_of_the_sparse_network():
    session = start(
        "static", dials={"sparsity": 0.5, "storage": "shadow", "every": "5it"}, lr=0.125
    )
    model, masks = session.state.model, session.masks
    sparse = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in masks.items():
            sparse.get_parameter(name).mul_(mask)
    x, y = batch(0)
    nn.functional.cross_entropy(sparse(x), y).backward()
    before = {name: p.detach().clone() for name, p in masks.parameters.items()}
    train(session, 1)
    for name, parameter in masks.parameters.items():
        assert torch.equal(parameter.detach(), before[name] - sparse.get_parameter(name).grad / 8)
    assert model[0].weight.count_nonzero() == 60


# --- tied weights ------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.body = nn.Linear(6, 6)
        self.again = nn.Linear(6, 6)
        self.again.weight = self.body.weight
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.again(self.body(self.embed(x)).relu()))


def test_tied_weights_have_one_mask_and_count_once():
    torch.manual_seed(0)
    model = Tied()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    session = Session(method("rigl", **RIGL), model, optimizer, total_steps=8, seed=0)
    assert list(session.masks) == ["body.weight", "head.weight"]
    assert session.masks.sizes == {"body.weight": 36, "head.weight": 54}
    assert sum(session.masks.nonzeros.values()) == 18
    for t in range(8):
        x = torch.arange(9).roll(t)
        nn.functional.cross_entropy(model(x), x.roll(1)).backward()
        session.after_backward()
        optimizer.step()
        optimizer.zero_grad()
        session.after_step()
        session.masks.check()
        assert int(model.embed.weight.count_nonzero()) <= session.masks.nonzeros["head.weight"]
    assert sum(session.masks.nonzeros.values()) == 18


def test_what_cannot_be_sparse_is_named_before_training():
    model = network()
    model[3].weight.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    with pytest.raises(UserError, match="weight '3.weight' is frozen"):
        Session(method("rigl", **RIGL), model, optimizer, total_steps=9)
    without = SelectorSpec(exclude=["3.*"])
    session = Session(method("rigl", **RIGL), model, optimizer, total_steps=9, selector=without)
    assert list(session.masks) == ["0.weight"]


# --- gradients that are not finite -------------------------------------------------------------


@pytest.mark.parametrize("how", ["rigl", "set", "snfs"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_update_on_a_gradient_that_is_not_finite_is_left_out(how, value):
    def spoil(t, session):
        if t == 4:
            session.state.model[3].weight.grad[0, 0] = value

    session = start(how, lr=0.0)
    train(session, 3, spoil)
    before, version = session.masks.digest(), session.masks.version
    train(session, 1, spoil)
    assert (session.masks.digest(), session.masks.version) == (before, version)
    left_out = "update at step 4 left out: the gradient of '3.weight' is not finite"
    assert session.state.notes == [left_out]


@pytest.mark.parametrize("how", ["rigl", "snfs"])
def test_a_skipped_step_leaves_no_trace(how):
    """What a gradient scaler does on overflow: the gradients are seen, the step is not taken."""
    calm, rough = start(how, momentum=0.9, lr=0.1), start(how, momentum=0.9, lr=0.1)
    train(calm, 12)
    for t in range(12):
        if t in (3, 4, 7):
            for parameter in rough.state.model.parameters():
                parameter.grad = torch.full_like(parameter, math.inf)
            rough.after_backward()
            rough.state.optimizers[0].zero_grad()
        train(rough, 1)
    assert rough.state.notes == []
    assert same(everything(calm), everything(rough))


def test_large_but_finite_gradients_count():
    def spoil(t, session):
        session.state.model[0].weight.grad.fill_(3e38)  # their sum is infinite

    session = start(lr=0.0)
    version = session.masks.version
    train(session, 2, spoil)
    assert session.state.notes == []
    assert session.masks.version > version


# --- resuming ----------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["zeroed", "frozen", "shadow"])
@pytest.mark.parametrize("how", ["rigl", "set", "snfs", "unexplored"])
def test_resume_is_bitwise_from_before_and_after_a_forward_pass(how, storage):
    dials = {**RIGL, "storage": storage}
    if how == "unexplored":
        how, dials = "set", {**dials, "grow": "unexplored"}
    whole = start(how, torch.optim.Adam, dials=dials, lr=0.01)
    train(whole, 12)
    for stop, showing in ((0, True), (3, False), (4, True), (11, False)):
        session = start(how, torch.optim.Adam, dials=dials, lr=0.01)
        train(session, stop)
        if showing:
            session.before_forward()
        file = io.BytesIO()
        torch.save(everything(session), file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
        model = network(seed=77)
        model.load_state_dict(state["model"])
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        optimizer.load_state_dict(state["optimizer"])
        fresh = method(how, **dials)
        back = Session(fresh, model, optimizer, total_steps=12, seed=99, resume=state["session"])
        assert back.state.step == stop
        train(back, 12 - stop)
        assert same(everything(whole), everything(back))


def test_resuming_with_weights_of_another_time_is_still_sparse():
    session = start()
    train(session, 3)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    resume = session.state_dict()
    back = Session(method("rigl", **RIGL), model, optimizer, total_steps=12, resume=resume)
    back.masks.check()
    other = nn.Sequential(nn.Linear(6, 10), nn.Linear(10, 4))
    optimizer = torch.optim.SGD(other.parameters(), 0.1)
    with pytest.raises(UserError, match="another model or selector"):
        Session(method("rigl", **RIGL), other, optimizer, total_steps=12, resume=resume)
