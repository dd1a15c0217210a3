"""A replay buffer: a reservoir of examples of the stream, of constant size.

Algorithm R of Vitter (1985): the item that comes after ``seen`` others takes slot ``seen`` while
there are free ones; else it draws r uniformly from 0 to ``seen`` and takes slot r if that exists.
After N items each is kept with probability size / N, and all sets of that size are equally likely.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsebench.data.seeding import generator

#: Draws are these numbers modulo something below 2**40, so uniform to one part in 2**22.
_MANY = 2**62


def slots(draws: Sequence[int], seen: int, size: int) -> dict[int, int]:
    """Where items go: which of them each slot gets that gets a new one.

    Args:
        draws: for each item, in order of arrival, a number that is uniform modulo its place.
        seen: items that came before.
        size: slots.

    Returns:
        Slot to item; of two items for a slot the later one has it.
    """
    found: dict[int, int] = {}
    for item, draw in enumerate(draws):
        place = seen + item
        slot = place if place < size else draw % (place + 1)
        if slot < size:
            found[slot] = item
    return found


class Reservoir:
    """Keeps a uniform sample of all that it was ever shown.

    It draws from a generator of its own, so that its size changes no other choice of a run.

    Attributes:
        seen: items shown so far.
        kept: what it holds, by name; each [size, ...], of which the first ``len`` rows count.
    """

    def __init__(self, size: int, seed: int) -> None:
        """Start empty.

        Args:
            size: items to hold.
            seed: of its draws.
        """
        self.size = size
        self.seen = 0
        self.kept: dict[str, Tensor] = {}
        self.generator = generator("reservoir", seed)

    def __len__(self) -> int:
        return min(self.seen, self.size)

    def add(self, **items: Tensor) -> None:
        """Show it items, in order: equally long tensors, the same names each time.

        Room for all is made when the first come.
        """
        count = len(next(iter(items.values())))
        if not count:
            return
        if not self.kept:
            self.kept = {n: t.new_zeros((self.size, *t.shape[1:])) for n, t in items.items()}
        draws = torch.randint(_MANY, (count,), generator=self.generator).tolist()
        taken = slots(draws, self.seen, self.size)
        self.seen += count
        if not taken:
            return
        places, chosen = torch.tensor(list(taken)), torch.tensor(list(taken.values()))
        for name, kept in self.kept.items():
            new = items[name].detach()
            kept.index_copy_(0, places.to(kept.device), new.index_select(0, chosen.to(new.device)))

    def sample(self, count: int) -> dict[str, Tensor]:
        """Up to ``count`` different items (all, if there are fewer), in random order."""
        places = torch.randperm(len(self), generator=self.generator)[:count]
        return {n: kept.index_select(0, places.to(kept.device)) for n, kept in self.kept.items()}

    @property
    def distinct(self) -> int:
        """How many of the images it holds differ."""
        images = self.kept["images"][: len(self)].flatten(1) if self.kept else torch.empty(0, 1)
        return len(torch.unique(images, dim=0))

    @property
    def bytes(self) -> int:
        """Room that it takes."""
        return sum(kept.numel() * kept.element_size() for kept in self.kept.values())

    def state_dict(self) -> dict[str, Any]:
        """All that resuming needs."""
        return {"seen": self.seen, "kept": self.kept, "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        self.seen = int(state["seen"])
        self.kept = {name: tensor.clone() for name, tensor in state["kept"].items()}
        self.generator.set_state(state["generator"].cpu())
