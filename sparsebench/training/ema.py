"""Exponential moving average of the weights, as sparse as the weights themselves."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from sparsebench.training.sparsify import Sparsify


class Ema(Callback):
    """Averages the weights after each optimizer step and evaluates with the average.

    A connection that is dropped leaves the average too, one that is grown enters at zero.
    """

    def __init__(self, decay: float, sparsify: Sparsify) -> None:
        """Average with ``decay`` in (0, 1); ``sparsify`` holds the masks."""
        self.decay = decay
        self.sparsify = sparsify
        self._average: dict[str, Tensor] = {}
        self._trained: dict[str, Tensor] = {}
        self._step = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin at the first weights, or go on with a checkpoint's average."""
        if not self._average:
            self._average = {n: w.clone() for n, w in self._seen(pl_module).items()}
        self._step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Follow the weights, once for each optimizer step."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        weights = self._seen(pl_module)
        average = [self._average[n] for n in weights]
        torch._foreach_lerp_(average, list(weights.values()), 1.0 - self.decay)
        self._mask(pl_module)

    def _seen(self, pl_module: LightningModule) -> dict[str, Tensor]:
        """The weights as the forward pass sees them."""
        assert self.sparsify.session is not None
        masks = self.sparsify.session.masks
        sparse = {id(p): name for name, p in masks.parameters.items()}
        return {
            name: masks.shown(sparse[id(p)]) if id(p) in sparse else p.detach()
            for name, p in pl_module.named_parameters()
        }

    def _mask(self, pl_module: LightningModule) -> None:
        assert self.sparsify.session is not None
        masks = self.sparsify.session.masks
        factors = {id(p): masks.factor(n) for n, p in masks.parameters.items()}
        for name, parameter in pl_module.named_parameters():
            if id(parameter) in factors:
                self._average[name].mul_(factors[id(parameter)])

    @torch.no_grad()
    def show(self, pl_module: LightningModule) -> None:
        """Put the average into the model, keeping the trained weights aside."""
        if self._trained or not self._average:
            return
        for name, parameter in pl_module.named_parameters():
            self._trained[name] = parameter.detach().clone()
            parameter.copy_(self._average[name])

    @torch.no_grad()
    def hide(self, pl_module: LightningModule) -> None:
        """Put the trained weights back."""
        for name, parameter in pl_module.named_parameters():
            if name in self._trained:
                parameter.copy_(self._trained[name])
        self._trained.clear()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the average."""
        self.show(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Train on with the trained weights."""
        self.hide(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The final weights are the average."""
        self.show(pl_module)
        self._trained.clear()

    def state_dict(self) -> dict[str, Any]:
        """The average."""
        return {"average": dict(self._average)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the average back."""
        self._average = {name: value.clone() for name, value in state_dict["average"].items()}
