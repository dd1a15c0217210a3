"""FLOPs of one forward pass, weight by weight, and the size of a sparse model.

Convention of RigL's appendix H: 2 FLOPs per multiply-add, only matrix products, convolutions and
attention count; a sparse layer costs its density times its dense FLOPs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from sparsebench.errors import bad_value

_LAYERS = (
    nn.Linear,
    nn.Conv1d, nn.Conv2d, nn.Conv3d,
    nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip


@dataclass(frozen=True)
class LayerFlops:
    """Dense FLOPs of a forward pass of one sample.

    Attributes:
        dense: FLOPs by parameter name, of all uses of that weight.
        other: FLOPs that belong to none of these weights, such as the products of attention.
    """

    dense: dict[str, int]
    other: int

    @property
    def total(self) -> int:
        """Forward FLOPs of the dense network (f_D)."""
        return sum(self.dense.values()) + self.other

    def forward(self, densities: Mapping[str, float]) -> float:
        """Forward FLOPs (f_S) at the given density of each weight; those not given are dense."""
        unknown = set(densities) - set(self.dense)
        if unknown:
            raise ValueError(f"no FLOPs were counted for {sorted(unknown)}")
        parts = (flops * densities.get(name, 1.0) for name, flops in self.dense.items())
        return math.fsum([*parts, self.other])


def layer_flops(
    model: nn.Module,
    input_shape: Sequence[int],
    *,
    names: Iterable[str] | None = None,
    dtype: torch.dtype | None = None,
) -> LayerFlops:
    """Count the dense FLOPs of one sample, attributed to weights.

    Runs one forward pass in eval mode on the meta device, or on the model's own device if the
    model can't be run there. A product belongs to the weight whose storage it reads, so shared
    modules, fused attention weights and recurrent weights are all counted. The model is left as
    it was.

    Args:
        model: any module with one tensor as input.
        input_shape: shape of one sample, without the batch.
        names: parameters to list; all weights of linear and convolution layers if not given.
        dtype: of the input, ``torch.long`` for tokens; that of the first parameter if not given.

    Returns:
        FLOPs by parameter name, and the rest.
    """
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper would hide the names
    listed = list(names) if names is not None else _layer_weights(model)
    known = dict(model.named_parameters(remove_duplicate=False))
    for name in listed:
        if name not in known:
            raise bad_value("names", name, "not a parameter of the model", known)
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    state = {k: torch.empty_like(v, device="meta") for k, v in {**parameters, **buffers}.items()}
    dtype = dtype or next((parameter.dtype for parameter in parameters.values()), torch.float32)
    sample = torch.zeros(1, *input_shape, dtype=dtype, device="meta")
    try:
        return _count(model, state, sample, listed)
    except Exception:
        # Models that look at values, or keep tensors outside their state, can't run on meta. A
        # mistake in the arguments shows up again here.
        state = {name: parameter.detach() for name, parameter in parameters.items()}
        state |= {name: buffer.clone() for name, buffer in buffers.items()}
        device = next((parameter.device for parameter in parameters.values()), "cpu")
        return _count(model, state, torch.zeros(sample.shape, dtype=dtype, device=device), listed)


def _layer_weights(model: nn.Module) -> list[str]:
    """Names of the weights of linear and convolution layers; shared ones once."""
    layers = {id(m.weight) for m in model.modules() if isinstance(m, _LAYERS)}
    return [name for name, parameter in model.named_parameters() if id(parameter) in layers]


class _Ledger:
    """FLOPs by parameter, found by the storage an operation reads."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.flops = dict.fromkeys(weights, 0)
        self._owner: dict[int, str] = {}
        for name, weight in weights.items():
            self._owner.setdefault(_storage(weight), name)  # of tied weights, the first listed

    def unused(self) -> list[str]:
        """Weights that no operation has read, and that are not the twin of another."""
        return [name for name in self._owner.values() if not self.flops[name]]

    def record(self, formula: Callable[..., int]) -> Callable[..., int]:
        """The same formula, which also books its result to a weight among its arguments."""

        def counted(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
            flops = formula(*args, out_val=out_val, **kwargs)
            read = [_storage(value) for value in args if isinstance(value, Tensor)]
            owner = next((self._owner[key] for key in read if key in self._owner), None)
            if owner is not None:
                self.flops[owner] += flops
            return flops

        counted._get_raw = True  # type: ignore[attr-defined]  # torch: pass tensors, not shapes
        return counted


def _storage(tensor: Tensor) -> int:
    key: int = tensor.untyped_storage()._cdata  # views share it; on meta no data pointer would do
    return key


def _count(
    model: nn.Module, state: dict[str, Tensor], sample: Tensor, names: Sequence[str]
) -> LayerFlops:
    """One forward pass of ``model`` with the tensors of ``state``, counted."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    tied = dict(model.named_parameters(remove_duplicate=False))
    ledger = _Ledger({name: state[first[id(tied[name])]] for name in names})
    formulas = {op: ledger.record(formula) for op, formula in flop_registry.items()}
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    with _quiet(model), counter:
        functional_call(model, state, (sample,))
    by_module = counter.get_flop_counts()
    for name in ledger.unused():
        module = name.rpartition(".")[0]
        if isinstance(model.get_submodule(module), _LAYERS):
            # the layer computes with a copy of its weight (standardised, cast): all it does counts
            ledger.flops[name] = sum(by_module.get(f"{type(model).__name__}.{module}", {}).values())
    return LayerFlops(ledger.flops, counter.get_total_flops() - sum(ledger.flops.values()))


@contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """Eval mode and countable kernels, undone at the end.

    Modes are set one by one: some models do more in ``eval()``, such as merging adapters. Fused
    kernels of attention and of recurrent layers have no formula in torch and would count as 0.
    """
    training = {module: module.training for module in model.modules()}
    fastpath = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        onednn = _use_onednn(False)
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            for module in training:
                module.training = False
            yield
        finally:
            _use_onednn(onednn)
            torch.backends.mha.set_fastpath_enabled(fastpath)
            for module, mode in training.items():
                module.training = mode


def _use_onednn(enabled: bool) -> bool:
    """Switch oneDNN only, and say how it was; torch's ``flags()`` sets TF32 too, which warns."""
    set_flags: Callable[..., tuple[bool, ...]] = torch.backends.mkldnn.set_flags
    return set_flags(enabled, _fp32_precision=None)[0]


def model_size_bytes(
    sizes: Mapping[str, int],
    nonzeros: Mapping[str, float],
    *,
    dense_values: int = 0,
    value_bits: int = 32,
) -> float:
    """Bytes to store a sparse model: its values, and a bit mask for each layer that is not dense.

    The accounting of RigL's tables (MicroNet's counting), which print megabytes of 10**6.

    Args:
        sizes: number of weights of each maskable layer.
        nonzeros: number of them that are kept.
        dense_values: number of all other values; in RigL's tables one bias for each output
            channel, normalisation being folded into the layer.
        value_bits: bits of a value.
    """
    masks = sum(size for name, size in sizes.items() if nonzeros[name] < size)
    values = math.fsum([*(nonzeros[name] for name in sizes), dense_values])
    return (values * value_bits + masks) / 8
