"""G2GNet: layers joined group to group, then rewired by correlation (arXiv 2508.14140).

The units of both sides of a layer are split into the same number of groups, by index. Each group
of the output listens to the group of its own number and to some others, drawn at random. So the
pattern has a density of (1 + others) / groups: 25 % with the defaults, the paper's 75 % sparsity.

The layer's exact number of connections is laid out over the pattern: in blocks of equal number
first, then in the other blocks, and what is left over, where the density asked for is above the
pattern's, anywhere (``inside=dense``); or over all allowed blocks alike (``inside=random``). A
convolution has its channels grouped, with all taps of a pair of channels in one block. A layer with
fewer units than groups on one side, such as ten classes, has that many groups.

The paper's code is not public, and the method is known to us from its abstract: groups by index,
the random choice of other groups, and that growth may leave the pattern are our reading. Weights
are dropped by magnitude and grown by :func:`sparsebench.sparsity.hebbian.hebbian`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from sparsebench.errors import UserError
from sparsebench.sparsity import updates
from sparsebench.sparsity.composed import Composed
from sparsebench.sparsity.initial import places
from sparsebench.sparsity.method import TrainState
from sparsebench.sparsity.spec import DistributionSpec, MethodSpec, StructureSpec
from sparsebench.sparsity.topk import topk_mask


@dataclass(frozen=True)
class Pattern:
    """Which groups are joined.

    Attributes:
        groups: of each layer's inputs and outputs.
        others: groups that a group listens to beside that of its own number.
        inside: ``dense`` fills the blocks of equal number first, ``random`` all alike.
    """

    groups: int = field(default=8, metadata={"least": 1, "most": 10_000})
    others: int = field(default=1, metadata={"least": 0, "most": 10_000})
    inside: str = field(default="dense", metadata={"choices": ("dense", "random")})

    def ranks(self, outputs: int, inputs: int, generator: torch.Generator) -> Tensor:
        """(outputs, inputs): 0 in blocks that are filled first, then 1, and 2 outside."""
        groups = min(self.groups, outputs, inputs)
        own = torch.eye(groups, dtype=torch.bool)
        order = torch.rand(groups, groups, generator=generator).masked_fill(own, -1.0).argsort(1)
        blocks = torch.full((groups, groups), 2)
        blocks.scatter_(1, order[:, : 1 + self.others], 0 if self.inside == "random" else 1)
        blocks[own] = 0
        row = torch.arange(outputs) * groups // outputs
        column = torch.arange(inputs) * groups // inputs
        return blocks[row][:, column]

    def place(self, state: TrainState, counts: updates.Counts) -> dict[str, Tensor]:
        """Masks of all layers, with exact counts.

        Raises:
            UserError: the counts are not of each layer.
        """
        if isinstance(counts, int):
            raise UserError("method.initial_scope=global: group_to_group counts layer by layer")
        masks = {}
        for name, parameter in state.masks.parameters.items():
            outputs, inputs = parameter.shape[:2]
            ranks = self.ranks(outputs, inputs, state.generator).view(
                outputs, inputs, *(1,) * (parameter.ndim - 2)
            )
            noise = torch.rand(parameter.shape, generator=state.generator)
            masks[name] = topk_mask(noise - ranks, counts[name]).to(parameter.device)
        return masks


@places
def group_to_group(state: TrainState, counts: updates.Counts) -> dict[str, Tensor]:
    """The first masks of G2GNet, at its defaults, for any method."""
    return Pattern().place(state, counts)


class G2GNet(Composed):
    """A method that may start from a pattern of groups of its own."""

    Options = Pattern

    def __init__(
        self,
        spec: MethodSpec,
        sparsity: float,
        distribution: DistributionSpec | None = None,
        structure: StructureSpec | None = None,
    ) -> None:
        """Put the parts together; as :class:`Composed`."""
        super().__init__(spec, sparsity, distribution, structure)
        if spec.initial == "group_to_group":
            self.first = places(partial(self.options.place))
