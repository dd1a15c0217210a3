"""Regularisers: a term that holds the network to what it was before the present task.

Online EWC (Schwarz et al., arXiv 1805.06370; EWC: Kirkpatrick et al., arXiv 1612.00796)::

    strength / 2 * sum F (theta - theta*)^2          F <- decay * F + F of the task that is over

F is the diagonal of the Fisher information at theta*, the weights after that task: the mean over
its samples of the squared gradient of the log-likelihood, of a label drawn from the network's own
answer (``fisher=true``) or of the sample's (``empirical``). ``batch`` squares the mean gradient of
a batch instead, as Avalanche does, which is about a batch's size smaller. Mammoth and Avalanche
leave out the half, so that a strength of theirs is twice as much here. What has no connection has
no importance.

LwF (Li and Hoiem, arXiv 1606.09282)::

    - strength * mean over samples, sum over past outputs, of softmax(old / T) log softmax(new / T)

on the task's own samples, whose old answers are taken once, before the task, on images that are not
augmented. There is no factor T^2, and no warm-up of new outputs, which Mammoth has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsebench.continual.streams import Batch, Joined, View
from sparsebench.data.seeding import generator
from sparsebench.sparsity.masks import Masks

Part = View | Joined


@dataclass(frozen=True, eq=False)
class Before:
    """What there is before the first step of a task.

    Attributes:
        task: its number, at least 1.
        net: the network as the task before left it, in test mode.
        masks: its connections.
        parts: samples of each task.
        rivals: bool [outputs], those that samples of the task before competed among.
        past: bool [outputs], those of all tasks before.
    """

    task: int
    net: nn.Module
    masks: Masks
    parts: Sequence[Part]
    rivals: Tensor
    past: Tensor


class Regulariser:
    """What all regularisers have in common."""

    def __init__(self, config: Any, seed: int, batch_size: int) -> None:
        """Start with nothing to hold to.

        Args:
            config: the config group ``regulariser``.
            seed: of the run.
            batch_size: of training.
        """
        self.config, self.seed, self.batch_size = config, seed, batch_size

    def begin(self, before: Before) -> int:
        """Look at what is to be held.

        Returns:
            Forward passes of one sample that it took; a backward pass counts as two.
        """
        raise NotImplementedError  # each kind has its own

    def term(self, net: nn.Module, batch: Batch, logits: Tensor) -> Tensor:
        """What is added to the loss on a batch, whose logits are [B, outputs]."""
        raise NotImplementedError  # each kind has its own

    @property
    def bytes(self) -> dict[str, int]:
        """Room that it takes, by what takes it."""
        kept = self.state_dict()
        return {
            name: sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
            for name, tensors in kept.items()
        }

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """All that resuming needs, by what ``bytes`` calls it."""
        raise NotImplementedError  # each kind has its own

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        raise NotImplementedError  # each kind has its own


class Consolidation(Regulariser):
    """Online EWC.

    Attributes:
        fisher: by name of parameter, of its shape; empty in the first task.
        anchor: the weights that are held to.
    """

    fisher: dict[str, Tensor]
    anchor: dict[str, Tensor]

    def __init__(self, config: Any, seed: int, batch_size: int) -> None:
        """Nothing is held."""
        super().__init__(config, seed, batch_size)
        self.fisher, self.anchor = {}, {}

    def begin(self, before: Before) -> int:
        """Add the Fisher information of the task that is over; hold to the weights as they are."""
        chance = generator("fisher", self.seed, before.task)
        part, masks = before.parts[before.task - 1], before.masks
        count = min(self.config.samples or len(part), len(part))
        places = torch.randperm(len(part), generator=chance)[:count]
        size = self.batch_size if self.config.fisher == "batch" else 1
        drawn = chance if self.config.fisher == "true" else None
        found = fisher_of(before.net, part, torch.split(places, size), before.rivals, drawn)
        for name, new in found.items():
            if name in masks.parameters:
                new = new * masks.factor(name)
            old = self.fisher.get(name)
            self.fisher[name] = new if old is None else self.config.decay * old + new
        weights = before.net.named_parameters()
        self.anchor = {n: p.detach().clone() for n, p in weights if n in found}
        return 3 * count

    def term(self, net: nn.Module, batch: Batch, logits: Tensor) -> Tensor:
        """The pull towards the anchor."""
        found = logits.new_zeros(())
        if self.fisher:
            for name, parameter in net.named_parameters():
                if name in self.fisher:
                    away = parameter - self.anchor[name]
                    found = found + (self.fisher[name] * away * away).sum()
        return found * float(self.config.strength) / 2

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Fisher information and anchor."""
        return {"fisher": self.fisher, "anchor": self.anchor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self.fisher, self.anchor = dict(state["fisher"]), dict(state["anchor"])


class Distillation(Regulariser):
    """LwF.

    Attributes:
        responses: float [samples of the task, outputs], what the network answered before it.
        past: bool [outputs], which of them are held; none in the first task.
    """

    def __init__(self, config: Any, seed: int, batch_size: int) -> None:
        """Nothing is held."""
        super().__init__(config, seed, batch_size)
        self.responses, self.past = torch.zeros(0, 0), torch.zeros(0, dtype=torch.bool)

    @torch.no_grad()
    def begin(self, before: Before) -> int:
        """Ask the network about all samples of the new task."""
        part, past = before.parts[before.task], before.past
        places = torch.split(torch.arange(len(part)), max(2 * self.batch_size, 256))
        answers = [before.net(part.cut(each)[0].to(past.device)).float() for each in places]
        self.past, self.responses = past.clone(), torch.cat(answers)[:, past]
        return len(self.responses)

    def term(self, net: nn.Module, batch: Batch, logits: Tensor) -> Tensor:
        """Cross-entropy with the softened answers of before."""
        if not len(self.past):
            return logits.new_zeros(())
        old = self.responses[batch.place.to(self.responses.device)]
        new = logits[:, self.past]
        loss = distillation(old, new, self.config.temperature)
        return loss * float(self.config.strength)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The answers, and whose they are."""
        return {"responses": {"answers": self.responses, "past": self.past}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        kept = state["responses"]
        self.responses, self.past = kept["answers"].clone(), kept["past"].clone()


def fisher_of(
    net: nn.Module,
    part: Part,
    groups: Sequence[Tensor],
    allowed: Tensor,
    chance: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Mean over groups of samples, weighted by their sizes, of the squared gradient of each.

    Args:
        net: gives logits [B, outputs].
        part: the samples.
        groups: positions in it; of the log-likelihood of each group the mean is taken.
        allowed: bool [outputs], those that compete.
        chance: draws labels from the network's answers; without it they are the samples' own.
    """
    weights = {n: p for n, p in net.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    count = sum(map(len, groups))
    for places in groups:
        x, y, *_ = part.cut(places)
        with torch.enable_grad():
            logits = net(x.to(allowed.device)).float().masked_fill(~allowed, -torch.inf)
            if chance is not None:
                answer = logits.detach().softmax(1).cpu()
                y = torch.multinomial(answer, 1, generator=chance).flatten()
            loss = nn.functional.cross_entropy(logits, y.to(allowed.device))
            found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        for name, gradient in zip(weights, found, strict=True):
            if gradient is not None:
                total[name].addcmul_(gradient, gradient, value=len(places) / count)
    return total


def distillation(old: Tensor, new: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of softened answers, mean over samples.

    Args:
        old: logits [B, outputs] that are to be met.
        new: logits of the same samples.
        temperature: both are divided by it.
    """
    wanted = (old / temperature).softmax(1)
    return -(wanted * (new / temperature).log_softmax(1)).sum(1).mean()


KINDS: dict[str, type[Regulariser]] = {"ewc": Consolidation, "lwf": Distillation}
