"""Distributions against hand-computed numbers, an independent solver, and their properties."""

import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsebench.errors import UserError
from sparsebench.sparsity.distributions import DISTRIBUTIONS, allocate, apportion, densities

MLP = {"fc1": (300, 784), "fc2": (100, 300), "fc3": (10, 100)}
CNN = {"conv1": (16, 3, 3, 3), "conv2": (32, 16, 3, 3), "fc": (10, 32)}
MEETING = ["strict_uniform", "er", "erk", "erk_plus", "uniform_plus", "balanced", "supsup"]
PER_LAYER = ["strict_uniform", "er", "erk", "balanced"]  # no layer has a role


def size(shapes):
    return {name: math.prod(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("sparsity", "expected", "eps", "counts"),
    [
        (0.90, (0.079568, 0.230189, 1), 17.264151, (18714, 6906, 1000)),
        (0.95, (0.038484, 0.111334, 0.918507), 8.350063, (9051, 3340, 919)),
        (0.98, (0.015394, 0.044534, 0.367403), 3.340025, (3621, 1336, 367)),
        (0.99, (0.007697, 0.022267, 0.183701), 1.670013, (1810, 668, 184)),
    ],
)
def test_erk_of_an_mlp(sparsity, expected, eps, counts):
    found = densities(MLP, 1 - sparsity, name="erk")
    assert tuple(found.values()) == pytest.approx(expected, abs=5e-7)
    assert found["fc1"] * 300 * 784 / (300 + 784) == pytest.approx(eps, abs=5e-7)
    assert tuple(allocate(MLP, 1 - sparsity).values()) == counts
    assert found == densities(MLP, 1 - sparsity, name="er")  # the same for linear layers


@pytest.mark.parametrize(
    ("sparsity", "name", "expected"),
    [
        (0.8, "erk", (0.550867, 0.111551, 1)),
        (0.8, "er", (0.657881, 0.155814, 0.218140)),
        (0.9, "erk", (0.256351, 0.051911, 0.581405)),
        (0.9, "er", (0.328941, 0.077907, 0.109070)),
        (0.5, "erk", (1, 0.418403, 1)),
        (0.5, "er", (1, 0.444620, 0.622468)),
    ],
)
def test_er_and_erk_of_a_convnet(sparsity, name, expected):
    found = densities(CNN, 1 - sparsity, name=name)
    assert tuple(found.values()) == pytest.approx(expected, abs=5e-7)
    held = sum(found[layer] * n for layer, n in size(CNN).items())
    assert held == pytest.approx((1 - sparsity) * 5360)


def test_erk_power():
    assert densities(CNN, 0.3, power=0.0) == densities(CNN, 0.3, name="strict_uniform")
    soft = densities(CNN, 0.1, power=0.5)
    assert soft["fc"] / soft["conv2"] == pytest.approx(
        math.sqrt((42 / 320) / (54 / 4608)), rel=1e-12
    )


def test_balanced_fills_the_small_layers():
    layers = {"a": (1, 10), "b": (10, 10), "c": (100, 10)}
    assert allocate(layers, 0.5, name="balanced") == {"a": 10, "b": 100, "c": 445}
    official = densities(layers, 0.5, name="balanced", compat="turboprune")
    assert official == {"a": 1.0, "b": 1.0, "c": pytest.approx(0.315)}
    counts = allocate(layers, 0.5, name="balanced", compat="turboprune")
    assert sum(counts.values()) == 425  # not the 555 asked for: the code's one pass


def test_uniform_keeps_a_first_convolution_dense_on_top():
    assert densities(CNN, 0.1, name="uniform") == {"conv1": 1.0, "conv2": 0.1, "fc": 0.1}
    assert allocate(CNN, 0.1, name="uniform") == {"conv1": 432, "conv2": 461, "fc": 32}
    assert densities(MLP, 0.1, name="uniform") == dict.fromkeys(MLP, 0.1)  # nothing to keep
    assert sum(allocate(CNN, 0.1, name="strict_uniform").values()) == 536


def test_uniform_plus():
    found = densities(CNN, 0.25, name="uniform_plus")  # (1340 - 432 - 64) / 4608 < 0.2
    assert found == {"conv1": 1.0, "conv2": pytest.approx((1340 - 432 - 64) / 4608), "fc": 0.2}
    assert sum(allocate(CNN, 0.25, name="uniform_plus").values()) == 1340
    above = densities(CNN, 0.5, name="uniform_plus")  # the classifier is above 0.2 by itself
    rest = pytest.approx((2680 - 432) / (5360 - 432))
    assert above == {"conv1": 1.0, "conv2": rest, "fc": rest}


def test_uniform_plus_as_in_the_official_code():
    low = densities(CNN, 0.15, name="uniform_plus", compat="liu")
    assert low == {"conv1": 1.0, "conv2": pytest.approx((804 - 432 - 64) / 5360), "fc": 0.2}
    assert sum(allocate(CNN, 0.15, name="uniform_plus", compat="liu").values()) == round(
        432 + 64 + 4608 * (804 - 432 - 64) / 5360
    )
    high = densities(CNN, 0.5, name="uniform_plus", compat="liu")
    assert high == {"conv1": 1.0, "conv2": 0.5, "fc": 0.5}


def test_erk_plus_pays_for_the_classifier():
    found = densities(CNN, 0.2, name="erk_plus")
    rest = {"conv1": (16, 3, 3, 3), "conv2": (32, 16, 3, 3)}
    assert found == densities(rest, (0.2 * 5360 - 320) / 5040) | {"fc": 1.0}
    assert list(found) == list(CNN)
    assert sum(allocate(CNN, 0.2, name="erk_plus", fc_density=0.5).values()) == 1072


def test_given_densities_are_kept_or_scaled():
    origin = {"fc1": 500 / 235200, "fc2": 2000 / 30000, "fc3": 162 / 1000}
    counts = allocate(MLP, 2662 / 266200, name="given", given=origin)
    assert counts == {"fc1": 500, "fc2": 2000, "fc3": 162}
    twice = densities(MLP, 2 * 2662 / 266200, name="given", given=origin)
    assert twice == pytest.approx({name: 2 * value for name, value in origin.items()})
    emptied = allocate(MLP, 0.01, name="given", given=origin | {"fc3": 0.0})
    assert (emptied["fc3"], sum(emptied.values())) == (1, 2662)


def test_layers_set_by_the_user_are_outside_the_budget():
    found = densities(CNN, 0.1, name="erk", first_dense=True)
    others = densities({"conv2": CNN["conv2"], "fc": CNN["fc"]}, 0.1, name="erk")
    assert found == {"conv1": 1.0} | others
    fixed = {"fc": 0.5, "conv1*": 0.25, "*1": 0.75}  # the first pattern that matches counts
    some = allocate(CNN, 0.1, name="strict_uniform", fixed=fixed, last_dense=True)
    assert some == {"conv1": 108, "conv2": 461, "fc": 160}
    assert allocate(CNN, 0.1, name="strict_uniform", last_dense=True)["fc"] == 320
    plus = densities(CNN, 0.3, name="uniform_plus", fixed={"fc": 0.5, "conv1": 0.5})
    assert plus == {"conv1": 0.5, "conv2": 0.3, "fc": 0.5}


def test_a_function_of_ones_own():
    def halves(layers, density):
        return {name: density / 2**index for index, name in enumerate(layers.shapes)}

    assert allocate(MLP, 0.1, name=halves) == {"fc1": 23520, "fc2": 1500, "fc3": 25}


def test_lifting_to_one_weight_spares_dense_layers():
    assert apportion({"a": 0.3, "b": 0.3, "c": 99.4}, {"a": 9, "b": 9, "c": 200}, 100) == {
        "a": 1, "b": 1, "c": 98,
    }  # fmt: skip
    spared = apportion({"a": 10, "b": 0.3, "c": 9.4}, {"a": 10, "b": 9, "c": 20}, 19)
    assert spared == {"a": 10, "b": 1, "c": 8}
    forced = apportion({"a": 10, "b": 0.5, "c": 0.5}, {"a": 10, "b": 9, "c": 9}, 11)
    assert forced == {"a": 9, "b": 1, "c": 1}
    ties = apportion({"a": 1.5, "b": 1.5, "c": 1.5}, {"a": 9, "b": 9, "c": 9}, 5)
    assert ties == {"a": 2, "b": 2, "c": 1}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"density": 0.0}, ["sparsity=1.0"]),
        ({"density": 1.5}, ["sparsity=-0.5"]),
        ({"density": float("nan")}, ["sparsity=nan"]),
        ({"name": "erkk"}, ["distribution.name=erkk", "'erk'"]),
        ({"name": "er", "power": 2.0}, ["distribution.power=2.0", "'er'"]),
        ({"power": -1.0}, ["distribution.power=-1.0"]),
        ({"pwoer": 2.0}, ["distribution=pwoer", "'power'"]),
        ({"name": "erk_plus", "fc_density": 0.0}, ["distribution.fc_density=0.0"]),
        ({"name": "erk_plus", "fc_density": 0.1, "density": 0.99}, ["all other layers dense"]),
        ({"name": "erk_plus", "density": 0.05}, ["sparsity=0.95", "'fc'", "320"]),
        ({"name": "uniform_plus", "density": 0.05}, ["sparsity=0.95", "'conv1'", "496"]),
        ({"name": "uniform_plus", "compat": "lui"}, ["distribution.compat=lui", "liu"]),
        (
            {"name": "erk_plus", "fixed": {"conv*": 0.5}},
            ["sparsity=0.9", "no layer is left beside 'fc'"],
        ),
        ({"name": "erk_plus", "fixed": {"fc": 0.5}}, ["distribution.name=erk_plus", "linear"]),
        ({"fixed": {"fc": 1.5}}, ["distribution.fixed.fc=1.5"]),
        ({"fixed": {"conv9": 0.5}}, ["distribution.fixed=conv9", "conv"]),
        ({"fixed": {"*": 0.5}}, ["sparsity=", "all layers"]),
        ({"name": "given", "given": {"conv1": 0.5}}, ["distribution.given", "conv2"]),
        ({"density": 2 / 5360}, ["leaves 2 weights for 3 layers", "'conv", "0.99944"]),
    ],
)
def test_refusals_name_the_key_and_the_way_out(arguments, words):
    with pytest.raises(UserError) as refused:
        allocate(CNN, **({"density": 0.1} | arguments))
    assert [word for word in words if word not in str(refused.value)] == []


def test_refusals_of_layers_that_are_not_there():
    with pytest.raises(UserError, match="no layer is selected"):
        allocate({}, 0.1)
    convs = {"conv1": CNN["conv1"], "conv2": CNN["conv2"]}
    for arguments in ({"name": "erk_plus"}, {"last_dense": True}):
        with pytest.raises(UserError, match="no linear layer"):
            allocate(convs, 0.1, **arguments)
    with pytest.raises(UserError, match="'norm' has one"):
        allocate({"norm": (5,)}, 0.5, name="er")


@st.composite
def networks(draw):
    """A stem, some convolutions and linear layers, in this order."""
    dim = st.integers(1, 24)
    convs = draw(st.lists(st.tuples(dim, dim, st.sampled_from([1, 3]), st.just(3)), max_size=4))
    linear = draw(st.lists(st.tuples(dim, dim), min_size=1, max_size=4))
    return {f"layer{index}": shape for index, shape in enumerate(convs + linear)}


def solve(sizes, ratios, density):
    """``min(1, eps * ratio)`` with the right sum, by bisection: no capping loop."""
    low, high = 0.0, 2 / min(ratios.values())
    for _ in range(200):
        eps = (low + high) / 2
        held = sum(min(1, eps * ratios[name]) * n for name, n in sizes.items())
        low, high = (eps, high) if held < density * sum(sizes.values()) else (low, eps)
    return {name: min(1, high * ratios[name]) for name in sizes}


@given(networks(), st.floats(0.001, 0.999), st.sampled_from([0.5, 1.0, 2.0]))
def test_the_capping_loop_finds_the_one_solution(shapes, density, power):
    sizes = size(shapes)
    ratios = {
        "er": {name: (s[0] + s[1]) / (s[0] * s[1]) for name, s in shapes.items()},
        "balanced": {name: 1 / n for name, n in sizes.items()},
    }
    for name, ratio in ratios.items():
        assert densities(shapes, density, name=name) == pytest.approx(solve(sizes, ratio, density))
    kernel = {name: (sum(s) / math.prod(s)) ** power for name, s in shapes.items()}
    found = densities(shapes, density, name="erk", power=power)
    assert found == pytest.approx(solve(sizes, kernel, density))


@given(networks(), st.floats(0.001, 1.0), st.sampled_from(sorted(MEETING)))
@settings(max_examples=300)
def test_totals_are_exact_and_every_layer_within_bounds(shapes, density, name):
    sizes = size(shapes)
    try:
        shares = densities(shapes, density, name=name)
        counts = allocate(shapes, density, name=name)
    except UserError:
        impossible = round(density * sum(sizes.values())) < len(shapes)
        assert impossible or name in ("uniform_plus", "erk_plus")
        return
    assert sum(counts.values()) == round(density * sum(sizes.values()))
    assert list(counts) == list(shapes)
    assert all(1 <= counts[layer] <= n and 0 < shares[layer] <= 1 for layer, n in sizes.items())
    if all(shares[layer] * n >= 1 for layer, n in sizes.items()):
        assert all(abs(counts[layer] - shares[layer] * n) < 1 for layer, n in sizes.items())


@given(networks(), st.floats(0.001, 1), st.floats(0.001, 1), st.sampled_from(sorted(DISTRIBUTIONS)))
def test_more_density_takes_from_no_layer(shapes, one, two, name):
    options = {"given": dict.fromkeys(shapes, 0.5)} if name == "given" else {}
    low, high = sorted((one, two))
    try:
        below = densities(shapes, low, name=name, **options)
    except UserError:  # held by the distribution itself
        return
    above = densities(shapes, high, name=name, **options)
    assert all(below[layer] <= above[layer] * (1 + 1e-9) for layer in shapes)


@given(st.data(), networks(), st.floats(0.001, 1.0), st.sampled_from(PER_LAYER))
def test_the_order_of_layers_is_no_matter(data, shapes, density, name):
    shuffled = dict(data.draw(st.permutations(list(shapes.items()))))
    assert densities(shuffled, density, name=name) == densities(shapes, density, name=name)


@pytest.mark.parametrize("name", sorted(set(DISTRIBUTIONS) - {"given"}))
def test_density_one_is_dense(name):
    assert allocate(CNN, 1.0, name=name) == size(CNN)


CONFIGS = sorted((Path(__file__).parents[1] / "configs" / "distribution").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_are_distributions(path):
    text = path.read_text()
    assert text.startswith("# ")
    options = yaml.safe_load(text)
    assert options["name"] == path.stem
    total = sum(allocate(CNN, 0.25, **options).values())
    assert total == (1340 if path.stem in MEETING else 432 + 1232)


def test_every_distribution_but_given_has_a_config():
    assert {path.stem for path in CONFIGS} == set(DISTRIBUTIONS) - {"given"}
