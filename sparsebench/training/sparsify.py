"""Sparsify: the Lightning callback, which only forwards hooks to a sparsity session."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from sparsebench.errors import UserError
from sparsebench.library import as_method
from sparsebench.sparsity.examples import Examples
from sparsebench.sparsity.method import Method
from sparsebench.sparsity.session import Session
from sparsebench.sparsity.spec import SelectorSpec


class Sparsify(Callback):
    """Keeps a LightningModule sparse: ``Trainer(callbacks=[Sparsify(rigl(sparsity=0.9))])``.

    Works with accumulation, clipping, mixed precision, DDP and ``torch.compile``; masks and
    counters are part of the checkpoint. The optimizer's own step is watched, so a step that
    a gradient scaler skips does not count.
    """

    def __init__(
        self,
        method: Method | str,
        *,
        sparsity: float | None = None,
        selector: SelectorSpec | dict[str, Any] | None = None,
        seed: int | None = None,
        module: str | None = None,
        examples: Examples | None = None,
        total_steps: int | None = None,
        steps_per_epoch: int | None = None,
        memory: Examples | None = None,
        accuracy: Callable[[], float] | None = None,
    ) -> None:
        """Say which method.

        Args:
            method: a method object, or a method's name as in ``configs/method``.
            sparsity: share of zeros, where ``method`` is a name.
            selector: which weights; default all of linear and conv layers.
            seed: of all random choices; default is the seed torch was given.
            module: attribute of the LightningModule that holds the network, whose names of
                parameters are then used; default is the LightningModule itself.
            examples: training batches, for methods that look at some before or beside training,
                such as SNIP; they must be the same on all ranks. Default is the trainer's loader
                with cross-entropy on (x, y), and on all ranks the batches of the first.
            total_steps: that the method's schedule goes over; default is all of training.
            steps_per_epoch: of an epoch, where epochs differ.
            memory: batches of what is replayed of earlier tasks.
            accuracy: measures that of the task being learned; see ``TrainState``.
        """
        self.module = module
        self.method = as_method(method, sparsity)
        self.selector = SelectorSpec(**selector) if isinstance(selector, dict) else selector
        self.seed = seed
        self.examples = examples
        self.total_steps = total_steps
        self.steps_per_epoch = steps_per_epoch
        self.memory = memory or Examples()
        self.accuracy = accuracy
        self.session: Session | None = None
        self._loaded: dict[str, Any] | None = None
        self._hook: Any = None

    # --- life of the session ---------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the masks, or take those of the checkpoint the trainer has restored."""
        seed = torch.initial_seed() if self.seed is None else self.seed
        total = self.total_steps or trainer.estimated_stepping_batches
        batches = trainer.num_training_batches
        if not 0 < total < math.inf:  # Lightning says -1 or infinity if it can't know
            raise UserError("trainer.max_steps: must be set where the data have no length")
        per_epoch = None if math.isinf(batches) else -(-batches // trainer.accumulate_grad_batches)
        self.session = Session(
            self.method,
            getattr(pl_module, self.module) if self.module else pl_module,
            trainer.optimizers,
            total_steps=int(total),
            steps_per_epoch=self.steps_per_epoch or (None if per_epoch is None else int(per_epoch)),
            seed=trainer.strategy.broadcast(seed),  # all ranks draw the same
            selector=self.selector,
            resume=self._loaded,
            examples=self.examples or Examples(lambda seed: _batches(trainer)),
        )
        self.session.state.memory = self.memory
        self.session.state.accuracy = self.accuracy
        self._loaded = None
        self._trainer = trainer
        self._hook = trainer.optimizers[0].register_step_post_hook(self._after_step)
        self._check_ranks()

    def start_anew(self, trainer: Trainer, pl_module: LightningModule) -> Session:
        """Choose masks for other weights, in the middle of training, as at its start."""
        assert self.session is not None
        changes = self.session.masks.version
        self._hook.remove()
        self.on_train_start(trainer, pl_module)
        self.session.masks.version += changes  # whoever follows the masks must see a change
        return self.session

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the weights sparse and let go of the optimizer."""
        assert self.session is not None
        self.session.before_forward()
        self._hook.remove()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Let go of the optimizer."""
        if self._hook is not None:
            self._hook.remove()

    # --- each step ---------------------------------------------------------------------------

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The forward pass sees the sparse weights."""
        assert self.session is not None
        self.session.before_forward()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Gradients are accumulated, unscaled, all-reduced and not yet clipped."""
        assert self.session is not None
        if optimizer is trainer.optimizers[0]:
            self.session.after_backward()
        else:  # of a module that trains several networks in turn
            self.session.masks.mask_gradients()

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        assert self.session is not None
        if self.session.after_step():
            self._check_ranks()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluation sees the sparse weights."""
        if self.session is not None:
            self.session.before_forward()

    def _check_ranks(self) -> None:
        """All ranks must hold the same masks."""
        if self._trainer.world_size == 1:
            return
        assert self.session is not None
        digest = int(self.session.masks.digest()[:15], 16)
        own = torch.tensor([digest], dtype=torch.int64, device=self._trainer.strategy.root_device)
        if len(set(self._trainer.strategy.all_gather(own).flatten().tolist())) > 1:
            raise RuntimeError(
                f"ranks hold different masks after step {self.session.state.step}; stopped"
            )

    # --- checkpoints -------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Masks, counters, generator and what the method keeps."""
        return {} if self.session is None else self.session.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Held until training starts, when optimizers are there."""
        self._loaded = state_dict or None


def _batches(trainer: Trainer) -> Iterator[Any]:
    """The first training batches of the first rank, on every rank.

    Each rank's loader has samples of its own, and masks that were made of them would differ. The
    ranks must all take equally many. A pass draws nothing that training would draw.
    """
    first: list[Any] = []
    if trainer.is_global_zero:
        assert trainer.train_dataloader is not None
        with torch.random.fork_rng([]):
            first = list(itertools.islice(iter(trainer.train_dataloader), 64))
    for i in range(trainer.strategy.broadcast(len(first))):
        yield trainer.strategy.broadcast(first[i] if first else None)
