"""Tasks in one network, some units of which belong to the tasks before: base of such methods.

No mask belongs to a task. What a task has learned is kept by fixing connections, by their weights,
and the biases of the units that are kept; no later task may move them. Norms stay as the first
task left them, with their statistics. Of the network's outputs a task trains the biases of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparsebench.errors import UserError, bad_value
from sparsebench.sparsity.method import TrainState
from sparsebench.sparsity.methods.isolated import NORMS, Isolated
from sparsebench.sparsity.spec import MethodSpec, StructureSpec
from sparsebench.sparsity.topk import positions
from sparsebench.sparsity.units import units_of, weights_of


class OneNetwork(Isolated):
    """A method that keeps units of one network for the tasks that need them.

    Attributes:
        units: of the network.
        kept: by set of units, bool: those of the tasks before.
        outputs: bool, the network's outputs that are the present task's.
    """

    needs_task = False
    by_task = False
    kind: ClassVar[dict[str, str]] = {"when": "during", "masks": "dynamic"}

    def _find_parts(self, spec: MethodSpec, structure: StructureSpec) -> None:
        super()._find_parts(spec, structure)
        for dial, needed in {
            "initial": "random",
            "drop": None,
            "sparsity_schedule": "constant",
            "storage": "zeroed",
            "reuse": "anywhere",
        }.items():
            if (given := getattr(spec, dial)) != needed:
                said = f"method.engine={spec.engine} moves connections by itself: only {needed}"
                raise bad_value(f"method.{dial}", given, said)

    def start(self, state: TrainState) -> None:
        """As any method, for the first task."""
        self.units = units_of(state)
        self.kept = self.units.none()
        self.outputs = torch.ones(self.units.sizes[self.units.output], dtype=torch.bool)
        super().start(state)

    def _take_outputs(self, state: TrainState) -> None:
        if state.outputs is not None:
            self.outputs = state.outputs.cpu().clone()

    def network(self, state: TrainState, task: int) -> Any:
        """The network, which is one for all tasks."""
        return nullcontext()

    @torch.no_grad()
    def _open(self, state: TrainState) -> None:
        """What earlier tasks own at its values, all else at those of the initialisation."""
        vault = self.vault
        for name, parameter in state.masks.parameters.items():
            parameter.copy_(torch.where(vault.owned[name], vault.store[name], vault.fresh[name]))
        self._hold(state)

    def _hold(self, state: TrainState) -> None:
        """From here on nothing moves what earlier tasks keep."""
        held, values, unmasked = dict(self.vault.owned), dict(self.vault.store), {}
        for name, weight, bias in self._biases(state):
            hidden = self.units.target[weight] != self.units.output
            units = self.units.outputs(weight, self.kept) if hidden else ~self.outputs
            held[name] = units.to(bias.device)
            values[name] = bias.detach().clone()
            unmasked[name] = bias
        state.masks.fixed.hold(held, values, unmasked)
        if len(self.vault):
            self._stop_norms(state)
            self._still = {
                f"{module_name}.{name}": tensor.detach().clone()
                for module_name, module in state.model.named_modules()
                if isinstance(module, NORMS)
                for name, tensor in module.state_dict().items()
            }

    def _biases(self, state: TrainState) -> Iterator[tuple[str, str, nn.Parameter]]:
        """Of each layer that has one: name of the bias, name of the weight, and the bias."""
        parameters = dict(state.model.named_parameters())
        for weight in state.masks:
            name = f"{weight.rpartition('weight')[0]}bias"
            if name in parameters:
                yield name, weight, parameters[name]

    def _pairs(self, state: TrainState, sparsity: float) -> dict[str, int]:
        """How many connections (whole kernels) each layer has at a sparsity, one at least."""
        counts, weights = self._counts(state, sparsity), state.masks.parameters
        return {n: max(k // weights[n][0, 0].numel(), 1) for n, k in counts.items()}

    def _swap(
        self, state: TrainState, name: str, gone: Tensor, new: Tensor, values: Tensor | None = None
    ) -> None:
        """Remove and add connections, bool [outputs, inputs]; as :meth:`Masks.move`."""
        weight = state.masks.parameters[name]
        dropped, grown = (positions(weights_of(pairs, weight)) for pairs in (gone, new))
        state.masks.move(name, dropped, grown, state.optimizers, values)

    def check_tasks(self, sizes: Mapping[str, torch.Size], tasks: int) -> None:
        """Refuse a stream whose first task would take the whole network.

        Args:
            sizes: shapes of the sparse weights by name.
            tasks: how many there are.

        Raises:
            UserError: the network is dense.
        """
        if tasks > 1 and self.sparsity == 0.0:
            raise UserError(
                f"sparsity=0: task 1 of {tasks} (counted from 0) finds no free connection; "
                f"method.engine={self.spec.engine} needs a network that is sparse"
            )

    def state_dict(self) -> dict[str, Any]:
        """With the units that are kept."""
        return {**super().state_dict(), "kept": list(self.kept), "outputs": self.outputs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        self.kept = [units.cpu() for units in state["kept"]]
        self.outputs = state["outputs"].cpu()
        super().load_state_dict(state)
        if not self.outputs.all():  # the first task of a stream holds biases too
            self._hold(self._state)
