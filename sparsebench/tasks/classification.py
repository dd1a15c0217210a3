"""Train and test an image classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsebench.tasks.task import Prepared, Task, entry

if TYPE_CHECKING:
    from sparsebench.training.learner import Learner


class Classification(Task):
    """Cross-entropy training; the test gives loss, accuracy and top-5 accuracy."""

    def learner(self, prepared: Prepared) -> Learner:
        """A classifier."""
        from sparsebench.training.classifier import Classifier

        sets = prepared.data
        return Classifier(
            prepared.model, self.cfg, sets.num_classes, len(sets.input_shape), prepared.method
        )


prepare, run = entry(Classification)
