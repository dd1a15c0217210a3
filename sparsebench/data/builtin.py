"""The data sets by name: one function each, the ``_target_`` of its YAML."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from sparsebench.data.augment import Recipe
from sparsebench.data.cache import Decoded, cached, digest, key_of
from sparsebench.data.named import named_source
from sparsebench.data.options import Options
from sparsebench.data.source import Source, in_memory
from sparsebench.data.stratify import others, stratified

Config = Mapping[str, Any]

_TEN = tuple(str(name) for name in range(10))


def digits(config: Config) -> Source:
    """The 1,797 handwritten 8x8 digits inside scikit-learn; 1,437 to train, 360 to test.

    The split is stratified and always the same.
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy(found.images).to(torch.uint8).unsqueeze(1)  # 0 to 16
    labels = torch.from_numpy(found.target).to(torch.int64)
    train = stratified(labels, 1437, "digits")
    test = others(train, len(labels))
    tensors = _tensors(images[train], labels[train], images[test], labels[test])
    return in_memory(tensors, Recipe(scale=16.0), Options.of(config), digest(tensors), _TEN)


def mnist1d(config: Config) -> Source:
    """MNIST-1D, 4,000 and 1,000 signals of 40 values, generated from its fixed seed.

    Source: Greydanus and Kobak 2024, "Scaling down deep learning with MNIST-1D",
    arXiv 2011.14439; package ``mnist1d`` at its default settings.
    """
    options = Options.of(config)
    tensors, sha256 = _mnist1d(options)
    return in_memory(tensors, Recipe(), options, sha256, _TEN)


def mnist1d_shuffled(config: Config) -> Source:
    """MNIST-1D with the 40 values of each signal in another order, the same for all signals.

    What a model can't know any more is which values are neighbours. The order is that of the
    notebook ``mnist1d-classification`` of the repository greydanus/mnist1d.
    """
    import numpy as np

    options = Options.of(config)
    tensors, _ = _mnist1d(options)
    order = torch.from_numpy(np.random.RandomState(42).permutation(40))  # noqa: NPY002 - its own
    shuffled = {n: t[:, order] if n.endswith("_images") else t for n, t in tensors.items()}
    return in_memory(shuffled, Recipe(), options, digest(shuffled), _TEN)


def _mnist1d(options: Options) -> tuple[dict[str, Tensor], str]:
    versions = [version(package) for package in ("mnist1d", "numpy", "scipy")]
    tensors, text = cached("mnist1d", key_of([], *versions), _generate_mnist1d, options.cache)
    return tensors, text["sha256"]


def _generate_mnist1d() -> Decoded:
    from mnist1d.data import get_dataset_args, make_dataset

    with _global_generators_kept():
        made = make_dataset(get_dataset_args())
    numbers = {key: torch.from_numpy(made[key]) for key in ("x", "y", "x_test", "y_test")}
    return _tensors(
        numbers["x"].to(torch.float32),
        numbers["y"].to(torch.int64),
        numbers["x_test"].to(torch.float32),
        numbers["y_test"].to(torch.int64),
    ), {"names": json.dumps([])}


@contextmanager
def _global_generators_kept() -> Iterator[None]:
    """The package seeds Python's and numpy's global generators: put them back after."""
    import numpy as np

    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - that very state
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002 - see above


def _tensors(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor
) -> dict[str, Tensor]:
    return {
        "train_images": train,
        "train_labels": train_labels,
        "test_images": test,
        "test_labels": test_labels,
    }


def mnist(config: Config) -> Source:
    """MNIST, 60,000 and 10,000 grey 28x28 images (LeCun et al. 1998)."""
    return named_source("mnist", config)


def fashion_mnist(config: Config) -> Source:
    """Fashion-MNIST, 60,000 and 10,000 grey 28x28 images (arXiv 1708.07747)."""
    return named_source("fashion_mnist", config)


def cifar10(config: Config) -> Source:
    """CIFAR-10, 50,000 and 10,000 colour 32x32 images (Krizhevsky 2009)."""
    return named_source("cifar10", config)


def cifar100(config: Config) -> Source:
    """CIFAR-100, 50,000 and 10,000 colour 32x32 images (Krizhevsky 2009)."""
    return named_source("cifar100", config)


def svhn(config: Config) -> Source:
    """SVHN's cropped digits, 73,257 and 26,032 colour 32x32 images (Netzer et al. 2011)."""
    return named_source("svhn", config)


def notmnist(config: Config) -> Source:
    """notMNIST, letters A to J as grey 28x28 images (Bulatov 2011), from folders of images."""
    return named_source("notmnist", config)


def mini_imagenet(config: Config) -> Source:
    """miniImageNet, 100 classes of ImageNet as colour images (Vinyals et al., arXiv 1606.04080)."""
    return named_source("mini_imagenet", config)


def five_datasets(config: Config) -> Source:
    """Several sets as one: the five of continual learning, or those named by ``args.sets``."""
    from sparsebench.data.joined import joined_source

    sets = {each.__name__: each for each in (*_GREY, *_COLOUR)}
    usual = ["cifar10", "mnist", "svhn", "fashion_mnist", "notmnist"]
    return joined_source(config, list(config.get("args", {}).get("sets", usual)), sets)


def tiny_imagenet(config: Config) -> Source:
    """Tiny ImageNet, 100,000 and 10,000 colour 64x64 images; tested on its validation set."""
    return named_source("tiny_imagenet", config)


def imagenet(config: Config) -> Source:
    """ImageNet-1k, 1,281,167 and 50,000 images (arXiv 1409.0575); tested on its validation set."""
    return named_source("imagenet", config)


def hf(config: Config) -> Source:
    """Any image classification set of the hub, or a local folder of the same layout."""
    from sparsebench.data.hub import hub_source

    return hub_source(config)


_GREY = (mnist, fashion_mnist, notmnist)
_COLOUR = (cifar10, cifar100, svhn, mini_imagenet, tiny_imagenet)
