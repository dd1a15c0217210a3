"""task=profile: RigL's figures of ResNet-50, counts, and the cost that training then has."""

import json
import math
from pathlib import Path

import pytest

from sparsebench import cli, data
from sparsebench.config.compose import compose
from sparsebench.errors import UserError
from sparsebench.run import run
from sparsebench.sparsity.distributions import allocate

# distribution, sparsity, forward FLOPs of a sample relative to dense, as they are; then the two
# figures of RigL's README: multiples of 100 epochs, training FLOPs, test FLOPs. Its 0.9 ERK row
# prints the test FLOPs twice; the closed form gives 0.25, as the paper's Table 1 has it.
RIGL = [
    ("erk", 0.8, 0.4138, 1, "0.42", "0.42"),
    ("uniform", 0.8, 0.2231, 1, "0.23", "0.23"),
    ("erk", 0.9, 0.2418, 1, "0.25", "0.24"),
    ("uniform", 0.9, 0.1260, 1, "0.13", "0.13"),
    ("erk", 0.8, 0.4138, 5, "2.09", "0.42"),
    ("uniform", 0.8, 0.2231, 5, "1.14", "0.23"),
    ("erk", 0.9, 0.2418, 5, "1.23", "0.24"),
    ("uniform", 0.9, 0.1260, 5, "0.66", "0.13"),
    ("erk", 0.95, 0.1217, 5, "0.63", "0.12"),
    ("uniform", 0.95, 0.0774, 5, "0.42", "0.08"),
]
WEIGHTS, FIRST = 25_502_912, 64 * 3 * 7 * 7
STEPS = round(1_281_167 * 0.9) // 4096 * 100


@pytest.fixture
def profile(tmp_path, monkeypatch, capsys):
    """The command line in an empty folder, with nothing to load: result, and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPARSEBENCH_DATA", raising=False)
    monkeypatch.setattr(data, "load", lambda *a, **k: pytest.fail("a profile reads no data"))

    def profiled(*overrides):
        with pytest.raises(SystemExit) as ended:
            cli.main(["task=profile", *overrides])
        printed = capsys.readouterr()
        assert ended.value.code == 0, printed.err
        lines = printed.out.splitlines()
        result = json.loads(Path(lines[-1]).read_text())  # the last line is the path
        assert result["status"] == "finished"
        return result, lines

    return profiled


def micronet(layers, counts):
    """Forward FLOPs as RigL's colab counts them: bias and ReLU are an operation for each output,
    and the first convolution is padded twice (115 x 115 outputs, not 112 x 112)."""
    total = 0.0
    for name, layer in layers.items():
        shape = layer["shape"]
        outputs = layer["flops_dense"] // (2 * math.prod(shape[1:]))
        outputs = outputs * 115**2 // 112**2 if name == "conv1.weight" else outputs
        total += outputs * (2 * counts[name] / shape[0] + 1)
    return total


@pytest.mark.parametrize(("distribution", "sparsity"), sorted({row[:2] for row in RIGL}))
def test_rigls_figures_of_resnet50(profile, distribution, sparsity):
    result, _ = profile(
        "model=resnet50", "data=imagenet", "method=rigl", f"distribution={distribution}",
        f"sparsity={sparsity}", "epochs=100", "batch_size=4096", "quiet=true",
    )  # fmt: skip
    metrics, layers = result["metrics"], result["layers"]
    kept = {name: layer["nonzeros"] for name, layer in layers.items()}
    sizes = {name: layer["weights"] for name, layer in layers.items()}
    # exact counts: uniform leaves the first convolution dense, and the others do not pay for it
    total = round(WEIGHTS * (1 - sparsity))
    if distribution == "uniform":
        total = FIRST + round((WEIGHTS - FIRST) * (1 - sparsity))
        assert kept["conv1.weight"] == FIRST
    assert sum(sizes.values()) == metrics["weights"] == WEIGHTS
    assert sum(kept.values()) == metrics["nonzeros"] == total
    assert metrics["sparsity"] == pytest.approx(1 - total / WEIGHTS, rel=1e-12)
    assert metrics["sparsity_all"] == pytest.approx((WEIGHTS - total) / 25_557_032, rel=1e-12)
    # FLOPs, as they are
    assert metrics["flops/inference_dense"] == 2 * 4_089_184_256
    forward = sum(layers[n]["flops_dense"] * kept[n] / sizes[n] for n in layers)
    assert metrics["flops/inference"] == pytest.approx(forward, rel=1e-12)
    ratio = metrics["flops/inference_relative"]
    updates = round(0.75 * STEPS) // 100  # dense gradient of the weights, every 100 steps
    spent = ratio + (1 - ratio) / 3 * updates / STEPS
    assert metrics["steps"] == STEPS
    assert metrics["flops/dense_gradient_steps"] == updates
    assert metrics["flops/training_relative"] == pytest.approx(spent, rel=1e-12)
    closed = (300 * ratio + 2 * ratio + 1) / 101 / 3
    assert metrics["flops/training_relative_paper"] == pytest.approx(closed, rel=1e-12)
    # FLOPs as RigL counts them, to the printed digit
    theirs = micronet(layers, kept) / micronet(layers, sizes)
    for row in RIGL:
        if row[:2] == (distribution, sparsity):
            _, _, plain, multiple, train, test = row
            assert f"{ratio:.4f}" == f"{plain:.4f}"
            assert f"{theirs:.2f}" == test
            assert f"{multiple * (302 * theirs + 1) / 101 / 3:.2f}" == train


def test_the_screen_has_each_layer_in_order_and_the_sums(profile):
    result, lines = profile("model=lenet5", "data=mnist", "sparsity=0.9", "distribution=er")
    shapes = {
        "conv1.weight": (20, 1, 5, 5), "conv2.weight": (50, 20, 5, 5),
        "fc1.weight": (500, 800), "fc2.weight": (10, 500),
    }  # fmt: skip
    counts = allocate(shapes, 0.1, name="er")
    table = [line.split() for line in lines[1:5]]
    assert [row[0] for row in table] == list(shapes)
    for (name, shape), row in zip(shapes.items(), table, strict=True):
        assert row[1] == "x".join(map(str, shape))
        assert row[2] == f"{math.prod(shape):,}"
        assert row[3] == f"{counts[name]:,}"
        assert float(row[4]) == pytest.approx(1 - counts[name] / math.prod(shape), abs=5e-5)
        assert float(row[5]) == pytest.approx(result["layers"][name]["flops"], rel=1e-3)
    assert f"nonzeros={sum(counts.values())} " in lines[5]
    assert "sparsity=0.9 " in lines[5]


@pytest.mark.parametrize(
    "method", ["dense", "small_dense", "static", "set", "rigl", "gmp", "one_shot", "rigl_itop"]
)
@pytest.mark.parametrize("size", [["data.validation=0"], ["data.subset=0.5", "data.validation=99"]])
def test_the_profile_is_what_training_then_costs(tmp_path, method, size):
    common = [
        "data=digits", "model=tiny_conv", "epochs=2", "batch_size=64", "sparsity=0.8",
        f"method={method}", "method.every=3it", "plots=false", "trainer.accelerator=cpu",
        f"runs={tmp_path}", *size,
    ]  # fmt: skip
    trained = run(compose(common))["metrics"]
    told = run(compose(["task=profile", *common]))["metrics"]
    for name in told.keys() & trained.keys():
        assert told[name] == pytest.approx(trained[name], rel=1e-9), name
    assert {n for n in set(told) - set(trained) if "paper" not in n and "size/" not in n} == set()


def test_where_layers_compete_the_profile_says_so(profile):
    result, _ = profile("method=snfs", "model=tiny_mlp", "data=digits")
    assert "layers compete" in result["notes"][0]
    result, _ = profile("method=rigl", "model=tiny_mlp", "data=digits")
    assert result["notes"] == []


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data=hf", "data.path=some/set"], r"data\.num_classes=None.*task=profile needs it"),
        (["data=digits", "batch_size=1400"], r"batch_size=1400.*1293 images"),
        (["data=digits", "sparsity=0.9999"], r"sparsity=0\.9999.*at most"),
        (["data=digits", "method.every=90ep"], r"method\.every=90ep.*no update"),
        (["data=digits", "distribution=er", "distribution.power=2"], r"distribution\.power=2"),
    ],
)
def test_a_profile_that_cannot_be_is_refused(tmp_path, overrides, said):
    with pytest.raises(UserError, match=said):
        run(compose(["task=profile", "model=tiny_mlp", f"runs={tmp_path}", *overrides]))
    assert not list(tmp_path.iterdir())


def test_a_small_dense_network_is_narrower_than_the_one_asked_for(tmp_path):
    """The full width may stand in either key, and its share of the weights is what counts."""
    words = ["model=resnet20", "data=cifar10", "method=small_dense", "sparsity=0.8"]
    found = []
    for width in ("model.width=0.5", "+model.args.width=0.5"):
        cfg = compose([*words, width, "task=profile", f"runs={tmp_path}", "quiet=true"])
        found.append(run(cfg)["metrics"])
    assert found[0]["parameters"] == found[1]["parameters"]
    assert found[0]["flops/inference_dense"] == found[1]["flops/inference_dense"] == 20497024
    assert found[0]["weights"] == pytest.approx(0.2 * 67352, rel=0.03)
