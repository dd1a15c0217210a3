"""Really remove channels: from a network with dead ones to the smaller network that computes alike.

A channel (an output of a convolution or linear layer) can go where its values reach exactly one
other layer, through operations that treat channels one by one. A channel that is added to others,
such as those of a residual stream, is coupled to them and stays (the rule of Chase, arXiv
2305.19454: in a ResNet only the inner convolutions of a block become narrower).

A channel is dead if nobody reads it, or if all its weights are zero. The latter is a constant,
made by bias and normalisation: zero, or added to the bias of the layer that reads it where that is
exact (a linear layer, or a convolution without padding); else the channel stays.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from sparsebench.errors import UserError
from sparsebench.sparsity.method import TrainState
from sparsebench.sparsity.optimizer_state import state_tensors

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_ELEMENTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Tanh, nn.Sigmoid,
)  # fmt: skip
_NEUTRAL = (  # a constant channel leaves these as it came
    nn.Identity, nn.Dropout, nn.Dropout2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d, nn.Flatten,
)  # fmt: skip
_FUNCTIONS: Mapping[Any, Any] = {
    F.relu: F.relu, torch.relu: torch.relu, F.gelu: F.gelu, F.silu: F.silu, torch.tanh: torch.tanh,
    torch.sigmoid: torch.sigmoid, "relu": torch.relu, "tanh": torch.tanh,
}  # fmt: skip
_NEUTRAL_FUNCTIONS = (
    F.max_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.dropout, torch.flatten,
    "flatten", "contiguous",
)  # fmt: skip
FILE = "compact.pt"


@dataclass(frozen=True)
class Chain:
    """A layer whose channels are read by one other layer only.

    Attributes:
        layer: name of the module that makes the channels.
        reader: name of the module that reads them.
        columns: inputs of the reader for each channel (pixels, where they were flattened).
        norm: name of the normalisation between them, if there is one.
        steps: what happens to a channel on the way, as names of modules or functions.
    """

    layer: str
    reader: str
    columns: int
    norm: str | None
    steps: tuple[Any, ...]

    def constant(self, model: nn.Module) -> Tensor:
        """For each channel, what the reader sees of it if all its weights are zero (eval mode)."""
        layer: Any = model.get_submodule(self.layer)
        zero = layer.weight.new_zeros(layer.weight.shape[0])
        value: Any = zero if layer.bias is None else layer.bias.detach().clone()
        for step in self.steps:
            if callable(step):
                value = step(value)
                continue
            module: Any = model.get_submodule(step)
            if isinstance(module, NORMS):
                value = F.batch_norm(
                    value[None], module.running_mean, module.running_var, module.weight,
                    module.bias, eps=module.eps,
                )[0]  # fmt: skip
            else:
                value = module(value)
        return torch.as_tensor(value.detach())


def chains(model: nn.Module) -> dict[str, Chain]:
    """All layers whose channels can be removed, by the name of their weight, in forward order.

    Args:
        model: any network; one that ``torch.fx`` can't trace has none.
    """
    try:
        graph = fx.Tracer().trace(model)
    except Exception:  # control flow that depends on values: nothing is known of its channels
        return {}
    modules = dict(model.named_modules())
    calls = [node.target for node in graph.nodes if node.op == "call_module"]
    found = {}
    for node in graph.nodes:
        if node.op == "call_module" and _plain(modules[str(node.target)]):
            chain = _follow(node, modules)
            shared = chain and (calls.count(chain.layer) > 1 or calls.count(chain.reader) > 1)
            if chain and not shared:
                found[f"{chain.layer}.weight"] = chain
    return found


def _plain(module: nn.Module) -> bool:
    return isinstance(module, LAYERS) and getattr(module, "groups", 1) == 1


def _follow(node: fx.Node, modules: Mapping[str, nn.Module]) -> Chain | None:
    """The way of a layer's channels to their only reader; none if they meet others."""
    layer, norm, steps = str(node.target), None, list[Any]()
    channels = _sizes(modules[layer])[0]
    while len(node.users) == 1:
        node = next(iter(node.users))
        if node.op == "call_module":
            name = str(node.target)
            module = modules[name]
            if _plain(module):
                columns, rest = divmod(_sizes(module)[1], channels)
                return None if rest else Chain(layer, name, columns, norm, tuple(steps))
            if isinstance(module, NORMS) and norm is None and module.num_features == channels:
                norm = name
                steps.append(name)
            elif isinstance(module, _ELEMENTWISE):
                steps.append(name)
            elif not isinstance(module, _NEUTRAL):
                return None
        elif node.op in ("call_function", "call_method") and node.target in _FUNCTIONS:
            steps.append(_FUNCTIONS[node.target])
        elif node.target not in _NEUTRAL_FUNCTIONS:
            return None
    return None


def _sizes(module: Any) -> tuple[int, int]:
    return module.weight.shape[0], module.weight.shape[1]


# --- dead channels ---------------------------------------------------------------------------


@torch.no_grad()
def silence(
    model: nn.Module,
    chain: Chain,
    dead: Tensor,
    optimizers: Iterable[torch.optim.Optimizer] = (),
) -> None:
    """Make bias and normalisation of dead channels zero, and their optimizer state.

    Args:
        model: the network.
        chain: the layer.
        dead: bool, for each channel.
        optimizers: those that move these parameters.
    """
    optimizers = list(optimizers)
    norm: Any = model.get_submodule(chain.norm) if chain.norm else None
    layer: Any = model.get_submodule(chain.layer)
    for parameter in (layer.bias, getattr(norm, "weight", None), getattr(norm, "bias", None)):
        if parameter is not None:
            for tensor in (parameter, *state_tensors(optimizers, parameter)):
                tensor.masked_fill_(dead, 0.0)


class Silence:
    """Keeps bias and normalisation of channels without weights at zero.

    A channel whose weights return begins with scale 1 and bias 0.
    """

    def __init__(self) -> None:
        """Nothing is dead yet."""
        self._version = -1
        self._chains: dict[str, Chain] = {}
        self._dead: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, state: TrainState) -> None:
        """Look for dead channels where masks have changed, and silence them."""
        masks = state.masks
        if masks.version != self._version:
            self._version = masks.version
            dead = {name: ~mask.flatten(1).any(1) for name, mask in masks.items()}
            dead = {name: channels for name, channels in dead.items() if channels.any()}
            if dead and not self._chains:
                self._chains = chains(state.model)
            for name, before in self._dead.items():
                now = dead.get(name, torch.zeros_like(before))
                revive(state.model, self._chains[name], before & ~now)
            self._dead = {name: dead[name] for name in dead if name in self._chains}
        for name, channels in self._dead.items():
            silence(state.model, self._chains[name], channels, state.optimizers)


@torch.no_grad()
def revive(model: nn.Module, chain: Chain, channels: Tensor) -> None:
    """Let the normalisation of some channels (bool) have scale 1 again."""
    norm: Any = model.get_submodule(chain.norm) if chain.norm else None
    if norm is not None and norm.weight is not None:
        norm.weight.masked_fill_(channels, 1.0)


def columns_of(chain: Chain, channels: Tensor) -> Tensor:
    """Which inputs of the reader belong to some channels (bool), as bool."""
    return channels.repeat_interleave(chain.columns)


# --- the smaller network -----------------------------------------------------------------------


@dataclass
class Compact:
    """A smaller network that computes the same.

    Attributes:
        model: the network, in eval mode.
        removed: number of channels removed from each layer, by the name of its weight.
        notes: what could not be done.
    """

    model: nn.Module
    removed: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.model.parameters())


@torch.no_grad()
def compact(model: nn.Module) -> Compact:
    """The network without its dead channels; the one given stays as it is.

    Outputs in eval mode are equal up to the order of sums. A layer all of whose channels are dead
    keeps one, with a note.

    Args:
        model: a network whose absent weights are zero.

    Raises:
        UserError: the first layer has no weight left, so no output depends on the input.
    """
    small = Compact(copy.deepcopy(model).eval())
    first = next((m for m in small.model.modules() if isinstance(m, LAYERS)), None)
    if first is not None and not first.weight.any():
        raise UserError("compact: the first layer has no weight left, so it lost all its inputs")
    found = chains(small.model)
    while sum(_narrow(small, name, chain) for name, chain in found.items()):
        pass  # a layer that lost inputs may have new dead channels
    return small


def _narrow(small: Compact, name: str, chain: Chain) -> bool:
    """Remove what is dead of one layer; whether there was anything."""
    layer: Any = small.model.get_submodule(chain.layer)
    reader: Any = small.model.get_submodule(chain.reader)
    unread = ~_channel_any(reader.weight, chain.columns)
    constant = chain.constant(small.model)
    silent = ~layer.weight.flatten(1).any(1) & ((constant == 0) | _folds(reader))
    gone = unread | silent
    if gone.all():
        gone[layer.weight.abs().flatten(1).sum(1).argmax()] = False
        note = f"compact: '{name}' has no live channel left; one is kept"
        if note not in small.notes:
            small.notes.append(note)
    if not gone.any():
        return False
    _fold(reader, constant.masked_fill(~gone | unread, 0.0), chain.columns)
    _shrink(small.model, chain, ~gone)
    small.removed[name] = small.removed.get(name, 0) + int(gone.sum())
    return True


def _channel_any(weight: Tensor, columns: int) -> Tensor:
    """For each channel, whether some weight of its reader looks at it."""
    inputs = weight.ne(0).transpose(0, 1).flatten(1).any(1)
    return inputs.view(-1, columns).any(1)


def _folds(reader: nn.Module) -> bool:
    """Whether a constant input is a constant output everywhere."""
    padding = getattr(reader, "padding", 0)
    return padding == "valid" or not any((padding,) if isinstance(padding, int) else padding)


def _fold(reader: Any, constant: Tensor, columns: int) -> None:
    """Add what a layer makes of constant inputs to its bias."""
    if not constant.any():
        return
    weight = reader.weight.flatten(2).sum(2) if reader.weight.ndim > 2 else reader.weight
    added = weight @ constant.repeat_interleave(columns)
    reader.bias = nn.Parameter(added if reader.bias is None else reader.bias + added)


def _shrink(model: nn.Module, chain: Chain, keep: Tensor) -> None:
    layer = model.get_submodule(chain.layer)
    _take(layer, ("weight", "bias"), keep, 0)
    if chain.norm:
        names = ("weight", "bias", "running_mean", "running_var")
        _take(model.get_submodule(chain.norm), names, keep, 0)
    _take(model.get_submodule(chain.reader), ("weight",), columns_of(chain, keep), 1)


def _take(module: nn.Module, names: Iterable[str], keep: Tensor, dim: int) -> None:
    """Keep some entries of some tensors, and tell the module its new size."""
    where = keep.nonzero().view(-1)
    for name in names:
        tensor = getattr(module, name)
        if isinstance(tensor, nn.Parameter):
            setattr(module, name, nn.Parameter(tensor.index_select(dim, where)))
        elif tensor is not None:
            setattr(module, name, tensor.index_select(dim, where))
    _resize(module)


def _resize(module: Any) -> None:
    """Sizes that a module knows of itself, from its tensors."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, NORMS):
        module.num_features = len(module.state_dict()["running_mean"])
    else:
        module.out_channels, module.in_channels = module.weight.shape[:2]


# --- on disk ----------------------------------------------------------------------------------


def save(small: Compact, folder: Path) -> None:
    """Write the small network's tensors to ``compact.pt``."""
    torch.save(small.model.state_dict(), folder / FILE)


@torch.no_grad()
def load(model: nn.Module, file: Path) -> nn.Module:
    """The small network of a file.

    Args:
        model: the network of full size, as its config builds it; changed in place.
        file: a ``compact.pt``.

    Returns:
        The network, smaller and with the file's values.
    """
    state = torch.load(file, map_location="cpu", weights_only=True)
    for name, value in state.items():
        owner, _, attribute = name.rpartition(".")
        module = model.get_submodule(owner)
        current = getattr(module, attribute)
        if current is None or current.shape != value.shape:
            is_buffer = attribute in dict(module.named_buffers(recurse=False))
            setattr(module, attribute, value.clone() if is_buffer else nn.Parameter(value.clone()))
    for module in model.modules():
        if isinstance(module, (*LAYERS, *NORMS)):
            _resize(module)
    model.load_state_dict(state)
    return model


def removes_channels(method: object) -> bool:
    """Whether a method, or its structure, is one that leaves dead channels on purpose."""
    parts = (method, getattr(method, "structure", None))
    return any(getattr(part, "removes_channels", False) for part in parts)


def keep_small(
    model: nn.Module, folder: Path, flops: Callable[[nn.Module], float]
) -> tuple[dict[str, float], list[str]]:
    """Write the small network of a trained one into the run's folder, if it is any smaller.

    Args:
        model: the trained network, with zeros for absent weights.
        folder: the run's folder.
        flops: forward FLOPs of a network.

    Returns:
        Metrics of the small network, and notes; no metrics if no channel was dead.
    """
    try:
        small = compact(model)
    except UserError as error:
        return {}, [str(error)]
    if not small.removed:
        return {}, small.notes
    save(small, folder)
    channels = sum(small.removed.values())
    metrics = {
        "size/compact_parameters": small.parameters,
        "size/compact_channels_removed": channels,
        "flops/inference_compact": flops(small.model),
    }
    note = f"{FILE}: the network without its {channels} dead channels, as small as it really is"
    return metrics, [*small.notes, note]
