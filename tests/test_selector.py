"""Which parameters are sparse, and what is said of those that can't be."""

import pytest
import torch
from torch import nn

from sparsebench.errors import UserError
from sparsebench.sparsity import SelectorSpec, select


class Mixed(nn.Module):
    """One of each kind of layer, in the order of a network."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.stem = nn.Conv1d(2, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LayerNorm(4), nn.Linear(4, 5))
        self.cube = nn.Conv3d(1, 2, 3)
        self.head = nn.Linear(5, 7)
        self.scale = nn.Parameter(torch.ones(5, 5))


ALL = ["stem.weight", "block.0.weight", "block.2.weight", "cube.weight", "head.weight"]


@pytest.mark.parametrize(
    "dials, expected",
    [
        ({}, ALL),
        ({"first": False}, ALL[1:]),
        ({"last": False}, ALL[:-1]),
        ({"first": False, "last": False}, ALL[1:-1]),
        ({"kinds": ["linear"]}, ["block.2.weight", "head.weight"]),
        ({"kinds": ["conv"], "last": False}, ["stem.weight", "block.0.weight"]),
        ({"kinds": ["embedding", "linear"]}, ["embed.weight", "block.2.weight", "head.weight"]),
        ({"include": ["block.*"]}, ["block.0.weight", "block.2.weight"]),
        ({"exclude": ["block.0.*", "head*"]}, ["stem.weight", "block.2.weight", "cube.weight"]),
        ({"include": ["*.weight"], "exclude": ["*.?.*", "head.*"]}, ["stem.weight", "cube.weight"]),
    ],
)  # fmt: skip
def test_names_in_the_order_of_the_network(dials, expected):
    model = Mixed()
    chosen = select(model, SelectorSpec(**dials))
    assert list(chosen) == expected
    parameters = dict(model.named_parameters())
    assert all(parameters[name] is parameter for name, parameter in chosen.items())
    assert set(chosen) <= set(model.state_dict())


def test_no_spec_is_every_weight_and_no_bias_or_norm():
    assert list(select(Mixed())) == ALL
    assert list(select(nn.Linear(3, 2))) == ["weight"]


def test_tied_weights_are_one():
    model = Mixed()
    model.extra = nn.Linear(4, 5)
    model.extra.weight = model.block[2].weight
    assert list(select(model)) == ALL
    model.head.weight = nn.Parameter(torch.ones(7, 4))
    model.embed.weight = model.head.weight
    both = SelectorSpec(kinds=["embedding", "linear"])
    assert list(select(model, both)) == ["embed.weight", "block.2.weight"]


def test_weights_made_of_others_are_left_to_their_owner():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    nn.utils.parametrizations.weight_norm(model[0])
    assert list(select(model)) == ["1.weight"]


def test_nothing_matches_names_what_is_there():
    with pytest.raises(UserError) as error:
        select(Mixed(), SelectorSpec(include=["blok.2.weight"]))
    said = str(error.value)
    assert said.startswith("selector: include=['blok.2.weight'] exclude=[] kinds=['linear', 'co")
    named = said.partition("it has ")[2].split(", ")
    assert len(named) == 5
    assert named[0] == "block.2.weight"
    assert sorted(named) == sorted(ALL)


def test_nothing_is_left():
    with pytest.raises(UserError, match="matches no weight of the model; it has weight, bias"):
        select(nn.LayerNorm(3))
    with pytest.raises(UserError, match="matches no weight"):
        select(nn.Linear(3, 2), SelectorSpec(first=False))
    with pytest.raises(UserError, match="matches no weight"):
        select(Mixed(), SelectorSpec(exclude=["*"]))


def test_unknown_kind():
    with pytest.raises(UserError, match="selector.kinds=lineer: .* did you mean 'linear'"):
        select(Mixed(), SelectorSpec(kinds=["lineer"]))


def _with(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), layer)


@pytest.mark.parametrize(
    "layer, said",
    [
        (nn.LazyLinear(3), "weight '1.weight' has no shape yet"),
        (nn.Linear(2, 2, dtype=torch.complex64), "weight '1.weight' is complex"),
        (nn.Linear(2, 2).requires_grad_(False), "weight '1.weight' is frozen"),
    ],
)
def test_weights_that_cannot_be_sparse_are_named(layer, said):
    with pytest.raises(UserError) as error:
        select(_with(layer))
    assert str(error.value).startswith(f"selector: {said}")
    assert str(error.value).endswith("leave it out by selector.exclude")
    assert list(select(_with(layer), SelectorSpec(exclude=["1.*"]))) == ["0.weight"]


def test_whole_numbers_cannot_be_masked():
    layer = nn.Linear(2, 2)
    layer.weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    with pytest.raises(UserError, match="'1.weight' is of type torch.int8, which cannot be masked"):
        select(_with(layer))
