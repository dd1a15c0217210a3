"""Absent weights that rest or learn, in whole runs: clipping, accumulation, averages, bf16, kills.

The bare loop knows no Lightning; it has the session, and does by hand what a trainer does.
"""

import math
from copy import deepcopy

import pytest
import torch
from torch import nn

from sparsebench import data
from sparsebench.config.compose import compose
from sparsebench.config.identity import run_folder
from sparsebench.models.tiny import tiny_mlp
from sparsebench.run import run
from sparsebench.sparsity.masks import unpack
from sparsebench.sparsity.session import Session
from sparsebench.tasks.build import build_method, container
from sparsebench.training.sparsify import Sparsify

QUICK = [
    "data=digits", "model=tiny_mlp", "epochs=3", "data.subset=160", "batch_size=16",
    "plots=false", "quiet=true", "trainer.accelerator=cpu", "method.every=2it", "sparsity=0.75",
]  # fmt: skip
PER_EPOCH, TOTAL = 9, 27  # 160 images, 16 of them held out, in batches of 16, each in two halves
CLIP, AVERAGE = 0.2, 0.8
HARD = [f"trainer.clip={CLIP}", "trainer.accumulate=2", f"trainer.ema={AVERAGE}"]
METHODS = {
    "dpf": [], "movement": [], "gmp_frozen": [], "acdc": [],
    "str": ["method.options.init=-4"], "movement_soft": ["method.options.rate=0.3"],
}  # fmt: skip


def finished(folder, *overrides):
    """The last checkpoint and the metrics of a run."""
    cfg = compose([*QUICK, f"runs={folder}", *overrides])
    result = run(cfg)
    assert result["status"] == "finished", result.get("error")
    return torch.load(run_folder(cfg) / "last.ckpt", weights_only=True), result["metrics"]


def masks_of(kept):
    packed = kept["callbacks"]["Sparsify"]["masks"]["packed"]
    return {n: unpack(bits, kept["state_dict"][f"model.{n}"].shape) for n, bits in packed.items()}


def bare(*overrides):
    """What the forward pass sees after the last step, its average, and the masks."""
    cfg = compose([*QUICK, *overrides])
    sets = data.load(container(cfg.data))
    torch.manual_seed(cfg.seed)
    model = tiny_mlp(sets.input_shape, sets.num_classes)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    optimizer.param_groups[0]["initial_lr"] = 0.1
    session = Session(
        build_method(cfg), model, optimizer,
        total_steps=TOTAL, steps_per_epoch=PER_EPOCH, seed=cfg.seed,
    )  # fmt: skip
    loader = data.TrainLoader(sets.train, cfg.batch_size // 2, cfg.seed)
    average: dict[str, torch.Tensor] = {}
    clipped = 0
    for step in range(TOTAL):
        if step % PER_EPOCH == 0:
            loader.set_epoch(step // PER_EPOCH)
            batches = iter(loader)
        rate = 0.1 * 0.5 * (1 + math.cos(math.pi * step / TOTAL))
        optimizer.param_groups[0]["lr"] = rate
        session.before_forward()
        average = average or deepcopy(dict(model.named_parameters()))
        for _ in range(2):
            x, y = next(batches)
            (nn.functional.cross_entropy(model(x), y) / 2).backward()
        session.after_backward()
        clipped += nn.utils.clip_grad_norm_(model.parameters(), CLIP) > CLIP
        optimizer.step()
        optimizer.zero_grad()
        session.after_step()
        session.before_forward()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                average[name] = AVERAGE * average[name] + (1 - AVERAGE) * parameter
                if name in session.masks.parameters:
                    average[name] *= session.masks[name]
    assert clipped
    return (
        {n: p.detach() for n, p in model.named_parameters()},
        average,
        dict(session.masks.items()),
    )


@pytest.mark.parametrize("name", METHODS)
def test_a_run_is_the_bare_loop(tmp_path, name):
    words = [f"method={name}", *METHODS[name]]
    kept, metrics = finished(tmp_path, *words, *HARD)
    weights, average, masks = bare(*words)
    assert metrics["steps"] == TOTAL
    assert 0 < metrics["sparsity"] < 1
    for layer, mask in masks_of(kept).items():
        assert torch.equal(mask, masks[layer])
        assert not average[layer][~mask].any()
    for layer, value in kept["callbacks"]["Ema"]["average"].items():
        found = average[layer.removeprefix("model.")]
        assert torch.allclose(value, found, rtol=1e-4, atol=1e-6), layer
    assert set(weights) == set(average)


@pytest.mark.parametrize("name", ["dpf", "gmp_frozen", "str", "movement_soft"])
def test_bf16_leaves_weights_and_masks_in_their_own_type(tmp_path, name):
    words = [f"method={name}", *METHODS[name], "trainer.precision=bf16"]
    kept, metrics = finished(tmp_path, *words)
    for layer, mask in masks_of(kept).items():
        weight = kept["state_dict"][f"model.{layer}"]
        assert weight.dtype == torch.float32
        assert not weight[~mask].any()
    assert sum(int(m.sum()) for m in masks_of(kept).values()) == metrics["nonzeros"]


@pytest.mark.parametrize("name", ["movement", "str", "acdc"])
def test_interrupted_it_ends_as_if_it_had_not_been(tmp_path, name, monkeypatch):
    words = [f"method={name}", *METHODS[name], "trainer.checkpoint_every=0", "trainer.ema=0.8"]
    whole, _ = finished(tmp_path / "whole", *words)
    words = [*QUICK, *words, f"runs={tmp_path / 'broken'}"]

    class Power(BaseException):
        """Goes off."""

    def off(self, *args):
        after(self, *args)
        if self.session.state.step == 20:
            raise Power

    after = Sparsify._after_step
    monkeypatch.setattr(Sparsify, "_after_step", off)
    with pytest.raises(Power):
        run(compose(words))
    monkeypatch.undo()
    folder = run_folder(compose(words))
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 19
    assert run(compose(words))["status"] == "finished"
    resumed = torch.load(folder / "last.ckpt", weights_only=True)
    for layer, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][layer]), layer
    for layer, value in whole["callbacks"]["Ema"]["average"].items():
        assert torch.equal(value, resumed["callbacks"]["Ema"]["average"][layer]), layer
