"""Rank items for users, from tables of embeddings that may be sparse.

Trained on pairs by BPR (Rendle et al. 2009, arXiv 1205.2618, equation 4.1): a chosen item is to
score above one drawn uniformly from those not chosen in training. Tested by recall and NDCG among
the first ``top`` items that a user has not chosen before, all items ranked, as in LightGCN (He et
al. 2020, arXiv 2002.02126, section 4.1) and DSL (arXiv 2402.02855).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparsebench.config.importing import resolve
from sparsebench.data import DataSets
from sparsebench.data import interactions as kind
from sparsebench.data.options import Options as DataOptions
from sparsebench.errors import UserError
from sparsebench.sparsity.flops import LayerFlops
from sparsebench.sparsity.spec import number, whole
from sparsebench.tasks.build import container
from sparsebench.tasks.task import Prepared, Shape, Task, entry

if TYPE_CHECKING:
    from sparsebench.training.learner import Learner


@dataclass(frozen=True)
class Options:
    """Options of the task."""

    top: int = whole(20, 1, "length of a recommendation")
    test: float = number(0.2, "(0, 1)", "share of each user's interactions to test on")
    decay: float = number(1e-4, "[0, inf)", "pull on the vectors of a pair towards 0")


class Recommend(Task):
    """Learns vectors of users and items."""

    Options = Options

    def load(self) -> DataSets:
        """Interactions, some of each user held out."""
        config = container(self.cfg.data)
        options = DataOptions.of(config)
        kind.check(options)
        target = str(config["_target_"])
        builder: Any = resolve(target, "data._target_", list(self.cfg.allow))
        found = builder(config)
        if not isinstance(found, kind.Interactions):
            raise UserError(
                f"data={options.name}: task=recommend needs interactions, such as "
                "data=interactions or data=movielens"
            )
        return kind.split(found, options, self.options.test)

    def refusal(self, model: nn.Module, like: tuple[Shape, int]) -> str | None:
        """A recommender has a method ``tables()``, vectors of users and of items."""
        return None if hasattr(model, "tables") else "it has no tables() of users and items"

    def check(self, prepared: Prepared) -> None:
        """The model must be a recommender, and recommend fewer items than there are."""
        if why := self.refusal(prepared.model, ((), 0)):
            raise UserError(f"model={self.cfg.model.name}: {why}; model=matrix_factorisation does")
        items = prepared.data.num_classes
        if self.options.top >= items:
            raise UserError(f"task.options.top={self.options.top}: there are {items} items")

    def flops(
        self, model: nn.Module, shape: Shape, *, names: Iterable[str] | None = None
    ) -> LayerFlops:
        """Two products of vectors a training sample, half of it booked to either table.

        Reading a row of a table is no multiplication, so a table costs 2 FLOPs a dimension.
        """
        tables = {n: 2 * p.shape[1] for n, p in model.named_parameters() if p.dim() == 2}
        return LayerFlops(tables, 0)

    def learner(self, prepared: Prepared) -> Learner:
        """A ranker."""
        from sparsebench.training.ranker import Ranker

        sets: Any = prepared.data
        chosen = torch.zeros(sets.input_shape[0], sets.num_classes, dtype=torch.bool)
        chosen[sets.train.tensors] = True
        options = self.options
        return Ranker(prepared.model, self.cfg, chosen, options.top, options.decay, prepared.method)

    def figures(self, prepared: Prepared, learner: Learner) -> dict[str, float]:
        """Recall and NDCG of the most popular items, and of the truth where it is known."""
        sets: Any = prepared.data
        users, seen, wanted = sets.test.tensors
        popular = torch.bincount(sets.train.tensors[1], minlength=sets.num_classes).float()
        scores = {"popularity": popular.expand(len(users), -1)}
        if "scores" in sets.facts:
            scores["oracle"] = sets.facts["scores"][users]
        found: dict[str, float] = {}
        for name, each in scores.items():
            recall, ndcg = ranking(each, seen, wanted, self.options.top)
            found |= {f"{name}/recall": float(recall.mean()), f"{name}/ndcg": float(ndcg.mean())}
        return found


def ranking(scores: Tensor, seen: Tensor, wanted: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Recall and NDCG of each user's first ``top`` items.

    Args:
        scores: float [users, items].
        seen: bool [users, items], not to be recommended.
        wanted: bool [users, items], at least one for each user.
        top: length of a recommendation.

    Returns:
        Recall, hits over wanted items, and NDCG, sum of 1 / log2(1 + rank) over hits relative to
        that of the best list; float [users] each.
    """
    first = scores.masked_fill(seen, -torch.inf).topk(top, dim=1).indices
    hits = wanted.gather(1, first).float()
    number = wanted.sum(1)
    gains = 1.0 / torch.arange(2.0, top + 2.0, device=scores.device).log2()
    best = gains.cumsum(0)[number.clamp_max(top) - 1]
    return hits.sum(1) / number, (hits * gains).sum(1) / best


prepare, run = entry(Recommend)
