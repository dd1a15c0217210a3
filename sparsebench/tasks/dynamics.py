"""Learn a system's dynamics with few ReLUs, and control it by what was learned.

After "Model-Based Control with Sparse Neural Dynamics" (Liu et al. 2023, arXiv 2312.12791). The
network trains with all its ReLUs for a share of the time; then each hidden unit learns a choice
{ReLU, identity, zero} by Gumbel-softmax beside the weights, while the ReLUs allowed fall in stages.
In a stage a penalty pulls their expected number to the stage's, and at its end all but so many, the
likeliest, are barred from being ReLUs for good. After the last the likeliest choices stand, and the
weights learn on. Units without ReLU are folded away (``sparsebench.models.relu_dynamics.fold``) and
the system is controlled in closed loop (:mod:`sparsebench.control`): by mixed-integer programming
with one binary for each ReLU and step, or by sampling.

We know the paper's algorithm from its text, no code is public that we could read. On purpose
we differ: HiGHS instead of Gurobi, absolute instead of squared distances, stages of equal ratio and
a hard end of each, so that the number of ReLUs is certain. Sparse weights (``method``) combine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparsebench import control
from sparsebench.config.importing import resolve
from sparsebench.data import DataSets, systems
from sparsebench.data.options import Options as DataOptions
from sparsebench.data.seeding import generator
from sparsebench.errors import UserError, bad_value
from sparsebench.models.relu_dynamics import Folded, ReluDynamics, fold
from sparsebench.sparsity.spec import number, whole
from sparsebench.tasks.build import container
from sparsebench.tasks.task import Prepared, Shape, Task, entry

if TYPE_CHECKING:
    from sparsebench.training.learner import Learner


@dataclass(frozen=True)
class Options:
    """Options of the task."""

    relus: int | None = whole(None, 0, "ReLUs to keep at most; null: all")
    stages: int = whole(4, 1, "in how many steps their number falls")
    warmup: float = number(0.2, "[0, 1)", "share of training before the first")
    freeze: float = number(0.8, "(0, 1]", "share of training after which the choices are made")
    penalty: float = number(0.1, "[0, inf)", "on the share of ReLUs above a stage's number")
    temperature: float = number(1.0, "(0, inf)", "of the relaxed choices")
    hard: bool = field(default=False, metadata={"choices": (True, False)})
    planner: str = field(default="milp", metadata={"choices": ("milp", "cem", "shooting", "none")})
    horizon: int = whole(5, 1, "steps of a plan")
    steps: int = whole(12, 1, "steps of control in closed loop")
    effort: float = number(0.01, "[0, inf)", "cost of a unit of control")
    nodes: int = whole(200, 1, "nodes of the search tree of a plan at most")
    gap: float = number(0.01, "[0, 1)", "share of its cost by which a plan may miss the best")
    samples: int = whole(200, 2, "plans sampled in an iteration")
    iterations: int = whole(4, 1, "iterations of the cross-entropy method")


class Dynamics(Task):
    """Learns to predict; the test tells the error, the ReLUs, and what control costs.

    Squared errors of a state are relative to its mean squared change in a step: 1 is as good as to
    predict that nothing moves.
    """

    Options = Options

    def load(self) -> DataSets:
        """Trajectories of a system under random controls."""
        config = container(self.cfg.data)
        options = DataOptions.of(config)
        target = str(config["_target_"])
        builder: Any = resolve(target, "data._target_", list(self.cfg.allow))
        self.system = systems.check(builder(config), options.name)
        return systems.trajectories(self.system, options)

    def refusal(self, model: nn.Module, like: tuple[Shape, int]) -> str | None:
        """Only a network with gates can lose its ReLUs."""
        return None if isinstance(model, ReluDynamics) else "its hidden units have no gates"

    def check(self, prepared: Prepared) -> None:
        """There must be as many ReLUs as are to stay, and time for all stages."""
        model, options = prepared.model, self.options
        if not isinstance(model, ReluDynamics):
            raise UserError(
                f"model={self.cfg.model.name}: its hidden units have no gates; "
                "model=relu_dynamics has"
            )
        if options.relus is not None and options.relus > model.units:
            allowed = f"the network has {model.units} hidden units"
            raise bad_value("task.options.relus", options.relus, allowed)
        if options.freeze <= options.warmup:
            allowed = f"must be above task.options.warmup={options.warmup}"
            raise bad_value("task.options.freeze", options.freeze, allowed)

    def learner(self, prepared: Prepared) -> Learner:
        """A predictor of trajectories."""
        from sparsebench.training.dynamics import Dynamics as Module
        from sparsebench.training.dynamics import Stages

        model, options = prepared.model, self.options
        assert isinstance(model, ReluDynamics)
        stages = None
        if options.relus is not None:
            stages = Stages(
                model.units, options.relus, options.stages, options.warmup, options.freeze
            )
        rows: Any = prepared.data.train
        change = rows.tensors[2][:, 0] - rows.tensors[0]
        scale = change.square().mean(0).sqrt().clamp_min(1e-6)
        return Module(
            model, self.cfg, scale, stages, options.penalty, options.temperature, options.hard,
            prepared.method,
        )  # fmt: skip

    def figures(self, prepared: Prepared, learner: Learner) -> dict[str, float]:
        """Size of the folded network, and how the system is controlled by it."""
        model = learner.model
        assert isinstance(model, ReluDynamics)
        folded = fold(model)
        found: dict[str, float] = {
            "relus": folded.relus,
            "folded/parameters": sum(p.numel() for p in folded.parameters()),
            "folded/error": _largest_difference(model, folded, prepared.data.test),
        }
        if self.system.relus is not None:
            found["relus/true"] = self.system.relus
        if self.options.planner == "none":
            return found
        if self.options.planner == "milp":
            found["binaries"] = folded.relus * self.options.horizon
        outcome = self.control(folded)
        return found | {
            "closed_loop/cost": outcome.cost,
            "closed_loop/final": outcome.final,
            "closed_loop/optimal": outcome.optimal,
            "seconds/planning": outcome.seconds,
        }

    def control(self, net: Folded) -> control.Outcome:
        """Bring the true system to its goal, planning with a network."""
        system, options = self.system, self.options
        aim = control.Aim(
            system.goal, system.weights, system.limit, options.effort, options.horizon
        )
        stream = generator("planning", self.cfg.seed)

        def planner(x: Tensor) -> control.Plan:
            if options.planner == "milp":
                return control.plan_milp(net, x, aim, options.nodes, options.gap)
            iterations = options.iterations if options.planner == "cem" else 1
            return control.plan_cem(
                net, x, aim, system.controls, stream,
                samples=options.samples * options.iterations // iterations, iterations=iterations,
            )  # fmt: skip

        return control.closed_loop(system.step, system.starts, aim, options.steps, planner)


@torch.no_grad()
def _largest_difference(model: ReluDynamics, folded: Folded, rows: Any) -> float:
    """Between the predictions of a network and of its folded twin, on the test's first states."""
    inputs = torch.cat([rows.tensors[0], rows.tensors[1][:, 0]], 1)
    device = next(model.parameters()).device
    found = model(inputs.to(device)).cpu().double() - folded(inputs.double())
    return float(found.abs().max())


prepare, run = entry(Dynamics)
