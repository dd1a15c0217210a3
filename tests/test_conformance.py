"""What every method of configs/method promises, with every optimizer and kind of network.

A new YAML gets all of it by being there. Each combination trains a few steps once, keeping the
whole state of every step; the tests look at what was kept.
"""

import copy
import io
from dataclasses import dataclass, field
from functools import cache

import pytest
import torch
from expectations import EVERY, EXPECTATIONS, PER_EPOCH, SPARSITY, STEPS, Expectation
from torch import nn

from sparsebench.config.paths import methods
from sparsebench.library import method
from sparsebench.models.tiny import tiny_conv, tiny_mlp, tiny_vit
from sparsebench.sparsity import Session
from sparsebench.sparsity.distributions import allocate
from sparsebench.sparsity.examples import Examples

METHODS = methods()
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}
NETWORKS = {"mlp": tiny_mlp, "conv": tiny_conv, "channels_last": tiny_conv, "transformer": tiny_vit}
RANDOM = {"random", "unexplored", "group_to_group"}  # parts that draw numbers
#: Share of the way from the first to the last sparsity, by progress through the window.
CURVES = {
    "constant": lambda p: 1.0,
    "linear": lambda p: p,
    "cubic": lambda p: 1.0 - (1.0 - p) ** 3,
    "geometric": lambda p: (1.0 - (1.0 - SPARSITY) ** p) / SPARSITY,  # from dense
}
#: Each network with SGD, and the others once: what an optimizer keeps does not depend on it.
PAIRS = [*(("sgd", network) for network in NETWORKS), ("adam", "mlp"), ("adamw", "conv")]
EVERY_CASE = [
    (name, optimizer, network)
    for name in METHODS
    for optimizer, network in PAIRS
    if name not in EXPECTATIONS or network in EXPECTATIONS[name].networks
]
every_case = pytest.mark.parametrize("name, optimizer, network", EVERY_CASE)


@cache
def built(network: str) -> nn.Module:
    torch.manual_seed(0)
    model = NETWORKS[network]((1, 8, 8), 10)
    return model.to(memory_format=torch.channels_last) if network == "channels_last" else model


def build(network: str) -> nn.Module:
    return copy.deepcopy(built(network))


def engine(name: str, sparsity: float = SPARSITY):
    dials = EXPECTATIONS[name].dials if name in EXPECTATIONS else {}
    return method(name, sparsity=sparsity, **{"every": f"{EVERY}it", **dials})


def batches(network: str):
    """Training batches, for methods that look at some before training."""
    return Examples(lambda seed: (batch(seed + t, network) for t in range(3)))


def batch(t: int, network: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(t)
    x = torch.randn(6, 1, 8, 8, generator=generator)
    y = torch.randint(10, (6,), generator=generator)
    if network == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    return x, y


def loss(model: nn.Module, t: int, network: str) -> torch.Tensor:
    x, y = batch(t, network)
    return nn.functional.cross_entropy(model(x), y)


def copied(state):
    """A nested state with tensors of its own."""
    if isinstance(state, torch.Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {key: copied(value) for key, value in state.items()}
    return [copied(v) for v in state] if isinstance(state, list) else state


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@dataclass
class Run:
    """A session and what it kept: the whole state and the masks after 0, 1, 2, ... steps."""

    network: str
    session: Session
    states: list[dict] = field(default_factory=list)
    masks: list[dict[str, torch.Tensor]] = field(default_factory=list)
    alive: list[str] = field(default_factory=list)  # absent weights seen in a forward pass

    def watch(self) -> None:
        modules = dict(self.session.state.model.named_modules())
        for name in self.session.masks:
            module = modules[name.rpartition(".")[0]]
            module.register_forward_pre_hook(lambda module, _, name=name: self._look(name, module))

    def _look(self, name: str, module: nn.Module) -> None:
        if module.weight.detach()[~self.session.masks[name]].any():
            self.alive.append(f"{name} at step {self.session.state.step}")

    def keep(self) -> None:
        session = self.session
        everything = {
            "model": session.state.model.state_dict(),
            "optimizer": session.state.optimizers[0].state_dict(),
            "session": session.state_dict(),
        }
        self.states.append(copied(everything))
        self.masks.append(dict(session.masks.items()))

    def train(self, steps: int) -> "Run":
        session = self.session
        model, (optimizer,) = session.state.model, session.state.optimizers
        for _ in range(steps):
            session.before_forward()
            loss(model, session.state.step, self.network).backward()
            session.after_backward()
            optimizer.step()
            optimizer.zero_grad()
            session.after_step()
            self.keep()
        return self


def begin(name, optimizer, network, sparsity=SPARSITY, seed=0, state=None) -> Run:
    model = build(network)
    made = OPTIMIZERS[optimizer](model.parameters())
    if state is not None:
        model.load_state_dict(state["model"])
        made.load_state_dict(state["optimizer"])
    session = Session(
        engine(name, sparsity), model, made, total_steps=STEPS, steps_per_epoch=PER_EPOCH,
        seed=seed, resume=state and state["session"], examples=batches(network),
    )  # fmt: skip
    run = Run(network, session)
    run.watch()
    run.keep()
    return run


@cache
def whole(name: str, optimizer: str, network: str) -> Run:
    return begin(name, optimizer, network).train(STEPS)


@cache
def dense(optimizer: str, network: str) -> dict:
    """Training without any of this package's doing."""
    model = build(network)
    made = OPTIMIZERS[optimizer](model.parameters())
    for t in range(STEPS):
        loss(model, t, network).backward()
        made.step()
        made.zero_grad()
    return {"model": model.state_dict(), "optimizer": made.state_dict()}


def differences(a, b, where="") -> list[str]:
    """Paths at which two nested states are not bitwise equal."""
    if isinstance(a, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
    if isinstance(a, dict):
        keys = [] if list(a) == list(b) else [f"{where}: {list(a)} or {list(b)}"]
        return keys or [d for k in a for d in differences(a[k], b[k], f"{where}.{k}")]
    if isinstance(a, list | tuple) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return [d for i, (x, y) in pairs for d in differences(x, y, f"{where}.{i}")]
    return [] if a == b else [where]


def is_sparse(spec) -> bool:
    """Dense and small dense networks have masks of ones only."""
    return spec.sparse and not spec.shrink


def steps_of(text: str) -> int:
    assert text.endswith("%"), "the tests' run is short: give the window in percent of training"
    return round(float(text[:-1]) * STEPS / 100)


def sparsity_after(spec, t: int) -> float:
    """The sparsity a method should have, from its YAML and the papers' formulas."""
    if not is_sparse(spec):
        return 0.0
    first, end = steps_of(spec.begin), steps_of(spec.end)
    start = spec.initial_sparsity
    if spec.sparsity_schedule == "once":
        return SPARSITY if t >= first else start
    done = max(0, min(t, end) - first) // EVERY
    progress = done / max((end - first) // EVERY, 1)
    return start + (SPARSITY - start) * CURVES[spec.sparsity_schedule](progress)


def counts_after(run: Run, t: int) -> dict[str, int]:
    """Connections of each layer after ``t`` steps, from sparsity and distribution."""
    engine, masks = run.session.method, run.session.masks
    density = 1.0 - sparsity_after(engine.spec, t)
    if density == 1.0:
        return masks.sizes
    d = engine.distribution
    shapes = {name: p.shape for name, p in masks.parameters.items()}
    options = {"power": d.power, "fc_density": d.fc_density, "compat": d.compat}
    return allocate(
        shapes, density, name=d.name, first_dense=d.first_dense, last_dense=d.last_dense,
        fixed=d.fixed, **options,
    )  # fmt: skip


def layers_have_counts(spec) -> bool:
    """Whether each layer's count follows the distribution, and not only their sum."""
    scopes = {spec.drop_scope, spec.grow_scope}
    if spec.sparsity_schedule != "constant":
        scopes.add(spec.scope)
    return scopes == {"layer"} and spec.redistribute is None


@every_case
def test_counts_are_exact_at_every_step(name, optimizer, network):
    run = whole(name, optimizer, network)
    for t, masks in enumerate(run.masks):
        found = {layer: int(mask.sum()) for layer, mask in masks.items()}
        if name in EXPECTATIONS:
            check_promise(EXPECTATIONS[name], t, found, run.session.masks.sizes)
            continue
        expected = counts_after(run, t)
        assert sum(found.values()) == sum(expected.values())
        if layers_have_counts(run.session.method.spec):
            assert found == expected
    assert run.session.masks.nonzeros == found


def check_promise(promise: Expectation, t: int, found: dict[str, int], sizes: dict[str, int]):
    if promise.nonzeros:
        assert sum(found.values()) == promise.nonzeros(t, sizes)
    if promise.layers:
        assert found == promise.layers(t, sizes)
    if promise.bounds:
        least, most = promise.bounds(t)
        assert least <= 1 - sum(found.values()) / sum(sizes.values()) <= most


@every_case
def test_absent_weights_are_zero_and_their_state_too(name, optimizer, network):
    run = whole(name, optimizer, network)
    if EXPECTATIONS.get(name, Expectation()).absent_are_zero:
        assert run.alive == []
    if run.session.masks.storage == "shadow":  # absent weights learn, and need their state
        return
    names = [n for n, _ in run.session.state.model.named_parameters()]
    for state, masks in zip(run.states, run.masks, strict=True):
        for layer, mask in masks.items():
            if run.session.masks.storage == "zeroed":
                assert not state["model"][layer][~mask].any()
            kept = state["optimizer"]["state"].get(names.index(layer), {})
            for value in kept.values():
                assert value.shape != mask.shape or not value[~mask].any()


@every_case
def test_new_connections_start_from_nothing(name, optimizer, network):
    run = whole(name, optimizer, network)
    if not EXPECTATIONS.get(name, Expectation()).new_from_zero:
        return
    names = [n for n, _ in run.session.state.model.named_parameters()]
    for t in range(1, STEPS + 1):
        for layer, mask in run.masks[t].items():
            new = mask & ~run.masks[t - 1][layer]
            if not new.any():
                continue
            state = run.states[t]["optimizer"]["state"][names.index(layer)]
            tensors = [value for value in state.values() if value.shape == mask.shape]
            assert tensors
            if run.session.masks.storage == "zeroed":
                tensors.append(run.states[t]["model"][layer])
            if run.session.masks.storage != "shadow":
                assert not any(value[new].any() for value in tensors)


@every_case
def test_resume_is_bitwise_from_every_step(name, optimizer, network):
    run = whole(name, optimizer, network)
    for t in range(STEPS):  # the state after t + 1 steps is a function of that after t steps
        kept = copied if t % 5 else through_a_file  # files are slow
        state = kept(run.states[t])
        resumed = begin(name, optimizer, network, seed=99, state=state)
        assert differences(run.states[t], resumed.states[0]) == []
        resumed.train(1)
        assert differences(run.states[t + 1], resumed.states[1]) == []


@every_case
def test_seeds(name, optimizer, network):
    run = whole(name, optimizer, network)
    again = begin(name, optimizer, network).train(STEPS)
    assert differences(run.states, again.states) == []
    other = begin(name, optimizer, network, seed=1).train(2)
    spec = run.session.method.spec
    draws = bool({spec.initial, spec.prune, spec.drop, spec.grow} & RANDOM) and is_sparse(spec)
    draws |= spec.initial_shuffle or EXPECTATIONS.get(name, Expectation()).draws
    differ = any(not torch.equal(m, run.masks[2][n]) for n, m in other.masks[2].items())
    assert differ == draws


@every_case
def test_sparsity_0_is_dense_training(name, optimizer, network):
    run = begin(name, optimizer, network, sparsity=0.0).train(STEPS)
    last = {part: run.states[-1][part] for part in ("model", "optimizer")}
    if EXPECTATIONS.get(name, Expectation()).dense_at_zero:
        assert differences(last, dense(optimizer, network)) == []
    if not is_sparse(run.session.method.spec):  # then at any sparsity
        last = {part: whole(name, optimizer, network).states[-1][part] for part in last}
        assert differences(last, dense(optimizer, network)) == []


@every_case
def test_masks_change_until_the_end_and_no_longer(name, optimizer, network):
    run = whole(name, optimizer, network)
    spec, promise = run.session.method.spec, EXPECTATIONS.get(name)
    end = promise.until * STEPS if promise else steps_of(spec.end)
    changes = {
        t
        for t in range(1, STEPS + 1)
        for layer, mask in run.masks[t].items()
        if not torch.equal(mask, run.masks[t - 1][layer])
    }
    assert all(t <= end for t in changes)
    moves = spec.drop is not None or spec.sparsity_schedule != "constant"
    moves = (moves or spec.storage != "zeroed") and is_sparse(spec)
    expected = promise.changes if promise else moves
    assert expected is None or bool(changes) == expected


@pytest.mark.parametrize(
    "name, network",
    [(name, network) for name, optimizer, network in EVERY_CASE if optimizer == "sgd"],
)
def test_only_weights_are_masked_and_no_name_changes(name, network):
    run = whole(name, "sgd", network)
    model = run.session.state.model
    layers = (nn.Linear, nn.Conv2d)
    modules = model.named_modules()
    weights = [f"{n}.weight" for n, module in modules if isinstance(module, layers)]
    assert list(run.session.masks) == weights
    assert list(model.state_dict()) == list(build(network).state_dict())
    for n, parameter in model.named_parameters():
        assert n in weights or parameter.ndim < 2 or "." not in n  # tokens and positions
