"""Decoded sets on disk: used again, checked, rebuilt, never in the way."""

import logging
import multiprocessing
import os
import time
from pathlib import Path

import pytest
import torch

from sparsebench.data.cache import cached, digest, folder, key_of


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data"


class Build:
    """A builder that counts its calls."""

    def __init__(self, value=3):
        self.calls, self.value = 0, value

    def __call__(self):
        self.calls += 1
        return {"images": torch.full((5, 3), self.value, dtype=torch.uint8)}, {"names": "[]"}


def test_built_once_then_read_from_disk(cache):
    build = Build()
    first, second = (cached("name", "key", build) for _ in range(2))
    assert build.calls == 1
    assert torch.equal(first[0]["images"], second[0]["images"])
    assert first[1] == second[1] == {"names": "[]", "sha256": digest(first[0])}
    assert [path.name for path in cache.iterdir()] == ["name-key.safetensors"]


def test_another_key_or_no_cache_builds_again(cache):
    build = Build()
    cached("name", "a", build)
    cached("name", "b", build)
    assert build.calls == 2
    cached("name", "a", build, use=False)
    assert build.calls == 3
    assert len(list(cache.iterdir())) == 2


def test_without_cache_nothing_is_written(cache):
    cached("name", "a", Build(), use=False)
    assert not cache.exists()


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_byte,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-4]),
        lambda path: path.write_bytes(b"\0" * 200),
        lambda path: path.write_text("no tensors"),
    ],
)
def test_a_damaged_file_is_said_in_one_line_and_rebuilt(cache, caplog, damage):
    build = Build()
    cached("name", "key", build)
    path = cache / "name-key.safetensors"
    damage(path)
    with caplog.at_level(logging.WARNING):
        tensors, _ = cached("name", "key", build)
    assert build.calls == 2
    assert tensors["images"].eq(3).all()
    [record] = caplog.records
    assert str(path) in record.getMessage()
    assert "damaged" in record.getMessage()
    assert "\n" not in record.getMessage()
    caplog.clear()
    cached("name", "key", build)
    assert build.calls == 2
    assert not caplog.records


def test_what_is_read_is_mapped_and_private(cache):
    cached("name", "key", Build())
    mapped = cached("name", "key", Build())[0]["images"]
    if Path("/proc/self/maps").exists():
        assert "name-key.safetensors" in Path("/proc/self/maps").read_text()
    mapped.zero_()
    assert cached("name", "key", Build())[0]["images"].eq(3).all()


@pytest.mark.parametrize("place", ["a_file", "a_file/below"])
def test_an_unwritable_cache_is_no_obstacle(tmp_path, monkeypatch, place):
    (tmp_path / "a_file").write_text("in the way")
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / place))
    build = Build()
    assert cached("name", "key", build)[0]["images"].eq(3).all()
    assert cached("name", "key", build)[1]["names"] == "[]"
    assert build.calls == 2


def test_a_failed_write_leaves_nothing_behind(cache, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert cached("name", "key", Build())[0]["images"].eq(3).all()
    assert list(cache.iterdir()) == []


def test_what_a_killed_process_left_is_swept_when_old(cache):
    cache.mkdir(parents=True)
    old, new, foreign = (
        cache / name for name in (".name-key-1-a", ".name-key-2-b", ".other-key-1-a")
    )
    for path in (old, new, foreign):
        path.write_text("half")
    for path in (old, foreign):
        os.utime(path, (time.time() - 7200, time.time() - 7200))
    cached("name", "key", Build())
    assert sorted(p.name for p in cache.iterdir()) == [
        ".name-key-2-b",
        ".other-key-1-a",
        "name-key.safetensors",
    ]


def test_key_follows_size_time_and_name_of_the_sources(tmp_path):
    source = tmp_path / "a.parquet"
    source.write_text("abc")
    keys = [key_of([source], (3, 8, 8)), key_of([source], (3, 9, 9))]
    source.write_text("abcd")
    keys.append(key_of([source], (3, 8, 8)))
    os.utime(source, ns=(5, 5))
    keys.append(key_of([source], (3, 8, 8)))
    source.rename(tmp_path / "b.parquet")
    keys.append(key_of([tmp_path / "b.parquet"], (3, 8, 8)))
    assert len(set(keys)) == 5
    assert key_of([tmp_path / "b.parquet"], (3, 8, 8)) == keys[-1]


def test_digest_sees_names_types_shapes_and_bytes():
    base = torch.arange(6, dtype=torch.uint8)
    others = [
        {"b": base},
        {"a": base.view(2, 3)},
        {"a": base.to(torch.int8)},
        {"a": base.flip(0)},
        {"a": base, "b": base[:0]},
    ]
    assert len({digest({"a": base}), *map(digest, others)}) == 6
    assert digest({"a": base}) == digest({"a": base.clone()})
    assert digest({"a": base.view(2, 3).T}) == digest({"a": base.view(2, 3).T.contiguous()})


def test_folder_is_named_by_the_environment_or_the_home(monkeypatch, tmp_path):
    assert folder() == tmp_path / "cache"
    monkeypatch.delenv("SPARSEBENCH_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folder() == tmp_path / ".cache" / "sparsebench"


def build_and_compare(number):
    def build():
        time.sleep(0.2)  # so that all of them build
        return {"images": torch.arange(20_000)}, {}

    tensors = [cached("name", "key", build)[0]["images"] for _ in range(3)]
    return all(torch.equal(each, torch.arange(20_000)) for each in tensors)


def test_processes_that_build_at_once_do_not_clash(cache):
    context = multiprocessing.get_context("fork")
    with context.Pool(4) as pool:
        assert pool.map(build_and_compare, range(4), chunksize=1) == [True] * 4
    assert [path.name for path in cache.iterdir()] == ["name-key.safetensors"]
