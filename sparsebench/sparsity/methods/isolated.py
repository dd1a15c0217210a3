"""Isolation: each task has masks of its own, and what it learned is never changed again.

The engine of CL-with-DST (Yildirim et al., CPAL 2024, arXiv 2308.14831), for any initial topology,
drop and growth. At the beginning of a task new masks of exact counts are drawn; the task trains
them as any sparse method does, its schedule beginning anew. Weights that earlier tasks own may be
part of the masks (``method.reuse``) but do not move; weights that nobody owns become the task's.
Afterwards the network answers for a task with its masks and nothing else, so what it answers does
not change: the backward transfer is exactly 0.

What has no mask, such as biases and norms, is a task's own too (``options.rest=own``) or stays as
the first task left it (``first``, as in PackNet), which includes the statistics of norms; of the
last layer each task always has its own.

Official code: muratonuryildirim/CL-with-DST. On purpose we differ: counts are exact, where the
code draws masks by Bernoulli; weights that a task is the first to use start from the values of the
initialisation (``options.fresh=false`` is the code's zero, with which a task whose masks meet no
owned weight in some layer has no gradient at all); an owned weight that is dropped and grown again
has its value back at once (the code trains with 0 and tests with the value); the last epoch counts,
not the one of the best training accuracy. The code never grows owned weights by ``gradient`` or
``momentum``, whose scores it masks, but does at random; here ``reuse`` says so for all scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparsebench.errors import UserError
from sparsebench.sparsity.composed import Composed
from sparsebench.sparsity.forecast import counts
from sparsebench.sparsity.initial import is_placer
from sparsebench.sparsity.method import TrainState
from sparsebench.sparsity.spec import MethodSpec, StructureSpec
from sparsebench.sparsity.vault import Vault, rest

NORMS = (nn.modules.batchnorm._BatchNorm,)


@dataclass(frozen=True)
class Kept:
    """Whose are the parameters that have no mask."""

    rest: str = field(default="own", metadata={"choices": ("own", "first")})


@dataclass(frozen=True)
class Options(Kept):
    """What a task's network is made of beside its masks."""

    fresh: bool = True


class Isolated(Composed):
    """A method whose masks belong to a task.

    Attributes:
        needs_task: the network answers only where the task is told.
    """

    Options: ClassVar[type] = Options
    needs_task = True
    #: Whether each task has masks of its own; else all share one network.
    by_task = True

    def _find_parts(self, spec: MethodSpec, structure: StructureSpec) -> None:
        super()._find_parts(spec, structure)
        if structure.name != "unstructured":
            raise UserError(
                f"structure={structure.name}: method.engine={spec.engine} keeps single weights for "
                "each task, and needs structure=unstructured"
            )
        if spec.reuse == "never" and (
            is_placer(self.first) or spec.sparsity_schedule != "constant"
        ):
            raise UserError(
                f"method.reuse=never: not with method.initial={spec.initial} and "
                f"method.sparsity_schedule={spec.sparsity_schedule}; first masks that avoid some "
                "weights need a score, such as random, and a constant sparsity"
            )

    # --- from task to task -------------------------------------------------------------------

    def start(self, state: TrainState) -> None:
        """As any method, for the first task."""
        self._state = state
        self.vault = Vault(state.model, state.masks, by_task=self.by_task)
        self._still: dict[str, Tensor] = {}
        self._norms: list[Any] = []
        state.masks.fixed.hold({}, {})
        super().start(state)

    def begin_task(self, state: TrainState, task: int) -> None:
        """Masks for a new task, with room for what it may use."""
        if len(self.vault):
            self._begin(state)

    def _begin(self, state: TrainState) -> None:
        self._open(state)
        for observer in self.observers.values():
            observer.begin_task(state)
        target = self._target(0)
        if target > 0.0:
            self._place(state, target)
        state.masks.apply(state.optimizers)
        self._changed(state)
        self._rewind(state)

    @torch.no_grad()
    def _open(self, state: TrainState) -> None:
        """All weights at what a new task finds, and masks of all it may use."""
        vault = self.vault
        for name, parameter in state.masks.parameters.items():
            owned = vault.owned[name]
            fresh = vault.fresh[name] * float(self.options.fresh)
            parameter.copy_(torch.where(owned, vault.store[name], fresh))
            state.masks.set(name, ~owned if self.spec.reuse == "never" else owned | True)
        self._hold(state)

    def end_task(self, state: TrainState, task: int) -> None:
        """The task owns what it is the first to use."""
        self.vault.add(state.model, state.masks)

    def network(self, state: TrainState, task: int) -> Any:
        """The network as a task left it; the present one if the task is not done."""
        return self._network(state, task)

    @contextmanager
    def _network(self, state: TrainState, task: int) -> Iterator[None]:
        if task >= len(self.vault):
            yield
            return
        with self.vault.shown(task, state.model, state.masks):
            yield

    def _hold(self, state: TrainState) -> None:
        """From here on nothing moves what earlier tasks own."""
        state.masks.fixed.hold(self.vault.owned, self.vault.store)
        if self.options.rest == "first":
            last = list(state.model.named_parameters())[-1][0].rpartition(".")[0]
            left = self.vault.rest(0)
            self._still = {n: t for n, t in left.items() if n.rpartition(".")[0] != last}
            self._stop_norms(state)

    def _stop_norms(self, state: TrainState) -> None:
        """From here on norms go by the statistics they have."""
        self._norms = self._norms or [
            module.register_forward_pre_hook(_tested)
            for module in state.model.modules()
            if isinstance(module, NORMS)
        ]

    # --- each step ---------------------------------------------------------------------------

    def growable(self, state: TrainState, name: str, free: Tensor) -> Tensor:
        """Owned weights appear by growth only where they may; one just dropped may come back."""
        if not len(self.vault) or self.spec.reuse == "anywhere":
            return free
        owned = self.vault.owned[name].reshape(-1)
        return free & (~owned | state.masks[name].reshape(-1))

    @torch.no_grad()
    def after_step(self, state: TrainState) -> None:
        """Put back what the first task left to all; update the masks if it is time."""
        if self._still:
            tensors = rest(state.model, state.masks)
            for name, value in self._still.items():
                tensors[name].copy_(value)
        super().after_step(state)

    # --- what a stream asks ------------------------------------------------------------------

    def check_tasks(self, sizes: Mapping[str, torch.Size], tasks: int) -> None:
        """Refuse a stream that the network has no room for.

        Args:
            sizes: shapes of the sparse weights by name.
            tasks: how many there are.

        Raises:
            UserError: naming the first task that does not fit.
        """
        if self.spec.reuse != "never":
            return
        for name, wanted in counts(self, sizes, self.sparsity).items():
            if wanted * tasks > sizes[name].numel():
                fits = sizes[name].numel() // wanted
                raise UserError(
                    f"method.reuse=never: with sparsity={self.sparsity} task {fits} of {tasks} "
                    f"(counted from 0) finds no room in '{name}': {fits} tasks have used "
                    f"{fits * wanted} of its {sizes[name].numel()} weights, and each needs {wanted}"
                )

    def bytes_of(self) -> dict[str, int]:
        """Bytes of all that answers for the tasks."""
        return self.vault.bytes

    def state_dict(self) -> dict[str, Any]:
        """With the vault."""
        return {**super().state_dict(), "vault": self.vault.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        super().load_state_dict(state)
        self.vault.load_state_dict(state["vault"])
        if len(self.vault):
            self._hold(self._state)


def _tested(module: nn.Module, inputs: Any) -> None:
    """A norm uses the statistics it has, in training too."""
    module.training = False
