"""What each method costs over dense training: its steps and updates, over as many dense steps.

    python scripts/bench/methods.py [method ...]

Both are trained side by side for some steps with two updates of the masks among them (a method
that updates at each step does so at each), on ResNet-20. The methods people compare with have a
target and several pairs; all others one pair each, since theirs is the cost of their own
mathematics.
"""

from __future__ import annotations

import os
import sys

import torch
from common import Ratio, of, report, seconds
from step import BATCH, Step, resnet20
from torch import Tensor, nn

from sparsebench import Session, library
from sparsebench.config.paths import config_files
from sparsebench.errors import UserError
from sparsebench.sparsity.examples import Examples

PAIRS = int(os.environ.get("PAIRS", "5"))
EVERY, WARM, TIMED = 20, 5, 40  # steps
TARGETS = dict.fromkeys(("set", "rigl", "gmp", "granet", "topkast", "sr_ste"), 1.05)


class Trained(Step):
    """Training with a method, updates and all."""

    def __init__(self, model: nn.Module, x: Tensor, name: str) -> None:
        super().__init__(model, x, None)
        own = library.method(name).spec.every.endswith("it")
        often = own and int(library.method(name).spec.every[:-2]) < EVERY
        dials: dict[str, object] = {} if often else {"every": f"{EVERY}it"}
        if name != "dense" and not often:
            dials |= {"begin": f"{WARM}it", "end": "100%"}
        self.session = Session(
            library.method(name, **({} if _fixed(name) else {"sparsity": 0.9}), **dials),
            self.model, self.optimizer, total_steps=WARM + 4 * TIMED, seed=0,
            examples=Examples(lambda seed: iter([(self.x, self.y)])),
        )  # fmt: skip

    def __call__(self) -> None:
        """One step; absent weights with values of their own are hidden for it."""
        assert self.session
        self.session.before_forward()
        super().__call__()


def _fixed(name: str) -> bool:
    """Whether the pattern gives the sparsity."""
    return bool(library.method(name).pattern.name == "nm")


def measure(name: str, pairs: int) -> Ratio:
    """Steps and updates of a method over dense steps."""
    model, x = resnet20()
    ratios = []
    for _ in range(pairs):
        sparse, dense = Trained(model, x, name), Step(model, x, None)
        for step in (sparse, dense):
            for _ in range(WARM):
                step()
        above = below = 0.0
        for _ in range(TIMED):  # in turn, so that both see the same machine
            above += seconds(sparse)
            below += seconds(dense)
        ratios.append(above / below)
    return of(f"{name} / dense, ResNet-20, batch {BATCH}", ratios, TARGETS.get(name))


def main(names: list[str]) -> None:
    """Measure and print."""
    torch.manual_seed(0)
    ratios = []
    for name in names or config_files("method"):
        try:
            ratios.append(measure(name, PAIRS if name in TARGETS else 1))
            print(ratios[-1], flush=True)
        except UserError as error:
            print(f"{name}: not for this network: {error}", flush=True)
    report("methods", ratios, keep=bool(names))


if __name__ == "__main__":
    main(sys.argv[1:])
