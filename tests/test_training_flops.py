"""FLOPs of a training in result.json, step by step against a count by hand; the small baseline."""

import csv
import math

import pytest
import torch

from sparsebench.config.compose import compose
from sparsebench.config.identity import run_folder
from sparsebench.run import run
from sparsebench.sparsity.distributions import allocate
from sparsebench.sparsity.masks import unpack

QUICK = [
    "data=digits", "model=tiny_mlp", "epochs=3", "data.subset=160", "batch_size=16",
    "plots=false", "quiet=true", "trainer.accelerator=cpu", "method.every=2it", "sparsity=0.75",
]  # fmt: skip
PER_EPOCH = 9  # 160 images, 16 of them held out, in batches of 16
TOTAL = 3 * PER_EPOCH
SHAPES = {"fc1.weight": (32, 64), "fc2.weight": (16, 32), "fc3.weight": (10, 16)}
DENSE = {name: 2 * math.prod(shape) for name, shape in SHAPES.items()}  # FLOPs of a sample


@pytest.fixture
def train(tmp_path):
    """Run overrides to the end: metrics, folder and last checkpoint."""

    def trained(*overrides):
        cfg = compose([*QUICK, f"runs={tmp_path}", *overrides])
        result = run(cfg)
        assert result["status"] == "finished", result.get("error")
        folder = run_folder(cfg)
        return result["metrics"], folder, torch.load(folder / "last.ckpt", weights_only=True)

    return trained


def rows(folder, name="metrics.csv"):
    with (folder / name).open() as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def masks_of(checkpoint):
    packed = checkpoint["callbacks"]["Sparsify"]["masks"]["packed"]
    state = checkpoint["state_dict"]
    return {n: unpack(bits, state[f"model.{n}"].shape) for n, bits in packed.items()}


def flops(counts):
    return sum(2 * count for count in counts.values())


def spent(forward, dense_gradient):
    """FLOPs of one optimizer step on 16 samples."""
    weights = sum(DENSE.values()) if dense_gradient else forward
    return 16 * (2 * forward + weights)


def by_hand(method, folder, kept):
    """FLOPs of the training, and its steps with a dense gradient."""
    counts = {name: int(mask.sum()) for name, mask in masks_of(kept).items()}
    f = flops(counts)
    due = [s % 2 == 0 and s <= round(0.75 * TOTAL) for s in range(1, TOTAL + 1)]
    if method in ("static", "set"):
        return TOTAL * spent(f, False), 0
    if method == "dense":
        return TOTAL * spent(sum(DENSE.values()), False), 0
    if method == "rigl":
        return sum(spent(f, dense) for dense in due), sum(due)
    if method == "snfs":  # its layers trade weights at the end of each epoch
        each = [allocate(SHAPES, 0.25, name="strict_uniform")]
        each += [
            {name: round(row[name] * math.prod(shape)) for name, shape in SHAPES.items()}
            for row in rows(folder, "density.csv")[:-1]
        ]
        return sum(PER_EPOCH * spent(flops(c), True) for c in each), TOTAL
    begin, end = round(0.1 * TOTAL), round(0.75 * TOTAL)
    end -= (end - begin) % 2
    total, now = 0.0, {name: math.prod(shape) for name, shape in SHAPES.items()}
    for step in range(1, TOTAL + 1):
        total += spent(flops(now), False)
        if begin < step <= end and (step - begin) % 2 == 0:
            sparsity = 0.75 * (1 - (1 - (step - begin) / (end - begin)) ** 3)
            now = allocate(SHAPES, 1 - sparsity, name="strict_uniform")
    return total, 0


@pytest.mark.parametrize("method", ["dense", "static", "set", "rigl", "snfs", "gmp"])
def test_flops_are_those_of_each_step(train, method):
    every = ["method.every=1ep"] if method == "snfs" else []
    metrics, folder, kept = train(f"method={method}", *every)
    total, dense_steps = by_hand(method, folder, kept)
    assert metrics["flops/training"] == pytest.approx(total, rel=1e-12)
    assert metrics["flops/dense_gradient_steps"] == dense_steps
    everything = TOTAL * 16 * 3 * sum(DENSE.values())
    assert metrics["flops/training_relative"] == pytest.approx(total / everything, rel=1e-12)


def mlp_weights(width):
    first, second = (max(1, int(units * width + 0.5)) for units in (32, 16))
    return 64 * first + first * second + 10 * second


def conv_weights(width):
    first, second = (max(1, int(units * width + 0.5)) for units in (8, 16))
    return 9 * first + 9 * first * second + 10 * second


@pytest.mark.parametrize("name", ["tiny_mlp", "tiny_conv"])
@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_a_small_dense_network_is_the_largest_within_the_budget(train, name, sparsity):
    metrics, _, _ = train("method=small_dense", f"model={name}", f"sparsity={sparsity}")
    weights = {"tiny_mlp": mlp_weights, "tiny_conv": conv_weights}[name]
    budget = round((1 - sparsity) * weights(1.0))
    fitting = [count for k in range(1, 1001) if (count := weights(k / 1000)) <= budget]
    assert metrics["weights"] == metrics["nonzeros"] == max(fitting)
    assert metrics["flops/inference_relative"] < 1
