"""The name of a run: what is part of it, and what is not."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsebench.config.compose import compose
from sparsebench.config.identity import identity, significant


def name(*words):
    return identity(compose(words))


def test_a_name_tells_what_the_run_is():
    label, _, digest = name("method=set", "sparsity=0.95", "seed=7").rpartition("-")
    assert label == "digits-mlp-set-0.95-7"
    assert len(digest) == 10
    assert int(digest, 16) >= 0
    assert name("task=profile").startswith("profile-digits-mlp-rigl-0.9-0-")


def test_a_key_at_its_default_is_not_part_of_it():
    assert name("optimizer.momentum=0.9", "trainer.accumulate=1", "seed=0") == name()
    assert "optimizer.momentum" not in significant(compose())
    assert significant(compose(["optimizer.momentum=0.5"]))["optimizer.momentum"] == 0.5


@pytest.mark.parametrize(
    "word",
    [
        "logger=tensorboard", "runs=elsewhere", "force=true", "quiet=true", "plots=false",
        "allow=[torch]", "data.root=here", "data.workers=3", "trainer.threads=2",
        "trainer.checkpoint_every=1", "trainer.accelerator=cpu", "logger.tags=[a]",
    ],
)  # fmt: skip
def test_what_cannot_change_the_result_is_no_part_of_it(word):
    assert name(word) == name()


@pytest.mark.parametrize(
    "word",
    [
        "seed=1", "sparsity=0.8", "epochs=3", "batch_size=64", "method.every=50it", "model.width=2",
        "distribution=uniform", "selector=hidden", "trainer.precision=bf16", "trainer.devices=2",
        "trainer.accumulate=2", "trainer.clip=1", "data.augment=none", "optimizer.lr=0.05",
    ],
)  # fmt: skip
def test_what_can_change_it_is(word):
    assert name(word) != name()


@given(
    first=st.tuples(st.integers(0, 99), st.floats(0, 0.99), st.integers(1, 99)),
    second=st.tuples(st.integers(0, 99), st.floats(0, 0.99), st.integers(1, 99)),
)
@settings(max_examples=20, deadline=None)
def test_two_configs_have_one_name_just_if_they_are_equal(first, second):
    def named(values, cfg=compose()):
        cfg.seed, cfg.sparsity, cfg.epochs = values
        return identity(cfg)

    assert (named(first) == named(second)) == (first == second)


def test_a_dense_run_does_not_depend_on_the_sparsity():
    dense = name("method=dense")
    assert dense == name("method=dense", "sparsity=0.5", "distribution=uniform", "selector=hidden")
    assert dense != name("method=dense", "seed=1")
    assert dense.startswith("digits-mlp-dense-0-0-")
    assert name("method=small_dense") != name("method=small_dense", "sparsity=0.5")
