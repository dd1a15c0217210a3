"""Masks of many tasks as symbols under a Huffman code."""

import numpy as np
import pytest
import torch
from torch import nn

from sparsebench.continual.mask_code import (
    decode,
    encode,
    entropy_bits,
    figures,
    symbols,
    word_lengths,
)
from sparsebench.continual.metrics import capacity
from sparsebench.sparsity.masks import Masks
from sparsebench.sparsity.vault import Vault


def drawn(tasks, weights, density, seed=0):
    chance = np.random.default_rng(seed)
    return [chance.random(weights) < density for _ in range(tasks)]


def test_seven_bits_of_a_weight_are_a_symbol():
    masks = [np.array(bits, dtype=bool) for bits in ([1, 0], [0, 1], [1, 1], [0, 0])]
    (group,) = symbols(masks)
    assert group.tolist() == [0b0101, 0b0110]
    groups = symbols(drawn(16, 50, 0.3))
    assert [int(g.max()) < 1 << bits for g, bits in zip(groups, (7, 7, 2), strict=True)] == [
        True
    ] * 3


def test_words_are_as_long_as_huffman_says():
    """Frequencies of the textbook: 5, 9, 12, 13, 16, 45."""
    counts = np.array([45, 13, 12, 16, 9, 5, 0, 0])
    assert word_lengths(counts).tolist() == [1, 3, 3, 3, 4, 4, 0, 0]
    assert word_lengths(np.array([0, 7])).tolist() == [0, 1]
    assert word_lengths(np.array([3, 3, 3, 3])).tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize("density", [0.03, 0.3, 0.5])
@pytest.mark.parametrize("tasks", [1, 3, 7])
def test_what_is_coded_comes_back(tasks, density):
    (group,) = symbols(drawn(tasks, 700, density))
    coded = encode(group, tasks)
    assert np.array_equal(decode(coded), group)
    counts = np.bincount(group, minlength=1 << tasks)
    bits = int((counts * word_lengths(counts)).sum())
    assert len(coded.words) == -(-bits // 8)
    assert entropy_bits(counts) <= bits <= entropy_bits(counts) + 700


def test_one_symbol_and_very_uneven_ones_come_back():
    for group in (
        np.zeros(9, dtype=np.uint8),
        np.repeat(np.arange(12, dtype=np.uint8), 2 ** np.arange(12)),
    ):
        assert np.array_equal(decode(encode(group, 7)), group)


def test_entropy_of_known_shares():
    assert entropy_bits(np.array([4, 2, 1, 1, 0])) == pytest.approx(8 * 1.75)
    assert entropy_bits(np.array([9, 0])) == 0.0


def test_capacity_of_ten_masks_that_lose_78_percent():
    assert capacity(0.0, 10, 0.78) == pytest.approx(6.875)


def test_figures_are_those_of_the_masks():
    model = nn.Linear(40, 10, bias=False)
    masks = Masks({"weight": model.weight})
    vault, union = Vault(model, masks), np.zeros(400, dtype=bool)
    every = drawn(9, 400, 0.2)
    for mask in every:
        masks.set("weight", torch.from_numpy(mask).view(10, 40))
        vault.add(model, masks)
        union |= mask
    found = figures(vault)
    coded = [encode(g, tasks) for g, tasks in zip(symbols(every), (7, 2), strict=True)]
    size = sum(len(c.words) + len(c.lengths) for c in coded)
    assert found["continual/mask_bytes_huffman"] == size
    assert found["continual/mask_bytes_entropy"] <= size
    assert found["continual/cap"] == pytest.approx(100 * (union.mean() + 9 / 32))
    assert found["continual/cap_huffman"] == pytest.approx(
        100 * (union.mean() + size * 8 / 400 / 32)
    )
    assert found["continual/mask_saved_huffman"] == pytest.approx(1 - 8 * size / 3600)
