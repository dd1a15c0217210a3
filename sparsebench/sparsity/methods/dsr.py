"""DSR, dynamic sparse reparameterization (Mostafa & Wang 2019, arXiv 1902.05967).

Every so many steps all connections below one threshold H go, in whatever layer they are, and as
many are grown: in each layer a share in proportion to its survivors, at random places that were
free before the drop, from zero. H follows the number K of what went: it doubles if K is less than
(1 - delta) N, and halves if K is more than (1 + delta) N, for the next time.

As in the code (IntelAI/dynamic-reparameterization): H = 0.001 at first, delta = 0.1, places just
left are not grown again, and a layer that would lose everything keeps one connection. The code
keeps its first one, here it is the largest.

On purpose: N is ``drop_fraction`` times the connections there are; the paper's Wide ResNet has
N = 20,000, about 14 % of them at 90 % sparsity and 7 % at 80 %. ``every`` is constant where the
code goes from 100 to 800 steps as the learning rate falls. Shares are rounded by largest
remainders, where the code gives the difference to a layer at random. Never more goes than there are
free places.

``dsr_exact`` is the same without the threshold: a combination of parts that drops exactly the
fraction, over all layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sparsebench.sparsity import updates
from sparsebench.sparsity.composed import Composed
from sparsebench.sparsity.method import TrainState
from sparsebench.sparsity.scores import Layer
from sparsebench.sparsity.spec import number
from sparsebench.sparsity.topk import count, positions, topk_indices


class DSR(Composed):
    """Drops below a threshold of the drop score, which follows the number dropped."""

    @dataclass(frozen=True)
    class Options:
        """The threshold and how it follows."""

        threshold: float = number(1e-3, "(0, inf)", "H: what is below goes, at first")
        tolerance: float = number(0.1, "[0, 1)", "delta: relative error of the number allowed")

    def start(self, state: TrainState) -> None:
        """Begin with the first threshold."""
        self.threshold = self.options.threshold
        super().start(state)

    def _dropped(
        self, layers: Mapping[str, Layer], present: Mapping[str, Tensor], fraction: float
    ) -> dict[str, Tensor]:
        assert self._drop
        scores = {n: self.structure.score(self._drop, layer) for n, layer in layers.items()}
        dropped = {n: self._below(s, present[n]) for n, s in scores.items()}
        total = sum(units.numel() for units in dropped.values())
        active = sum(count(units) for units in present.values())
        free = sum(units.numel() for units in present.values()) - active
        self._follow(total, fraction * active)
        if total > free:
            dropped = updates.worst(layers, present, self._drop, free, self.structure)
        return dropped

    def _below(self, score: Tensor, present: Tensor) -> Tensor:
        below = (score < self.threshold) & present
        if count(below) == count(present) > 0:
            below = below.index_fill(0, topk_indices(score, 1, present), False)
        return positions(below)

    def _follow(self, dropped: int, wanted: float) -> None:
        if dropped < (1.0 - self.options.tolerance) * wanted:
            self.threshold *= 2.0
        elif dropped > (1.0 + self.options.tolerance) * wanted:
            self.threshold /= 2.0

    def state_dict(self) -> dict[str, Any]:
        """With the threshold."""
        return {**super().state_dict(), "threshold": self.threshold}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        super().load_state_dict(state)
        self.threshold = float(state["threshold"])
