"""Train and test an image classifier."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sparsebench.tasks.task import Prepared, Task, entry

if TYPE_CHECKING:
    from sparsebench.training.learner import Learner


@dataclass(frozen=True)
class Options:
    """What is measured beside loss and accuracy."""

    dead_neurons: bool = field(default=False, metadata={"choices": (True, False)})


class Classification(Task):
    """Cross-entropy training; the test gives loss, accuracy and top-5 accuracy.

    With ``+task.options.dead_neurons=true`` also ``dead_neurons/rate``: of all ReLUs and images
    held out for validation (of the test images, if none are), the share of outputs that are 0.
    """

    Options = Options

    def learner(self, prepared: Prepared) -> Learner:
        """A classifier."""
        from sparsebench.training.classifier import Classifier

        sets = prepared.data
        return Classifier(
            prepared.model, self.cfg, sets.num_classes, len(sets.input_shape), prepared.method
        )

    def figures(self, prepared: Prepared, learner: Learner) -> dict[str, float]:
        """The share of dead neurons, if it is asked for and the network has ReLUs."""
        if not self.options.dead_neurons:
            return {}
        from sparsebench.data import EvalLoader
        from sparsebench.sparsity.topology import dead_neuron_rate

        sets, device = prepared.data, next(prepared.model.parameters()).device
        images = sets.test if sets.validation is None else sets.validation
        batches = EvalLoader(images, max(2 * self.cfg.batch_size, 256))
        rate = dead_neuron_rate(prepared.model, (x.to(device) for x, _ in batches))
        return {} if rate is None else {"dead_neurons/rate": rate}


prepare, run = entry(Classification)
