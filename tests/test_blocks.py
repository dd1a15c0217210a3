"""Blocks, channels and constant fan-in: exact counts, whole groups, scores by hand, refusals."""

import math

import pytest
import torch
from torch import nn

from sparsebench.errors import UserError
from sparsebench.library import method
from sparsebench.models.tiny import tiny_conv, tiny_mlp
from sparsebench.sparsity import Session
from sparsebench.sparsity.blocks import Block, Channel, FanIn, best_of_rows
from sparsebench.sparsity.distributions import allocate
from sparsebench.sparsity.scores import Layer, magnitude
from sparsebench.sparsity.spec import StructureSpec

SHORT = {"every": "2it"}
NETWORKS = {"mlp": tiny_mlp, "conv": tiny_conv}


def trained(name, structure, network="mlp", sparsity=0.8, steps=12, seed=0, **dials):
    """A session after some steps of training on noise, and the masks after each."""
    torch.manual_seed(0)
    model = NETWORKS[network]((1, 8, 8), 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    engine = method(name, sparsity=sparsity, structure=structure, **{**SHORT, **dials})
    session = Session(engine, model, optimizer, total_steps=12, steps_per_epoch=4, seed=seed)
    masks = [dict(session.masks.items())]
    for t in range(steps):
        generator = torch.Generator().manual_seed(t)
        x, y = torch.randn(6, 1, 8, 8, generator=generator), torch.arange(6)
        session.before_forward()
        nn.functional.cross_entropy(model(x), y).backward()
        session.after_backward()
        optimizer.step()
        optimizer.zero_grad()
        session.after_step()
        masks.append(dict(session.masks.items()))
    return session, masks


def blocks_of(mask, rows, columns):
    """Each block's weights, by cutting the padded matrix."""
    matrix = mask.flatten(1)
    cut = [b.split(columns, dim=1) for b in matrix.split(rows, dim=0)]
    return [block for line in cut for block in line]


def block_spec(*size, misfit="refuse"):
    return StructureSpec(name="block", block=list(size), misfit=misfit)


def layer(values, rows=1):
    weight = torch.tensor(values, dtype=torch.float32)
    shape = (rows, weight.numel() // rows)
    return Layer(weight, torch.Generator(), name="a", shape=shape, factor=torch.ones(shape))


# --- blocks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", ["static", "set", "rigl", "gmp", "one_shot", "gmp_global", "dpf"])
def test_blocks_are_whole_at_every_step(name, network):
    _, history = trained(name, "block", network)
    for masks in history:
        for mask in masks.values():
            assert all(block.all() or not block.any() for block in blocks_of(mask, 4, 4))


@pytest.mark.parametrize("name", ["static", "set", "rigl", "one_shot"])
def test_counts_of_blocks_are_those_of_the_distribution_rounded(name):
    session, history = trained(name, "block")
    shapes = {n: p.shape for n, p in session.masks.parameters.items()}
    names = {"one_shot": "strict_uniform"}
    weights = allocate(shapes, 0.2, name=names.get(name, "erk"))
    for n, mask in history[-1].items():
        cut = blocks_of(mask, 4, 4)
        expected = max(1, round(weights[n] * len(cut) / mask.numel()))
        assert sum(bool(block.any()) for block in cut) == expected


@pytest.mark.parametrize("name", ["static", "set", "rigl", "gmp", "gmp_global", "set_itop", "snfs"])
def test_blocks_of_one_weight_are_bitwise_unstructured(name):
    a, _ = trained(name, "unstructured", "conv")
    b, _ = trained(name, block_spec(1, 1), "conv")
    assert a.masks.digest() == b.masks.digest()
    for x, y in zip(a.state.model.parameters(), b.state.model.parameters(), strict=True):
        assert torch.equal(x, y)


def test_the_score_of_a_block_is_the_mean_of_its_weights():
    structure = Block(block_spec(2, 2))
    weights = layer([1, -3, 0, 0, 2, 2, 5, -1], rows=2)  # blocks (1, -3, 2, 2) and (0, 0, 5, -1)
    assert structure.score(magnitude, weights).tolist() == [2.0, 1.5]
    every = torch.ones(2, dtype=torch.bool)
    assert structure.best(magnitude, weights, every, 1).tolist() == [0]
    assert structure.worst(magnitude, weights, every, 1).tolist() == [1]
    assert structure.elements(torch.tensor([1]), (2, 4)).tolist() == [2, 3, 6, 7]


def test_a_convolution_is_the_matrix_of_outputs_and_flattened_inputs():
    structure = Block(block_spec(1, 9))  # just one kernel of 3 x 3
    assert structure.number((2, 3, 3, 3)) == 6
    assert structure.elements(torch.tensor([4]), (2, 3, 3, 3)).tolist() == list(range(36, 45))


def test_rigl_by_blocks_by_hand():
    net = nn.Sequential(nn.Linear(4, 2, bias=False))
    net[0].weight.data = torch.tensor([[3.0, 3, 1, 0.5], [0, 0, 0, 0]])
    dials = {
        "begin": "0%", "end": "100%", "every": "1it", "drop_schedule": "constant",
        "drop_fraction": 0.5, "initial": "magnitude", "distribution": "strict_uniform",
    }  # fmt: skip
    engine = method("rigl", sparsity=0.5, structure=block_spec(1, 2), **dials)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    session = Session(engine, net, optimizer, total_steps=4, seed=0)
    assert session.masks["0.weight"].tolist() == [[True] * 4, [False] * 4]
    # of blocks with |g| means 9, 0.5, 2 and 2.5 the last is best among those not kept
    net[0].weight.grad = torch.tensor([[9.0, 9, 1, 0], [4, 0, -2, 3]])
    session.after_backward()
    optimizer.step()
    session.after_step()
    assert session.masks["0.weight"].tolist() == [
        [True, True, False, False],
        [False, False, True, True],
    ]


def test_blocks_at_the_edge_are_smaller_where_padded():
    structure = Block(block_spec(2, 2, misfit="pad"))
    structure.check({"a": (3, 3)}, 0.5)
    assert structure.number((3, 3)) == 4
    assert structure.elements(torch.tensor([1, 3]), (3, 3)).tolist() == [2, 5, 8]


def test_a_layer_that_is_skipped_stays_dense():
    session, history = trained("set", block_spec(4, 4, misfit="skip"))
    for masks in history:
        assert masks["fc3.weight"].all()  # 10 outputs
        assert not masks["fc2.weight"].all()
    assert session.masks.densities["fc3.weight"] == 1.0


@pytest.mark.parametrize("name", ["set", "gmp_global"])
def test_random_blocks_are_drawn_by_the_seed(name):
    digests = {trained(name, "block", seed=seed)[0].masks.digest() for seed in (0, 1, 1)}
    assert len(digests) == (2 if name == "set" else 1)


@pytest.mark.parametrize(
    "size, misfit, words",
    [
        ((64, 4), "pad", ["structure.block=[64,4]", "larger", "fc1.weight", "32 outputs x 64"]),
        ((4, 4), "refuse", ["structure.block=[4,4]", "fc3.weight", "10 outputs", "misfit=pad"]),
        ((4,), "pad", ["structure.block", "two whole numbers"]),
        ((0, 4), "pad", ["structure.block", "two whole numbers"]),
    ],
)
def test_blocks_that_do_not_fit_are_refused_in_a_line(size, misfit, words):
    with pytest.raises(UserError) as error:
        trained("gmp", block_spec(*size, misfit=misfit), steps=0)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


# --- channels ------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", ["static", "set", "gmp", "one_shot", "gmp_global"])
def test_channels_are_whole_and_classes_stay(name, network):
    _, history = trained(name, "channel", network)
    for masks in history:
        *hidden, last = masks.values()
        assert last.all()
        for mask in hidden:
            rows = mask.flatten(1)
            assert torch.equal(rows.any(1), rows.all(1))
            assert rows.any()


def test_dead_channels_have_neither_bias_nor_normalisation_and_returning_ones_scale_1():
    session, _ = trained("set", "channel", "conv", steps=3)
    model, before = session.state.model, session.masks["conv2.weight"].flatten(1).any(1)
    assert not model.bn2.weight[~before].any()
    assert not model.bn2.bias[~before].any()
    _, history = trained("set", "channel", "conv", drop_fraction=0.9)
    alive = [masks["conv2.weight"].flatten(1).any(1) for masks in history]
    at = next(t for t in range(1, 9) if (alive[t] & ~alive[t - 1]).any())
    session, _ = trained("set", "channel", "conv", steps=at, drop_fraction=0.9)
    returned = alive[at] & ~alive[at - 1]
    assert (session.state.model.bn2.weight[returned] == 1.0).all()


def test_where_layers_compete_the_share_is_that_of_the_rows_but_the_classes():
    session, _ = trained("gmp_global", "channel", "conv", sparsity=0.75)
    alive = {n: int(m.flatten(1).any(1).sum()) for n, m in session.masks.items()}
    assert alive["fc.weight"] == 10
    assert alive["conv1.weight"] + alive["conv2.weight"] == 6  # of 8 + 16


def test_a_channel_grows_at_random_only():
    with pytest.raises(UserError, match=r"method.grow=gradient: an absent channel is zero"):
        method("rigl", structure="channel")


def test_each_layer_keeps_its_best_channel_where_layers_compete():
    structure = Channel()
    structure.check({"a": (2, 2), "b": (2, 2)}, 0.5)
    scores = structure.score(magnitude, layer([1, 2, 3, 4], rows=2))
    assert scores.tolist() == [1.5, math.inf]
    with pytest.raises(UserError, match="only sparse layer"):
        structure.check({"a": (2, 2)}, 0.5)


# --- constant fan-in -----------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", ["static", "set", "rigl", "gmp", "one_shot", "set_itop", "dpf"])
def test_every_row_has_the_same_number_at_every_step(name, network):
    dials = {"scope": "layer"} if name == "dpf" else {}
    session, history = trained(name, "fan_in", network, **dials)
    for masks in history:
        for mask in masks.values():
            assert len(set(mask.flatten(1).sum(1).tolist())) == 1
    moved = any(not torch.equal(history[0][n], history[-1][n]) for n in history[0])
    assert moved == (name != "static")
    for n, weights in session.method._weights(session.state, 0.8).items():
        rows = session.masks[n].shape[0]
        assert int(session.masks[n].sum()) == rows * max(1, weights // rows)


def test_the_best_of_rows_by_hand():
    score = torch.tensor([1.0, 3, 3, math.nan, 5, 2, 9, 0])
    among = torch.tensor([1, 1, 1, 1, 1, 1, 0, 1], dtype=torch.bool)
    assert best_of_rows(score, among, torch.tensor([2, 1])).tolist() == [1, 2, 4]
    assert best_of_rows(score, among, torch.tensor([1, 3])).tolist() == [1, 4, 5, 7]
    assert best_of_rows(score, among, torch.tensor([4, 0])).tolist() == [0, 1, 2, 3]


def test_growth_fills_each_row_up_by_its_own_scores():
    structure, weights = FanIn(), layer([5, 1, 2, 9, 8, 7], rows=2)
    kept = torch.tensor([1, 1, 0, 0, 0, 0], dtype=torch.bool)
    assert structure.grow(magnitude, weights, ~kept, kept, 2).tolist() == [3, 4]


@pytest.mark.parametrize(
    "name, dials, key",
    [
        ("gmp_global", {}, "method.scope=global"),
        ("rigl", {"drop_scope": "global"}, "method.drop_scope=global"),
        ("rigl", {"grow_scope": "global"}, "method.grow_scope=global"),
        ("snfs", {}, "method.redistribute=momentum"),
        ("rigl", {"regrow": "never"}, "method.regrow=never"),
        ("magnitude_init", {"initial_scope": "global"}, "method.initial_scope=global"),
    ],
)
def test_what_would_break_the_rows_is_refused_with_the_reason(name, dials, key):
    with pytest.raises(UserError, match="constant fan-in") as error:
        method(name, structure="fan_in", **dials)
    assert key in str(error.value)
