"""The named sets, read from the layouts they come in, and what is wrong with a damaged one."""

import gzip
import io
import shutil
import socket
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

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


def idx(path, array):
    """An idx file as LeCun defines it."""
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = head + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def mnist(folder, suffix=".gz"):
    images = pixels(28, (28, 28))
    labels = (np.arange(28) % 10).astype(np.uint8)
    for prefix, part in (("train", slice(0, 20)), ("t10k", slice(20, 28))):
        idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", images[part])
        idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", labels[part])
    return torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels).long()


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


# ------------------------------------------------------------------- named sets


@pytest.mark.parametrize("place", ["cifar10", "cifar10/plain_text"])
def test_cifar10_in_the_hubs_parquet_layout(root, place):
    images, labels = cifar(root / place)
    sets = load({"name": "cifar10", "validation": 0})
    assert torch.equal(sets.train.images, images[:30])
    assert torch.equal(sets.test.images, images[30:])
    assert torch.equal(torch.cat([sets.train.labels, sets.test.labels]), labels)
    assert (sets.num_classes, sets.input_shape, sets.notes) == (10, (3, 32, 32), ())
    assert (sets.train.recipe.pad, sets.train.recipe.flip) == (4, True)
    plain = load({"name": "cifar10", "augment": "none"})
    assert (plain.train.recipe.pad, plain.train.recipe.flip) == (0, False)


def test_files_on_disk_are_read_without_asking_the_network(root, monkeypatch):
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **_: asked.append(args) or [])
    cifar(root / "cifar10")
    load({"name": "cifar10"})
    load({"name": "hf", "path": "cifar10"})
    assert asked == []


def test_a_copy_in_jpeg_is_noted_also_from_the_cache(root):
    cifar(root / "cifar10", kind="JPEG")
    assert load({"name": "cifar10"}).notes == ("cifar10 (JPEG)",)
    assert load({"name": "cifar10"}).notes == ("cifar10 (JPEG)",)


def test_the_second_load_does_not_decode(root, monkeypatch):
    cifar(root / "cifar10")
    first = load({"name": "cifar10"})
    monkeypatch.setattr(splits, "decode", None)
    second = load({"name": "cifar10"})
    assert torch.equal(first.train.images, second.train.images)
    assert first.fingerprint == second.fingerprint
    with pytest.raises(TypeError):
        load({"name": "cifar10", "cache": False})


def test_fingerprint_follows_what_is_used_and_nothing_else(root):
    cifar(root / "cifar10")
    base = load({"name": "cifar10"}).fingerprint
    assert load({"name": "cifar10", "cache": False, "augment": "none"}).fingerprint == base
    shutil.move(root / "cifar10", root / "moved" / "cifar10")
    assert load({"name": "cifar10", "root": str(root / "moved")}).fingerprint == base
    changed = [{"split_seed": 1}, {"subset": 20}, {"validation": 0}]
    moved = {"name": "cifar10", "root": str(root / "moved" / "cifar10")}
    assert len({base, *(load({**moved, **keys}).fingerprint for keys in changed)}) == 4
    cifar(root / "cifar10", shape=(32, 32, 3), train=31)
    assert load({"name": "cifar10"}).fingerprint != base


def test_cifar100_takes_the_fine_labels(root):
    images = pixels(12, (32, 32, 3))
    rows = [{"bytes": encoded(image), "path": None} for image in images]
    fine, coarse = [i * 8 for i in range(12)], [i % 5 for i in range(12)]
    table = pa.table({"img": rows, "fine_label": fine, "coarse_label": coarse})
    for split in ("train", "test"):
        path = root / "cifar100" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(table, path)
    assert load({"name": "cifar100", "validation": 0}).train.labels.tolist() == fine
    coarsely = load({"name": "cifar100", "validation": 0, "label_column": "coarse_label"})
    assert coarsely.train.labels.tolist() == coarse
    raises("data.label_column=fine_lable: .*; did you mean 'fine_label'",
           name="cifar100", label_column="fine_lable")  # fmt: skip


def test_cifar10_in_torchvisions_layout(root, monkeypatch):
    import pickle

    from torchvision.datasets import CIFAR10

    images, folder = pixels(60, (3, 32, 32)), root / "cifar-10-batches-py"
    folder.mkdir()
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for i, name in enumerate(names):
        part = images[10 * i : 10 * i + 10].reshape(10, -1)
        (folder / name).write_bytes(pickle.dumps({"data": part, "labels": list(range(10))}))
    raises("cifar-10-batches-py: Dataset not found or corrupted.*extract it again", name="cifar10")
    meta = {"label_names": [f"class {i}" for i in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta))
    # the real checksums are those of the real files
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    sets = load({"name": "cifar10", "validation": 0})
    assert torch.equal(sets.train.images, torch.from_numpy(images[:50]))
    assert torch.equal(sets.test.images, torch.from_numpy(images[50:]))
    assert sets.class_names == tuple(meta["label_names"])


@pytest.mark.parametrize(
    "name, place, suffix",
    [
        ("mnist", "mnist", ".gz"),
        ("mnist", "MNIST/raw", ""),
        ("fashion_mnist", "fashion-mnist", ".gz"),
        ("fashion_mnist", "FashionMNIST/raw", ""),
        ("fashion_mnist", "fashion_mnist/raw", ".gz"),
    ],
)
def test_idx_files(root, name, place, suffix):
    images, labels = mnist(root / place, suffix)
    for _ in range(2):  # the second time from the cache
        sets = load({"name": name, "validation": 0})
        assert torch.equal(sets.train.images, images[:20])
        assert torch.equal(sets.test.images, images[20:])
        assert torch.equal(torch.cat([sets.train.labels, sets.test.labels]), labels)
        assert sets.input_shape == (1, 28, 28)
        assert sets.train.draw(0, 0) is None


def test_tiny_imagenet_in_its_own_layout(root):
    images = pixels(8, (64, 64, 3))
    folder = root / "tiny-imagenet-200"
    for i in range(6):
        path = folder / "train" / ("n1", "n2")[i % 2] / "images" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[i]).save(path)
    (folder / "val" / "images").mkdir(parents=True)
    for i in (6, 7):
        Image.fromarray(images[i]).save(folder / "val" / "images" / f"v{i}.png")
    listing = folder / "val" / "val_annotations.txt"
    listing.write_text("v7.png\tn2\t0\t0\t9\t9\nv6.png\tn1\t0\t0\t9\t9\n")
    sets = load({"name": "tiny_imagenet", "validation": 0})
    assert torch.equal(sets.test.images, torch.from_numpy(images[[7, 6]]).permute(0, 3, 1, 2))
    assert sets.test.labels.tolist() == [1, 0]
    assert sets.class_names == ("n1", "n2")
    assert sets.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    for broken in ("v7.png\tn3\t0", "gone.png\tn1\t0", "rubbish"):
        listing.write_text(broken + "\n")
        raises("val_annotations.txt: no such image or class", name="tiny_imagenet")
    listing.write_text("")
    raises("val_annotations.txt: holds no images", name="tiny_imagenet")


def test_imagenet_stays_on_disk(root):
    images = pixels(12, (40, 60, 3))
    image_folder(root / "imagenet", "train", images[:8], ["n1", "n2"] * 4, ".JPEG")
    image_folder(root / "imagenet", "val", images[8:], ["n1", "n2"] * 2, ".JPEG")
    config = {"name": "imagenet", "validation": 2, "input_shape": [3, 32, 32]}
    sets = load(config)
    assert isinstance(sets.train, LazyImages)
    assert [len(part) for part in (sets.train, sets.validation, sets.test)] == [6, 2, 4]
    assert (sets.num_classes, sets.input_shape) == (2, (3, 32, 32))
    [(x, y)] = sets.train.batches([torch.arange(6)], sets.train.draw(0, 0))
    assert (x.shape, x.dtype, y.dtype) == ((6, 3, 32, 32), torch.float32, torch.int64)
    assert (
        load({**config, "validation": 0}).fingerprint
        != sets.fingerprint
        == load(config).fingerprint
    )
    assert load({**config, "input_shape": None}).input_shape == (3, 224, 224)
    raises(r"data.input_shape=\[224, 224\]: \[channels", name="imagenet", input_shape=[224, 224])


# ---------------------------------------------------------- missing and damaged


def test_a_missing_set_says_where_it_was_looked_for_and_how_to_get_it(root, monkeypatch):
    monkeypatch.setattr("sparsebench.data.options.USUAL", (Path("data"),))  # no Debian package
    said = raises("data=cifar10: not found", name="cifar10")
    for part in (str(root), "cifar-10-batches-py", "hf download uoft-cs/cifar10", "data.download"):
        assert part in said
    assert "apt install dataset-fashion-mnist" in raises("not found", name="fashion_mnist")
    assert "/else/where" in raises("not found", name="mnist", root="/else/where")
    monkeypatch.delenv("SPARSEBENCH_DATA")
    raises("neither data.root nor SPARSEBENCH_DATA is set", name="cifar10")


@pytest.mark.parametrize("names", [(), ("readme.txt",)])
def test_an_empty_folder_is_named(root, names):
    (root / "cifar10").mkdir()
    for name in names:
        (root / "cifar10" / name).write_text("hello")
    raises(f"{root}/cifar10: holds no parquet .* of cifar10", name="cifar10")


def test_a_truncated_parquet_is_named(root):
    cifar(root / "cifar10")
    path = root / "cifar10" / "test.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    raises(f"{path}: damaged or incomplete", name="cifar10")
    path.write_bytes(b"")
    raises(f"{path}: damaged or incomplete", name="cifar10")


def test_a_parquet_damaged_inside_is_named(root):
    cifar(root / "cifar10")
    path = root / "cifar10" / "train.parquet"
    data = bytearray(path.read_bytes())
    data[40:4000] = bytes(3960)
    path.write_bytes(data)
    raises(f"{root}/cifar10.*image 0: cannot be read", name="cifar10")


def test_zero_images_are_refused(root):
    cifar(root / "cifar10")
    path = root / "cifar10" / "train.parquet"
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    raises(f"{path}: holds no images", name="cifar10")


def test_a_missing_split_is_named(root):
    cifar(root / "cifar10")
    (root / "cifar10" / "test.parquet").unlink()
    raises("data.test_split=null: the splits found are train, looked for test", name="cifar10")


def test_an_image_of_another_size_is_named(root):
    cifar(root / "cifar10", shape=(28, 28, 3))
    raises("cifar10: image 0 is 28x28, all must be 32x32", name="cifar10")


def test_an_incomplete_set_is_told_by_its_size(root):
    cifar(root / "cifar10")
    raises("data.train_size=50000: cifar10 at .*cifar10 has 30 images", name="cifar10",
           train_size=50000)  # fmt: skip


def one_byte_less(path):
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-40]), "not an intact idx file"),
        (lambda p: p.write_bytes(b"no gzip"), "not an intact idx file"),
        (lambda p: p.write_bytes(b""), "not an intact idx file"),
        (lambda p: p.write_bytes(gzip.compress(b"\x01\x02\x03\x04" * 9)), "not an intact idx"),
        (one_byte_less, "not an intact idx file"),
        (lambda p: idx(p, np.zeros((19, 28, 28), np.uint8)), "19 images, but 20 labels"),
        (lambda p: idx(p, np.zeros((20, 28), np.uint8)), "not an intact idx file"),
    ],
)
def test_a_damaged_idx_file_is_named(root, damage, message):
    mnist(root / "mnist")
    path = root / "mnist" / "train-images-idx3-ubyte.gz"
    damage(path)
    raises(f"{path}: {message}", name="mnist")


def test_idx_files_must_be_four_and_not_empty(root):
    mnist(root / "mnist")
    (root / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    raises("mnist: t10k-labels-idx1-ubyte.gz is missing", name="mnist")
    idx(root / "mnist" / "t10k-labels-idx1-ubyte.gz", np.zeros(0, np.uint8))
    idx(root / "mnist" / "t10k-images-idx3-ubyte.gz", np.zeros((0, 28, 28), np.uint8))
    raises("t10k-images-idx3-ubyte.gz: not an intact idx file", name="mnist")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_damaged_later_is_named_in_one_line(root, workers):
    images = pixels(8, (40, 60, 3))
    image_folder(root / "imagenet", "train", images, ["n1", "n2"] * 4)
    image_folder(root / "imagenet", "val", images, ["n1", "n2"] * 4)
    file = root / "imagenet" / "train" / "n1" / "004.png"
    sets = load({"name": "imagenet", "validation": 0, "workers": workers})
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(UserError) as error:
        list(sets.train.batches([torch.arange(8)]))
    assert str(error.value).startswith(f"{file}: cannot be read (")
    assert "Traceback" not in str(error.value)


# --- several sets as one ------------------------------------------------------------------------


def test_sets_join_in_the_shape_of_the_largest(root):
    colour, labels = cifar(root / "cifar10")
    grey = pixels(40, (28, 28))
    for split, part in (("train", grey[:30]), ("test", grey[30:])):
        kind = {"train": "train", "test": "t10k"}[split]
        idx(root / "mnist" / f"{kind}-images-idx3-ubyte", part)
        idx(root / "mnist" / f"{kind}-labels-idx1-ubyte", np.arange(len(part), dtype=np.uint8) % 10)
    sets = load(
        {
            "name": "joined", "_target_": "sparsebench.data.builtin.five_datasets", "validation": 0,
            "augment": "none", "args": {"sets": ["cifar10", "mnist"]},
        }
    )  # fmt: skip
    assert (sets.num_classes, sets.input_shape, len(sets.train)) == (20, (3, 32, 32), 60)
    assert torch.equal(sets.train.images[:30], colour[:30])
    assert sets.train.labels.tolist() == [*labels[:30].tolist(), *(10 + i % 10 for i in range(30))]
    padded = sets.train.images[30:]
    inside = torch.from_numpy(grey[:30])
    for channel in range(3):
        assert torch.equal(padded[:, channel, 2:30, 2:30], inside)
    assert padded.sum() == 3 * inside.sum()  # zeros around
    assert sets.class_names[10] == "mnist/0"
    mean = sets.train.images.float().mean((0, 2, 3)) / 255
    assert torch.tensor(sets.train.recipe.mean) == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize(
    "sets, said",
    [(["cifar11"], "data.args.sets=cifar11.*cifar10"), ([], "at least one"),
     (["mnist", "mnist"], "each once"), (["notmnist"], r"data=notmnist: not found.*letter")],
)  # fmt: skip
def test_sets_that_cannot_join_are_refused(sets, said):
    config = {"name": "joined", "_target_": "sparsebench.data.builtin.five_datasets"}
    with pytest.raises(UserError, match=said):
        load({**config, "args": {"sets": sets}})
