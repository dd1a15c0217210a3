"""FLOPs and sizes of ResNet-50 against the tables of RigL's README and paper."""

import math

import pytest
import torch

from sparsebench.sparsity.distributions import allocate, densities
from sparsebench.sparsity.flops import layer_flops, model_size_bytes
from sparsebench.sparsity.training_flops import rigl_closed_form, snfs_closed_form

# RigL's README, "Best Sparse Models": distribution, sparsity, multiples of the 100 epochs, training
# FLOPs, test FLOPs, megabytes, as printed. Its colab counts with MicroNet's counting.py: bias and
# ReLU are one operation for each output of a layer, the first convolution is padded twice (115 x
# 115 outputs, not 112 x 112), and the interval is 100 in the paper's closed form.
README = [
    ("dense", 0, 1, "1.00", "1.00", "102.122"),
    ("erk", 0.8, 1, "0.42", "0.42", "23.683"),
    ("uniform", 0.8, 1, "0.23", "0.23", "23.685"),
    ("erk", 0.9, 1, "0.24", "0.24", "13.499"),
    ("uniform", 0.9, 1, "0.13", "0.13", "13.532"),
    ("erk", 0.8, 5, "2.09", "0.42", "23.683"),
    ("uniform", 0.8, 5, "1.14", "0.23", "23.685"),
    ("erk", 0.9, 5, "1.23", "0.24", "13.499"),
    ("uniform", 0.9, 5, "0.66", "0.13", "13.532"),
    ("erk", 0.95, 5, "0.63", "0.12", "8.399"),
    ("uniform", 0.95, 5, "0.42", "0.08", "8.433"),
    ("erk", 0.965, 5, "0.45", "0.09", "6.904"),
    ("uniform", 0.965, 5, "0.34", "0.07", "6.904"),
    ("erk", 0.99, 5, "0.29", "0.05", "4.354"),
    ("erk", 0.99, 10, "0.58", "0.05", "4.354"),
    ("erk", 0.99, 40, "2.32", "0.05", "4.354"),
    ("erk", 0.99, 100, "5.8", "0.05", "4.354"),
]
# The cells that do not follow, with what we get and what the printed figure does follow from:
ER = {"name": "er"}
FIRST_DENSE = {"name": "erk", "first_dense": True}
ODD = {
    # 23.683516 MB here, and 23.683538 with the colab's fractional counts: printed as if cut off
    ("erk", 0.8, 1, "size"): ("23.684", None),
    ("erk", 0.8, 5, "size"): ("23.684", None),
    # the size of ER, which the colab prints on the line before uniform
    ("uniform", 0.8, 1, "size"): ("23.729", ER),
    ("uniform", 0.8, 5, "size"): ("23.729", ER),
    # the size with the first layer dense, as in the colab's cell; the FLOPs are those without
    ("erk", 0.965, 5, "size"): ("6.869", FIRST_DENSE),
    # the test FLOPs once more; the closed form is 0.2456 and the paper's Table 1 prints 0.25
    ("erk", 0.9, 1, "train"): ("0.25", None),
}


@pytest.fixture(scope="module")
def resnet50():
    """Shapes of ResNet-50 and its FLOPs at 224 x 224, each as the library counts them."""
    from torchvision.models import resnet50

    with torch.device("meta"):
        model = resnet50()
    flops = layer_flops(model, (3, 224, 224))
    return {name: model.get_parameter(name).shape for name in flops.dense}, flops


def test_resnet50_as_everybody_counts_it(resnet50):
    shapes, flops = resnet50
    assert len(shapes) == 54
    assert sum(map(math.prod, shapes.values())) == 25_502_912
    assert (flops.total, flops.other) == (2 * 4_089_184_256, 0)


@pytest.mark.parametrize(
    ("name", "ratios"),
    [("erk", (0.4138, 0.2418, 0.1217)), ("uniform", (0.2231, 0.1260, 0.0774))],
)
def test_resnet50_inference_ratios(resnet50, name, ratios):
    shapes, flops = resnet50
    for sparsity, ratio in zip((0.8, 0.9, 0.95), ratios, strict=True):
        counts = allocate(shapes, 1 - sparsity, name=name)
        shares = {layer: counts[layer] / math.prod(shape) for layer, shape in shapes.items()}
        assert flops.forward(shares) / flops.total == pytest.approx(ratio, abs=5e-5)


def test_resnet50_erk_at_both_ends(resnet50):
    shapes, _ = resnet50
    for sparsity, first, last in ((0.8, 0.857, 0.148), (0.9, 0.420, 0.073), (0.95, 0.210, 0.036)):
        found = densities(shapes, 1 - sparsity, name="erk")
        assert found["conv1.weight"] == pytest.approx(first, abs=5e-4)
        assert found["fc.weight"] == pytest.approx(last, abs=5e-4)


def readme_counts(shapes, name, sparsity):
    if name == "dense":
        return {layer: math.prod(shape) for layer, shape in shapes.items()}
    return allocate(shapes, 1 - sparsity, name=name, first_dense=sparsity == 0.99)


def readme_forward(resnet50, counts):
    """Forward FLOPs as MicroNet's counting has them."""
    shapes, flops = resnet50
    total = 0.0
    for layer, shape in shapes.items():
        outputs = flops.dense[layer] // (2 * math.prod(shape[1:]))
        outputs = outputs * 115**2 // 112**2 if layer == "conv1.weight" else outputs
        total += outputs * (2 * counts[layer] / shape[0] + 1)
    return total


def megabytes(shapes, counts):
    sizes = {layer: math.prod(shape) for layer, shape in shapes.items()}
    biases = sum(shape[0] for shape in shapes.values())
    return f"{model_size_bytes(sizes, counts, dense_values=biases) / 1e6:.3f}"


@pytest.mark.parametrize("row", README, ids=lambda row: "-".join(map(str, row[:3])))
def test_the_table_of_rigls_readme(resnet50, row):
    name, sparsity, multiplier, train, test, size = row
    shapes, _ = resnet50
    counts = readme_counts(shapes, name, sparsity)
    dense = readme_forward(resnet50, readme_counts(shapes, "dense", 0))
    ratio = readme_forward(resnet50, counts) / dense
    spent = multiplier * (rigl_closed_form(ratio, 1.0, 100) / 3 if name != "dense" else 1.0)
    digits = len(train.partition(".")[2])
    found = {
        "train": f"{spent:.{digits}f}",
        "test": f"{ratio:.2f}",
        "size": megabytes(shapes, counts),
    }
    printed = {"train": train, "test": test, "size": size}
    for cell, value in printed.items():
        ours, instead = ODD.get((name, sparsity, multiplier, cell), (value, None))
        assert found[cell] == ours, cell
        if instead:
            assert megabytes(shapes, allocate(shapes, 1 - sparsity, **instead)) == value


def test_absolute_flops_of_rigls_readme(resnet50):
    dense = readme_forward(resnet50, readme_counts(resnet50[0], "dense", 0))
    assert f"{dense:.1e}" == "8.2e+09"
    assert f"{3 * dense * 32_000 * 4096:.1e}" == "3.2e+18"


@pytest.mark.parametrize(
    ("sparsity", "snfs", "gmp"), [(0.8, "0.61", "0.56"), (0.9, "0.50", "0.51")]
)
def test_snfs_and_pruning_in_the_papers_table(resnet50, sparsity, snfs, gmp):
    """Table 1: SNFS with ERK; pruning between steps 10k and 25k of 32k, first layer dense."""
    shapes, _ = resnet50
    dense = readme_forward(resnet50, readme_counts(shapes, "dense", 0))
    erk = readme_forward(resnet50, readme_counts(shapes, "erk", sparsity)) / dense
    assert f"{snfs_closed_form(erk, 1.0) / 3:.2f}" == snfs
    # the colab's mean over every 1000th step; the classifier has its last sparsity all along
    total = 0.0
    for step in range(0, 32_001, 1000):
        progress = min(1.0, max(0.0, (step - 10_000) / 15_000))
        density = 1 - sparsity * (1 - (1 - progress) ** 3)
        counts = {layer: math.prod(shape) * density for layer, shape in shapes.items()}
        counts["conv1.weight"] = math.prod(shapes["conv1.weight"])
        counts["fc.weight"] = math.prod(shapes["fc.weight"]) * (1 - sparsity)
        total += readme_forward(resnet50, counts) / 33
    assert f"{total / dense:.2f}" == gmp
