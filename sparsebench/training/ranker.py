"""The LightningModule of recommenders."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torchmetrics import MeanMetric

from sparsebench.sparsity.method import Method
from sparsebench.tasks.recommend import ranking
from sparsebench.training.learner import Learner


class Ranker(Learner):
    """Learns to score items that a user chose above others (BPR)."""

    monitor = "ndcg"
    mode = "max"

    def __init__(
        self,
        model: nn.Module,
        cfg: DictConfig,
        chosen: Tensor,
        top: int,
        decay: float,
        method: Method | None = None,
    ) -> None:
        """Wrap a model.

        Args:
            model: has ``tables()``, the vectors of users and of items.
            cfg: the whole config.
            chosen: bool [users, items], the interactions of training.
            top: length of a recommendation.
            decay: factor on half the squared length of the three vectors of a sample.
            method: the sparsity method.
        """
        super().__init__(model, cfg, {"recall": MeanMetric(), "ndcg": MeanMetric()}, method)
        self.register_buffer("chosen", chosen, persistent=False)
        self.top, self.decay = top, decay

    def train_loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Mean BPR loss of users and items that they chose, int64 [batch] each."""
        users, items = batch
        vectors: Any = self.model.tables()  # type: ignore[operator]  # checked by the task
        user, chosen, other = vectors[0][users], vectors[1][items], vectors[1][self._others(users)]
        margin = (user * (chosen - other)).sum(1)
        size = (user.square() + chosen.square() + other.square()).sum(1)
        loss: Tensor = nn.functional.softplus(-margin).mean() + self.decay / 2 * size.mean()
        return loss

    def _others(self, users: Tensor) -> Tensor:
        """For each user an item, uniform among those it did not choose in training."""
        known: Any = self.chosen
        drawn = torch.randint(known.shape[1], users.shape, device=users.device)
        while len(wrong := known[users, drawn].nonzero().view(-1)):
            drawn[wrong] = torch.randint(known.shape[1], wrong.shape, device=users.device)
        return drawn

    def evaluate(self, batch: tuple[Tensor, ...]) -> None:
        """Add users to recall and NDCG."""
        users, seen, wanted = batch
        found = ranking(self.model(users).float(), seen, wanted, self.top)
        for name, values in zip(("recall", "ndcg"), found, strict=True):
            self.evaluation[name].update(values.mean(), weight=len(users))
