"""Group channel pruning: thresholds by group of layers on normalisation scales (arXiv 2306.01526).

1. Until ``begin`` the dense network trains with an L1 penalty on the scales (gamma) of the
   normalisation behind each layer. Its rate changes during training: it rises linearly to
   ``penalty`` over the share ``rise`` of this time, then falls to 0 along a cosine.
2. At ``begin`` each group of n channels loses those of the floor(q n) smallest |gamma|, so each
   group has a threshold of its own, its quantile q. The same q holds for all groups; unless
   ``share`` gives it, it is the one whose network comes nearest to ``sparsity``. ``groups: global``
   is the usual single threshold. The channel of the largest |gamma| of a layer always stays.
3. The network that is left is fine-tuned to the end. With ``distill`` above 0 it learns the spatial
   attention of the unpruned network besides: for features F at the end of each scale,
   A = mean over channels of |F|^power, normalised; the loss is distill x ||A - A_unpruned||^2.

The paper prunes a detector, whose groups are scale x kind of module, and of its code nothing is
public that we could read; here the network is a classifier. Groups are layers of one ``width``
(number of channels, so one scale of a usual network), each ``layer`` alone, or as ``map`` says
(group: [patterns of weight names]). Attention is compared on a batch of its own at each step, in
the network's training mode; these passes are not in the count of FLOPs. Only channels read by one
other layer can go (:mod:`sparsebench.sparsity.compact`).
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sparsebench.errors import UserError
from sparsebench.sparsity.compact import Chain, Silence, chains, columns_of
from sparsebench.sparsity.composed import Composed
from sparsebench.sparsity.method import TrainState
from sparsebench.sparsity.spec import MethodSpec, number
from sparsebench.sparsity.structure import Unstructured
from sparsebench.sparsity.topk import lowest_indices, positions

Channels = dict[str, Tensor]  # by the name of the weight that makes them


@dataclass(frozen=True)
class Options:
    """Options of group channel pruning."""

    penalty: float = number(0.001, "[0, inf)", "highest rate of the L1 penalty on the scales")
    rise: float = number(0.3, "[0, 1)", "share of the time before pruning in which it rises")
    groups: str = field(default="width", metadata={"choices": ("width", "layer", "global")})
    map: dict[str, list[str]] = field(default_factory=dict)
    share: float | None = number(None, "[0, 1)", "share of each group's channels to remove")
    distill: float = number(0.0, "[0, inf)", "weight of the attention of the unpruned network")
    power: float = number(2.0, "(0, inf)", "power of the features in the attention")


class GroupChannels(Composed):
    """Train with a penalty, remove channels once, fine-tune what is left."""

    Options: ClassVar[type] = Options
    kind: ClassVar[dict[str, str]] = {"pattern": "channel"}
    #: Whether the final network may be smaller than it was built.
    removes_channels: ClassVar[bool] = True

    def _check_parts(self, spec: MethodSpec) -> None:
        super()._check_parts(spec)
        if type(self.structure) is not Unstructured:
            raise UserError(
                f"method={spec.name}: it removes channels itself, and needs structure=unstructured"
            )
        if spec.drop or spec.storage != "zeroed" or spec.sparsity_schedule != "once":
            raise UserError(
                f"method={spec.name}: it removes channels once, at method.begin, and needs "
                "method.sparsity_schedule=once, method.storage=zeroed and no method.drop"
            )

    def start(self, state: TrainState) -> None:
        """Find the channels that can go.

        Raises:
            UserError: there are none.
        """
        super().start(state)
        self._teacher: dict[str, Tensor] = {}
        self._silence = Silence()
        found = chains(state.model) if self.sparsity > 0 else {}
        self._chains = {n: c for n, c in found.items() if n in state.masks and c.norm}
        if self.sparsity > 0 and not self._chains:
            raise UserError(
                f"method={self.spec.name}: this network has no channel that can be removed and has "
                "a normalisation of its own; it needs layers such as convolution, batch norm, ReLU "
                "that one other layer reads"
            )

    # --- the penalty and the attention --------------------------------------------------------

    def after_backward(self, state: TrainState) -> bool:
        """Add the gradient of the penalty, and after pruning that of the attention."""
        rate = self.rate(state.step)
        for chain in self._chains.values() if rate else ():
            scale = _scale(state.model, chain)
            if scale.grad is not None:
                scale.grad.add_(scale.detach().sign(), alpha=rate)
        if self._teacher and self.options.distill > 0:
            self._imitate(state)
        return super().after_backward(state)

    def rate(self, step: int) -> float:
        """Rate of the penalty after ``step`` steps; 0 once channels are removed."""
        assert self._window is not None
        progress, rise = step / self._window.begin, self.options.rise
        if progress >= 1.0 or self.sparsity == 0.0:
            return 0.0
        if progress < rise:
            return float(self.options.penalty * progress / rise)
        fall = (progress - rise) / (1.0 - rise)
        return float(self.options.penalty * (1.0 + math.cos(math.pi * fall)) / 2.0)

    def _imitate(self, state: TrainState) -> None:
        """Add the gradient of the distance between the two networks' attention."""
        model = state.model
        batch = state.data.take(state, 1)[0][0]
        parameters = dict(model.named_parameters())
        own = {name: buffer.clone() for name, buffer in model.named_buffers()}
        with torch.enable_grad(), self._watched(model) as look:
            with torch.no_grad():
                goal = look(self._teacher, batch)
            found = look({**parameters, **own}, batch)
            loss = sum(((a - b) ** 2).sum(1).mean() for a, b in zip(found, goal, strict=True))
            if not isinstance(loss, Tensor):  # no layer with features in space
                return
            gradients = torch.autograd.grad(
                self.options.distill * loss, list(parameters.values()), allow_unused=True
            )
        for parameter, gradient in zip(parameters.values(), gradients, strict=True):
            if gradient is not None and parameter.grad is not None:
                parameter.grad.add_(gradient)

    @contextmanager
    def _watched(self, model: nn.Module) -> Iterator[Callable[[Any, Tensor], list[Tensor]]]:
        """Gives a function from tensors and a batch to the attention at the end of each scale."""
        ends = {_scale(model, chain).numel(): str(chain.norm) for chain in self._chains.values()}
        seen: list[Tensor] = []

        def keep(module: nn.Module, inputs: Any, features: Tensor) -> None:
            if features.ndim == 4:
                seen.append(attention(features, self.options.power))

        def look(tensors: Any, batch: Tensor) -> list[Tensor]:
            seen.clear()
            functional_call(model, tensors, (batch,))
            return list(seen)

        hooks = [model.get_submodule(name).register_forward_hook(keep) for name in ends.values()]
        try:
            yield look
        finally:
            for hook in hooks:
                hook.remove()

    # --- pruning ------------------------------------------------------------------------------

    @torch.no_grad()
    def after_step(self, state: TrainState) -> None:
        """Removed channels stay silent."""
        self._silence(state)
        super().after_step(state)
        self._silence(state)

    def update(self, state: TrainState) -> None:
        """Remove channels, once."""
        if self.options.distill > 0:
            tensors = state.model.state_dict().items()
            self._teacher = {name: tensor.detach().clone() for name, tensor in tensors}
        scales = {n: _scale(state.model, c).detach().abs() for n, c in self._chains.items()}
        groups, share = self.grouped(scales), self.options.share
        if share is None:
            share = self._share_for(state, scales, groups)
        self._remove(state, lowest(scales, groups, share))
        reached = state.masks.sparsity
        state.notes.append(
            f"{self.spec.name}: removed the share {share:.4f} of the channels of each group; "
            f"sparsity is {reached:.4f}"
        )

    def grouped(self, scales: Channels) -> list[list[str]]:
        """Names of the layers of each group."""
        groups: dict[Any, list[str]] = {}
        for name, scale in scales.items():
            key: Any = {"width": scale.numel(), "layer": name, "global": 0}[self.options.groups]
            if self.options.map:
                matches = (
                    group
                    for group, patterns in self.options.map.items()
                    if any(fnmatchcase(name, pattern) for pattern in patterns)
                )
                key = next(matches, "")  # what nothing matches is a group too
            groups.setdefault(key, []).append(name)
        return list(groups.values())

    def _share_for(self, state: TrainState, scales: Channels, groups: list[list[str]]) -> float:
        """The share of channels whose removal comes nearest to the sparsity asked for."""
        sizes = {sum(scales[name].numel() for name in group) for group in groups}
        shares = sorted({k / n for n in sizes for k in range(n)})

        def sparsity(share: float) -> float:
            return 1.0 - self._left(state, lowest(scales, groups, share))

        at = bisect.bisect_left(shares, self.sparsity, key=sparsity)
        near = shares[max(at - 1, 0) : at + 1]
        return min(near, key=lambda share: abs(sparsity(share) - self.sparsity))

    def _left(self, state: TrainState, dead: Channels) -> float:
        """Share of the sparse weights that are left without some channels."""
        readers = {f"{chain.reader}.weight": name for name, chain in self._chains.items()}
        total = left = 0.0
        for name, weight in state.masks.parameters.items():
            rows = 1.0 - float(dead[name].double().mean()) if name in dead else 1.0
            reads = dead.get(readers.get(name, ""))
            columns = 1.0 if reads is None else 1.0 - float(reads.double().mean())
            total += weight.numel()
            left += weight.numel() * rows * columns
        return left / total

    def _remove(self, state: TrainState, dead: Channels) -> None:
        masks = dict(state.masks.items())
        for name, channels in dead.items():
            masks[name][channels] = False
            reader = f"{self._chains[name].reader}.weight"
            if reader in masks:
                masks[reader][:, columns_of(self._chains[name], channels)] = False
        for name, mask in masks.items():
            gone = positions(~mask & state.masks[name])
            state.masks.move(name, gone, gone[:0], state.optimizers)

    # --- checkpoints ----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a composed method keeps, and the unpruned network where it is imitated."""
        return {**super().state_dict(), "teacher": dict(self._teacher)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        super().load_state_dict(state)
        self._teacher = {name: tensor.clone() for name, tensor in state["teacher"].items()}


def lowest(scales: Channels, groups: list[list[str]], share: float) -> Channels:
    """The channels of the floor(share x n) smallest scales of each group of n channels.

    Of equal scales the lower index stays, and the largest of each layer always does.
    """
    dead: Channels = {}
    for group in groups:
        together = torch.cat([scales[name] for name in group])
        may = torch.cat([_all_but_best(scales[name]) for name in group])
        gone = min(math.floor(share * together.numel() + 1e-9), int(may.sum()))
        chosen = torch.zeros_like(may)
        chosen[lowest_indices(together, gone, may)] = True
        parts = torch.split(chosen, [scales[name].numel() for name in group])
        dead.update(zip(group, parts, strict=True))
    return {name: dead[name] for name in scales}


def _all_but_best(scale: Tensor) -> Tensor:
    others = torch.ones_like(scale, dtype=torch.bool)
    others[scale.argmax()] = False
    return others


def attention(features: Tensor, power: float) -> Tensor:
    """Spatial attention (batch, pixels), of length 1, of features (batch, channels, h, w)."""
    return nn.functional.normalize(features.abs().pow(power).mean(1).flatten(1), dim=1)


def _scale(model: nn.Module, chain: Chain) -> nn.Parameter:
    assert chain.norm
    scale = model.get_submodule(chain.norm).weight
    assert isinstance(scale, nn.Parameter)
    return scale
