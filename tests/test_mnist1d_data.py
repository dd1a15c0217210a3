"""MNIST-1D with shuffled positions: one bijection for training and test, and nothing else."""

import numpy as np
import torch

from sparsebench.data import load


def columns(images):
    """The values of each position over all samples, as something that can be compared."""
    return [column.tolist() for column in images.images.T]


def order_of(plain, shuffled):
    """Which position of the plain signals each of the shuffled ones is."""
    before = columns(plain)
    return [before.index(column) for column in columns(shuffled)]


def test_the_positions_change_places_alike_in_training_and_test():
    plain = load({"name": "mnist1d", "validation": 0})
    shuffled = load({"name": "mnist1d_shuffled", "validation": 0})
    order = order_of(plain.train, shuffled.train)
    assert sorted(order) == list(range(40))
    assert order != list(range(40))
    assert order_of(plain.test, shuffled.test) == order
    for split in ("train", "test"):
        assert torch.equal(getattr(plain, split).labels, getattr(shuffled, split).labels)
    np.random.seed(42)  # noqa: NPY002 - as the authors' notebook does
    assert order == np.random.permutation(40).tolist()  # noqa: NPY002
    assert shuffled.fingerprint != plain.fingerprint


def test_the_order_is_the_same_at_each_call_and_for_any_split():
    one = load({"name": "mnist1d_shuffled", "validation": 0.5, "split_seed": 1})
    two = load({"name": "mnist1d_shuffled", "validation": 0.5, "split_seed": 2})
    assert torch.equal(one.test.images, two.test.images)
    assert torch.equal(one.train.storage, two.train.storage)
