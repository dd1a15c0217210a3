"""What a method promises where the general formulas of test_conformance do not hold.

By default a method's counts follow from its YAML (window, sparsity schedule, distribution), absent
weights are zero in each forward pass, and the masks change within the window or not at all. A
method that is otherwise has an entry here, named as its YAML, written from its paper and never
from the code.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

#: The shortest run of test_conformance: steps, steps of an epoch, steps between updates, sparsity.
STEPS, PER_EPOCH, EVERY, SPARSITY = 12, 4, 2, 0.8


@dataclass(frozen=True)
class Expectation:
    """The promises of one method, where they are its own.

    Attributes:
        dials: what a test of 12 steps sets beside ``every=2it``, such as a shorter window;
            ``every`` itself may be another.
        nonzeros: from steps done and the size of each layer, how many connections there are
            in all; ``None`` if no formula gives them, and then ``bounds`` should.
        bounds: from steps done, the least and the most sparsity there may be.
        layers: from steps done and sizes, the count of each layer, where it is known.
        absent_are_zero: absent weights show as exact zeros in the forward pass.
        new_from_zero: new connections start from zero, weight and optimizer state.
        changes: whether the masks change at all; ``None``: they may.
        until: progress in [0, 1] after which they don't.
        dense_at_zero: with sparsity 0 training is bitwise that of the dense network.
        draws: whether the seed decides anything.
        networks: kinds of network that it is for.
    """

    dials: dict[str, object] = field(default_factory=dict)
    nonzeros: Callable[[int, dict[str, int]], int] | None = None
    bounds: Callable[[int], tuple[float, float]] | None = None
    layers: Callable[[int, dict[str, int]], dict[str, int]] | None = None
    absent_are_zero: bool = True
    new_from_zero: bool = True
    changes: bool | None = True
    until: float = 1.0
    dense_at_zero: bool = True
    draws: bool = False
    networks: tuple[str, ...] = ("mlp", "conv", "channels_last", "transformer")


EXPECTATIONS: dict[str, Expectation] = {}

# Constant fan-in: floor(n / neurons) of each, so less than one weight a neuron is missing.
EXPECTATIONS["srigl"] = Expectation(bounds=lambda t: (0.79, 0.86), until=0.75)


def _chase(t: int, sizes: dict[str, int]) -> int:
    """0.2 N at first; after each update 0.05 (1 + cos(pi u / T)) / 2 more, until T = 81 %."""
    update, stop = t // EVERY * EVERY, round(0.81 * STEPS)
    extra = 0.05 * (1 + math.cos(math.pi * update / stop)) / 2 if 0 < update < stop else 0.0
    return round((1 - SPARSITY + extra) * sum(sizes.values()))


EXPECTATIONS["chase"] = Expectation(
    nonzeros=_chase, dials={"options": {"channel_every": f"{EVERY}it"}}
)
# 8 and 16 channels, weights 9 a + 9 a b + 10 b: a = 3, b = 6 (q = 10/16) come nearest to 276.8.
EXPECTATIONS["group_channels"] = Expectation(
    nonzeros=lambda t, sizes: sum(sizes.values()) if t < 6 else 249,
    until=0.5,
    networks=("conv", "channels_last"),
)


def _share_of_all(t: int, sizes: dict[str, int]) -> int:
    """All layers compete for one number of weights."""
    return round((1 - SPARSITY) * sum(sizes.values()))


_AT_INIT = {"nonzeros": _share_of_all, "changes": False, "until": 0.0}
EXPECTATIONS |= {
    name: Expectation(**_AT_INIT, draws=draws)
    for name, draws in {
        "snip": True, "iterative_snip": True, "force": True, "grasp": True, "grasp_abs": True,
        "snip_ratio": True, "grasp_ratio": True, "synflow_ratio": True, "phew": True,
        "random_search": True, "synflow": False, "magnitude_init": False,
    }.items()
}  # fmt: skip


def granet(first: float) -> Expectation:
    """Cubic from the first sparsity over the first half of training, by updates (2106.10404)."""

    def nonzeros(t: int, sizes: dict[str, int]) -> int:
        left = 1 - min(t // EVERY, 3) / 3
        return round((1 - SPARSITY + (SPARSITY - first) * left**3) * sum(sizes.values()))

    return Expectation(nonzeros=nonzeros, draws=first > 0)


def on_trial(t: int, sizes: dict[str, int]) -> int:
    """MEST EM&S (2110.14032): 5 points more until the last update, the target from there."""
    return round((0.2 if t >= 8 else 0.25) * sum(sizes.values()))


def phases(t: int, sizes: dict[str, int]) -> int:
    """Sparse Model Soups (2306.16788): from step 3 on, three phases of three members each."""
    return round((1 - SPARSITY) ** (min(t // 3, 3) / 3) * sum(sizes.values()))


EXPECTATIONS |= {
    "granet": granet(0.5),
    "granet_dense": granet(0.0),
    "mest_ems": Expectation(nonzeros=on_trial, until=0.75, draws=True),
    "soup": Expectation(dials={"begin": "25%", "every": "1it"}, nonzeros=phases, until=0.75),
}


def acdc(t: int, sizes: dict[str, int]) -> int:
    """AC/DC (2106.12379), phases of 2 steps from step 2 on: sparse 2-3, 6-7 and from 10 on."""
    return _share_of_all(t, sizes) if t in (2, 3, 6, 7) or t >= 10 else sum(sizes.values())


def dpf(t: int, sizes: dict[str, int]) -> int:
    """DPF (2006.07253): over all layers, cubic until three quarters of training."""
    left = 1 - min(t // EVERY * EVERY, 8) / 8
    return round((1 - SPARSITY * (1 - left**3)) * sum(sizes.values()))


def movement(t: int) -> float:
    """Sparsity of movement pruning (2005.07683): cubic from 10 to 80 % of training."""
    first, last = 1, 9
    left = 1 - max((min(t, last) - first) // EVERY, 0) / ((last - first) // EVERY)
    return SPARSITY * (1 - left**3)


EXPECTATIONS |= {
    "acdc": Expectation(dials={"begin": "2it", "end": "10it"}, nonzeros=acdc, until=10 / 12),
    "dpf": Expectation(nonzeros=dpf),
    "movement": Expectation(
        nonzeros=lambda t, sizes: round((1 - movement(t)) * sum(sizes.values()))
    ),
    # how sparse these two get is learned; scores fall by at most their rate in a step of Adam
    "movement_soft": Expectation(
        dials={"options": {"rate": 1.0}},
        bounds=lambda t: (0.0, 0.0 if t < 3 else 0.995),
    ),
    "str": Expectation(dials={"options": {"init": -4.5}}, bounds=lambda t: (0.01, 0.95)),
}


EXPECTATIONS |= {
    "set_signwise": Expectation(new_from_zero=False, draws=True),  # drawn as at initialisation
}


#: Inputs of the layers of the tiny networks, where they are not 16.
INPUTS = {
    "fc1.weight": 64, "fc2.weight": 32, "conv1.weight": 1, "conv2.weight": 8,
    "patch_embed.proj.weight": 1, "blocks.0.mlp.fc2.weight": 32, "blocks.1.mlp.fc2.weight": 32,
}  # fmt: skip
FIFTHS = {"structure": {"name": "nm", "n": 1, "m": 5, "misfit": "pad"}}  # sparsity 0.8


def n_of_5(n: int, sizes: dict[str, int]) -> dict[str, int]:
    """N of every 5 inputs, the last group filled up with zeros (2104.08378)."""

    def kept(name: str, size: int) -> int:
        inputs = INPUTS.get(name, 16)
        return size // inputs * (inputs // 5 * n + min(n, inputs % 5))

    return {name: kept(name, size) for name, size in sizes.items()}


def at_once(t: int, sizes: dict[str, int]) -> dict[str, int]:
    """SR-STE (2102.04010) and BDWP (2309.13015): N:M from the first step on."""
    return n_of_5(1, sizes)


def asp(t: int, sizes: dict[str, int]) -> dict[str, int]:
    """ASP (2104.08378), here in three rounds until half of training: density 0.2^(1/3) each."""
    return n_of_5((5, 3, 2, 1)[min(t // EVERY, 3)], sizes)


def mask_decay(t: int, sizes: dict[str, int]) -> dict[str, int]:
    """MdGf (2402.04744): all weights take part until the decay is over, at 75 %."""
    return n_of_5(5 if t < 9 else 1, sizes)


def structure_decay(t: int, sizes: dict[str, int]) -> dict[str, int]:
    """SdGf (2402.04744): 4:5, 2:5, 1:5 for three steps each, seen at every second step."""
    return n_of_5((4, 4, 2, 1)[min(t // EVERY, 3)], sizes)


EXPECTATIONS |= {
    "sr_ste": Expectation(dials=FIFTHS, layers=at_once),
    "ste_nm": Expectation(dials=FIFTHS, layers=at_once),
    "bdwp": Expectation(dials=FIFTHS, layers=at_once),
    "asp": Expectation(dials=FIFTHS, layers=asp, until=0.5),
    "pgf_mask_decay": Expectation(dials=FIFTHS, layers=mask_decay),
    "pgf_structure_decay": Expectation(dials=FIFTHS, layers=structure_decay),
}

# A revived sensor begins at a factor that was there at initialisation, and not at 0.
EXPECTATIONS["dynst"] = Expectation(new_from_zero=False)


def sparcl(t: int, sizes: dict[str, int]) -> int:
    """SparCL (2209.09476): one point more than the target until the first update."""
    return round((0.21 if t < EVERY else 0.2) * sum(sizes.values()))


EXPECTATIONS["sparcl"] = Expectation(nonzeros=sparcl, until=0.9, draws=True)

# Scores are drawn, and decide where the weights are that are trained (WSN) or constant (SupSup).
# A weight that comes back has its value, so only its optimizer's state is new.
EXPECTATIONS |= {
    "wsn": Expectation(nonzeros=_share_of_all, draws=True),
    "supsup": Expectation(nonzeros=_share_of_all, draws=True, dense_at_zero=False),
}

KERNELS = {"conv1.weight": 9, "conv2.weight": 9}


def whole_kernels(t: int, sizes: dict[str, int]) -> dict[str, int]:
    """SpaceNet (2007.07617): a fifth of each layer, in a convolution by whole kernels."""
    kernel = {name: KERNELS.get(name, 1) for name in sizes}
    return {n: round(0.2 * size) // kernel[n] * kernel[n] for n, size in sizes.items()}


EXPECTATIONS |= {
    "spacenet": Expectation(
        dials={"distribution": "strict_uniform", "options": {"selected": 1.0}},
        layers=whole_kernels,
        draws=True,
        networks=("mlp", "conv", "channels_last"),
    ),
    # NISPA (2206.09117): what leads to the outputs has no plastic unit there to go to
    "nispa": Expectation(
        dials={"distribution": "strict_uniform"},
        bounds=lambda t: (0.799, 0.835),
        new_from_zero=False,
        draws=True,
        networks=("mlp", "conv", "channels_last"),
    ),
}
