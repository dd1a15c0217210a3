"""Networks of dynamics whose ReLUs may be replaced by the identity or by nothing, and folded.

After "Model-Based Control with Sparse Neural Dynamics" (Liu et al. 2023, arXiv 2312.12791): each
hidden unit has a categorical choice {ReLU, identity, zero}, relaxed by Gumbel-softmax (Jang et al.
2017, arXiv 1611.01144) while it is learned. A unit without ReLU is linear, so it can be folded into
the layers behind it: what is left computes the same with as many units as there are ReLUs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sparsebench.errors import UserError, bad_value
from sparsebench.models.common import scaled

RELU, IDENTITY, ZERO = range(3)


class Gates(nn.Module):
    """The choices of a layer's units.

    Attributes:
        logits: [units, 3], of ReLU, identity and zero.
        barred: bool [units], units that may be no ReLU any more.
    """

    logits: nn.Parameter
    barred: Tensor

    def __init__(self, units: int) -> None:
        """Each unit is a ReLU, with a probability of 0.79 when it first draws."""
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([2.0, 0.0, 0.0]).repeat(units, 1))
        self.register_buffer("barred", torch.zeros(units, dtype=torch.bool))
        self._drawn: Tensor | None = None  # weights of the three [units, 3], while training

    def allowed(self) -> Tensor:
        """Logits, that of a barred ReLU at minus infinity."""
        relu = self.logits[:, RELU].masked_fill(self.barred, -torch.inf)
        return torch.cat([relu[:, None], self.logits[:, 1:]], 1)

    def choice(self) -> Tensor:
        """The likeliest of the three for each unit, int64 [units]; of equals the first."""
        return self.allowed().argmax(1)

    def draw(self, temperature: float, hard: bool) -> None:
        """Draw weights for the coming forward passes, until :meth:`forget`."""
        self._drawn = nn.functional.gumbel_softmax(self.allowed(), temperature, hard=hard)

    def forget(self) -> None:
        """Use the likeliest choices again."""
        self._drawn = None

    def forward(self, z: Tensor) -> Tensor:
        """Values [batch, units] of the units before their choice to those behind it."""
        if self._drawn is not None:
            return self._drawn[:, RELU] * z.relu() + self._drawn[:, IDENTITY] * z
        choice = self.choice()
        linear = torch.where(choice == IDENTITY, z, 0.0)
        return torch.where(choice == RELU, z.relu(), linear)


class ReluDynamics(nn.Module):
    """x' = x + f(x, u), f a fully connected network whose hidden units choose what they are.

    Attributes:
        budget: int64, ReLUs allowed at most (buffer).
    """

    budget: Tensor

    def __init__(self, inputs: int, states: int, hidden: Sequence[int]) -> None:
        """Take the sizes; initialisation of ``torch.nn.Linear``."""
        super().__init__()
        sizes = [inputs, *hidden, states]
        self.states = states
        for number, (fan_in, fan_out) in enumerate(zip(sizes, sizes[1:], strict=False), start=1):
            self.add_module(f"fc{number}", nn.Linear(fan_in, fan_out))
        self.gates = nn.ModuleList(Gates(units) for units in hidden)
        self.register_buffer("budget", torch.tensor(sum(hidden)))

    def layers(self) -> list[nn.Linear]:
        """The linear layers, in order."""
        return [module for module in self.children() if isinstance(module, nn.Linear)]

    def gate(self) -> list[Gates]:
        """The gates of the hidden layers, in order."""
        return [module for module in self.gates if isinstance(module, Gates)]

    def forward(self, inputs: Tensor) -> Tensor:
        """Next states [batch, n] of states and controls [batch, n + m]."""
        *hidden, last = self.layers()
        h = inputs
        for layer, gates in zip(hidden, self.gate(), strict=True):
            h = gates(layer(h))
        found: Tensor = inputs[:, : self.states] + last(h)
        return found

    @property
    def units(self) -> int:
        """Number of hidden units."""
        return sum(gates.barred.numel() for gates in self.gate())

    @property
    def relus(self) -> int:
        """Number of units whose likeliest choice is ReLU."""
        return sum(int((gates.choice() == RELU).sum()) for gates in self.gate())

    def expected_relus(self) -> Tensor:
        """Sum of the probabilities of ReLU."""
        return torch.stack(
            [gates.allowed().softmax(1)[:, RELU].sum() for gates in self.gate()]
        ).sum()

    @contextmanager
    def drawn(self, temperature: float, hard: bool) -> Iterator[None]:
        """Forward passes use one draw of relaxed choices, or of choices with a soft gradient.

        Args:
            temperature: of the Gumbel-softmax.
            hard: one choice each forward, the gradient that of the relaxed ones.
        """
        for gates in self.gate():
            gates.draw(temperature, hard)
        try:
            yield
        finally:
            for gates in self.gate():
                gates.forget()

    @torch.no_grad()
    def restrict(self, budget: int) -> None:
        """Bar all but so many ReLUs, the likeliest ones; of equals the first stays.

        A ReLU that is barred once stays so.
        """
        likely = torch.cat([gates.allowed().softmax(1)[:, RELU] for gates in self.gate()])
        likely[torch.cat([gates.barred for gates in self.gate()])] = -1.0
        order = torch.sort(likely, descending=True, stable=True).indices
        barred = torch.ones_like(likely, dtype=torch.bool)
        barred[order[:budget]] = False
        parts = torch.split(barred, [gates.barred.numel() for gates in self.gate()])
        for gates, part in zip(self.gate(), parts, strict=True):
            gates.barred |= part
        self.budget.fill_(budget)


class Folded(nn.Module):
    """A network of ReLUs only, each layer of which reads the inputs and all layers before it.

    ``hidden`` gives the ReLUs layer by layer, ``out`` the next states.
    """

    def __init__(self, hidden: Sequence[nn.Linear], out: nn.Linear) -> None:
        """Take the layers; a layer without ReLUs is left out."""
        super().__init__()
        self.hidden = nn.ModuleList(hidden)
        self.out = out

    @property
    def relus(self) -> int:
        """Number of ReLUs, which is that of hidden units."""
        return self.out.in_features - self.inputs

    @property
    def inputs(self) -> int:
        """Number of inputs."""
        first = next(iter(self.hidden), self.out)
        assert isinstance(first, nn.Linear)
        return first.in_features

    def forward(self, inputs: Tensor) -> Tensor:
        """Next states [batch, n] of states and controls [batch, n + m]."""
        features = inputs
        for layer in self.hidden:
            features = torch.cat([features, layer(features).relu()], 1)
        found: Tensor = self.out(features)
        return found


@torch.no_grad()
def fold(model: ReluDynamics) -> Folded:
    """The network without units that are no ReLUs, in float64; it computes the same.

    Every unit is an affine function of the inputs and the ReLUs before it, so linear units need
    not be computed: their weights multiply through.
    """
    layers = [(layer.weight.double().cpu(), layer.bias.double().cpu()) for layer in model.layers()]
    inputs = layers[0][0].shape[1]
    maps = torch.eye(inputs, dtype=torch.float64)  # units of the layer before, from the features
    shift = torch.zeros(inputs, dtype=torch.float64)
    hidden = []
    for (weight, bias), gates in zip(layers, model.gate(), strict=False):
        maps, shift = weight @ maps, weight @ shift + bias
        choice = gates.choice().cpu()
        chosen = (choice == RELU).nonzero().view(-1)
        if len(chosen):
            hidden.append(_linear(maps[chosen], shift[chosen]))
        linear = (choice == IDENTITY)[:, None]
        maps = torch.cat(
            [torch.where(linear, maps, 0.0), maps.new_zeros(len(maps), len(chosen))], 1
        )
        shift = torch.where(linear[:, 0], shift, 0.0)
        new = maps.shape[1] - len(chosen) + torch.arange(len(chosen))
        maps[chosen, new] = 1.0
    weight, bias = layers[-1]
    maps, shift = weight @ maps, weight @ shift + bias
    maps[:, : model.states] += torch.eye(model.states, dtype=maps.dtype)
    return Folded(hidden, _linear(maps, shift))


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    return layer.requires_grad_(False)  # noqa: FBT003  # torch takes it by position


def relu_dynamics(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    width: float = 1.0,
    hidden: Sequence[int] = (64, 64),
) -> ReluDynamics:
    """A fully connected network of dynamics.

    Args:
        input_shape: (states + controls,).
        num_classes: states.
        width: multiplies the hidden units.
        hidden: units of each hidden layer, at least one layer.

    Returns:
        The network, with layers named ``fc1``, ``fc2``, ...

    Raises:
        UserError: data that are no system, or ``hidden`` out of range.
    """
    if len(input_shape) != 1 or input_shape[0] <= num_classes:
        raise UserError(
            "model=relu_dynamics: its data are states and controls, as in task=dynamics"
        )
    if not hidden or any(not isinstance(units, int) or units < 1 for units in hidden):
        raise bad_value("model.hidden", str(list(hidden)), "a list of whole numbers above 0")
    return ReluDynamics(input_shape[0], num_classes, [scaled(units, width) for units in hidden])
