"""A masked step and a topology update, over a dense step.

    python scripts/bench/step.py

Peers in the same run: torch.nn.utils.prune, which multiplies in the forward pass, and a
boolean mask on weights and momentum after each step, as research code does it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from common import Ratio, alternate, of, report, seconds
from torch import Tensor, nn
from torch.nn.utils import prune

from sparsebench import Session, library
from sparsebench.models import build

BATCH, PAIRS = 128, 40


def mlp() -> tuple[nn.Module, Tensor]:
    """MLP 784-1024-1024-10 and a batch."""
    model = nn.Sequential(
        nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)
    )
    return model, torch.randn(BATCH, 784)


def resnet20() -> tuple[nn.Module, Tensor]:
    """ResNet-20 for CIFAR, channels last, and a batch."""
    config = {"_target_": "sparsebench.models.cifar_resnet.resnet20"}
    model = build(config, (3, 32, 32), 10).to(memory_format=torch.channels_last)
    return model, torch.randn(BATCH, 3, 32, 32).contiguous(memory_format=torch.channels_last)


class Step:
    """A training step of a copy of a model, dense or with what keeps it sparse."""

    def __init__(self, model: nn.Module, x: Tensor, method: str | None, **dials: object) -> None:
        self.model, self.x = copy.deepcopy(model), x
        self.y = torch.randint(10, (BATCH,))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        self.session = None
        if method:
            built = library.method(method, sparsity=0.9, **dials)
            self.session = Session(built, self.model, self.optimizer, total_steps=10**6, seed=0)

    def __call__(self) -> None:
        """One step."""
        nn.functional.cross_entropy(self.model(self.x), self.y).backward()
        if self.session:
            self.session.after_backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.session:
            self.session.after_step()


def peer_prune(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """torch.nn.utils.prune at 90 %."""
    step = Step(model, x, None)
    for module in step.model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            prune.custom_from_mask(module, "weight", torch.rand_like(module.weight) < 0.1)
    step.optimizer = torch.optim.SGD(step.model.parameters(), lr=0.01, momentum=0.9)
    return step


def peer_boolean(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """A boolean mask on weights and momentum after each step."""
    step = Step(model, x, None)
    masks = {p: torch.rand_like(p) < 0.1 for p in step.model.parameters() if p.ndim > 1}

    def masked() -> None:
        step()
        with torch.no_grad():
            for parameter, mask in masks.items():
                parameter.mul_(mask)
                step.optimizer.state[parameter]["momentum_buffer"].mul_(mask)

    return masked


def update(model: nn.Module, x: Tensor, method: str) -> Ratio:
    """One topology update over a dense step: what a step with an update costs more."""
    dense, never = Step(model, x, None), Step(model, x, method, every="1000000it", end="100%")
    always = Step(model, x, method, every="1it", end="100%")
    for step in (dense, never, always):
        step()
    ratios = []
    for _ in range(PAIRS):
        with_update, without, plain = seconds(always), seconds(never), seconds(dense)
        ratios.append((with_update - without) / plain)
    return of(f"{method} update / dense step, MLP at 90 %", ratios, 1.0)


def main() -> None:
    """Measure and print."""
    torch.manual_seed(0)
    ratios = []
    for name, (model, x) in (("MLP", mlp()), ("ResNet-20", resnet20())):
        dense, masked = Step(model, x, None), Step(model, x, "static")
        ratios.append(
            alternate(f"masked step / dense step, {name}", masked, dense, target=1.03, pairs=PAIRS)
        )
        for label, peer in (("torch prune", peer_prune), ("boolean masks", peer_boolean)):
            named = f"{label} step / dense step, {name}"
            ratios.append(alternate(named, peer(model, x), dense, pairs=PAIRS))
    ratios += [update(*mlp(), method) for method in ("rigl", "set")]
    report("step", ratios)


if __name__ == "__main__":
    main()
