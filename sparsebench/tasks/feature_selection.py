"""Choose features without labels, and see how well classes are told by them alone.

QuickSelection (Atashgahi et al. 2021, arXiv 2012.00560; code zahraatashgahi/QuickSelection): a
sparse denoising autoencoder is trained, and the K inputs of the greatest strength are kept, the
strength of an input being the sum of the magnitudes of its connections, s_i = sum_j |W1_ij|.
Chosen features are judged by the accuracy of 50 extremely randomised trees on the test set, and
by k-means on the training set, its clusters matched to classes as well as can be.

Differs from the code on purpose: noise is drawn anew for each batch (there once for all epochs),
strength is that of the final weights (there of the weights kept at the last update, an epoch
earlier), and trees and clusters see ``samples`` training samples at most.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparsebench.data import DataSets
from sparsebench.data.loader import EvalLoader
from sparsebench.data.seeding import generator
from sparsebench.data.tensors import TensorRows
from sparsebench.errors import UserError, bad_value
from sparsebench.sparsity.spec import number, whole
from sparsebench.tasks.task import Prepared, Shape, Task, entry

if TYPE_CHECKING:
    from sparsebench.training.learner import Learner

SELECTIONS = ("strength", "variance", "laplacian", "random", "all")
NEIGHBOURS = 5  # of the graph of the Laplacian score
GRAPH = 2000  # samples in it


@dataclass(frozen=True)
class Options:
    """Options of the task."""

    k: int = whole(50, 1, "features to keep")
    select: str = field(default="strength", metadata={"choices": SELECTIONS})
    noise: float = number(0.2, "[0, inf)", "deviation of the noise on the standardised input")
    trees: int = whole(50, 1, "extremely randomised trees")
    clusterings: int = whole(1, 1, "runs of k-means, whose accuracies are averaged")
    samples: int = whole(10_000, 1, "training samples that trees and k-means see at most")


class FeatureSelection(Task):
    """Trains an autoencoder on noisy inputs; the test tells how good K chosen features are."""

    Options = Options

    def load(self) -> DataSets:
        """The data of the config, flattened and standardised by the training samples.

        A feature that never varies becomes 0. The fact ``variance`` is of the features as loaded.
        """
        sets = super().load()
        train = _flat(sets.train)
        mean, deviation = train[0].mean(0), train[0].std(0, correction=0)
        scale = torch.where(deviation > 0, deviation, torch.ones_like(deviation))

        def rows(found: tuple[Tensor, Tensor]) -> TensorRows:
            return TensorRows(((found[0] - mean) / scale, found[1]))

        return replace(
            sets,
            train=rows(train),
            validation=None if sets.validation is None else rows(_flat(sets.validation)),
            test=rows(_flat(sets.test)),
            facts={**sets.facts, "variance": deviation**2},
        )

    def shapes(self, input_shape: Shape, num_classes: int) -> tuple[Shape, int]:
        """A vector of features, in and out."""
        features = math.prod(input_shape)
        return (features,), features

    def check(self, prepared: Prepared) -> None:
        """K features must be there, and strength needs a layer that reads them."""
        features = len(prepared.data.facts["variance"])
        if self.options.select != "all" and self.options.k > features:
            raise bad_value("task.options.k", self.options.k, f"there are {features} features")
        if self.options.select == "strength":
            _first_layer(prepared.model, features)

    def learner(self, prepared: Prepared) -> Learner:
        """A denoising autoencoder."""
        from sparsebench.training.denoiser import Denoiser

        return Denoiser(prepared.model, self.cfg, self.options.noise, prepared.method)

    def figures(self, prepared: Prepared, learner: Learner) -> dict[str, float]:
        """Accuracy of trees and of k-means on the chosen features; precision if it is known."""
        sets, options = prepared.data, self.options
        chosen = self.choose(sets, learner.model)
        x, y = _head(sets.train, options.samples, self.cfg.seed)
        test_x, test_y = _tensors(sets.test)
        found = {
            "test/accuracy": trees_accuracy(
                (x[:, chosen], y), (test_x[:, chosen], test_y), options.trees, self.cfg.seed
            ),
            "test/clustering": clustering_accuracy(
                x[:, chosen], y, options.clusterings, self.cfg.seed
            ),
            "features": len(chosen),
        }
        if "relevant" in sets.facts:
            found["test/precision"] = float(sets.facts["relevant"][chosen].double().mean())
        return found

    def choose(self, sets: DataSets, model: nn.Module) -> Tensor:
        """The chosen features, int64 [K], best first; of equal ones the lower index.

        Args:
            sets: the data, standardised.
            model: the trained network.
        """
        variance, options = sets.facts["variance"], self.options
        if options.select == "all":
            return torch.arange(len(variance))
        if options.select == "strength":
            score = strength(_first_layer(model, len(variance)))
        elif options.select == "variance":
            score = variance
        elif options.select == "laplacian":
            score = -laplacian_score(_head(sets.train, GRAPH, self.cfg.seed)[0])
        else:
            score = torch.rand(len(variance), generator=generator("features", self.cfg.seed))
        return torch.sort(score, descending=True, stable=True).indices[: options.k]


def strength(weight: Tensor) -> Tensor:
    """Strength of each input neuron, [inputs], of a weight [outputs, inputs] (equation 3)."""
    return weight.detach().abs().sum(0).cpu()


def laplacian_score(x: Tensor) -> Tensor:
    """Laplacian score of each feature, lower is better; a constant feature is worst (inf).

    f' L f / f' D f of the centred feature, on the graph of 5 nearest neighbours weighted by
    exp(-d^2 / t), t the mean of those d^2 (He, Cai and Niyogi 2005, NIPS).

    Args:
        x: samples, float [N, features].
    """
    squared = torch.cdist(x, x).square()
    near = squared.topk(min(NEIGHBOURS + 1, len(x)), largest=False)
    width = near.values[:, 1:].mean().clamp_min(1e-12)
    graph = torch.zeros_like(squared).scatter_(1, near.indices, (-near.values / width).exp())
    graph = torch.maximum(graph, graph.T).fill_diagonal_(0.0)
    degree = graph.sum(1)
    centred = x - (degree @ x) / degree.sum()
    spread = (centred.square() * degree[:, None]).sum(0)
    rough = spread - (centred * (graph @ centred)).sum(0)
    flat = spread <= 1e-12 * degree.sum()
    return torch.where(flat, torch.inf, rough / spread.clamp_min(1e-30))


def trees_accuracy(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], trees: int, seed: int
) -> float:
    """Test accuracy of extremely randomised trees (scikit-learn's defaults)."""
    from sklearn.ensemble import ExtraTreesClassifier

    forest = ExtraTreesClassifier(n_estimators=trees, random_state=seed % 2**32)
    forest.fit(*(tensor.numpy() for tensor in train))
    return float(forest.score(*(tensor.numpy() for tensor in test)))


def clustering_accuracy(x: Tensor, y: Tensor, repeats: int, seed: int) -> float:
    """Share of samples whose k-means cluster is their class, clusters matched at best.

    Args:
        x: samples, float [N, features].
        y: their classes, int64 [N].
        repeats: runs of k-means, of ten starts each.
        seed: of the first.
    """
    from sklearn.cluster import KMeans

    number = int(y.max()) + 1
    shares = []
    for repeat in range(repeats):
        means = KMeans(number, n_init=10, random_state=(seed + repeat) % 2**32)
        shares.append(matched(torch.from_numpy(means.fit_predict(x.numpy())).long(), y, number))
    return sum(shares) / repeats


def matched(clusters: Tensor, classes: Tensor, number: int) -> float:
    """Share of samples in the right cluster, under the best one-to-one naming of clusters."""
    from scipy.optimize import linear_sum_assignment

    counts = torch.bincount(clusters * number + classes, minlength=number**2).view(-1, number)
    rows, columns = linear_sum_assignment(counts.numpy(), maximize=True)
    return float(counts[rows, columns].sum()) / len(classes)


def _first_layer(model: nn.Module, features: int) -> Tensor:
    """The weight of the layer that reads the features."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.in_features == features:
            return module.weight
    raise UserError(
        f"task.options.select=strength: the model has no linear layer with {features} inputs"
    )


def _flat(images: Any) -> tuple[Tensor, Tensor]:
    """All samples, float32 [N, features], neither augmented nor in another order."""
    parts = list(EvalLoader(images, 4096))
    return torch.cat([x.flatten(1) for x, _ in parts]), torch.cat([y for _, y in parts])


def _tensors(rows: Any) -> tuple[Tensor, Tensor]:
    x, y = rows.tensors
    return x, y


def _head(rows: Any, most: int, seed: int) -> tuple[Tensor, Tensor]:
    """So many samples at most, drawn at random if there are more."""
    x, y = _tensors(rows)
    if len(x) <= most:
        return x, y
    some = torch.randperm(len(x), generator=generator("samples", seed))[:most]
    return x[some], y[some]


prepare, run = entry(FeatureSelection)
