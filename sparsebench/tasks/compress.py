"""Train a classifier, then cluster and quantise its weights: accuracy and bytes after each stage.

The tiny time-series transformer (Allam Jr. et al. 2023, arXiv 2303.08951): pruning is the run's
method, such as ``method=gmp``; then follow, each by itself and both together, clustering of the
selected weights (16 values a layer) with fine-tuning of the centroids, and quantising. Each stage
is a file in the run's folder, a zip as in the paper, whose bytes are counted.

Differs on purpose from the code: there a clustered network is pruned, here a pruned one clustered,
so that it keeps its zeros; fine-tuning moves the centroids only (TensorFlow's tool moves weights
and centroids), by the summed gradient of their weights, with Adam; and codes are packed to
4 bits before the zip, where TensorFlow saves whole floats of few values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparsebench.compress import Compressed, clustered, quantised, save
from sparsebench.data import EvalLoader
from sparsebench.data.loader import TrainLoader
from sparsebench.sparsity.selector import select
from sparsebench.sparsity.spec import number
from sparsebench.tasks.task import Prepared, Task, entry

if TYPE_CHECKING:
    from sparsebench.training.learner import Learner


@dataclass(frozen=True)
class Options:
    """Options of the task; a stage without a number is left out."""

    clusters: int | None = field(default=16, metadata={"least": 2, "most": 256})
    tune: int = field(default=1, metadata={"least": 0, "most": 10_000})
    tune_lr: float = number(1e-3, "(0, inf)", "learning rate of the centroids")
    bits: int | None = field(default=8, metadata={"choices": (2, 3, 4, 5, 6, 7, 8, 16)})


class Compress(Task):
    """Classification, and stages of compression after it."""

    Options = Options
    folder: Path

    def learner(self, prepared: Prepared) -> Learner:
        """A classifier."""
        from sparsebench.training.classifier import Classifier

        sets = prepared.data
        return Classifier(
            prepared.model, self.cfg, sets.num_classes, len(sets.input_shape), prepared.method
        )

    def run(self, folder: Path, prepared: Prepared) -> dict[str, Any]:
        """Train, test, compress."""
        self.folder = folder
        return super().run(folder, prepared)

    def figures(self, prepared: Prepared, learner: Learner) -> dict[str, float]:
        """Accuracy and bytes of each stage.

        Returns:
            ``<stage>/accuracy`` on the test set, its ``<stage>/change`` since training, and
            ``<stage>/bytes`` of the file, for the stages ``trained``, ``clustered``,
            ``quantised`` and ``clustered_quantised``; and ``clustered_quantised/ratio``, how many
            times smaller than the trained network without a zip (4 bytes a value).
        """
        model, options = prepared.model, self.options
        kept = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        names = list(select(model, prepared.selector))
        trained = {name: Compressed(tensor.cpu()) for name, tensor in kept.items()}
        tuned = dict(trained)
        if options.clusters:
            groups = {name: clustered(kept[name].cpu(), options.clusters) for name in names}
            tuned |= self._tuned(prepared, learner, groups)
        stages = {
            "trained": trained,
            "clustered": tuned,
            "quantised": self._quantised(trained, names),
            "clustered_quantised": self._quantised(tuned, names),
        }
        found: dict[str, float] = {}
        for stage, tensors in stages.items():
            found[f"{stage}/bytes"] = save(tensors, self.folder / f"{stage}.zip")
            put(model, tensors)
            accuracy = found[f"{stage}/accuracy"] = self._accuracy(prepared, learner)
            found[f"{stage}/change"] = accuracy - found["trained/accuracy"]
        model.load_state_dict(kept)
        raw = sum(tensor.numel() * tensor.element_size() for tensor in kept.values())
        found["clustered_quantised/ratio"] = raw / found["clustered_quantised/bytes"]
        return found

    def _quantised(
        self, tensors: Mapping[str, Compressed], names: Iterable[str]
    ) -> dict[str, Compressed]:
        bits = self.options.bits
        return dict(tensors) | ({n: quantised(tensors[n], bits) for n in names} if bits else {})

    def _accuracy(self, prepared: Prepared, learner: Learner) -> float:
        """Share of the test set that is classified rightly; by no figures of the learner's."""
        learner.eval()
        right = total = 0
        with torch.no_grad():
            for x, y in EvalLoader(prepared.data.test, max(2 * self.cfg.batch_size, 256)):
                right += int((learner(x.to(learner.device)).argmax(1).cpu() == y).sum())
                total += len(y)
        return right / total

    def _tuned(
        self, prepared: Prepared, learner: Learner, groups: Mapping[str, Compressed]
    ) -> dict[str, Compressed]:
        """The same codes with centroids that have learned for some epochs; zero stays zero."""
        model, options, cfg = prepared.model, self.options, self.cfg
        weights = {name: model.get_parameter(name) for name in groups}
        books = {
            n: nn.Parameter(g.book.to(weights[n])) for n, g in groups.items() if g.book is not None
        }
        codes = {n: g.codes.long().flatten().to(weights[n].device) for n, g in groups.items()}
        optimizer = torch.optim.Adam(books.values(), lr=options.tune_lr)
        loader = TrainLoader(prepared.data.train, cfg.batch_size, cfg.seed)
        learner.train()
        for epoch in range(options.tune):
            for x, y in loader.batches(epoch):
                shown(weights, books, codes)
                loss = nn.functional.cross_entropy(
                    learner(x.to(learner.device)), y.to(learner.device)
                )
                gradients = torch.autograd.grad(
                    loss, list(weights.values()), allow_unused=True, materialize_grads=True
                )
                for (name, book), gradient in zip(books.items(), gradients, strict=True):
                    book.grad = gathered(gradient, codes[name], book)
                optimizer.step()
        return {n: Compressed(g.codes, book=books[n].detach().cpu()) for n, g in groups.items()}


@torch.no_grad()
def shown(
    weights: Mapping[str, Tensor], books: Mapping[str, Tensor], codes: Mapping[str, Tensor]
) -> None:
    """Give weights the values that their codes stand for."""
    for name, weight in weights.items():
        weight.copy_(books[name][codes[name]].view_as(weight))


def gathered(gradient: Tensor, codes: Tensor, book: Tensor) -> Tensor:
    """Gradient of a book: the sum over the weights of a code; none for a value that is 0.

    Args:
        gradient: of the weights.
        codes: of the weights, flat.
        book: values by code.
    """
    summed = torch.zeros_like(book).index_add_(0, codes, gradient.flatten())
    return summed * (book != 0)


@torch.no_grad()
def put(model: nn.Module, tensors: Mapping[str, Compressed]) -> None:
    """Give a model the tensors that are stored."""
    for name, tensor in model.state_dict().items():
        tensor.copy_(tensors[name].tensor())


prepare, run = entry(Compress)
