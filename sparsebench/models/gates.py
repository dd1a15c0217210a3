"""Gates on the filters of a CNN, of which each input passes those that will matter to it (FTWT).

A gate stands behind the batch norm of a convolution. From the convolution's input x it tells which
of its filters this input needs; the others need not be computed. It learns that by watching
(Elkerdawy et al. 2022, arXiv 2110.08232, section 3):

* strength of filter c: the highest magnitude over the positions of its output, as a share p_c of
  the sum over filters;
* truth: filters by falling p, as long as they add up to the mass r or less;
* prediction: sigmoid(W softmax(mean over positions of x) + b) > 1/2, with x detached;
* loss: binary cross-entropy between the two, summed over filters, mean over inputs and layers.
  It has no part in the weights of the network: the two are trained beside each other ("decoupled").

From github.com/selkerdawy/FTWT (utils/layers.py, utils/utils.py): a filter that would cross r is
dropped, so r below the first p leaves none (``include_crossing`` keeps it, as a nucleus would);
r = 1 drops what is not above 1e-5. The gate comes before the sum with the shortcut, the code's own
default. The code passes no gradient of the task to a predictor in either of its modes (it takes the
mask under ``no_grad``, whatever its straight-through function says); nor does this.

Differs on purpose: convolutions in groups have no gate; FLOPs are counted as they are, see
:meth:`Gates.flops` (the code takes the filters of the previous convolution for the inputs of one
that reads a sum with a shortcut, and leaves out the classifier and the predictors).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from sparsebench.errors import UserError
from sparsebench.sparsity.compact import LAYERS, NORMS
from sparsebench.sparsity.flops import LayerFlops

KINDS = ("predicted", "truth", "random")
#: Slack of the sum of shares, and the share up to which a filter is dead (both of the code).
DELTA = 1e-5
#: What a filter goes through that stays zero where it is zero.
_KEEP_ZERO: tuple[Any, ...] = (
    nn.ReLU, nn.ReLU6, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
    nn.Dropout, nn.Dropout2d, nn.Identity, nn.Flatten, F.relu, torch.relu, "relu", F.max_pool2d,
    F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.dropout, torch.flatten, "flatten",
    "contiguous",
)  # fmt: skip
_RELU: tuple[Any, ...] = (nn.ReLU, F.relu, torch.relu, "relu")


def top_mass(strength: Tensor, mass: float, *, include_crossing: bool = False) -> Tensor:
    """The strongest filters of each input that make up a share of the whole.

    Args:
        strength: float [inputs, filters], not negative.
        mass: r, above 0 and at most 1; at 1 all filters that are not dead.
        include_crossing: keep the filter with which the sum crosses r too.

    Returns:
        bool [inputs, filters].
    """
    share = strength / strength.sum(1, keepdim=True).clamp_min(torch.finfo(strength.dtype).tiny)
    if mass == 1.0:
        return share > DELTA
    falling, order = share.sort(dim=1, descending=True, stable=True)
    reached = falling.cumsum(1)
    if include_crossing:
        kept = reached - falling < mass - DELTA
    else:
        kept = reached - mass <= DELTA
    return torch.zeros_like(kept).scatter(1, order, kept)


@dataclass
class Rule:
    """What all gates of a network have in common.

    Attributes:
        kind: ``predicted``, ``truth`` (an oracle) or ``random`` (as many filters as the truth has).
        mass: r.
        include_crossing: see :func:`top_mass`.
        softmax: over the channels that a predictor sees.
        joint: whether the predictors' loss moves the network too.
        shut: whether filters that do not pass are made zero; if not, gates only watch.
    """

    kind: str = "predicted"
    mass: float = 0.9
    include_crossing: bool = False
    softmax: bool = True
    joint: bool = False
    shut: bool = False


class Gate(nn.Module):
    """The gate of one convolution, whose factors no selector takes for a layer.

    Attributes:
        logits: of the last pass, [inputs, filters].
        truth: which filters that pass needed, bool.
        passed: which the gate would let through, bool.
    """

    def __init__(self, conv: nn.Conv2d, rule: Rule, *, rectified: bool) -> None:
        """Make a predictor from the inputs of a convolution to its outputs.

        Args:
            conv: the convolution.
            rule: of all gates.
            rectified: whether a ReLU comes next, so that negative outputs count nothing.
        """
        super().__init__()
        head = nn.Linear(conv.in_channels, conv.out_channels, device=conv.weight.device)
        self.weight, self.bias = head.weight, head.bias
        self.rule, self.rectified = rule, rectified
        self.requires_grad_(rule.kind == "predicted")  # else nothing is to be learned
        self.logits = self.truth = self.passed = self.bias[:0]

    def look(self, conv: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Predict from the input of the convolution (a forward hook)."""
        seen = inputs[0].mean((2, 3))
        seen = seen if self.rule.joint else seen.detach()
        self.logits = F.linear(
            seen.softmax(1) if self.rule.softmax else seen, self.weight, self.bias
        )

    def close(self, norm: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
        """Make filters zero in the output of the batch norm (a forward hook)."""
        rule = self.rule
        with torch.no_grad():
            strength = (out.relu() if self.rectified else out.abs()).amax((2, 3)).float()
            self.truth = top_mass(strength, rule.mass, include_crossing=rule.include_crossing)
            self.passed = self.logits > 0 if rule.kind == "predicted" else self.truth
            if rule.kind == "random":
                rank = torch.rand_like(strength).argsort(1).argsort(1)
                self.passed = rank < self.truth.sum(1, keepdim=True)
        return out * self.passed[:, :, None, None].to(out.dtype) if rule.shut else None

    def loss(self) -> Tensor:
        """Cross-entropy of the last pass, summed over filters, mean over inputs."""
        wanted = self.truth.to(self.logits.dtype)
        return F.binary_cross_entropy_with_logits(self.logits, wanted, reduction="sum") / len(
            wanted
        )


class Gates:
    """All gates of a network, which they are part of: ``<name of the batch norm>.gate``.

    Attributes:
        of: gates by the name of their convolution.
        rule: of all of them.
    """

    def __init__(self, model: nn.Module, rule: Rule, flops: LayerFlops) -> None:
        """Put a gate behind each convolution that a batch norm follows.

        Args:
            model: the network, changed in place; without gates it computes what it did.
            rule: of all gates.
            flops: of one input of the network, by the weights of all its layers.

        Raises:
            UserError: ``torch.fx`` can't trace the network, or there is no such convolution.
        """
        self.model, self.rule = model, rule
        found, self.sources = _trace(model)
        self.of: dict[str, Gate] = {}
        for name, (norm, rectified) in found.items():
            conv: Any = model.get_submodule(name)
            with torch.random.fork_rng(devices=[]):  # what the network draws later stays the same
                gate = self.of[name] = Gate(conv, rule, rectified=rectified)
            behind = model.get_submodule(norm)
            behind.add_module("gate", gate)
            conv.register_forward_pre_hook(gate.look)
            behind.register_forward_hook(gate.close)
        touched = {*self.of, *self.sources}
        self.dense = {
            n: flops.dense[f"{n}.weight"] for n in touched if f"{n}.weight" in flops.dense
        }
        self.rest = flops.total - sum(self.dense.values())
        predicted = rule.kind == "predicted"
        #: FLOPs of the predictors, for one input.
        self.overhead = 2 * sum(gate.weight.numel() for gate in self.of.values()) * predicted

    def loss(self) -> Tensor:
        """Loss of the predictors in the last pass, mean over the gates."""
        return torch.stack([gate.loss() for gate in self.of.values()]).mean()

    def parameters(self) -> list[nn.Parameter]:
        """Weights and biases of the predictors."""
        return [parameter for gate in self.of.values() for parameter in gate.parameters()]

    @torch.no_grad()
    def flops(self, open_filters: Mapping[str, Tensor]) -> Tensor:
        """FLOPs of each input, weight by weight.

        A weight counts where it is not zero, its filter passes, and its input is not a filter that
        was held back on a way without sums. Predictors are counted.

        Args:
            open_filters: bool [inputs, filters] by the name of the convolution, such as
                :meth:`passed` gives.

        Returns:
            float64 [inputs].
        """
        total = torch.full((), float(self.rest + self.overhead), dtype=torch.float64)
        for name, dense in self.dense.items():
            weight = self.model.get_submodule(name).get_parameter("weight")
            alive = weight.ne(0).flatten(2).sum(2) if weight.ndim > 2 else weight.ne(0)
            pairs = alive.double() * (dense / weight.numel())  # FLOPs of (output, input)
            source = self.sources.get(name)
            if source is None:
                inputs = torch.ones(1, pairs.shape[1], dtype=torch.float64, device=pairs.device)
            else:
                inputs = open_filters[source].double()
                inputs = inputs.repeat_interleave(pairs.shape[1] // inputs.shape[1], dim=1)
            cost = inputs @ pairs.T
            own = open_filters.get(name)
            total = total.to(cost.device) + (cost if own is None else cost * own).sum(1)
        return total

    def passed(self) -> dict[str, Tensor]:
        """Filters that passed in the last pass, bool [inputs, filters]."""
        return {name: gate.passed for name, gate in self.of.items()}

    def truth(self) -> dict[str, Tensor]:
        """Filters that the last pass needed, bool [inputs, filters]."""
        return {name: gate.truth for name, gate in self.of.items()}


def _trace(model: nn.Module) -> tuple[dict[str, tuple[str, bool]], dict[str, str]]:
    """Which convolutions can have a gate, and whose filters a layer reads.

    Returns:
        By convolution its batch norm and whether a ReLU is all that follows; and by layer (with
        or without a gate) the convolution whose filters are its inputs.
    """
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:  # control flow that depends on values
        raise UserError(f"task=gates: torch.fx can't follow the network: {error}") from error
    modules = dict(model.named_modules())
    calls = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    gated: dict[str, tuple[str, bool]] = {}
    behind: dict[fx.Node, str] = {}
    for node in graph.nodes:
        name = str(node.target)
        module = modules.get(name) if node.op == "call_module" else None
        if not isinstance(module, nn.Conv2d) or module.groups > 1 or calls.count(name) > 1:
            continue
        norm = next(iter(node.users)) if len(node.users) == 1 else node
        if isinstance(modules.get(str(norm.target)), NORMS) and calls.count(str(norm.target)) == 1:
            rectified = len(norm.users) == 1 and _is(next(iter(norm.users)), modules, _RELU)
            gated[name] = (str(norm.target), rectified)
            behind[norm] = name
    if not gated:
        raise UserError("task=gates: the network has no convolution followed by batch norm")
    sources: dict[str, str] = {}
    for node in graph.nodes:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, LAYERS) and getattr(module, "groups", 1) == 1:
            before = node.args[0]
            while before not in behind and _is(before, modules, _KEEP_ZERO):
                before = before.args[0]
            if before in behind and calls.count(str(node.target)) == 1:
                sources[str(node.target)] = behind[before]
    return gated, sources


def _is(node: Any, modules: Mapping[str, nn.Module], kinds: tuple[Any, ...]) -> bool:
    if not isinstance(node, fx.Node):
        return False
    if node.op == "call_module":
        return type(modules[str(node.target)]) in kinds
    return node.op in ("call_function", "call_method") and node.target in kinds
