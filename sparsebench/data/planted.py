"""Synthetic classes that a few known features carry, among many that are noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from sparsebench.data.options import Options
from sparsebench.data.source import Source, of_arrays
from sparsebench.errors import UserError
from sparsebench.sparsity.fields import read_options
from sparsebench.sparsity.spec import number, whole


@dataclass(frozen=True)
class Planted:
    """What is planted, as in Madelon by default (Guyon 2004, NIPS feature selection challenge)."""

    features: int = whole(500, 2, "columns in all")
    informative: int = whole(5, 1, "columns that the classes are clusters of")
    redundant: int = whole(15, 0, "columns that are linear combinations of the informative ones")
    clusters: int = whole(16, 1, "clusters of a class, at corners of a cube")
    classes: int = whole(2, 2, "number of classes")
    train: int = whole(2000, 1, "samples to train on")
    test: int = whole(600, 1, "samples to test on")
    separation: float = number(1.0, "(0, inf)", "half the side of the cube")
    noise: float = number(0.01, "[0, 1)", "share of wrong labels")
    seed: int = whole(0, 0, "of the data")


def planted(config: Mapping[str, Any]) -> Source:
    """Samples of scikit-learn's ``make_classification``, its columns in a random order.

    Each column is brought to a deviation of its own, uniform in [1, 10), as its scale would
    otherwise tell whether it is noise.

    Args:
        config: the group ``data``; its ``args`` are those of :class:`Planted`.

    Returns:
        float32 [N, features] with labels, and the fact ``relevant``, bool [features]: true for
        informative and redundant columns.

    Raises:
        UserError: more columns or clusters than there is room for.
    """
    from sklearn.datasets import make_classification

    options = Options.of(config)
    plan = read_options(Planted, config.get("args") or {}, "data.args")
    carriers = plan.informative + plan.redundant
    if carriers > plan.features:
        raise UserError(
            f"data.args.features={plan.features}: informative={plan.informative} and "
            f"redundant={plan.redundant} need more"
        )
    if plan.classes * plan.clusters > 2**plan.informative:
        raise UserError(
            f"data.args.clusters={plan.clusters}: {plan.classes} classes of them need more than "
            f"the {2**plan.informative} corners of {plan.informative} informative columns"
        )
    x, y = make_classification(
        n_samples=plan.train + plan.test, n_features=plan.features, n_informative=plan.informative,
        n_redundant=plan.redundant, n_classes=plan.classes, n_clusters_per_class=plan.clusters,
        class_sep=plan.separation, flip_y=plan.noise, shuffle=False, random_state=plan.seed,
    )  # fmt: skip
    stream = torch.Generator().manual_seed(plan.seed)
    columns = torch.randperm(plan.features, generator=stream)
    rows = torch.randperm(len(x), generator=stream)
    scales = 1.0 + 9.0 * torch.rand(plan.features, generator=stream, dtype=torch.float64)
    scaled = torch.from_numpy(x / x.std(0).clip(1e-12)) * scales
    samples = scaled.float()[rows][:, columns]
    labels = torch.from_numpy(y)[rows]
    pair = [(samples[s], labels[s]) for s in (slice(plan.train), slice(plan.train, None))]
    return replace(of_arrays(pair, options, "data"), facts={"relevant": columns < carriers})
