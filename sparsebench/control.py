"""Model-predictive control with networks of ReLUs: by mixed-integer programming, or by sampling.

A plan of H steps from a state is the controls that minimise

    sum_t ( sum_i weights_i |x_t,i - goal_i| + effort sum_j |u_t,j| ),    t = 1 .. H

over what the network predicts. For a network of K ReLUs (:class:`Folded`) this is a mixed-integer
linear program with one binary a for each ReLU and step. With bounds L <= z <= U, y = max(0, z) is

    y >= 0,  y >= z,  y <= U a,  y <= z - L (1 - a)

(big-M, as in Liu et al. 2023, arXiv 2312.12791, who use Gurobi; here HiGHS by ``scipy``). Sampling
is the cross-entropy method; with one iteration that is random shooting.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsebench.models.relu_dynamics import Folded

Array = Any  # of numpy, float64


@dataclass(frozen=True)
class Aim:
    """What a plan is to reach, and by which controls.

    Attributes:
        goal: state [n].
        weights: cost of a unit of |x - goal| [n].
        limit: controls are in [-limit, limit].
        effort: cost of a unit of |u|.
        horizon: steps of a plan.
    """

    goal: Tensor
    weights: Tensor
    limit: float
    effort: float
    horizon: int

    def cost(self, x: Tensor, u: Tensor) -> Tensor:
        """Cost [N] of reaching states [N, n] by controls [N, m]."""
        away = (x - self.goal.to(x)).abs() @ self.weights.to(x)
        return away + self.effort * u.abs().sum(1)


@dataclass(frozen=True)
class Plan:
    """Controls [H, m], the cost that the network predicts, and whether none can be (much) lower."""

    controls: Tensor
    cost: float
    optimal: bool


# --- mixed-integer programming -------------------------------------------------------------------


def bounds(net: Folded, low: Array, high: Array) -> tuple[Array, Array, Array, Array]:
    """Bounds by interval arithmetic, for all inputs in a box.

    Args:
        net: the network.
        low: least inputs [n + m].
        high: greatest.

    Returns:
        Least and greatest values before each ReLU [K], and of the next states [n].
    """
    features, least, greatest = (low, high), [], []
    for layer in net.hidden:
        below, above = _interval(layer, *features)
        least.append(below)
        greatest.append(above)
        features = (
            np.concatenate([features[0], below.clip(0.0)]),
            np.concatenate([features[1], above.clip(0.0)]),
        )
    none = np.zeros(0)
    ends = _interval(net.out, *features)
    return np.concatenate([none, *least]), np.concatenate([none, *greatest]), *ends


def _interval(layer: nn.Module, low: Array, high: Array) -> tuple[Array, Array]:
    weight, bias = _numbers(layer)
    up, down = weight.clip(0.0), weight.clip(None, 0.0)
    return up @ low + down @ high + bias, up @ high + down @ low + bias


def _numbers(layer: nn.Module) -> tuple[Array, Array]:
    assert isinstance(layer, nn.Linear)
    weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
    return weight.cpu().numpy(), bias.cpu().numpy()


class Program:
    """The program of a plan: columns of variables, and rows of constraints.

    Variables of step t: states x[t] (H + 1 of them), controls u[t], what ReLUs give y[t], binaries
    a[t], and the sizes |x[t + 1] - goal| and |u[t]|.
    """

    def __init__(self, net: Folded, start: Tensor, aim: Aim) -> None:
        """Lay out the program of a plan from a state [n]."""
        n, k, steps = len(aim.goal), net.relus, aim.horizon
        m = net.inputs - n
        self.size = 0
        self.x, self.away = self._columns(steps + 1, n), self._columns(steps, n)
        self.u, self.effort = self._columns(steps, m), self._columns(steps, m)
        self.y, self.a = self._columns(steps, k), self._columns(steps, k)
        self.low, self.high = np.full(self.size, -np.inf), np.full(self.size, np.inf)
        self.price = np.zeros(self.size)
        self.price[self.away] = aim.weights.double().numpy()
        self.price[self.effort] = aim.effort
        self.low[self.u], self.high[self.u] = -aim.limit, aim.limit
        self.low[self.x[0]] = self.high[self.x[0]] = start.double().numpy()
        self.rows: list[tuple[Array, Array, float, float]] = []  # columns, factors, low, high
        goal = aim.goal.double().numpy()
        for t in range(steps):
            self._step(net, t)
            for i in range(n):
                self._size(self.away[t, i], self.x[t + 1, i], goal[i])
            for j in range(m):
                self._size(self.effort[t, j], self.u[t, j], 0.0)

    @property
    def binaries(self) -> int:
        """Number of binaries: ReLUs times steps."""
        return int(self.a.size)

    def _columns(self, *shape: int) -> Array:
        count = int(np.prod(shape))
        found = np.arange(self.size, self.size + count).reshape(shape)
        self.size += count
        return found

    def _row(self, columns: Any, factors: Any, low: float, high: float) -> None:
        self.rows.append((np.asarray(columns), np.asarray(factors), low, high))

    def _size(self, size: int, value: int, center: float) -> None:
        """Rows of size >= |value - center|."""
        self._row([size, value], [1.0, -1.0], -center, np.inf)
        self._row([size, value], [1.0, 1.0], center, np.inf)

    def _step(self, net: Folded, t: int) -> None:
        """The next states, and bounds of all that is new."""
        inputs = np.concatenate([self.x[t], self.u[t]])
        least, greatest, low, high = bounds(net, self.low[inputs], self.high[inputs])
        features, at = inputs, 0
        for layer in net.hidden:
            weight, bias = _numbers(layer)
            for row, offset in zip(weight, bias, strict=True):
                self._relu(features, row, offset, (t, at), least[at], greatest[at])
                at += 1
            features = np.concatenate([inputs, self.y[t, :at]])
        weight, bias = _numbers(net.out)
        for row, offset, state in zip(weight, bias, self.x[t + 1], strict=True):
            self._row([*features, state], [*row, -1.0], -offset, -offset)
        self.low[self.x[t + 1]], self.high[self.x[t + 1]] = low, high

    def _relu(
        self, features: Array, row: Array, offset: float, at: tuple[int, int],
        least: float, greatest: float,
    ) -> None:  # fmt: skip
        """Rows of y = max(0, row features + offset)."""
        y, a = self.y[at], self.a[at]
        below, above = min(least, 0.0), max(greatest, 0.0)
        self.low[y], self.high[y] = 0.0, above
        self.low[a], self.high[a] = (
            float(least > 0.0),
            float(greatest >= 0.0),
        )  # on, or off, if sure
        self._row([*features, y], [*-row, 1.0], offset, np.inf)
        self._row([y, a], [1.0, -above], -np.inf, 0.0)
        self._row([*features, y, a], [*-row, 1.0, -below], -np.inf, offset - below)

    def matrix(self) -> tuple[Any, Array, Array]:
        """All constraints as a sparse matrix, with least and greatest values."""
        from scipy.sparse import csr_array

        row = np.concatenate([np.full(len(c), i) for i, (c, *_) in enumerate(self.rows)])
        column = np.concatenate([columns for columns, *_ in self.rows])
        factor = np.concatenate([factors for _, factors, *_ in self.rows])
        shape = (len(self.rows), self.size)
        ends = [np.array([each[i] for each in self.rows]) for i in (2, 3)]
        return csr_array((factor, (row, column)), shape=shape), ends[0], ends[1]


def plan_milp(net: Folded, start: Tensor, aim: Aim, nodes: int = 1000, gap: float = 0.0) -> Plan:
    """The best plan, by branch and bound.

    A limit of nodes and not of time, so that the same program always gives the same plan. If no
    plan is found within it, the controls are 0.

    Args:
        net: the network.
        start: state [n].
        aim: what to reach.
        nodes: of the search tree, at most.
        gap: a plan counts as best if no other can be better by more than this share of its cost.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    program = Program(net, start, aim)
    whole = np.zeros(program.size)
    whole[program.a] = 1
    found = milp(
        program.price, integrality=whole, bounds=Bounds(program.low, program.high),
        constraints=LinearConstraint(*program.matrix()),
        options={"node_limit": nodes, "mip_rel_gap": gap},
    )  # fmt: skip
    if found.x is None:
        nothing = torch.zeros(program.u.shape, dtype=torch.float64)
        return Plan(nothing, float("inf"), optimal=False)
    controls = torch.from_numpy(found.x[program.u]).clamp(-aim.limit, aim.limit)
    return Plan(controls, float(found.fun), optimal=found.status == 0)


# --- sampling ------------------------------------------------------------------------------------


def predicted_cost(net: nn.Module, start: Tensor, controls: Tensor, aim: Aim) -> Tensor:
    """Cost [N] that a network predicts for controls [N, H, m] from a state [n]."""
    x = start.to(controls).expand(len(controls), -1)
    total = controls.new_zeros(len(controls))
    for t in range(controls.shape[1]):
        x = net(torch.cat([x, controls[:, t]], 1))
        total = total + aim.cost(x, controls[:, t])
    return total


@torch.no_grad()
def plan_cem(
    net: nn.Module,
    start: Tensor,
    aim: Aim,
    controls: int,
    generator: torch.Generator,
    *,
    samples: int = 200,
    iterations: int = 4,
    elites: float = 0.1,
) -> Plan:
    """The best plan that the cross-entropy method samples (Rubinstein 1999).

    The first samples are uniform; those of later iterations are normal about the mean of the
    best, with their deviation, and cut off at the limit.

    Args:
        net: the network, of any dtype.
        start: state [n].
        aim: what to reach.
        controls: number of controls m.
        generator: of the samples.
        samples: plans of an iteration.
        iterations: 1 is random shooting.
        elites: share of the samples that are the best.
    """
    shape = (samples, aim.horizon, controls)
    dtype = next(net.parameters()).dtype
    drawn = aim.limit * (2.0 * torch.rand(shape, generator=generator, dtype=dtype) - 1.0)
    best, least = drawn[0], float("inf")
    for left in reversed(range(iterations)):
        cost = predicted_cost(net, start, drawn, aim)
        order = cost.argsort(stable=True)
        if float(cost[order[0]]) < least:
            best, least = drawn[order[0]], float(cost[order[0]])
        if left:
            good = drawn[order[: max(2, round(elites * samples))]]
            noise = torch.randn(shape, generator=generator, dtype=dtype)
            drawn = (good.mean(0) + good.std(0) * noise).clamp(-aim.limit, aim.limit)
    return Plan(best.double(), least, optimal=False)


# --- in closed loop ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What control in closed loop came to, as means over all first states.

    Attributes:
        cost: sum over the steps of the true cost.
        final: weighted distance from the goal at the end.
        seconds: of planning a step.
        optimal: share of the plans that are proven best.
    """

    cost: float
    final: float
    seconds: float
    optimal: float


def closed_loop(
    step: Callable[[Tensor, Tensor], Tensor],
    starts: Tensor,
    aim: Aim,
    steps: int,
    planner: Callable[[Tensor], Plan],
) -> Outcome:
    """Plan, take the plan's first control, and plan anew from where the system has come to.

    Args:
        step: the true system, next states [N, n] of states [N, n] and controls [N, m].
        starts: first states [E, n].
        aim: what to reach.
        steps: of each run.
        planner: gives a plan from a state [n].
    """
    cost = final = seconds = optimal = 0.0
    for start in starts.double():
        x = start[None]
        for _ in range(steps):
            begin = time.perf_counter()
            plan = planner(x[0])
            seconds += time.perf_counter() - begin
            u = plan.controls[:1].double()
            x = step(x, u)
            cost += float(aim.cost(x, u))
            optimal += plan.optimal
        final += float((x - aim.goal.double()).abs() @ aim.weights.double())
    runs = len(starts)
    return Outcome(cost / runs, final / runs, seconds / (runs * steps), optimal / (runs * steps))
