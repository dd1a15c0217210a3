"""How active the units of a network are, on training batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparsebench.sparsity.examples import undisturbed
from sparsebench.sparsity.method import TrainState
from sparsebench.sparsity.units import Units


def most_active(activity: Tensor, share: float) -> Tensor:
    """Bool, the fewest units, the most active first, that have a share of all activity (1-D)."""
    order = activity.double().argsort(descending=True, stable=True)
    sums = activity.double()[order].cumsum(0)
    enough = int((sums < share * sums[-1]).sum()) + 1
    found = torch.zeros(len(activity), dtype=torch.bool)
    return found.index_fill_(0, order[:enough], True)


def activities(state: TrainState, units: Units, batches: int) -> list[Tensor]:
    """Summed absolute activation of each unit, by set, as it is fed to a layer.

    Args:
        state: the run; the network is looked at in eval mode.
        units: of the network.
        batches: how many training batches.
    """
    readers = {
        source: name for name, source in reversed(units.source.items()) if source is not None
    }
    found = [torch.zeros(size, dtype=torch.float64) for size in units.sizes]

    def watch(source: int, name: str) -> Any:
        def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].detach().abs().double()
            channel = x.dim() - 1 if isinstance(module, nn.Linear) else 1
            sums = x.sum([dim for dim in range(x.dim()) if dim != channel])
            found[source] += units.of_inputs(name, sums).cpu()

        return state.model.get_submodule(name.rpartition(".")[0]).register_forward_pre_hook(look)

    taken = state.data.take(state, batches)
    handles = [watch(source, name) for source, name in readers.items()]
    try:
        with undisturbed(state.model), torch.no_grad():
            state.model.eval()
            for batch in taken:
                state.data.loss(state.model, batch)
                state.looked_at += -(-len(batch[0]) // 3)  # forward only, a third of a pass
    finally:
        for handle in handles:
            handle.remove()
    return found
