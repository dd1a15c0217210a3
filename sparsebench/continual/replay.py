"""Replay: what is kept of past tasks, and the loss on it.

Losses as in Mammoth (aimagelab/mammoth, ``models/er.py``, ``er_ace.py``, ``der.py``,
``derpp.py``), whose buffer stores images as they were before augmentation and augments them
again. A replayed batch is drawn anew for each term. With ``when=every_batch`` the buffer is
shown every presentation, as there; with ``first_epoch`` every sample of a task once. Logits of a
first epoch are those of a network that has hardly begun the task, and DER learns little from them
(on digits 28 % of all classes instead of 60 %), so that ``der`` and ``derpp`` say ``every_batch``.

ER goes through the network once with both batches and takes the mean over all samples, as Mammoth
(``er=together``), or once with each and adds the two means, as SparCL (``apart``), which is twice
the loss and has other batch statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sparsebench.continual.buffer import Reservoir
from sparsebench.continual.streams import Batch
from sparsebench.data.augment import Draw, Recipe, augment, normalise
from sparsebench.data.seeding import generator

#: Logits [B, outputs] of inputs.
Network = Callable[[Tensor], Tensor]


def cross_entropy(logits: Tensor, y: Tensor, allowed: Tensor) -> Tensor:
    """Cross-entropy of each sample among some outputs.

    Args:
        logits: float [B, outputs].
        y: int64 [B].
        allowed: bool [outputs] or [B, outputs]; others count as minus infinity, so that their
            gradient is exactly 0.

    Returns:
        float [B].
    """
    logits = logits.masked_fill(~allowed, -torch.inf)
    return nn.functional.cross_entropy(logits, y, reduction="none")


class Replay:
    """A buffer, and how its content is learned beside a batch.

    Attributes:
        presented: samples that the last step saw beside its batch.
    """

    def __init__(self, config: Any, batch_size: int, recipe: Recipe, seed: int) -> None:
        """Start with nothing.

        Args:
            config: the config group ``replay``.
            batch_size: replayed samples, where the config does not say.
            recipe: how stored images become inputs.
            seed: of the run.
        """
        self.kind = str(config.name)
        self.batch = int(config.batch or batch_size)
        self.alpha, self.beta = float(config.alpha), float(config.beta)
        self.once = config.when == "first_epoch"
        self.together = self.kind == "er" and config.er == "together"
        self.recipe = recipe
        self.buffer = Reservoir(int(config.size), seed)
        self.presented = 0

    @property
    def keeps_logits(self) -> bool:
        """Whether logits are part of what is kept."""
        return self.kind in ("der", "derpp")

    def loss(
        self, net: Network, batch: Batch, allowed: Tensor, seen: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Loss on a batch and on what is replayed; then the buffer is shown the batch.

        Args:
            net: gives logits.
            batch: of the present task.
            allowed: outputs that its samples compete among, bool [outputs] or [B, outputs].
            seen: the same for replayed samples, bool [outputs].

        Returns:
            The loss, and the batch's logits.
        """
        self.presented = 0
        if self.together and len(self.buffer):
            loss, logits = self._together(net, batch, allowed, seen)
        else:
            logits = net(batch.x)
            if self.kind == "er_ace":
                allowed = torch.zeros_like(seen).index_fill_(0, batch.y, True)
            loss = cross_entropy(logits, batch.y, allowed).mean()
            if len(self.buffer):
                loss = loss + self._beside(net, seen)
        self._show(batch, logits)
        return loss, logits

    def batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All kept samples (x, y) once, not augmented, in an order of this seed alone."""
        kept, images = self.buffer.kept, self.buffer.kept.get("images")
        if images is None:
            return
        order = torch.randperm(len(self.buffer), generator=generator("memory", seed))
        for places in torch.split(order, self.batch):
            yield normalise(images[places], self.recipe), kept["y"][places]

    def _together(
        self, net: Network, batch: Batch, allowed: Tensor, seen: Tensor
    ) -> tuple[Tensor, Tensor]:
        """ER: one pass of both batches, the mean over all samples."""
        x, kept = self._draw(batch.x.device)
        both = net(torch.cat([batch.x, x]))
        logits, again = both[: len(batch.x)], both[len(batch.x) :]
        new = cross_entropy(logits, batch.y, allowed)
        return torch.cat([new, cross_entropy(again, kept["y"], seen)]).mean(), logits

    def _beside(self, net: Network, seen: Tensor) -> Tensor:
        """The terms of the other kinds, each on a draw of its own."""
        loss = torch.zeros((), device=seen.device)
        if self.keeps_logits:
            x, kept = self._draw(seen.device)
            loss = loss + self.alpha * nn.functional.mse_loss(net(x), kept["logits"])
        if self.kind != "der":
            x, kept = self._draw(seen.device)
            weight = self.beta if self.kind == "derpp" else 1.0
            loss = loss + weight * cross_entropy(net(x), kept["y"], seen).mean()
        return loss

    def _draw(self, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
        """Inputs of some kept samples, augmented anew, and all that is kept of them."""
        kept = self.buffer.sample(self.batch)
        images, recipe = kept["images"], self.recipe
        if recipe.pad or recipe.flip:
            count, chance = len(images), self.buffer.generator
            top, left = torch.randint(0, 2 * recipe.pad + 1, (2, count), generator=chance)
            flip = torch.rand(count, generator=chance) < (0.5 if recipe.flip else 0.0)
            images = augment(images, recipe, Draw(top, left, flip), torch.arange(count))
        self.presented += len(images)
        return normalise(images, recipe).to(device), {n: t.to(device) for n, t in kept.items()}

    @torch.no_grad()
    def _show(self, batch: Batch, logits: Tensor) -> None:
        """Let the buffer see a batch, with the logits from before the step."""
        items = {"images": batch.stored, "y": batch.y}
        if self.keeps_logits:
            items["logits"] = logits.detach().float()
        if self.once:
            items = {name: tensor[batch.fresh] for name, tensor in items.items()}
        self.buffer.add(**{name: tensor.cpu() for name, tensor in items.items()})
