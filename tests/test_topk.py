"""Exact top-k against a plain sort: ties, NaN, infinities, and tensors large enough to guess on."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsebench.sparsity import topk
from sparsebench.sparsity.topk import lowest_indices, positions, topk_indices, topk_mask

ODD = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, 1.0, -2.5)
SCORES = st.lists(st.sampled_from(ODD) | st.floats(width=32), min_size=1, max_size=40)


def best(scores: list[float], k: int, among: list[bool]) -> list[int]:
    """The k best by a plain sort: high score first, then low index; NaN is minus infinity."""
    key = [-math.inf if math.isnan(s) else s for s in scores]
    order = sorted((i for i, ok in enumerate(among) if ok), key=lambda i: (-key[i], i))
    return sorted(order[:k])


@given(SCORES, st.data())
def test_is_the_plain_sort(scores, data):
    among = data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
    k = data.draw(st.integers(0, sum(among)))
    found = topk_indices(torch.tensor(scores), k, torch.tensor(among))
    assert found.tolist() == best(scores, k, among)


@given(SCORES, st.data())
def test_lowest_are_those_the_top_leaves_out(scores, data):
    among = data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
    k = data.draw(st.integers(0, sum(among)))
    found = lowest_indices(torch.tensor(scores), k, torch.tensor(among)).tolist()
    kept = best(scores, sum(among) - k, among)
    assert sorted(found + kept) == [i for i, ok in enumerate(among) if ok]
    assert found == sorted(found)


@given(SCORES, st.data())
def test_mask_has_the_shape_of_the_scores(scores, data):
    k = data.draw(st.integers(0, len(scores)))
    mask = topk_mask(torch.tensor(scores).view(1, -1, 1), k)
    assert mask.shape == (1, len(scores), 1)
    assert mask.dtype == torch.bool
    assert mask.view(-1).nonzero().view(-1).tolist() == best(scores, k, [True] * len(scores))


def _large(kind: str, n: int) -> torch.Tensor:
    normal = torch.randn(n, generator=torch.Generator().manual_seed(n))
    if kind == "equal":
        return torch.full((n,), 0.5)
    if kind == "mostly zero":
        return torch.where(normal > 2.5, normal, 0.0)
    if kind == "few values":
        return normal.round()
    if "bad sample" in kind:  # what a strided sample sees says nothing about the rest
        seen = torch.zeros(n, dtype=torch.bool)
        seen[:: n // 8192 | 1] = True
        normal[seen] += 100.0
        if "NaN" in kind:
            normal[~seen & (torch.arange(n) % 10 < 6)] = math.nan
    if kind == "sorted":
        return normal.sort().values
    if kind == "odd":
        normal[::7], normal[::11], normal[::13] = math.nan, math.inf, -math.inf
    return normal


KINDS = (
    "normal", "equal", "mostly zero", "few values", "sorted", "odd", "bad sample",
    "bad sample, NaN elsewhere",
)  # fmt: skip


@pytest.mark.parametrize("n", [topk._LARGE - 1, topk._LARGE, 3 * topk._LARGE + 5])
@pytest.mark.parametrize("kind", KINDS)
def test_large_tensors(kind, n):
    scores = _large(kind, n)
    allowed = torch.rand(n, generator=torch.Generator().manual_seed(1)) < 0.3
    for among in (None, allowed, ~allowed):
        index = torch.arange(n) if among is None else among.nonzero().view(-1)
        ranked = index[scores[index].nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
                       .sort(descending=True, stable=True).indices]  # fmt: skip
        room = len(index)
        for k in (0, 1, room // 100, room // 2, room - 1, room):
            assert torch.equal(topk_indices(scores, k, among), ranked[:k].sort().values)
            low = ranked[room - k :].sort().values
            assert torch.equal(lowest_indices(scores, k, among), low)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.int64])
@pytest.mark.parametrize("n", [100, topk._LARGE + 1])
def test_types(dtype, n):
    scores = (_large("normal", n) * 10).to(dtype)
    ranked = scores.double().sort(descending=True, stable=True).indices
    for k in (1, n // 3, n - 1):
        assert torch.equal(topk_indices(scores, k), ranked[:k].sort().values)
        assert torch.equal(lowest_indices(scores, k), ranked[n - k :].sort().values)


def test_doubles_are_not_compared_as_floats():
    scores = torch.full((100,), 1.0, dtype=torch.float64)
    scores[70] += 1e-12
    assert topk_indices(scores, 1).tolist() == [70]


def test_input_is_left_alone_and_strides_do_not_matter():
    scores = torch.tensor([[1.0, math.nan], [3.0, 2.0]])
    assert topk_indices(scores.t(), 2).tolist() == [1, 3]  # flat: 1, 3, nan, 2
    assert scores[0, 1].isnan()


def test_scores_that_require_a_gradient():
    scores = torch.arange(topk._LARGE + 5.0).requires_grad_()
    assert topk_indices(scores, 2).tolist() == [topk._LARGE + 3, topk._LARGE + 4]
    assert lowest_indices(scores, 2).tolist() == [0, 1]


@settings(max_examples=30)
@given(st.lists(st.booleans(), max_size=50))
def test_positions(mask):
    found = positions(torch.tensor(mask, dtype=torch.bool))
    assert found.dtype == torch.int64
    assert found.tolist() == [i for i, on in enumerate(mask) if on]


@pytest.mark.parametrize("k", [-1, 4])
def test_more_than_there_are_is_a_bug_of_the_caller(k):
    with pytest.raises(ValueError, match=f"k={k} of 3 scores"):
        topk_indices(torch.ones(3), k)
    with pytest.raises(ValueError, match=f"k={k} of 3 scores"):
        lowest_indices(torch.ones(5), k, torch.tensor([True, True, True, False, False]))
