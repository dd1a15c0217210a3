"""A method at work on one training run: the same few calls in any loop."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from sparsebench.sparsity.examples import Examples
from sparsebench.sparsity.masks import Masks
from sparsebench.sparsity.method import Densities, Method, TrainState, gradient_densities
from sparsebench.sparsity.optimizer_state import check_optimizer
from sparsebench.sparsity.selector import select
from sparsebench.sparsity.spec import SelectorSpec


class Session:
    """Keeps a model sparse while any loop trains it.

    In a bare loop::

        session = Session(method, model, optimizer, total_steps=1000)
        for x, y in batches:
            session.before_forward()
            loss(model(x), y).backward()
            session.after_backward()
            optimizer.step()
            optimizer.zero_grad()
            session.after_step()

    With gradient accumulation, ``after_backward`` and ``after_step`` are called once for
    each optimizer step, on the accumulated gradient, before it is clipped.
    """

    def __init__(
        self,
        method: Method,
        model: nn.Module,
        optimizers: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        *,
        total_steps: int,
        steps_per_epoch: int | None = None,
        seed: int | None = None,
        selector: SelectorSpec | None = None,
        resume: Mapping[str, Any] | None = None,
        examples: Examples | None = None,
    ) -> None:
        """Set the masks of the first step, or take a checkpoint's.

        Args:
            method: what decides the masks.
            model: the network; its selected weights become sparse in place.
            optimizers: the one or the ones that move its weights.
            total_steps: optimizer steps of the whole run.
            steps_per_epoch: optimizer steps of one epoch (default: one epoch in all).
            seed: of all random choices; default is the seed torch was given.
            selector: which weights are sparse; default all of linear and conv layers.
            resume: what :meth:`state_dict` gave; the weights must be those of then.
            examples: training batches, for methods that look at some beside training.

        Raises:
            UserError: a selector, optimizer or schedule that can't work.
        """
        optimizers = [optimizers] if isinstance(optimizers, torch.optim.Optimizer) else optimizers
        for optimizer in optimizers:
            check_optimizer(optimizer)
        generator = torch.Generator()
        generator.manual_seed(torch.initial_seed() if seed is None else seed)
        self.method = method
        self.dense_gradient = False  # whether the last step needed the dense gradient
        self.gradient_densities: Densities = {}  # of the last step, where the method says so
        self.update_seconds = 0.0
        self.state = TrainState(
            model=model,
            optimizers=list(optimizers),
            masks=Masks(select(model, selector), method.storage),
            generator=generator,
            total_steps=total_steps,
            steps_per_epoch=steps_per_epoch or total_steps,
            data=examples or Examples(),
            resuming=resume is not None,
        )
        self._looked = False  # whether the gradients of the coming step were seen
        method.start(self.state)
        if resume is not None:
            self._load(resume)
        self.masks.apply(self.state.optimizers if resume is None else ())

    @property
    def masks(self) -> Masks:
        """The masks."""
        return self.state.masks

    def before_forward(self) -> None:
        """Show the sparse weights (needed where absent weights have values of their own)."""
        self.masks.hide()

    def after_backward(self) -> None:
        """Dense gradients are there: let the method see them, then mask them."""
        self._looked = True
        self.gradient_densities = gradient_densities(self.method, self.state)
        self.dense_gradient = self.method.wants_dense_gradient(self.state)
        replaced = self.method.after_backward(self.state)
        self.masks.mask_gradients()
        self.masks.reveal()
        if replaced:  # optimizers skip a parameter without gradient
            for parameter in self.state.model.parameters():
                parameter.grad = None

    def after_step(self) -> bool:
        """Weights have moved: count the step and update the masks if it is time.

        Returns:
            Whether the masks changed.

        Raises:
            RuntimeError: the step was taken with gradients that nobody masked.
        """
        if not self._looked:
            raise RuntimeError("Session.after_backward must be called before each optimizer step")
        self._looked = False
        self.state.step += 1
        self.masks.settle(self.state.optimizers)
        before, begin = self.masks.version, time.perf_counter()
        self.method.after_step(self.state)
        changed = self.masks.version != before
        if changed:
            self.update_seconds += time.perf_counter() - begin
        return changed

    # --- for training that goes from task to task --------------------------------------------

    def begin_task(self, task: int, outputs: Tensor | None = None) -> None:
        """A new task comes: before its first step, and after the optimizer has forgotten.

        A method that tells tasks apart has a ``begin_task(state, task)``, an ``end_task(state,
        task)``, and a ``network(state, task)``, a context manager that shows what the task was
        left with.

        Args:
            task: number of the task, from 0.
            outputs: bool, those outputs of the network that are the task's; default is all.
        """
        self.state.outputs = outputs
        if begin := getattr(self.method, "begin_task", None):
            self.masks.reveal()
            begin(self.state, task)
            self.masks.hide()

    def end_task(self, task: int) -> None:
        """A task has had its last step."""
        if end := getattr(self.method, "end_task", None):
            self.masks.reveal()
            end(self.state, task)
            self.masks.hide()

    @contextmanager
    def as_task(self, task: int) -> Iterator[None]:
        """Show the network as it answers for a task: the present one, unless it has its own."""
        self.before_forward()
        network = getattr(self.method, "network", None)
        with network(self.state, task) if network else nullcontext():
            yield

    def infer(self, x: Tensor, among: Tensor, tasks: int) -> Tensor:
        """The task of each sample, by a method that can tell (see its ``infers_task``).

        Args:
            x: samples (batch, ...); the network is in eval mode.
            among: outputs of the classes seen so far, bool [outputs].
            tasks: number of tasks so far.
        """
        self.before_forward()
        infer: Any = getattr(self.method, "infer")  # noqa: B009  # no part of every method
        found: Tensor = infer(self.state, x, among, tasks)
        return found

    def state_dict(self) -> dict[str, Any]:
        """All that resuming needs: tensors, numbers and strings only."""
        return {
            "step": self.state.step,
            "generator": self.state.generator.get_state(),
            "masks": self.masks.state_dict(),
            "method": self.method.state_dict(),
            "notes": list(self.state.notes),
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        self.state.step = int(state["step"])
        self.state.generator.set_state(state["generator"].cpu())
        self.masks.load_state_dict(state["masks"])
        self.method.load_state_dict(state["method"])
        self.state.notes[:] = state["notes"]
