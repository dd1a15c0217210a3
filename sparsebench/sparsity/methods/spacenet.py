"""SpaceNet: tasks compacted into few units of one network (Sokar et al. 2021, arXiv 2007.07617).

Class-incremental, without replay. At the beginning of a task a share of each hidden layer's units
is selected among those that no task has reserved, and the layer gets its connections, which no
other task holds, at random between selected units (outputs: those of the task). They start from
the values of the initialisation. After each ``every`` a share of them, those of least importance,
moves to where both units are most important. At its end the task's connections are frozen, and its
most important units reserved: no later task may connect to them or from them. All that earlier
tasks hold takes part in the forward pass; units that are not reserved are shared, so old outputs
do change a little.

Importance of a connection: the sum over steps of |change of the weight x its gradient|, which it
keeps until the end of the task; of a unit, the sum over its incoming connections (of an input of
the network, the outgoing ones). The official code (GhadaSokar/SpaceNet, an MLP) adds that sum up
once more over all steps; here a step counts once. Counts follow ``sparsity`` and the distribution;
those of the code, 10000, 1640 and 80 for 784-400-400-10, are ``sparsity=0.98`` with
``distribution.fixed={fc1.weight: 0.0318878,fc2.weight: 0.01025}``. The task's
part of the outputs may have fewer pairs than its share, and then gets them all, as does a layer
whose pairs earlier tasks have used up (the result notes it). In convolutions a connection is a
whole kernel.

While a task trains, the code has the weights of earlier tasks' outputs at 0 and puts them back for
tests (``options.rows=own``; ``all`` lets them answer). Its loss is over all outputs from the first
task on, those of tasks to come at 0: that is ``task.options.loss=all``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparsebench.errors import UserError
from sparsebench.sparsity.forecast import counts
from sparsebench.sparsity.method import TrainState
from sparsebench.sparsity.methods.one_network import OneNetwork
from sparsebench.sparsity.spec import MethodSpec, StructureSpec, number
from sparsebench.sparsity.topk import lowest_indices, topk_indices
from sparsebench.sparsity.units import connections, draw, weights_of


@dataclass(frozen=True)
class Options:
    """What a task takes."""

    selected: float = number(0.2, "(0, 1]", "share of a hidden layer's units that a task uses")
    reserved: float = number(0.1, "[0, 1]", "share of the units that it reserves")
    replaced: float = number(0.2, "[0, 1)", "share of its connections that move at an update")
    rows: str = field(default="own", metadata={"choices": ("own", "all")})


class SpaceNet(OneNetwork):
    """Gives each task few connections between few units."""

    Options = Options

    def _find_parts(self, spec: MethodSpec, structure: StructureSpec) -> None:
        super()._find_parts(spec, structure)
        options = self.options
        if options.reserved > options.selected:
            raise UserError(
                f"method.options.reserved={options.reserved}: a task reserves units that it uses, "
                f"and these are method.options.selected={options.selected}"
            )

    def start(self, state: TrainState) -> None:
        """As any method, for the first task."""
        self._importance: dict[str, Tensor] = {}
        self._selected: list[Tensor] = []
        super().start(state)

    # --- from task to task -------------------------------------------------------------------

    def begin_task(self, state: TrainState, task: int) -> None:
        """Select units and connections."""
        self._take_outputs(state)
        if self.sparsity > 0.0:
            self._begin(state)

    def _place(self, state: TrainState, target: float) -> None:
        masks, options = state.masks, self.options
        self._importance = {n: torch.zeros_like(p) for n, p in masks.parameters.items()}
        self._selected = [
            draw(~kept, _share(options.selected, len(kept)), state.generator) for kept in self.kept
        ]
        self._selected[self.units.output] = self.outputs
        for name, wanted in self._pairs(state, target).items():
            owned = self.vault.owned[name]
            room = self.units.between(name, self._selected, self._selected)
            room &= ~connections(owned).cpu()
            self._check_room(state, name, wanted, int(room.sum()))
            own = weights_of(draw(room, wanted, state.generator), owned)
            shown = own if options.rows == "own" and self._is_last(name) else own | owned
            masks.set(name, shown)

    def _check_room(self, state: TrainState, name: str, wanted: int, room: int) -> None:
        if wanted <= room or self._is_last(name):
            return
        if len(self.vault):
            state.notes.append(
                f"task {len(self.vault)} has {room} connections of '{name}' instead of {wanted}: "
                "earlier tasks hold the others between its units"
            )
            return
        raise self._too_many(name, wanted, room)

    def _too_many(self, name: str, wanted: int, room: int) -> UserError:
        return UserError(
            f"sparsity={self.sparsity}: a task gets {wanted} connections of '{name}', and between "
            f"its units there are {room}; more units are method.options.selected (now "
            f"{self.options.selected}), fewer connections a higher sparsity"
        )

    def _is_last(self, name: str) -> bool:
        return self.units.target[name] == self.units.output

    @torch.no_grad()
    def end_task(self, state: TrainState, task: int) -> None:
        """Freeze the task's connections, reserve its best units, show all outputs' rows."""
        super().end_task(state, task)
        if self.sparsity > 0.0:
            importance = self._of_units()
            for number_ in self.units.hidden:
                size = _share(self.options.reserved, self.units.sizes[number_])
                best = topk_indices(importance[number_], size, self._selected[number_])
                self.kept[number_].index_fill_(0, best, True)
        for name, parameter in state.masks.parameters.items():
            owned = self.vault.owned[name]
            state.masks.set(name, owned)
            parameter.copy_(self.vault.store[name] * owned)

    # --- importance, and what follows from it ------------------------------------------------

    @torch.no_grad()
    def after_backward(self, state: TrainState) -> bool:
        """Keep what the step begins with."""
        self._before = {
            name: (parameter.detach().clone(), parameter.grad.detach().clone())
            for name, parameter in state.masks.parameters.items()
            if parameter.grad is not None and name in self._importance
        }
        return super().after_backward(state)

    @torch.no_grad()
    def after_step(self, state: TrainState) -> None:
        """Add up importance; move connections if it is time."""
        for name, (weight, gradient) in self._before.items():
            change = state.masks.parameters[name].detach() - weight
            self._importance[name] += (change * gradient).abs_()
        super().after_step(state)

    def _of_pairs(self, name: str) -> Tensor:
        importance = self._importance[name].cpu()
        return importance.flatten(2).sum(2) if importance.dim() > 2 else importance

    def _of_units(self) -> list[Tensor]:
        """Importance of each unit, by set."""
        found = [torch.zeros(size) for size in self.units.sizes]
        for name in self._importance:
            incoming = self._of_pairs(name).sum(1)
            found[self.units.target[name]][: len(incoming)] += incoming
        return found

    def update(self, state: TrainState) -> None:
        """Move the hidden layers' least important connections to between important units."""
        units, importance = self.units, self._of_units()
        for name in state.masks:
            if self._is_last(name):
                continue
            pairs, masks = self._of_pairs(name), state.masks
            own = connections(masks[name] & ~self.vault.owned[name]).cpu()
            free = units.between(name, self._selected, self._selected)
            free &= ~connections(masks[name]).cpu()
            count = min(int(self.options.replaced * int(own.sum())), int(free.sum()))
            source = units.source[name]
            inputs = pairs.sum(0) if source is None else units.to_inputs(name, importance)
            score = units.outputs(name, importance)[:, None] * inputs
            gone = _chosen(lowest_indices(pairs, count, own), pairs)
            new = _chosen(topk_indices(score, count, free), pairs)
            self._swap(state, name, gone, new)

    # --- what a stream asks ------------------------------------------------------------------

    def check_tasks(self, sizes: Mapping[str, torch.Size], tasks: int) -> None:
        """Refuse a stream that runs out of free units; as :meth:`OneNetwork.check_tasks`."""
        super().check_tasks(sizes, tasks)
        self._check_pairs(sizes)
        options = self.options
        for name, shape in list(sizes.items())[:-1]:
            selected, reserved = (
                _share(share, shape[0]) for share in (options.selected, options.reserved)
            )
            fits = tasks if not reserved else (shape[0] - selected) // reserved + 1
            if fits < tasks:
                raise UserError(
                    f"method.options.reserved={options.reserved}: task {fits} of {tasks} (counted "
                    f"from 0) finds {shape[0] - fits * reserved} of the {shape[0]} units of "
                    f"'{name}' free, and needs {selected} (method.options.selected="
                    f"{options.selected})"
                )

    def _check_pairs(self, sizes: Mapping[str, torch.Size]) -> None:
        """Refuse more connections than a chain of layers has between a task's units."""
        wanted, before, selected = counts(self, sizes, self.sparsity), 0, self.options.selected
        for name, shape in list(sizes.items())[:-1]:
            chained = before and shape[1] % before == 0
            inputs = _share(selected, before) * shape[1] // before if chained else shape[1]
            room, kernels = inputs * _share(selected, shape[0]), wanted[name] // shape[2:].numel()
            if self.sparsity > 0.0 and kernels > room:
                raise self._too_many(name, kernels, room)
            before = shape[0]

    def state_dict(self) -> dict[str, Any]:
        """With the task's units and what is known of their importance."""
        own = {"selected": list(self._selected), "importance": dict(self._importance)}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        self._selected = [units.cpu() for units in state["selected"]]
        devices = {n: p.device for n, p in self._state.masks.parameters.items()}
        self._importance = {n: t.to(devices[n], copy=True) for n, t in state["importance"].items()}
        super().load_state_dict(state)


def _share(share: float, size: int) -> int:
    """Units that a share of a layer is; one at least, unless the share is 0."""
    return max(round(share * size), 1) if share else 0


def _chosen(indices: Tensor, like: Tensor) -> Tensor:
    """Bool, of the shape of ``like``, at flat positions."""
    found = torch.zeros(like.numel(), dtype=torch.bool)
    return found.index_fill_(0, indices, True).view(like.shape)
