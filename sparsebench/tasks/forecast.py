"""Forecast a field from sensors, of which some may be switched off while the forecaster learns.

DynST (Wu et al. 2024, arXiv 2403.02914; no public code that we could read): sparsity is of input
locations. One mask of places holds for all times, as it multiplies each time alike
(:class:`sparsebench.sparsity.sensors.Sensors`); places are dropped by their influence on the loss
and revived while training goes on (``method=dynst``). Any other method chooses sensors too, as they
are weights like others: ``method=static`` at random, with ``method.initial=signal`` by the variance
of their data, with ``method.initial=saliency`` by one look at the gradient.

On purpose we differ: the paper learns a mask for each time and merges them, here there is one from
the start; a revived place begins at factor 1, as all did.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from sparsebench.config.importing import resolve
from sparsebench.data import DataSets, advection
from sparsebench.data.options import Options as DataOptions
from sparsebench.sparsity.flops import LayerFlops
from sparsebench.sparsity.sensors import Sensors
from sparsebench.tasks.build import container
from sparsebench.tasks.task import Prepared, Shape, Task, entry

if TYPE_CHECKING:
    from sparsebench.training.learner import Learner


class Forecast(Task):
    """Learns to forecast by mean squared error; tells how many kept sensors are informative."""

    def load(self) -> DataSets:
        """Windows of a field, the last ones to test on."""
        config = container(self.cfg.data)
        options = DataOptions.of(config)
        target = str(config["_target_"])
        builder: Any = resolve(target, "data._target_", list(self.cfg.allow))
        return advection.split(advection.check(builder(config), options.name), options)

    def flops(
        self, model: nn.Module, shape: Shape, *, names: Iterable[str] | None = None
    ) -> LayerFlops:
        """As usual; what reads a sensor costs nothing where there is none.

        So the FLOPs of the first layer are booked to the sensors, if they are chosen and the
        weights of that layer are not.
        """
        chosen = list(names) if names is not None else []
        sensors = next((n for n, m in model.named_modules() if isinstance(m, Sensors)), None)
        name = f"{sensors}.weight"
        found = super().flops(model, shape)
        if sensors is None or name not in chosen:
            return super().flops(model, shape, names=names)
        dense = dict(found.dense)
        first = next(iter(dense), None)
        dense[name] = dense.pop(first) if first is not None and first not in chosen else 0
        return LayerFlops(dense, found.other)

    def learner(self, prepared: Prepared) -> Learner:
        """A forecaster."""
        from sparsebench.training.regressor import Regressor

        return Regressor(prepared.model, self.cfg, prepared.method)

    def figures(self, prepared: Prepared, learner: Learner) -> dict[str, float]:
        """Sensors kept, how many of them are informative, and the error of the mean."""
        sets: Any = prepared.data
        known = sets.train.tensors[1].mean(0)
        found = {"mean/loss": float((sets.test.tensors[1] - known).square().mean())}
        for module in learner.model.modules():
            if isinstance(module, Sensors):
                kept = module.weight.detach().cpu() != 0
                found["sensors/kept"] = float(kept.sum())
                found["sensors/overlap"] = overlap(kept, sets.facts["informative"])
        return found


def overlap(kept: Tensor, informative: Tensor) -> float:
    """How many kept sensors are informative, as a share of the most that could be.

    Args:
        kept: bool [height, width].
        informative: bool [height, width].

    Returns:
        |kept and informative| / min(|kept|, |informative|), in [0, 1]; 0 if either is empty.
    """
    most = min(int(kept.sum()), int(informative.sum()))
    return float((kept & informative).sum()) / most if most else 0.0


prepare, run = entry(Forecast)
