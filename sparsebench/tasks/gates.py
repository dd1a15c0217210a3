"""Train a classifier whose filters have gates: each image passes those that it needs (FTWT).

Elkerdawy et al. 2022, arXiv 2110.08232; the gates are those of ``sparsebench.models.gates``. Until
``warmup`` the network is trained as it would be without gates, which learn by watching; then they
shut; at ``cooldown`` the predictors are frozen. By default the first half of training stands for
the trained network that the paper begins with, and half of the rest is left to frozen gates, as in
its code. To begin with a trained network give ``model.checkpoint`` and ``warmup=0ep``.

Beside the method's own sparsity of weights the result has ``flops/inference_gated``, the mean over
the test images of what the gates leave to compute, predictors included, and more (:meth:`figures`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from sparsebench.errors import UserError
from sparsebench.sparsity.compact import compact, removes_channels
from sparsebench.sparsity.flops import LayerFlops, layer_flops
from sparsebench.sparsity.spec import duration, number
from sparsebench.sparsity.time import Duration
from sparsebench.tasks.task import Prepared, Task, entry

if TYPE_CHECKING:
    from sparsebench.training.learner import Learner

#: Training images by which the promise of a mass is made.
PROMISED_BY = 1024


@dataclass(frozen=True)
class Options:
    """Options of the task."""

    gates: str = field(
        default="predicted", metadata={"choices": ("predicted", "truth", "random", "off")}
    )
    mass: float = number(0.9, "(0, 1]", "share of the activation that filters must make up")
    include_crossing: bool = field(default=False, metadata={"choices": (True, False)})
    warmup: str = duration("50%", "how long the gates only watch")
    cooldown: str = duration("75%", "when predictors stop learning")
    weight: float = number(10.0, "(0, inf)", "factor on the loss of the predictors")
    softmax: bool = field(default=True, metadata={"choices": (True, False)})
    joint: bool = field(default=False, metadata={"choices": (True, False)})


class GatesTask(Task):
    """Classification by a network with gates.

    With SGD the factor ``weight`` is a learning rate of the predictors of so many times the
    network's: 10, as in the official code (0.1 beside 0.01). There it stays and decays nothing;
    here both follow the schedule and the weight decay of the run. The softmax before a predictor is
    the code's too; it leaves differences of about one over the channels, and a short training
    needs ``softmax=false`` for gates that tell one image from another.
    """

    Options = Options

    def check(self, prepared: Prepared) -> None:
        """Put the gates into the network.

        Raises:
            UserError: they do not fit it, or what else is asked for.
        """
        options, cfg = self.options, self.cfg
        if options.gates == "off":
            return
        from sparsebench.models.gates import Gates, Rule

        if removes_channels(prepared.method):
            raise UserError(
                f"task.options.gates={options.gates}: method={cfg.method.name} with "
                f"structure={cfg.structure.name} removes filters for good; gates=off compares it"
            )
        if cfg.trainer.compile:
            raise UserError(
                "trainer.compile=true: gates remember which filters passed, and torch.compile "
                "keeps no such memory"
            )
        shape = self.shapes(prepared.data.input_shape, prepared.data.num_classes)[0]
        rule = Rule(
            options.gates, options.mass, options.include_crossing, options.softmax, options.joint
        )
        self.gates = Gates(prepared.model, rule, layer_flops(prepared.model, shape))
        found = prepared.flops
        prepared.flops = LayerFlops(found.dense, found.other + self.gates.overhead)

    def learner(self, prepared: Prepared) -> Learner:
        """A classifier, with gates unless they are off."""
        from sparsebench.training.classifier import Classifier
        from sparsebench.training.gated import GatedClassifier, Timing

        sets, cfg, options = prepared.data, self.cfg, self.options
        if options.gates == "off":
            return Classifier(
                prepared.model, cfg, sets.num_classes, len(sets.input_shape), prepared.method
            )
        per_epoch = len(sets.train) // cfg.batch_size
        steps = per_epoch * cfg.epochs
        shut, freeze = (
            Duration.parse(getattr(options, name), f"task.options.{name}").steps(steps, per_epoch)
            for name in ("warmup", "cooldown")
        )
        places = spread(len(sets.train), PROMISED_BY)
        return GatedClassifier(
            self.gates, Timing(shut, freeze, options.weight),
            lambda: sets.train.batches(torch.split(places, 256)), cfg,
            sets.num_classes, len(sets.input_shape), prepared.method,
        )  # fmt: skip

    def figures(self, prepared: Prepared, learner: Learner) -> dict[str, float]:
        """What the gates leave to compute, over the test images.

        Returns:
            ``flops/inference_gated`` (mean), ``flops/inference_gated_std`` (over images),
            ``flops/inference_gated_relative`` (to the dense network), ``flops/predictors``,
            ``flops/inference_promised`` (by the mass, before the gates shut),
            ``flops/promise_error`` (share by which the mean is off that, predictors apart),
            ``gates/open`` (share of filters that pass) and ``gates/agreement`` (share of filters
            for which gate and truth say the same). Without gates the FLOPs are those of the
            sparse network, for the same table.
        """
        if self.options.gates == "off":
            cost = self._without_gates(prepared)
            return {
                "flops/inference_gated": cost,
                "flops/inference_gated_relative": cost / prepared.dense_forward,
            }
        from sparsebench.data import EvalLoader
        from sparsebench.training.gated import GatedClassifier

        assert isinstance(learner, GatedClassifier)
        gates = self.gates
        costs, opened, agreed = [], [], []
        learner.eval()
        with torch.no_grad():
            for x, _ in EvalLoader(prepared.data.test, max(2 * self.cfg.batch_size, 256)):
                learner(x.to(learner.device))
                passed, truth = gates.passed(), gates.truth()
                costs.append(gates.flops(passed))
                opened.append(torch.cat(list(passed.values()), 1).float().mean(1))
                agreed.append(torch.cat([passed[n] == truth[n] for n in truth], 1).float().mean(1))
        cost_of_each = torch.cat(costs)
        mean = float(cost_of_each.mean())
        found = {
            "flops/inference_gated": mean,
            "flops/inference_gated_std": float(cost_of_each.std(correction=0)),
            "flops/inference_gated_relative": mean / prepared.dense_forward,
            "flops/predictors": float(gates.overhead),
            "gates/open": float(torch.cat(opened).mean()),
            "gates/agreement": float(torch.cat(agreed).mean()),
        }
        if learner.promised is not None:
            found["flops/inference_promised"] = learner.promised
            found["flops/promise_error"] = abs((mean - gates.overhead) / learner.promised - 1.0)
        return found

    def _without_gates(self, prepared: Prepared) -> float:
        """FLOPs of the sparse network, of the small one where whole filters are gone."""
        sets = prepared.data
        shape = self.shapes(sets.input_shape, sets.num_classes)[0]
        if removes_channels(prepared.method):
            return float(self.flops(compact(prepared.model).model, shape).total)
        weights = dict(prepared.model.named_parameters())
        alive = {n: float(weights[n].ne(0).double().mean()) for n in prepared.flops.dense}
        return prepared.flops.forward(alive)


def spread(length: int, number: int) -> torch.Tensor:
    """So many positions of a set, evenly apart; all of a set that is smaller."""
    return torch.linspace(0, length - 1, min(length, number)).long()


prepare, run = entry(GatesTask)
