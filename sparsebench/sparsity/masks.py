"""Masks: the one owner of what is sparse.

A mask is 1 where a connection exists. It multiplies in the weight's own type (a boolean
mask costs several times more) and is packed to bits on disk.

Where an absent weight lives is one of three storages:

* ``zeroed``: it is 0 and stays 0. Masking the gradient keeps it so: weight, gradient and
  optimizer state are 0, and every known optimizer maps (0, 0, 0) to 0. One multiplication
  a step instead of one for the weight and one for each buffer of the optimizer.
* ``frozen``: its value is kept aside, gets no gradient and may come back.
* ``shadow``: its value is kept aside and goes on learning from the gradient taken at the
  sparse weights (a straight-through estimate).

For the last two, :meth:`hide` makes the weights sparse for the forward and backward pass
and :meth:`reveal` puts the dense values back before the optimizer moves them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from sparsebench.errors import UserError
from sparsebench.sparsity.fixed import Fixed
from sparsebench.sparsity.optimizer_state import state_tensors
from sparsebench.sparsity.reach import Reach

STORAGES = ("zeroed", "frozen", "shadow")


class Masks:
    """Masks of named parameters, applied in place (``state_dict`` keys never change)."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], storage: str = "zeroed") -> None:
        """Start dense.

        Args:
            parameters: the sparse parameters by name.
            storage: where absent weights live: ``zeroed``, ``frozen`` or ``shadow``.
        """
        if storage not in STORAGES:
            raise ValueError(f"storage {storage!r} is none of {STORAGES}")
        self.parameters = dict(parameters)
        self.storage = storage
        self.version = 0  # counts changes
        self._factors = {n: torch.ones_like(p.detach()) for n, p in self.parameters.items()}
        self._nonzeros = {n: p.numel() for n, p in self.parameters.items()}
        #: What the forward pass sees, from name, dense weight and mask; default is their product.
        self.show: Callable[[str, Tensor, Tensor], Tensor] | None = None
        self._hidden: dict[str, Tensor] = {}  # dense values while the sparse ones show
        self._shown: dict[str, Tensor] = {}  # room for the sparse ones
        self._frozen: dict[str, Tensor] = {}  # dense values of before the optimizer's step
        #: Which absent shadow weights learn; the others sleep. Where none is set, all learn.
        self.reach = Reach()
        #: Weights that keep their values through all steps, present or absent.
        self.fixed = Fixed()

    # --- reading -----------------------------------------------------------------------

    def __iter__(self) -> Iterator[str]:
        return iter(self.parameters)

    def __getitem__(self, name: str) -> Tensor:
        """Boolean mask of one parameter (a copy)."""
        return self._factors[name].bool()

    def factor(self, name: str) -> Tensor:
        """The mask itself, in the weight's type; not to be written to."""
        return self._factors[name]

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Names and boolean masks."""
        return ((name, self[name]) for name in self)

    @property
    def nonzeros(self) -> dict[str, int]:
        """Number of connections of each parameter."""
        return dict(self._nonzeros)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of positions of each parameter."""
        return {name: p.numel() for name, p in self.parameters.items()}

    @property
    def sparsity(self) -> float:
        """Share of absent connections over all selected parameters."""
        return 1.0 - sum(self._nonzeros.values()) / sum(self.sizes.values())

    @property
    def densities(self) -> dict[str, float]:
        """Share of connections present, for each parameter."""
        return {n: k / self.parameters[n].numel() for n, k in self._nonzeros.items()}

    # --- writing -----------------------------------------------------------------------

    @torch.no_grad()
    def set(self, name: str, mask: Tensor) -> None:
        """Replace one mask; the weights follow at the next :meth:`apply`."""
        self.version += 1
        self._factors[name].copy_(mask.view_as(self._factors[name]))
        self._nonzeros[name] = int(mask.sum())

    @torch.no_grad()
    def keep(self, name: str, kept: Tensor) -> None:
        """Replace one mask by the flat indices of its connections (shadow weights need no more)."""
        self.version += 1
        factor = self._factors[name]
        flat = torch.zeros_like(factor, memory_format=torch.contiguous_format).reshape(-1)
        factor.copy_(flat.index_fill_(0, kept, 1).view_as(factor))
        self._nonzeros[name] = kept.numel()

    @torch.no_grad()
    def move(
        self, name: str, dropped: Tensor, grown: Tensor,
        optimizers: Iterable[torch.optim.Optimizer], values: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Remove and add connections; what is dropped is forgotten.

        Dropped weights lose their optimizer state and, in ``zeroed`` storage, their value. So
        new connections start from zero, as absent ones are, but fixed ones from their own value.
        Shadow weights learn on, and keep their state.

        Args:
            name: parameter.
            dropped: flat indices of connections that vanish.
            grown: flat indices of connections that appear (absent until now).
            optimizers: whose state of these positions is cleared.
            values: of the new connections, in the order of ``grown``; default is 0.
        """
        self.version += 1
        _fill(self._factors[name], dropped, 0)
        _fill(self._factors[name], grown, 1)
        self._nonzeros[name] += grown.numel() - dropped.numel()
        if self.storage == "shadow":
            return
        for tensor in state_tensors(optimizers, self.parameters[name]):
            _fill(tensor, dropped, 0)
        if self.storage == "zeroed":
            _fill(self.parameters[name], dropped, 0)
            if values is not None:
                _fill(self.parameters[name], grown, values)
            self.fixed.appear(name, self.parameters[name], grown)

    @torch.no_grad()
    def apply(self, optimizers: Iterable[torch.optim.Optimizer] = ()) -> None:
        """Make all absent weights, and optimizer state of them, zero (``zeroed`` storage)."""
        if self.storage != "zeroed":
            return
        optimizers = list(optimizers)
        for name, parameter in self.parameters.items():
            for tensor in (parameter, *state_tensors(optimizers, parameter)):
                tensor.mul_(self._factors[name])

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Zero the gradient of absent weights; shadow weights within reach keep theirs."""
        kept = self.reach.factors if self.storage == "shadow" else self._factors
        with_gradient = {n: p.grad for n, p in self.parameters.items() if p.grad is not None}
        if with_gradient and kept:
            factors = [kept[name] for name in with_gradient]
            torch._foreach_mul_(list(with_gradient.values()), factors)
        self.fixed.mask_gradients(self.parameters)

    @torch.no_grad()
    def decay_absent(self, rate: float) -> None:
        """Add ``rate`` times the absent weights to their gradient (shadow; SR-STE's term)."""
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                absent = self.dense(name) * (1.0 - self._factors[name])
                parameter.grad.add_(absent, alpha=rate)

    def dense(self, name: str) -> Tensor:
        """The weights with the values that absent ones have of their own; not to be written to."""
        return self.reach.whole(name, self.awake(name))

    def awake(self, name: str) -> Tensor:
        """As :meth:`dense`, with 0 for weights out of reach (they sleep)."""
        return self._hidden.get(name, self.parameters[name].detach())

    @torch.no_grad()
    def shown(self, name: str) -> Tensor:
        """The weights as the forward pass sees them, whether it is on or not."""
        now = self.parameters[name].detach()
        if self.storage == "zeroed" or self._hidden:
            return now
        factor = self._factors[name]
        return now * factor if self.show is None else self.show(name, now, factor)

    @torch.no_grad()
    def hide(self) -> None:
        """Show the sparse weights, keeping the dense ones aside (frozen and shadow)."""
        if self.storage == "zeroed" or self._hidden:
            return
        for name, parameter in self.parameters.items():
            dense = self._hidden[name] = parameter.data
            if self.show is None:
                shown = self._shown.setdefault(name, torch.empty_like(dense))
                torch.mul(dense, self._factors[name], out=shown)
            else:
                shown = self.show(name, dense, self._factors[name])
            parameter.data = shown  # another tensor: putting the dense one back costs nothing

    @torch.no_grad()
    def reveal(self) -> None:
        """Put the dense weights back, bit for bit (frozen and shadow)."""
        for name, dense in self._hidden.items():
            self.parameters[name].data = dense
        if self.storage == "frozen":
            self._frozen = {name: dense.clone() for name, dense in self._hidden.items()}
        self._hidden.clear()

    @torch.no_grad()
    def settle(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """After the optimizer's step: frozen and fixed weights get the values they had before."""
        optimizers = list(optimizers)
        for name, before in self._frozen.items():
            parameter, factor = self.parameters[name], self._factors[name]
            parameter.copy_(torch.where(factor != 0, parameter, before))
            for tensor in state_tensors(optimizers, parameter):
                tensor.mul_(factor)
        self._frozen.clear()
        self.fixed.settle(
            self.parameters, optimizers, self._factors if self.storage == "zeroed" else None
        )

    # --- checking and keeping ----------------------------------------------------------

    def check(self) -> None:
        """Assert that no absent weight is alive; a fault here is a bug, not bad luck.

        Raises:
            RuntimeError: an absent connection is not exactly zero.
        """
        if self.storage != "zeroed":
            return
        for name, parameter in self.parameters.items():
            alive = int(torch.count_nonzero(parameter.detach()[self._factors[name] == 0]))
            if alive:
                raise RuntimeError(f"{alive} absent weights of '{name}' are not zero")

    def digest(self) -> str:
        """sha256 over names and packed masks, equal on all ranks or something is wrong."""
        digest = hashlib.sha256()
        for name, packed in self.packed().items():
            digest.update(name.encode())
            digest.update(packed.cpu().numpy().tobytes())
        return digest.hexdigest()

    def packed(self) -> dict[str, Tensor]:
        """Masks as bits, 8 to a byte."""
        return {name: pack(self._factors[name] != 0) for name in self}

    def state_dict(self) -> dict[str, object]:
        """Packed masks and the dense values kept aside, as tensors and strings only."""
        state = {"storage": self.storage, "packed": self.packed(), "hidden": dict(self._hidden)}
        return state | {"reach": self.reach.state_dict()}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Take masks back.

        Raises:
            UserError: they belong to other parameters, shapes or another storage.
        """
        packed, hidden = state["packed"], state["hidden"]
        assert isinstance(packed, Mapping)
        assert isinstance(hidden, Mapping)
        if state["storage"] != self.storage:
            raise UserError(
                f"method.storage={self.storage}: the checkpoint's weights are {state['storage']}"
            )
        if list(packed) != list(self):
            raise UserError("checkpoint: its masks are those of another model or selector")
        for name, bits in packed.items():
            factor = self._factors[name]
            if bits.numel() != -(-factor.numel() // 8):
                raise UserError(f"checkpoint: its mask of '{name}' is of another shape")
            self.set(name, unpack(bits, factor.shape).to(factor.device))
        self._hidden = {n: t.to(self.parameters[n].device, copy=True) for n, t in hidden.items()}
        reach = state["reach"]
        assert isinstance(reach, Mapping)
        self.reach.load_state_dict(reach, self.parameters)


def _fill(tensor: Tensor, positions: Tensor, value: float | Tensor) -> None:
    """Write at flat (logical) positions, whatever the memory layout."""
    flat = tensor.reshape(-1)  # of channels-last weights a copy, to be written back
    if isinstance(value, Tensor):
        flat.index_copy_(0, positions, value.to(flat.dtype))
    else:
        flat.index_fill_(0, positions, value)
    if not tensor.is_contiguous():
        tensor.copy_(flat.view(tensor.shape))


_WEIGHTS_OF_BITS = (128, 64, 32, 16, 8, 4, 2, 1)


def pack(mask: Tensor) -> Tensor:
    """Boolean mask as bits in uint8 (first element is the highest bit)."""
    flat = mask.reshape(-1).to(torch.uint8)
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % 8)).view(-1, 8)
    bits = torch.tensor(_WEIGHTS_OF_BITS, dtype=torch.uint8, device=flat.device)
    return (padded * bits).sum(1, dtype=torch.uint8)


def unpack(bits: Tensor, shape: torch.Size) -> Tensor:
    """Boolean mask of ``shape`` from its bits."""
    weights = torch.tensor(_WEIGHTS_OF_BITS, dtype=torch.uint8, device=bits.device)
    flat = (bits.unsqueeze(1) & weights).ne(0).view(-1)
    return flat[: shape.numel()].view(shape)
