"""NISPA: stable units, and plastic ones (Gurbuz and Dovrolis, ICML 2022, arXiv 2206.09117).

A task trains one sparse network in phases of length ``every``. After phase t the most active units
of each hidden layer, that together have the share p_t = (1 + cos(pi t / K)) / 2 of its activation,
become candidates, and with the units of earlier tasks they are the stable ones; so are all inputs
and the outputs of classes seen. Connections from plastic to stable units are dropped and as many
grown at random into plastic units, of the layer, the first ones from plastic units that lead
nowhere. So stable units come to depend on stable units alone. At the task's end connections between
stable units are frozen, with the biases of stable units; all else begins anew with the next task,
whose units may read the stable ones. Old tasks' answers therefore never change, with no mask of a
task's own; the task need only be known to choose its outputs.

Training stops when a phase ends more than ``tolerance`` points of accuracy below the best phase, or
when p has fallen to ``floor``, but not before the third phase: the network is then that of the
end of the phase before. A fit here has a fixed length: the network that was gone back to is held,
weights, biases and statistics, for the rest of the task. After the last phase of a task, units are
not chosen anew. The accuracy is that of the task's validation samples, or, without
``data.validation``, of its training samples; a loop that says none (``TrainState.accuracy``) stops
by ``floor`` only.

Official code: BurakGurbuz97/NISPA (defaults: those of CIFAR-10). As there, the optimizer begins
anew with each phase, new weights are normal with mean and deviation of the layer's connections,
first convolutions are left dense (here by ``distribution.first_dense``), convolutions have whole
kernels, and what finds no plastic unit to go to is not grown, so that the density of the last layer
falls once all classes are seen. On purpose we differ: counts are exact; a phase ends with its last
epoch, not its best; activations are those fed to the next layer on ``batches`` training batches,
not on all, as absolute values; what begins anew has the values of the initialisation, not new
random ones; other tasks' outputs are left out of loss and answer, where the code multiplies them
by 0 and they compete as that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsebench.errors import UserError
from sparsebench.sparsity.activity import activities, most_active
from sparsebench.sparsity.masks import unpack
from sparsebench.sparsity.method import TrainState
from sparsebench.sparsity.methods.one_network import OneNetwork
from sparsebench.sparsity.optimizer_state import forget
from sparsebench.sparsity.spec import number, whole
from sparsebench.sparsity.units import connections, draw, weights_of
from sparsebench.sparsity.vault import rest
from sparsebench.sparsity.window import Window

#: Norms whose statistics mix units, so that plastic units would change stable ones.
_MIXING = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm)
_LEAST_PHASES = 2  # units are chosen after the first, and trained in the second


@dataclass(frozen=True)
class Options:
    """When units become stable, and when a task stops."""

    phases: int = whole(30, 3, "phases after which no activation would be asked for (K)")
    tolerance: float = number(0.75, "[0, inf)", "points of accuracy that a phase may lose")
    floor: float = number(0.05, "[0, 1)", "share of activation at which a task stops")
    batches: int = whole(10, 1, "training batches on which activations are measured")


class Nispa(OneNetwork):
    """Rewires from plastic to plastic, and from stable to plastic."""

    Options = Options
    needs_task = True

    def start(self, state: TrainState) -> None:
        """As any method, for the first task."""
        self._reset()
        super().start(state)
        self._stable = self.units.none()

    def _reset(self) -> None:
        self._phase, self._best, self._stopped = 0, -math.inf, False
        self._previous: dict[str, Any] = {}  # the network as the phase before left it

    def window(self, total_steps: int, steps_per_epoch: int) -> Window:
        """When phases end.

        Raises:
            UserError: a task has one phase only.
        """
        found = super().window(total_steps, steps_per_epoch)
        phases = (found.last - found.begin) // found.every
        if phases < _LEAST_PHASES and self.sparsity > 0.0:
            raise UserError(
                f"method.every={self.spec.every}: a task of {total_steps} steps has {phases} phase "
                f"of {found.every}, and {_LEAST_PHASES} are needed"
            )
        return found

    # --- from task to task -------------------------------------------------------------------

    def _place(self, state: TrainState, target: float) -> None:
        for name, count in self._pairs(state, target).items():
            weight = state.masks.parameters[name]
            every = torch.ones(weight.shape[:2], dtype=torch.bool)
            state.masks.set(name, weights_of(draw(every, count, state.generator), weight))

    def begin_task(self, state: TrainState, task: int) -> None:
        """What is not frozen begins anew, at the connections it has."""
        if not task:
            self._check(state)
        self._take_outputs(state)
        self._reset()
        self._stable = [units.clone() for units in self.kept]
        if len(self.vault):
            self._open(state)
            state.masks.apply(state.optimizers)
        else:
            self._hold(state)

    def _check(self, state: TrainState) -> None:
        for name, module in state.model.named_modules():
            if isinstance(module, _MIXING):
                raise UserError(
                    f"method=nispa: '{name}' ({type(module).__name__}) mixes units, and stable "
                    "ones must not depend on others"
                )
        if state.outputs is not None and state.outputs.all() and self._tasks > 1:
            raise UserError(
                "stream.scenario=domain_il: method=nispa freezes a task's outputs, so that the "
                "tasks after it need outputs of their own"
            )

    @torch.no_grad()
    def _open(self, state: TrainState) -> None:
        super()._open(state)
        fixed = state.masks.fixed.positions
        built = self.vault.rest(-1)
        for name, _, bias in self._biases(state):
            bias.copy_(torch.where(fixed[name], bias, built[name]))

    def end_task(self, state: TrainState, task: int) -> None:
        """Connections between stable units are frozen."""
        owned = {}
        for name, mask in state.masks.items():
            inside = self.units.between(name, self._stable, self._stable)
            owned[name] = mask & weights_of(inside, mask)
        self.kept = [units.clone() for units in self._stable]
        self.vault.add(state.model, state.masks, owned)
        full = [n for n, set_ in self.units.target.items() if self.kept[set_].all()]
        full = [name for name in full if self.units.target[name] != self.units.output]
        if full:
            state.notes.append(f"after task {task} all units of '{full[0]}' are stable")

    # --- the end of a phase ------------------------------------------------------------------

    @torch.no_grad()
    def update(self, state: TrainState) -> None:
        """Stop, or choose stable units and rewire."""
        assert self._window is not None
        if self._stopped:
            return
        self._phase += 1
        share = active_share(self._phase, self.options.phases)
        accuracy = state.accuracy() if state.accuracy else math.inf
        worse = accuracy < self._best - self.options.tolerance
        if self._phase > _LEAST_PHASES and (worse or share <= self.options.floor):
            self._stop(state)
            return
        if state.accuracy:
            self._best = max(self._best, accuracy)
        if state.step + self._window.every > self._window.end:  # no phase is left to train it
            return
        self._previous = self._snapshot(state)
        activity = activities(state, self.units, self.options.batches)
        self._stable = [kept.clone() for kept in self.kept]
        for number_ in self.units.hidden:
            self._stable[number_] |= most_active(activity[number_], share)
        self._stable[self.units.output] |= self.outputs
        self._rewire(state)
        forget(state.optimizers)

    def _rewire(self, state: TrainState) -> None:
        """Drop connections from plastic to stable units, and grow as many into plastic ones."""
        units, stable = self.units, self._stable
        plastic = [~chosen for chosen in stable]
        for name, parameter in state.masks.parameters.items():
            if units.source[name] is None:  # all inputs are stable
                continue
            present = connections(state.masks[name]).cpu()
            gone = present & units.between(name, plastic, stable)
            free = units.outputs(name, plastic)[:, None] & ~present
            count = int(gone.sum())
            new = self._first_ways(state, name, present & ~gone, free, count)
            new |= draw(free & ~new, count - int(new.sum()), state.generator)
            kept = parameter[weights_of(present & ~gone, parameter)]
            size = int(weights_of(new, parameter).sum())
            values = torch.randn(size, generator=state.generator).to(parameter)
            if kept.numel():
                values = values * kept.std(correction=0) + kept.mean()
            self._swap(state, name, gone, new, values)

    def _first_ways(
        self, state: TrainState, name: str, present: Tensor, free: Tensor, most: int
    ) -> Tensor:
        """A connection for each plastic unit that leads nowhere, as many as there may be."""
        units, found = self.units, torch.zeros_like(free)
        source = units.source[name]
        assert source is not None
        leads = units.of_inputs(name, present.any(0).float()) > 0
        for unit in (~self._stable[source] & ~leads).nonzero().flatten().tolist()[:most]:
            own = [torch.zeros_like(chosen) for chosen in self._stable]
            own[source][unit] = True
            found |= draw(free & units.inputs(name, own), 1, state.generator)
        return found

    # --- going back --------------------------------------------------------------------------

    def _snapshot(self, state: TrainState) -> dict[str, Any]:
        return {
            "masks": state.masks.packed(),
            "weights": {n: p.detach().clone() for n, p in state.masks.parameters.items()},
            "rest": {n: t.detach().clone() for n, t in rest(state.model, state.masks).items()},
            "stable": [chosen.clone() for chosen in self._stable],
        }

    def _stop(self, state: TrainState) -> None:
        """Go back to the phase before, and stay there."""
        previous, self._previous = self._previous, {}
        for name, parameter in state.masks.parameters.items():
            bits = previous["masks"][name].to(parameter.device)
            state.masks.set(name, unpack(bits, parameter.shape))
            parameter.copy_(previous["weights"][name])
        for name, tensor in rest(state.model, state.masks).items():
            tensor.copy_(previous["rest"][name])
        self._stable = [chosen.clone() for chosen in previous["stable"]]
        self._stopped = True
        state.notes.append(
            f"task {len(self.vault)} stopped after phase {self._phase} of {self._phases_of_task()}"
        )
        self._hold(state)

    def _phases_of_task(self) -> int:
        assert self._window is not None
        return (self._window.last - self._window.begin) // self._window.every

    def _hold(self, state: TrainState) -> None:
        """Fix what earlier tasks keep, or, where a task has stopped, all there is."""
        super()._hold(state)
        if not self._stopped:
            return
        named = dict(state.model.named_parameters())
        unmasked = {n: p for n, p in named.items() if n not in state.masks.parameters}
        state.masks.fixed.hold(
            {n: torch.ones_like(p, dtype=torch.bool) for n, p in named.items()},
            {n: p.detach().clone() for n, p in named.items()},
            unmasked,
        )
        self._still = {n: b.detach().clone() for n, b in state.model.named_buffers()}

    # --- what a stream asks ------------------------------------------------------------------

    _tasks = 1

    def check_tasks(self, sizes: Mapping[str, torch.Size], tasks: int) -> None:
        """As :meth:`OneNetwork.check_tasks`; which units get stable depends on the data."""
        super().check_tasks(sizes, tasks)
        self._tasks = tasks

    def state_dict(self) -> dict[str, Any]:
        """With the phase, and the network to go back to."""
        own = {
            "stable": list(self._stable), "phase": self._phase, "best": self._best,
            "stopped": self._stopped, "previous": self._previous,
        }  # fmt: skip
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        self._stable = [chosen.cpu() for chosen in state["stable"]]
        self._phase, self._best = int(state["phase"]), float(state["best"])
        self._stopped, self._previous = bool(state["stopped"]), dict(state["previous"])
        super().load_state_dict(state)
        if self._stopped:
            self._hold(self._state)


def active_share(phase: int, phases: int) -> float:
    """Share of a layer's activation that units must have together, p_t (cosine schedule)."""
    return 0.5 * (1.0 + math.cos(math.pi * phase / phases))
