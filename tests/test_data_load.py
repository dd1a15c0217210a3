"""What needs no files: digits, MNIST-1D, a user's own builder, the shipped configs."""

import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from sparsebench.data import DataSets, EvalLoader, TensorImages, load
from sparsebench.data.load import NAMES
from sparsebench.data.options import Options
from sparsebench.data.source import measured
from sparsebench.errors import UserError

REAL = Path(os.environ.get("SPARSEBENCH_DATA", "/nowhere"))
CONFIGS = Path(__file__).parents[1] / "configs" / "data"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SPARSEBENCH_DATA", raising=False)


def test_digits_are_scikit_learns_split_once_and_for_all():
    from sklearn.datasets import load_digits

    sets = load({"name": "digits", "validation": 0})
    found = load_digits()
    assert (len(sets.train), len(sets.test)) == (1437, 360)
    assert (sets.num_classes, sets.input_shape) == (10, (1, 8, 8))
    got = torch.cat([sets.train.images, sets.test.images]).flatten(1).numpy().astype(int)
    labels = torch.cat([sets.train.labels, sets.test.labels]).numpy()
    rows = sorted([*row, label] for row, label in zip(got.tolist(), labels.tolist(), strict=True))
    data, target = found.data.astype(int).tolist(), found.target.tolist()
    assert rows == sorted([*row, label] for row, label in zip(data, target, strict=True))
    shares = np.bincount(found.target) * 360 / 1797
    assert np.abs(np.bincount(sets.test.labels, minlength=10) - shares).max() < 1
    again = load({"name": "digits", "validation": 0, "split_seed": 9})
    assert torch.equal(again.test.images, sets.test.images)
    x, _ = next(iter(EvalLoader(sets.test, 360)))
    assert (x.min(), x.max(), x.shape) == (0.0, 1.0, (360, 1, 8, 8))


def test_the_split_of_the_digits_has_not_changed():
    assert load({"name": "digits"}).fingerprint == "20361304e939eaea"


def test_mnist1d_is_the_packages_and_leaves_the_global_generators_alone():
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global one is what is tested
    expected = random.random(), np.random.rand()  # noqa: NPY002 - as above
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    sets = load({"name": "mnist1d", "validation": 0})
    assert (random.random(), np.random.rand()) == expected  # noqa: NPY002

    from mnist1d.data import get_dataset_args, make_dataset

    made = make_dataset(get_dataset_args())
    assert (len(sets.train), len(sets.test), sets.input_shape) == (4000, 1000, (40,))
    assert torch.equal(sets.train.images, torch.from_numpy(made["x"]).float())
    assert torch.equal(sets.test.images, torch.from_numpy(made["x_test"]).float())
    assert sets.train.labels.tolist() == made["y"].tolist()
    again = load({"name": "mnist1d", "validation": 0})
    assert torch.equal(again.train.images, sets.train.images)
    assert again.fingerprint == sets.fingerprint


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A user's module with builders, beside the place it is run from."""
    (tmp_path / "own_data.py").write_text(
        "import numpy as np\n"
        "import torch\n"
        "from sparsebench.data import DataSets, TensorImages\n"
        "y = np.arange(20) % 4\n"
        "def bytes_(config):\n"
        "    x = np.full((20, 3, 6, 6), config['args']['value'], dtype=np.uint8)\n"
        "    x[::2] = 0\n"
        "    return (x, y), (x[:8], y[:8])\n"
        "def floats(config):\n"
        "    x = torch.arange(60.0, dtype=torch.float64).view(20, 3)\n"
        "    return (x, torch.from_numpy(y)), (x[:8], y[:8].tolist())\n"
        "def ready(config):\n"
        "    part = TensorImages.of(torch.zeros(4, 2), torch.arange(4))\n"
        "    return DataSets('mine', 4, (2,), part, None, part, (), 'abc')\n"
        "def nothing(config):\n    return None\n"
        "def short(config):\n    return (np.zeros((3, 2)), y), (np.zeros((3, 2)), y[:3])\n"
        "def flat(config):\n"
        "    x = np.zeros((20, 6, 6), dtype=np.uint8)\n    return (x, y), (x, y)\n"
        "def integers(config):\n    x = np.zeros((20, 6))\n"
        "    return (x.astype(int), y), (x.astype(int), y)\n"
        "def unlike(config):\n    return (np.zeros((20, 2)), y), (np.zeros((20, 3)), y)\n"
        "def soft(config):\n    x = np.zeros((20, 2))\n    return (x, y * 0.5), (x, y * 0.5)\n"
        "def empty(config):\n    x = np.zeros((20, 2))\n    return (x, y), (x[:0], y[:0])\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "own_data"
    sys.modules.pop("own_data", None)


def build(name, **keys):
    return load({"name": "mine", "_target_": f"own_data.{name}", **keys}, allow=["own_data"])


def test_a_builder_may_return_images_of_bytes(own):
    sets = build("bytes_", args={"value": 255}, validation=4)
    assert (len(sets.train), len(sets.validation), len(sets.test)) == (16, 4, 8)
    assert (sets.name, sets.num_classes, sets.input_shape) == ("mine", 4, (3, 6, 6))
    assert sets.train.recipe.mean == pytest.approx((0.5,) * 3)
    assert sets.train.recipe.std == pytest.approx((0.5,) * 3)
    assert sets.train.recipe.pad == 4
    assert build("bytes_", args={"value": 255}, augment="none").train.recipe.pad == 0
    assert build("bytes_", args={"value": 254}, validation=4).fingerprint != sets.fingerprint


def test_a_builder_may_return_floats_or_finished_sets(own):
    sets = build("floats", validation=0, num_classes=6)
    assert torch.equal(sets.train.images, torch.arange(60.0).view(20, 3))
    assert sets.num_classes == 6  # two of them are not in the data
    ready = build("ready")
    assert isinstance(ready, DataSets)
    assert isinstance(ready.train, TensorImages)
    assert ready.fingerprint == "abc"


@pytest.mark.parametrize(
    "name, keys, message",
    [
        ("nothing", {}, "data=mine: a builder returns .* not NoneType"),
        ("short", {}, r"data=mine: 3 images need as many integer labels, got \(20,\)"),
        ("flat", {}, r"data=mine: .*uint8 images must be \[N, C, H, W\], got \[20, 6, 6\]"),
        ("integers", {}, "data=mine: .*images must be uint8 or float, got torch.int64"),
        ("unlike", {}, r"training images are \[2\] of torch.float32, test images \[3\]"),
        ("soft", {}, "need as many integer labels"),
        ("empty", {}, "data=mine: has no test images"),
        ("floats", {"num_classes": 3}, "data.num_classes=3: mine has 4 classes"),
        ("number", {}, "data._target_=own_data.number: is no function"),
        ("flots", {}, "data._target_=own_data.flots: .*did you mean 'floats'"),
    ],
)
def test_what_a_builder_may_not_return(own, name, keys, message):
    with pytest.raises(UserError, match=message):
        build(name, **keys)


def test_a_package_that_is_not_allowed_is_not_imported(own):
    with pytest.raises(UserError, match="data._target_=own_data.floats: package 'own_data'"):
        load({"name": "mine", "_target_": "own_data.floats"})
    assert "own_data" not in sys.modules


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(UserError, match="data=cifar_10: is none of .*; did you mean 'cifar10'"):
        load({"name": "cifar_10"})


def test_there_is_a_config_for_every_set():
    images = {
        path.stem
        for path in CONFIGS.glob("*.yaml")
        if "sparsebench.data.builtin." in path.read_text()  # others are for tasks of their own
    }
    assert images == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_config_has_a_comment_and_known_keys(name):
    text = (CONFIGS / f"{name}.yaml").read_text()
    assert text.startswith("# ")
    config = yaml.safe_load(text)
    assert config["name"] == name
    assert config["_target_"] == f"sparsebench.data.builtin.{name}"
    args = {"args"} if name == "five_datasets" else set()
    assert set(config) <= {"_target_", *args, *Options.__dataclass_fields__}
    Options.of(config)


@pytest.mark.parametrize("name", ["digits", "mnist1d", "mnist1d_shuffled"])
def test_the_configs_that_need_nothing_load(name):
    sets = load(yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()))
    assert sets.train.shape == sets.input_shape
    assert sets.class_names == tuple("0123456789")


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "cifar10").is_dir(), reason="no CIFAR-10 in SPARSEBENCH_DATA")
def test_the_real_cifar10_has_the_published_moments():
    config = yaml.safe_load((CONFIGS / "cifar10.yaml").read_text())
    sets = load({**config, "root": str(REAL)})
    assert [len(part) for part in (sets.train, sets.validation, sets.test)] == [45000, 5000, 10000]
    for images, each in ((sets.train, 4500), (sets.validation, 500), (sets.test, 1000)):
        assert torch.bincount(images.labels).tolist() == [each] * 10
    assert sets.class_names[3] == "cat"
    found = measured(sets.train.storage)
    assert found.mean == pytest.approx(sets.train.recipe.mean, abs=5e-4)
    assert found.std == pytest.approx(sets.train.recipe.std, abs=5e-3)  # JPEG copies smooth
