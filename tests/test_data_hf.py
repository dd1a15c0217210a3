"""Any set of the hub, or a folder of the same layout: everything about it is found."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from sparsebench.data import load, splits
from sparsebench.data.lazy import LazyImages
from sparsebench.errors import UserError


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """A data folder and a cache of the test's own; nothing of the machine is seen."""
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SPARSEBENCH_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def pixels(count, shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def parquet(path, images, labels, names=("img", "label"), kind="PNG"):
    """A parquet file of encoded images, as pandas would write it: no hub metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": encoded(image, kind), "path": None} for image in images]
    pq.write_table(pa.table({names[0]: rows, names[1]: labels}), path)


def cifar(folder, train=30, test=10, shape=(32, 32, 3), **keys):
    images = pixels(train + test, shape)
    labels = [i % 10 for i in range(train + test)]
    parquet(folder / "train.parquet", images[:train], labels[:train], **keys)
    parquet(folder / "test.parquet", images[train:], labels[train:], **keys)
    return torch.from_numpy(images).permute(0, 3, 1, 2), torch.tensor(labels)


def image_folder(folder, split, images, labels, suffix=".png"):
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / split / label / f"{i:03d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def raises(message, **keys):
    with pytest.raises(UserError, match=message) as error:
        load(keys)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_hf_finds_columns_splits_and_classes_of_a_parquet_folder(root):
    images = pixels(24, (9, 7, 3))
    words = ["dog", "cat", "eel"] * 8
    parquet(root / "pets" / "data" / "train-0.parquet", images[:9], words[:9], ("picture", "class"))
    parquet(
        root / "pets" / "data" / "train-1.parquet", images[9:18], words[9:18], ("picture", "class")
    )
    parquet(
        root / "pets" / "data" / "validation-0.parquet",
        images[18:],
        words[18:],
        ("picture", "class"),
    )
    sets = load({"name": "hf", "path": "pets", "validation": 0})
    assert torch.equal(sets.train.images, torch.from_numpy(images[:18]).permute(0, 3, 1, 2))
    assert sets.class_names == ("cat", "dog", "eel")
    assert sets.test.labels.tolist() == [1, 0, 2, 1, 0, 2]
    flat = images[:18].reshape(-1, 3) / 255
    assert torch.allclose(torch.tensor(sets.train.recipe.mean), torch.tensor(flat.mean(0)).float())
    assert torch.allclose(torch.tensor(sets.train.recipe.std), torch.tensor(flat.std(0)).float())
    assert (sets.train.recipe.pad, sets.train.recipe.flip) == (4, True)


def test_hf_reads_what_the_hub_library_writes(root):
    from datasets import ClassLabel, Dataset, Features, Value
    from datasets import Image as ImageFeature

    features = Features(
        {"id": Value("int64"), "pic": ImageFeature(), "kind": ClassLabel(names=["b", "a"])}
    )
    pictures = [Image.fromarray(image) for image in pixels(6, (8, 8))]
    rows = {"id": list(range(6)), "pic": pictures, "kind": [0, 1] * 3}
    for split in ("train", "test"):
        (root / "mine").mkdir(exist_ok=True)
        Dataset.from_dict(rows, features=features).to_parquet(root / "mine" / f"{split}.parquet")
    sets = load({"name": "hf", "path": str(root / "mine"), "validation": 0})
    assert sets.class_names == ("b", "a")
    assert sets.train.labels.tolist() == [0, 1] * 3
    assert sets.input_shape == (1, 8, 8)
    assert torch.equal(sets.train.images, torch.from_numpy(pixels(6, (8, 8))).unsqueeze(1))
    assert not sets.train.recipe.flip  # grey images are not turned


def test_hf_reads_folders_of_classes_and_resizes_on_request(root):
    wide = [image for size in ((30, 20, 3), (24, 40, 3)) for image in pixels(2, size)]
    image_folder(root / "photos", "train", wide, ["a", "b"] * 2)
    image_folder(root / "photos", "test", wide[:2], ["a", "b"])
    raises(r"data.input_shape=null: .*photos/train has images from \(24, 40\) to \(30, 20\)",
           name="hf", path="photos")  # fmt: skip
    sets = load({"name": "hf", "path": "photos", "input_shape": [3, 16, 16], "validation": 0})
    assert sets.train.images.shape == (4, 3, 16, 16)
    from torchvision.transforms import functional as F

    want = F.center_crop(F.resize(Image.fromarray(wide[0]), [24, 16]), [16, 16])
    assert torch.equal(sets.train.images[0], F.pil_to_tensor(want))


def test_hf_keeps_a_large_set_on_disk(root, monkeypatch):
    images, _ = cifar(root / "big")
    monkeypatch.setattr(splits, "IN_MEMORY", 40 * 3 * 32 * 32 - 1)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(root / "arrow"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", root / "arrow")
    sets = load({"name": "hf", "path": "big", "validation": 0})
    assert isinstance(sets.train, LazyImages)
    assert sets.train.labels.tolist() == [i % 10 for i in range(30)]
    assert torch.equal(pil_to_tensor(sets.train.source.image(7)), images[7])
    assert sets.train.image(7, None).shape == (3, 32, 32)
    assert sets.fingerprint == load({"name": "hf", "path": "big", "validation": 0}).fingerprint
    monkeypatch.setattr(splits, "IN_MEMORY", 40 * 3 * 32 * 32)
    assert not isinstance(load({"name": "hf", "path": "big"}).train, LazyImages)


def test_hf_downloads_only_when_told(root, monkeypatch):
    import datasets

    images = [Image.fromarray(image) for image in pixels(20, (8, 8, 3))]
    table = datasets.Dataset.from_dict({"image": images, "label": [0, 1] * 10})
    asked = []

    def hub(name):
        asked.append(name)
        if name != "me/set":
            raise ConnectionError("no\nroute")
        return datasets.DatasetDict(train=table, test=table)

    monkeypatch.setattr(datasets, "load_dataset", hub)
    raises("data.path=me/set: no such folder .*data.download=true", name="hf", path="me/set")
    assert asked == []
    sets = load({"name": "hf", "path": "me/set", "download": True, "validation": 0})
    assert torch.equal(
        sets.train.images[3], torch.from_numpy(pixels(20, (8, 8, 3))[3]).permute(2, 0, 1)
    )
    raises(r"data.download=true: cannot load 'me/no' \(no route\)", name="hf", path="me/no",
           download=True)  # fmt: skip
    raises("cannot load 'ylecun/mnist'", name="mnist", download=True)
    raises("data.test_split=exam: the splits found are train, test", name="hf", path="me/set",
           download=True, test_split="exam")  # fmt: skip


@pytest.mark.parametrize(
    "keys, message",
    [
        ({}, "data.path=null: data=hf needs"),
        ({"path": "no/where"}, "data.path=no/where: no such folder"),
        ({"path": "ok", "input_shape": [2, 8, 8]}, r"data.input_shape=\[2, 8, 8\]: \[channels"),
        ({"path": "ok", "train_split": "trian"}, "data.train_split=trian: .*did you mean 'train'"),
        ({"path": "ok", "image_column": "imgs"}, "data.image_column=imgs: the columns are img, l"),
        ({"path": "ok", "num_classes": 3}, "data.num_classes=3: hf at .* has 10 classes"),
        ({"path": "empty"}, "empty: holds neither parquet files nor folders"),
        ({"path": "odd"}, "data.image_column=null: none was recognised; name one of the columns"),
    ],
)
def test_hf_refusals(root, keys, message):
    cifar(root / "ok", shape=(8, 8, 3))
    cifar(root / "odd", shape=(8, 8, 3), names=("a", "b"))
    (root / "empty").mkdir()
    raises(message, name="hf", **keys)


def test_hf_refuses_ambiguous_columns_and_labels(root):
    images = pixels(10, (8, 8, 3))
    path = root / "two" / "train.parquet"
    parquet(path, images, list(range(10)))
    table = pq.read_table(path)
    for split in ("train", "test"):
        both = table.append_column("fine_label", table["label"])
        pq.write_table(both, root / "two" / f"{split}.parquet")
    raises(r"data.label_column=null: several would do \(label, fine_label\)", name="hf", path="two")
    parquet(root / "new" / "train.parquet", images, ["a", "b"] * 5)
    parquet(root / "new" / "test.parquet", images, ["a", "c"] * 5)
    raises("new: no training image has the label 'c'", name="hf", path="new")
    parquet(root / "half" / "train.parquet", images, [0.5] * 10)
    parquet(root / "half" / "test.parquet", images, [0.5] * 10)
    raises("half: labels must all be integers or all be words", name="hf", path="half")


@pytest.mark.parametrize(
    "labels, message",
    [([1] * 10, "all training images are of one class"), ([0, -1] * 5, "has the label -1")],
)
def test_useless_labels_are_refused(root, labels, message):
    for split in ("train", "test"):
        parquet(root / "bad" / f"{split}.parquet", pixels(10, (8, 8, 3)), labels)
    raises(message, name="hf", path="bad")


def test_folders_must_hold_the_same_classes(root):
    images = pixels(4, (8, 8, 3))
    image_folder(root / "f", "train", images, ["a", "b"] * 2)
    image_folder(root / "f", "test", images, ["a", "c"] * 2)
    raises("f: class 'b' is in one of train and test only", name="hf", path="f")
    (root / "f" / "train" / "empty").mkdir()
    raises("f/train: Found no valid file for the classes empty", name="hf", path="f")


def test_an_undecodable_image_is_named(root):
    image_folder(root / "f", "train", pixels(4, (8, 8, 3)), ["a", "b"] * 2)
    image_folder(root / "f", "test", pixels(4, (8, 8, 3)), ["a", "b"] * 2)
    file = root / "f" / "train" / "b" / "003.png"
    file.write_bytes(file.read_bytes()[:60])
    raises(f"{file}: cannot be read", name="hf", path="f")


def test_a_colour_image_after_grey_ones_is_not_made_grey_in_silence(root, monkeypatch):
    grey = [np.repeat(image[..., None], 3, -1) for image in pixels(3, (8, 8))]
    for split in ("train", "test"):
        image_folder(root / "f", split, [g[..., 0] for g in grey], ["a", "b", "a"])
    Image.fromarray(pixels(1, (8, 8, 3))[0]).save(root / "f" / "test" / "b" / "001.png")
    raises(r"f/test: image 2 is in colour.*data.input_shape=\[3,8,8\]", name="hf", path="f")
    sets = load({"name": "hf", "path": "f", "input_shape": [3, 8, 8], "validation": 0})
    assert torch.equal(sets.train.images[0], torch.from_numpy(grey[0]).permute(2, 0, 1))
