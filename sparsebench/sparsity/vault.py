"""What the tasks of a stream leave behind: their weights, masks, and the rest of their networks.

One dense store holds the weights that tasks own, each task a mask of those it uses. All other
parameters and buffers (biases, norms with their statistics, layers that are not sparse) are kept
by task too, as the rows that the task has changed, so that a head of which a task trains its own
rows costs these rows. Where all tasks share one network (``by_task=False``) only the store is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparsebench.sparsity.masks import Masks, pack, unpack

#: Of each changed tensor the numbers of its rows, and these rows.
Changes = dict[str, tuple[Tensor, Tensor]]


class Vault:
    """Kept networks of tasks.

    Attributes:
        fresh: by name the sparse weights as the network was built, dense.
        owned: by name a bool mask of the weights that some task owns.
        store: by name the values of owned weights; what is not owned has the fresh value.
        masks: of each task so far, packed by name.
    """

    def __init__(self, model: nn.Module, masks: Masks, *, by_task: bool = True) -> None:
        """Keep a network as it was built; no task owns anything.

        Args:
            model: the network, its weights dense.
            masks: says which of its parameters are sparse.
            by_task: whether masks, and what is not sparse, are kept for each task.
        """
        self.by_task = by_task
        self.fresh = {n: p.detach().clone() for n, p in masks.parameters.items()}
        self.owned = {n: torch.zeros_like(t, dtype=torch.bool) for n, t in self.fresh.items()}
        self.store = {n: t.clone() for n, t in self.fresh.items()}
        self.masks: list[dict[str, Tensor]] = []
        self._first = {n: t.detach().clone() for n, t in rest(model, masks).items()}
        self._changes: list[Changes] = []

    def __len__(self) -> int:
        return len(self.masks)

    @torch.no_grad()
    def add(
        self, model: nn.Module, masks: Masks, owned: Mapping[str, Tensor] | None = None
    ) -> None:
        """A task is done: it owns the weights it uses that nobody owned before.

        Args:
            model: the network.
            masks: what the task uses, with the dense values behind them.
            owned: by name, bool, what it owns of them if that is not all.

        Raises:
            RuntimeError: a weight of an earlier task has moved.
        """
        self.masks.append(masks.packed() if self.by_task else {})
        for name, parameter in masks.parameters.items():
            used = masks[name]
            before, store = self.owned[name], self.store[name]
            if not torch.equal(parameter[used & before], store[used & before]):
                raise RuntimeError(f"a weight of '{name}' that an earlier task owns has moved")
            new = (used if owned is None else owned[name]) & ~before
            self.store[name] = torch.where(new, parameter.detach(), store)
            self.owned[name] = before | new
        if self.by_task:
            before_task = self.rest(len(self._changes) - 1)
            self._changes.append(_changes(before_task, rest(model, masks)))

    def mask(self, task: int, name: str) -> Tensor:
        """Bool mask of what a task uses of one parameter."""
        shape, device = self.store[name].shape, self.store[name].device
        return unpack(self.masks[task][name].to(device), shape)

    def rest(self, task: int) -> dict[str, Tensor]:
        """All that is not sparse, as a task left it (-1: as the network was built)."""
        found = {name: tensor.clone() for name, tensor in self._first.items()}
        for changes in self._changes[: task + 1]:
            for name, (rows, values) in changes.items():
                _rows(found[name])[rows.to(values.device)] = values
        return found

    @contextmanager
    def shown(self, task: int, model: nn.Module, masks: Masks) -> Iterator[None]:
        """The network as a task left it; the present one comes back afterwards."""
        other = rest(model, masks)
        now = {name: tensor.detach().clone() for name, tensor in other.items()}
        weights = {name: p.data for name, p in masks.parameters.items()}
        with torch.no_grad():
            for name, tensor in self.rest(task).items():
                other[name].copy_(tensor)
            for name, parameter in masks.parameters.items():
                kept = self.mask(task, name).to(parameter.dtype)
                parameter.data = torch.mul(
                    self.store[name], kept, out=torch.empty_like(parameter.data)
                )
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in now.items():
                    other[name].copy_(tensor)
                for name, parameter in masks.parameters.items():
                    parameter.data = weights[name]

    @property
    def bytes(self) -> dict[str, int]:
        """Bytes of the weights that are owned, of the masks, and of the rest with its changes."""
        changed = [t for changes in self._changes for pair in changes.values() for t in pair]
        owned = {name: int(mask.sum()) for name, mask in self.owned.items()}
        if self.by_task:
            masks = sum(bits.numel() for own in self.masks for bits in own.values())
        else:
            masks = sum(-(-mask.numel() // 8) for mask in self.owned.values())
        return {
            "weights": sum(k * self.store[n].element_size() for n, k in owned.items()),
            "masks": masks,
            "dense": sum(t.numel() * t.element_size() for t in (*self._first.values(), *changed)),
        }

    def state_dict(self) -> dict[str, Any]:
        """All of it, tensors only."""
        return {
            "fresh": self.fresh,
            "owned": {name: pack(mask) for name, mask in self.owned.items()},
            "store": self.store,
            "masks": self.masks,
            "first": self._first,
            "changes": self._changes,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self.fresh = _placed(state["fresh"], self.fresh)
        self.store = _placed(state["store"], self.store)
        self.owned = {
            name: unpack(bits.to(self.store[name].device), self.store[name].shape)
            for name, bits in state["owned"].items()
        }
        self.masks = [dict(own) for own in state["masks"]]
        self._first = _placed(state["first"], self._first)
        self._changes = [
            {name: (rows, values) for name, (rows, values) in changes.items()}
            for changes in state["changes"]
        ]


def rest(model: nn.Module, masks: Masks) -> dict[str, Tensor]:
    """Parameters and buffers of a network that have no mask, by name."""
    return {n: t for n, t in model.state_dict(keep_vars=True).items() if n not in masks.parameters}


def _rows(tensor: Tensor) -> Tensor:
    """A view of at least one dimension."""
    return tensor.view(1) if tensor.dim() == 0 else tensor


def _changes(before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> Changes:
    found: Changes = {}
    for name, tensor in now.items():
        new, old = _rows(tensor.detach()), _rows(before[name])
        rows = (new != old).reshape(len(new), -1).any(1).nonzero().flatten()
        if len(rows):
            found[name] = (rows, new[rows].clone())
    return found


def _placed(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: like[name].detach().clone().copy_(t) for name, t in tensors.items()}
