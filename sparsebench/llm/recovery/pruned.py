"""A pruned model as recovery training finds it, and as it leaves it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sparsebench.llm.activations import Activations
from sparsebench.llm.choose import Pattern
from sparsebench.llm.layers import Block, find_blocks
from sparsebench.llm.models import LanguageModel
from sparsebench.llm.pipeline import Outcome
from sparsebench.llm.recovery.turned import Turned
from sparsebench.llm.spec import PrunerSpec
from sparsebench.sparsity.masks import Masks, pack, unpack


@dataclass
class Pruned:
    """The model, all that is known of its pruning, and the model it was.

    Attributes:
        outcome: of pruning; its masks are replaced by those of the end.
        method: that pruned it.
        nm: N and M, if that is the pattern.
        samples: calibration sequences.
        teacher: the unpruned model; None where nothing of it is looked at.
        layers: linear layers of the blocks, by the names of their weights.
        turned: those whose weight lies transposed in the model, and has nn.Linear in its place.
    """

    language: LanguageModel
    blocks: Sequence[Block]
    outcome: Outcome
    method: PrunerSpec
    nm: tuple[int, int] | None
    samples: Sequence[Tensor]
    teacher: nn.Module | None
    layers: dict[str, nn.Linear] = field(default_factory=dict)
    turned: dict[str, Turned] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Find the layers."""
        for linear in (linear for block in self.blocks for linear in block.linears):
            if linear.transposed:
                self.turned[linear.name] = Turned.of(self.language.model, linear)
        if self.turned:
            self.blocks = find_blocks(self.language.model)
        for linear in (linear for block in self.blocks for linear in block.linears):
            assert isinstance(linear.module, nn.Linear)
            self.layers[linear.name] = linear.module

    def mask(self, name: str) -> Tensor:
        """Bool mask of a weight (R, C)."""
        weight = self.layers[name].weight
        bits = self.outcome.masks[name].to(weight.device)
        if name in self.turned:
            return unpack(bits, weight.shape[::-1]).t().contiguous()
        return unpack(bits, weight.shape)

    def dense(self, name: str) -> Tensor:
        """A weight before it was pruned (R, C)."""
        assert self.teacher is not None
        weight = self.teacher.get_parameter(name).detach()
        return weight.t() if name in self.turned else weight

    @torch.no_grad()
    def take_latent(self) -> None:
        """Give weights outside the masks the values that they had before."""
        for name, layer in self.layers.items():
            layer.weight.copy_(torch.where(self.mask(name), layer.weight, self.dense(name)))

    def chooser(self, by_inputs: bool) -> Callable[[str, Tensor], Tensor]:
        """How masks are chosen anew: among the weights that competed in pruning.

        Args:
            by_inputs: |w| times the norm of its input, measured now (Wanda), instead of |w|.

        Returns:
            Of a weight's name and values (R, C), a bool mask.
        """
        norms: dict[str, Tensor] = {}
        if by_inputs:
            acts = Activations(self.language.model, self.blocks, self.samples)
            for _ in self.blocks:
                found = acts.measure({"squares"}, carry=True)
                norms |= {name: inputs.norms for name, inputs in found.items()}
        spec = self.method

        def choose(name: str, weight: Tensor) -> Tensor:
            pattern = Pattern(self.outcome.sparsities[name], spec.scope, spec.columns, self.nm)
            score = weight.detach().float().abs()
            return pattern.keep(score * norms[name] if by_inputs else score)

        return choose

    @torch.no_grad()
    def settle(self, masks: Masks | None) -> dict[str, float]:
        """Take the masks of the end, and leave exact zeros outside them.

        Args:
            masks: of training; None if it had none of its own.

        Returns:
            ``recovery/moved``, the share of mask entries that are not as pruning had them, and
            ``recovery/residue``, the largest weight that was removed last as a multiple of the
            root mean square of those that stay.
        """
        moved, largest, squares, kept = 0, 0.0, 0.0, 0
        for name, layer in self.layers.items():
            before = now = self.mask(name)
            if masks is not None:
                now = masks[name]
                stored = now.t().contiguous() if name in self.turned else now
                self.outcome.masks[name] = pack(stored).cpu()
            moved += int((before != now).sum())
            largest = max(largest, float(layer.weight.masked_fill(now, 0.0).abs().max()))
            layer.weight.masked_fill_(~now, 0.0)
            squares += float(layer.weight.double().square().sum())
            kept += int(now.sum())
        size = sum(layer.weight.numel() for layer in self.layers.values())
        return {
            "recovery/moved": moved / size,
            "recovery/residue": largest / (squares / kept) ** 0.5 if squares else 0.0,
        }
