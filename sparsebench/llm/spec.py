"""What a pruning method for language models is made of, and the names of its parts.

Nothing here needs torch. To add a part, write a function in the module named and give it a line.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sparsebench.sparsity.spec import number, one_of, whole

_HERE = "sparsebench.llm."
#: What is worth keeping: ``score(weights) -> (outputs, inputs)``, higher is better.
SCORES = {
    "magnitude": f"{_HERE}scores.magnitude",
    "random": f"{_HERE}scores.random",
    "wanda": f"{_HERE}scores.wanda",
    "obs": f"{_HERE}scores.obs",
    "ria": f"{_HERE}scores.ria",
}
#: How kept weights make up for those that go: ``solver(weights, pattern, kept) -> (weight, kept)``.
SOLVERS = {"none": "", "sparsegpt": f"{_HERE}sparsegpt.sparsegpt"}
#: How a mask is bettered before weights change: ``swap(weights, kept, pattern, score) -> kept``.
SWAPS = {"dsnot": f"{_HERE}dsnot.dsnot"}
#: Sparsity of each layer: ``ratios(question) -> sparsities``.
RATIOS = {
    "uniform": f"{_HERE}ratios.uniform",
    "er": f"{_HERE}ratios.er",
    "global": f"{_HERE}ratios.together",
    "owl": f"{_HERE}ratios.owl",
    "alpha": f"{_HERE}heavy_tails.alpha",
}
#: Products that stand for a weight: ``form(rows, compression, spec) -> Product``.
FORMS = {"svd": f"{_HERE}factors.svd", "dictionary": f"{_HERE}factors.dictionary"}


def choice(default: str, *choices: str) -> Any:
    """A field that is one of some words."""
    return field(default=default, metadata={"choices": choices})


@dataclass
class PrunerSpec:
    """A way to prune a trained language model.

    Each layer gets a sparsity (``ratios``); ``score`` and ``scope`` choose what stays, ``swap``
    betters the choice, and ``solver`` changes the weights that stay.
    """

    name: str = ""
    score: str = one_of("magnitude", SCORES, "score of what is worth keeping")
    scope: str = choice("layer", "layer", "row", "columns")
    ratios: str = one_of("uniform", RATIOS, "sparsity of each layer")
    swap: str | None = one_of(None, SWAPS, "swaps of chosen and unchosen weights")
    solver: str = one_of("none", SOLVERS, "how kept weights change")
    propagate: bool = True
    columns: int = whole(128, 1, "columns of a block that SparseGPT chooses and updates in")
    damping: float = number(0.01, "[0, inf)", "share of the mean added to H's diagonal")
    outliers: float = number(5.0, "(0, inf)", "OWL: scores above this many means are outliers")
    spread: float = number(0.08, "[0, 1)", "OWL: half the range of the blocks' densities")
    tau: float = number(0.3, "[0, 1)", "alpha: half the range of the blocks' sparsities, relative")
    tail: str = choice("half", "half", "peak")
    swap_cycles: int = whole(50, 0, "DSnoT: most swaps in a row")
    swap_threshold: float = number(0.1, "[0, inf]", "DSnoT: expected error at which a row is done")
    swap_unit: str = choice("sum", "sum", "mean")
    swap_power: float = number(1.0, "[0, inf)", "DSnoT: power of the variance in growing")
    swap_sign: bool = True
    swap_skip: list[str] = field(default_factory=list)
    units: str = choice("both", "both", "heads", "channels")


@dataclass
class FactorSpec:
    """A way to write the weights of a trained language model as products of smaller matrices.

    Each weight becomes the best product of a ``form`` whose storage is the share that
    ``compression`` leaves, best for the layer's outputs on calibration text with ``whiten``.
    """

    name: str = ""
    form: str = one_of("svd", FORMS, "product that stands for a weight")
    compression: float = number(0.2, "(0, 1)", "share of the weights' storage that is saved")
    whiten: bool = False
    propagate: bool = True
    damping: float = number(1e-3, "[0, inf)", "share of the mean added to the Gram's diagonal")
    group: int = whole(1, 1, "neighbouring blocks whose layers of one kind share their atoms")
    rho: float = number(2.0, "[1, inf)", "atoms of a dictionary for each that a row combines")
    iterations: int = whole(20, 1, "turns of coding and of bettering the atoms")
    step: int = whole(1, 1, "atoms that a code takes up at a time (OMP: 1)")
