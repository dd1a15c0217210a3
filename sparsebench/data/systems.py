"""Synthetic systems to be learned and controlled, some of them ReLU networks of known size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsebench.data.images import DataSets
from sparsebench.data.options import Options
from sparsebench.data.tensors import TensorRows, fingerprint
from sparsebench.errors import UserError, bad_value
from sparsebench.sparsity.fields import read_options
from sparsebench.sparsity.spec import number, whole

Step = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class System:
    """A system x' = step(x, u), and what it is to be brought to.

    Attributes:
        step: next states [N, n] of states [N, n] and controls [N, m].
        draw: so many states to begin with [N, n], from a generator.
        limit: controls are in [-limit, limit].
        controls: number of controls m.
        starts: states [E, n] from which control begins.
        goal: state [n] to reach.
        weights: cost of a unit of |x - goal|, for each state [n].
        relus: number of ReLUs of a network that is this system; None if no such is known.
        trajectories: number of trajectories to train and validate on, and to test on.
        length: steps of a trajectory.
        seed: of the trajectories.
    """

    step: Step
    draw: Callable[[int, torch.Generator], Tensor]
    limit: float
    controls: int
    starts: Tensor
    goal: Tensor
    weights: Tensor
    relus: int | None
    trajectories: tuple[int, int]
    length: int
    seed: int


@dataclass(frozen=True)
class Pieces:
    """Options of :func:`piecewise`."""

    states: int = whole(2, 1, "number of states")
    controls: int = whole(2, 1, "number of controls")
    relus: int = whole(3, 0, "ReLUs, that is planes at which the system switches")
    train: int = whole(2000, 1, "trajectories to train and validate on")
    test: int = whole(500, 1, "trajectories to test on")
    length: int = whole(4, 1, "steps of a trajectory")
    starts: int = whole(3, 1, "states from which control begins")
    seed: int = whole(0, 0, "of the system and of the data")


def piecewise(config: Mapping[str, Any]) -> System:
    """Piecewise affine: x' = A x + B u + sum_k v_k max(0, w_k x - d_k).

    A turns (in pairs of states) and shrinks by 0.9, columns of B are random directions times 0.5,
    w_k are random directions, d_k uniform in [-0.5, 0.5] and v_k random directions of the length
    0.8 / sqrt(relus), or against w_k where the two point the same way, so that no ReLU drives away.
    Training states are uniform in [-2, 2], controls in [-1, 1]; the goal is the origin.

    Args:
        config: the group ``data``; its ``args`` are those of :class:`Pieces`.
    """
    plan = read_options(Pieces, config.get("args") or {}, "data.args")
    stream = torch.Generator().manual_seed(plan.seed)

    def directions(number: int, size: int) -> Tensor:
        found = torch.randn(number, size, generator=stream)
        return nn.functional.normalize(found, dim=1)

    a = 0.9 * _turn(plan.states, 0.4)
    b = 0.5 * directions(plan.controls, plan.states).T
    w, v = directions(plan.relus, plan.states), directions(plan.relus, plan.states)
    v = torch.where((w * v).sum(1, keepdim=True) > 0, -v, v) * 0.8 / max(plan.relus, 1) ** 0.5
    d = torch.rand(plan.relus, generator=stream) - 0.5

    def step(x: Tensor, u: Tensor) -> Tensor:
        w_, v_, d_, a_, b_ = (tensor.to(x) for tensor in (w, v, d, a, b))
        return x @ a_.T + u @ b_.T + (x @ w_.T - d_).relu() @ v_

    def draw(count: int, generator: torch.Generator) -> Tensor:
        return 4.0 * torch.rand(count, plan.states, generator=generator) - 2.0

    return System(
        step=step, draw=draw, limit=1.0, controls=plan.controls, starts=draw(plan.starts, stream),
        goal=torch.zeros(plan.states), weights=torch.ones(plan.states), relus=plan.relus,
        trajectories=(plan.train, plan.test), length=plan.length, seed=plan.seed,
    )  # fmt: skip


def _turn(states: int, angle: float) -> Tensor:
    """Rotation of each pair of states; a state left over stays."""
    found = torch.eye(states)
    cosine, sine = torch.cos(torch.tensor(angle)), torch.sin(torch.tensor(angle))
    for i in range(0, states - 1, 2):
        found[i : i + 2, i : i + 2] = torch.stack(
            [torch.stack([cosine, -sine]), torch.stack([sine, cosine])]
        )
    return found


@dataclass(frozen=True)
class Push:
    """Options of :func:`pushing`."""

    radius: float = number(0.4, "(0, inf)", "distance that the pusher keeps from the object")
    reach: float = number(0.3, "(0, inf)", "greatest move of the pusher a step, in each direction")
    train: int = whole(4000, 1, "trajectories to train and validate on")
    test: int = whole(1000, 1, "trajectories to test on")
    length: int = whole(4, 1, "steps of a trajectory")
    starts: int = whole(3, 1, "states from which control begins")
    seed: int = whole(0, 0, "of the data")


def pushing(config: Mapping[str, Any]) -> System:
    """A point in the plane pushes a round object without friction or momentum.

    State: pusher (2), object (2). The pusher moves by the control; if it comes nearer to the
    object than ``radius``, the object is moved straight away from it until it is not:
    o' = p' + radius (o - p') / |o - p'|. The object is to get to the origin.

    Args:
        config: the group ``data``; its ``args`` are those of :class:`Push`.
    """
    plan = read_options(Push, config.get("args") or {}, "data.args")

    def step(x: Tensor, u: Tensor) -> Tensor:
        pusher, thing = x[:, :2] + u, x[:, 2:]
        away = thing - pusher
        distance = away.norm(dim=1, keepdim=True).clamp_min(1e-9)
        pushed = pusher + plan.radius * away / distance
        return torch.cat([pusher, torch.where(distance < plan.radius, pushed, thing)], 1)

    def around(count: int, generator: torch.Generator, size: float) -> Tensor:
        """Objects within a square, the pusher near them."""
        thing = size * (2.0 * torch.rand(count, 2, generator=generator) - 1.0)
        angle = 2.0 * torch.pi * torch.rand(count, generator=generator)
        far = plan.radius * (1.0 + 0.25 * torch.rand(count, generator=generator))
        pusher = thing + far[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
        return torch.cat([pusher, thing], 1)

    stream = torch.Generator().manual_seed(plan.seed)
    return System(
        step=step, draw=lambda count, generator: around(count, generator, 1.0), limit=plan.reach,
        controls=2, starts=around(plan.starts, stream, 1.0), goal=torch.zeros(4),
        weights=torch.tensor([0.0, 0.0, 1.0, 1.0]), relus=None,
        trajectories=(plan.train, plan.test), length=plan.length, seed=plan.seed,
    )  # fmt: skip


def trajectories(system: System, options: Options) -> DataSets:
    """Trajectories of random controls, for training, validation and test.

    Args:
        system: what is simulated.
        options: the config group ``data``: name and ``validation``, a share of the training
            trajectories or a count of them.

    Returns:
        Rows are a first state [n], controls [length, m] and states to be predicted [length, n];
        ``input_shape`` is (n + m,), ``num_classes`` n.

    Raises:
        UserError: dials that mean nothing here, or nothing is left to train on.
    """
    if options.subset is not None:
        raise bad_value("data.subset", options.subset, "set data.args.train for fewer trajectories")
    train, test = system.trajectories
    stream = torch.Generator().manual_seed(system.seed + 1)
    x = first = system.draw(train + test, stream)
    u = system.limit * (
        2.0 * torch.rand(train + test, system.length, system.controls, generator=stream) - 1.0
    )
    states = []
    for t in range(system.length):
        x = system.step(x, u[:, t])
        states.append(x)
    every = TensorRows((first, u, torch.stack(states, 1)))
    share = options.validation
    held = int(share * train) if share < 1 else int(share)
    if not 0 <= held < train or (share and not held):
        raise bad_value("data.validation", share, f"of {train} trajectories, some must stay")
    order = torch.arange(train + test)
    parts = (
        every.select(order[: train - held]),
        every.select(order[train - held : train]) if held else None,
        every.select(order[train:]),
    )
    return DataSets(
        name=options.name,
        num_classes=first.shape[1],
        input_shape=(first.shape[1] + system.controls,),
        train=parts[0],
        validation=parts[1],
        test=parts[2],
        class_names=(),
        fingerprint=fingerprint(*parts),
    )


def check(found: object, name: str) -> System:
    """What a builder gave, if it is a system.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(found, System):
        raise UserError(
            f"data={name}: task=dynamics needs a system, such as data=piecewise or data=pushing"
        )
    return found
