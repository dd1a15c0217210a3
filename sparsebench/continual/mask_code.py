"""What the masks of many tasks take to store: as bits, at the entropy, and under a Huffman code.

The bits that a weight has in the masks of 7 tasks are one symbol, and the symbols of all weights
are coded together (WSN, Kang et al., ICML 2022, appendix); fewer tasks at the end make smaller
symbols with a code of their own. A code is canonical, so that the lengths of its words, a byte for
each possible symbol, are all that is stored of it.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsebench.continual.metrics import capacity
from sparsebench.sparsity.vault import Vault

GROUP = 7

Array = NDArray[Any]


@dataclass(frozen=True)
class Coded:
    """Symbols under a Huffman code.

    Attributes:
        lengths: bits of each symbol's word, uint8 [2 ** tasks]; 0 for symbols that don't occur.
        words: the words one after the other, as bits in uint8.
        count: how many there are.
    """

    lengths: Array
    words: Array
    count: int


def symbols(masks: Sequence[Array]) -> list[Array]:
    """For each 7 masks one symbol a weight; the first mask is the lowest bit.

    Args:
        masks: of each task, bool [weights].

    Returns:
        uint8 [weights] for each group.
    """
    groups = []
    for first in range(0, len(masks), GROUP):
        group = np.zeros(len(masks[0]), dtype=np.uint8)
        for bit, mask in enumerate(masks[first : first + GROUP]):
            group |= mask.astype(np.uint8) << bit
        groups.append(group)
    return groups


def entropy_bits(counts: Array) -> float:
    """Bits that no code of single symbols can do without, from how often each occurs."""
    found = counts[counts > 0].astype(float)
    return float((found * np.log2(found.sum() / found)).sum())


def word_lengths(counts: Array) -> Array:
    """Bits of the words of a Huffman code; one bit if there is one symbol only.

    Args:
        counts: how often each symbol occurs.

    Returns:
        uint8, in the shape of ``counts``.
    """
    lengths = np.zeros(len(counts), dtype=np.uint8)
    heap = [(int(counts[s]), int(s), [int(s)]) for s in np.flatnonzero(counts)]
    if len(heap) == 1:
        lengths[heap[0][1]] = 1
    heapq.heapify(heap)
    while len(heap) > 1:
        (rare, first, some), (other, second, more) = heapq.heappop(heap), heapq.heappop(heap)
        both = some + more
        lengths[both] += 1
        heapq.heappush(heap, (rare + other, min(first, second), both))
    return lengths


def _words(lengths: Array) -> Array:
    """The canonical word of each symbol: by length, then by symbol."""
    words = np.zeros(len(lengths), dtype=np.uint64)
    word = last = 0
    for symbol in sorted(np.flatnonzero(lengths), key=lambda s: (lengths[s], s)):
        word <<= int(lengths[symbol]) - last
        words[symbol], last = word, int(lengths[symbol])
        word += 1
    return words


def encode(group: Array, tasks: int) -> Coded:
    """Symbols of a group of tasks as words."""
    lengths = word_lengths(np.bincount(group, minlength=1 << tasks))
    words, sizes = _words(lengths)[group], lengths[group].astype(np.int64)
    begin = np.cumsum(sizes) - sizes
    bits = np.zeros(int(sizes.sum()), dtype=np.uint8)
    for place in range(int(lengths.max(initial=0))):
        has = sizes > place
        shift = (sizes[has] - 1 - place).astype(np.uint64)
        bits[begin[has] + place] = (words[has] >> shift) & np.uint64(1)
    return Coded(lengths, np.packbits(bits), len(group))


def decode(coded: Coded) -> Array:
    """The symbols that :func:`encode` was given, uint8."""
    words = _words(coded.lengths)
    known = {(int(coded.lengths[s]), int(words[s])): int(s) for s in np.flatnonzero(coded.lengths)}
    bits = iter(np.unpackbits(coded.words).tolist())
    found = np.zeros(coded.count, dtype=np.uint8)
    for place in range(coded.count):
        length, word = 1, next(bits)
        while (length, word) not in known:
            length, word = length + 1, word << 1 | next(bits)
        found[place] = known[length, word]
    return found


def figures(vault: Vault) -> dict[str, float]:
    """What a run reports of the masks of its tasks.

    Args:
        vault: what tasks have left behind; of at least one.

    Returns:
        Bytes of all masks at the entropy and under the code with its table (beside them, packed
        bits take a bit a weight and task), and WSN's CAP with bits and with the code.
    """
    tasks, names = len(vault), list(vault.store)
    masks = [
        np.concatenate([vault.mask(task, n).cpu().numpy().reshape(-1) for n in names])
        for task in range(tasks)
    ]
    weights, least, coded = len(masks[0]), 0.0, 0
    for first, group in enumerate(symbols(masks)):
        counts = np.bincount(group, minlength=1 << min(GROUP, tasks - first * GROUP))
        least += entropy_bits(counts)
        bits = int((counts * word_lengths(counts).astype(np.int64)).sum())
        coded += len(counts) + -(-bits // 8)
    used = sum(int(own.sum()) for own in vault.owned.values()) / weights
    saved = 1.0 - 8.0 * coded / (tasks * weights)
    return {
        "continual/mask_bytes_entropy": least / 8.0,
        "continual/mask_bytes_huffman": coded,
        "continual/mask_saved_huffman": saved,
        "continual/cap": capacity(used, tasks),
        "continual/cap_huffman": capacity(used, tasks, saved),
    }
