"""The LightningModule of language models."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torchmetrics import MeanMetric

from sparsebench.sparsity import probing
from sparsebench.sparsity.method import Method
from sparsebench.training.learner import Learner


class Perplexity(MeanMetric):
    """exp of a mean cross-entropy."""

    def compute(self) -> Tensor:
        """The value; infinite where the mean is beyond what a float holds."""
        return super().compute().exp()


class NextToken(Learner):
    """Learns to tell the next token of a text."""

    def __init__(self, model: nn.Module, cfg: DictConfig, method: Method | None = None) -> None:
        """Wrap a model.

        Args:
            model: a causal language model, of transformers or our own.
            cfg: the whole config.
            method: the sparsity method.
        """
        figures = {"loss": MeanMetric(), "perplexity": Perplexity()}
        super().__init__(model, cfg, figures, method)

    def train_loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Mean cross-entropy of all tokens (batch, length) but the first of each sequence."""
        return cross_entropy(logits(self.model, batch[0]), batch[0])

    def evaluate(self, batch: Any) -> None:
        """Add sequences to loss and perplexity, one by one: logits over a vocabulary are large."""
        for segment in batch[0].split(1):
            loss = cross_entropy(logits(self.model, segment), segment)
            for metric in self.evaluation.values():
                metric.update(loss)


def logits(model: nn.Module, ids: Tensor) -> Tensor:
    """What a model of transformers makes of tokens (batch, length): (batch, length, vocabulary).

    One of our own, or one whose output a method looks at in between, gives the tensor alone.
    """
    return probing.logits(model(input_ids=ids, use_cache=False))


def cross_entropy(logits: Tensor, ids: Tensor) -> Tensor:
    """Mean over all tokens that have one before them, in float32.

    Args:
        logits: (batch, length, vocabulary).
        ids: (batch, length).
    """
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student), mean over the tokens that are predicted.

    Both are softened by a temperature T, and the result is multiplied by T^2, which keeps its
    gradient's size (Hinton 2015, arXiv 1503.02531).

    Args:
        student: logits (batch, length, vocabulary).
        teacher: likewise, without gradient.
        temperature: T.
    """
    ours, theirs = (
        torch.log_softmax(x[:, :-1].flatten(0, 1).float() / temperature, dim=-1)
        for x in (student, teacher)
    )
    found = nn.functional.kl_div(ours, theirs, log_target=True, reduction="batchmean")
    return found * temperature**2
