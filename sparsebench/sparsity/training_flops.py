"""FLOPs of training: counted step by step, and in closed form (RigL, arXiv:1911.11134, app. H).

A step on one sample costs a forward pass, the gradient of the activations and the gradient of the
weights, each as much as a forward pass. Choosing what to drop or grow is not counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass


@dataclass
class TrainingFlops:
    """FLOPs of a training so far.

    Attributes:
        dense_forward: forward FLOPs of one sample in the dense network (f_D).
        total: FLOPs spent.
        dense_total: FLOPs that dense training would have spent on the same samples.
        samples: samples seen.
        steps: optimizer steps.
        dense_gradient_steps: steps that needed the gradient of all weights.
    """

    dense_forward: float
    total: float = 0.0
    dense_total: float = 0.0
    samples: int = 0
    steps: int = 0
    dense_gradient_steps: int = 0

    def add(
        self,
        forward: float,
        samples: int,
        *,
        dense_gradient: bool = False,
        input_gradient: float | None = None,
        weight_gradient: float | None = None,
    ) -> None:
        """Count one optimizer step.

        Args:
            forward: forward FLOPs of one sample at the present masks (f_S).
            samples: size of the effective batch.
            dense_gradient: the step computed the gradient of absent weights too.
            input_gradient: FLOPs of the gradient of the activations; ``forward`` if not given.
            weight_gradient: FLOPs of the gradient of the weights; if not given f_D where
                ``dense_gradient`` is set, else ``forward``.
        """
        if input_gradient is None:
            input_gradient = forward
        if weight_gradient is None:
            weight_gradient = self.dense_forward if dense_gradient else forward
        self.total += samples * (forward + input_gradient + weight_gradient)
        self.dense_total += samples * 3 * self.dense_forward
        self.samples += samples
        self.steps += 1
        self.dense_gradient_steps += dense_gradient

    def add_beside(self, flops: float) -> None:
        """Count what was computed beside a step, such as gradients that decide about masks."""
        self.total += flops

    @property
    def relative(self) -> float:
        """FLOPs as a multiple of dense training on the same samples; 0 before the first step."""
        return self.total / self.dense_total if self.dense_total else 0.0

    def state_dict(self) -> dict[str, float]:
        """All figures, as plain numbers."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from the figures of a checkpoint."""
        for name in asdict(self):
            setattr(self, name, state[name])


def static_closed_form(f_s: float) -> float:
    """FLOPs per sample of any training with sparse passes only: static masks, SET, MEST."""
    return 3 * f_s


def snfs_closed_form(f_s: float, f_d: float) -> float:
    """FLOPs per sample with a dense weight gradient at every step: SNFS, SR-STE, DPF, STR."""
    return 2 * f_s + f_d


def rigl_closed_form(f_s: float, f_d: float, interval: int) -> float:
    """FLOPs per sample of RigL, the paper's formula.

    It counts ``interval`` sparse steps and, besides, one step with a dense weight gradient, for
    the whole of training. With the update inside the interval, as in most code, it is
    ``rigl_closed_form(f_s, f_d, interval - 1)``.
    """
    return (3 * f_s * interval + 2 * f_s + f_d) / (interval + 1)


def top_kast_closed_form(f_forward: float, f_backward: float) -> float:
    """FLOPs per sample of Top-KAST (arXiv:2106.03517).

    Args:
        f_forward: forward FLOPs at the density of the forward set A.
        f_backward: forward FLOPs at the density of the backward set B.
    """
    return 2 * f_forward + f_backward


def bdwp_closed_form(f_forward: float, f_backward: float, f_d: float) -> float:
    """FLOPs per sample of BDWP (arXiv:2309.13015): N:M both ways, dense weight gradient."""
    return f_forward + f_backward + f_d


def phases_closed_form(phases: Iterable[tuple[float, float]]) -> float:
    """FLOPs per sample of training in phases: AC/DC, iterative pruning.

    Args:
        phases: share of all steps and forward FLOPs of each phase.
    """
    return sum(share * 3 * forward for share, forward in phases)


def gmp_mean_density(
    final_sparsity: float, *, initial_sparsity: float = 0.0, begin: float = 0.0, end: float = 1.0
) -> float:
    """Mean density over training under the cubic schedule (arXiv:1710.01878), its integral.

    Args:
        final_sparsity: sparsity from ``end`` on.
        initial_sparsity: sparsity up to ``begin``.
        begin: start of the window, as a share of training.
        end: end of the window, as a share of training.
    """
    window = 1 - final_sparsity + (final_sparsity - initial_sparsity) / 4
    return (
        begin * (1 - initial_sparsity) + (end - begin) * window + (1 - end) * (1 - final_sparsity)
    )


def gmp_closed_form(f_prunable: float, f_other: float, mean_density: float) -> float:
    """FLOPs per sample of gradual pruning with one density for all prunable layers.

    Args:
        f_prunable: dense forward FLOPs of the layers that are pruned.
        f_other: forward FLOPs of all else.
        mean_density: mean over training, as of `gmp_mean_density`.
    """
    return 3 * (f_other + f_prunable * mean_density)
