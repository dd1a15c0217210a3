"""The training layer against calculations done by hand, in loops that know no Lightning."""

import csv
import hashlib
import math
import shutil

import pytest
import torch
from torch import nn

from sparsebench import data
from sparsebench.config.compose import compose
from sparsebench.config.identity import run_folder
from sparsebench.errors import UserError
from sparsebench.models.tiny import tiny_mlp
from sparsebench.run import run
from sparsebench.sparsity.masks import unpack
from sparsebench.sparsity.session import Session
from sparsebench.tasks.build import build_method, container
from sparsebench.training.classifier import Classifier

QUICK = [
    "data=digits", "model=tiny_mlp", "epochs=3", "data.subset=160", "batch_size=16",
    "plots=false", "quiet=true", "trainer.accelerator=cpu", "method.every=2it", "sparsity=0.75",
]  # fmt: skip
PER_EPOCH = 9  # 160 images, 16 of them held out, in batches of 16
TOTAL = 3 * PER_EPOCH


@pytest.fixture
def train(tmp_path):
    """Run overrides to the end: metrics, folder and last checkpoint."""

    def trained(*overrides):
        cfg = compose([*QUICK, f"runs={tmp_path}", *overrides])
        result = run(cfg)
        assert result["status"] == "finished", result.get("error")
        folder = run_folder(cfg)
        return result["metrics"], folder, torch.load(folder / "last.ckpt", weights_only=True)

    return trained


def rows(folder, name="metrics.csv"):
    with (folder / name).open() as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def masks_of(checkpoint):
    packed = checkpoint["callbacks"]["Sparsify"]["masks"]["packed"]
    state = checkpoint["state_dict"]
    return {n: unpack(bits, state[f"model.{n}"].shape) for n, bits in packed.items()}


def weights_of(checkpoint):
    return {
        name.removeprefix("model."): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith("model.")
    }


class Bare:
    """The same training, step by step in the open."""

    def __init__(self, *overrides, clip=None, ema=None, smoothing=0.0):
        cfg = compose([*QUICK, *overrides])
        sets = data.load(container(cfg.data))
        torch.manual_seed(cfg.seed)
        self.model = tiny_mlp(sets.input_shape, sets.num_classes)
        optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=0.1,
            momentum=0.9,
            nesterov=True,
            fused=True,
            weight_decay=5e-4,
        )
        session = Session(
            build_method(cfg), self.model, optimizer,
            total_steps=TOTAL, steps_per_epoch=PER_EPOCH, seed=cfg.seed,
        )  # fmt: skip
        criterion = nn.CrossEntropyLoss(label_smoothing=smoothing)
        loader = data.TrainLoader(sets.train, cfg.batch_size, cfg.seed)
        self.first = dict(session.masks.items())
        self.ever = {n: m.clone() for n, m in self.first.items()}
        self.average = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        self.losses, self.norms, self.rates = [], [], []
        for step in range(TOTAL):
            if step % PER_EPOCH == 0:
                loader.set_epoch(step // PER_EPOCH)
                batches = iter(loader)
                self.losses.append(0.0)
            rate = 0.1 * 0.5 * (1 + math.cos(math.pi * step / TOTAL))
            optimizer.param_groups[0]["lr"] = rate
            session.before_forward()
            x, y = next(batches)
            loss = criterion(self.model(x), y)
            loss.backward()
            self.losses[-1] += loss.item() / PER_EPOCH
            session.after_backward()
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), clip or math.inf)
            optimizer.step()
            optimizer.zero_grad()
            session.after_step()
            self._follow(session, ema)
            if step % PER_EPOCH == PER_EPOCH - 1:
                self.norms.append(norm.item())
                self.rates.append(rate)
        self.masks = dict(session.masks.items())

    @torch.no_grad()
    def _follow(self, session, ema):
        """Union of the masks, and the average: masked, as a weight that is gone counts nothing."""
        for name, mask in session.masks.items():
            self.ever[name] |= mask
        for name, parameter in self.model.named_parameters():
            if ema:
                self.average[name] = ema * self.average[name] + (1 - ema) * parameter
                if name in session.masks.parameters:
                    self.average[name] *= session.masks[name]


# --- one run against the bare loop --------------------------------------------------------------


@pytest.mark.parametrize("method", ["rigl", "set", "snfs", "gmp", "static", "dense"])
def test_a_run_is_bitwise_the_bare_loop(train, method):
    metrics, folder, kept = train(f"method={method}")
    bare = Bare(f"method={method}")
    for name, value in weights_of(kept).items():
        assert torch.equal(value, bare.model.get_parameter(name)), name
    for name, mask in masks_of(kept).items():
        assert torch.equal(mask, bare.masks[name]), name
    assert [row["train/loss"] for row in rows(folder)] == pytest.approx(bare.losses, rel=1e-6)
    assert [row["gradient_norm"] for row in rows(folder)] == pytest.approx(bare.norms, rel=1e-6)
    assert [row["lr"] for row in rows(folder)] == bare.rates
    digest = hashlib.sha256()
    for entries in (weights_of(kept), kept["callbacks"]["Sparsify"]["masks"]["packed"]):
        for name in sorted(entries):
            digest.update(name.encode() + entries[name].numpy().tobytes())
    assert metrics["weights_sha256"] == digest.hexdigest()


def test_clipping_is_by_the_norm_of_the_masked_gradient(train):
    _, _, kept = train("trainer.clip=0.1")
    bare = Bare(clip=0.1)
    assert min(bare.norms) > 0.1  # or nothing was clipped
    for name, value in weights_of(kept).items():
        assert torch.allclose(value, bare.model.get_parameter(name), rtol=1e-4, atol=1e-6), name
    assert all(torch.equal(mask, bare.masks[name]) for name, mask in masks_of(kept).items())


def test_label_smoothing_is_torchs(train):
    _, folder, kept = train("trainer.label_smoothing=0.1")
    bare = Bare(smoothing=0.1)
    assert all(torch.equal(v, bare.model.get_parameter(n)) for n, v in weights_of(kept).items())
    assert [row["train/loss"] for row in rows(folder)] == pytest.approx(bare.losses, rel=1e-6)


def test_the_average_is_the_masked_one_and_is_what_is_tested(train):
    metrics, _, kept = train("trainer.ema=0.8")
    bare = Bare(ema=0.8)
    average = {n.removeprefix("model."): v for n, v in kept["callbacks"]["Ema"]["average"].items()}
    for name, value in average.items():
        assert torch.allclose(value, bare.average[name], rtol=1e-5, atol=1e-7), name
    for name, mask in masks_of(kept).items():
        assert not average[name][~mask].any()
    assert sum(int(m.sum()) for m in masks_of(kept).values()) == metrics["nonzeros"]
    for name, parameter in bare.model.named_parameters():
        parameter.data.copy_(average[name])
    test = data.load(container(compose(QUICK).data)).test
    x, y = next(iter(data.EvalLoader(test, len(test))))
    right = (bare.model(x).argmax(1) == y).float().mean().item()
    assert metrics["test/accuracy"] == pytest.approx(right, abs=1e-6)
    assert metrics["weights_sha256"] != train()[0]["weights_sha256"]


@pytest.mark.parametrize("method", ["rigl", "snfs", "gmp"])
def test_two_halves_of_a_batch_give_the_masks_of_the_whole(train, method):
    whole, _, first = train(f"method={method}")
    halves, _, second = train(f"method={method}", "trainer.accumulate=2")
    one, other = masks_of(first), masks_of(second)
    assert all(torch.equal(one[name], other[name]) for name in one)
    for name, value in weights_of(first).items():
        assert torch.allclose(value, weights_of(second)[name], rtol=1e-3, atol=1e-5), name
    for key in ("steps", "nonzeros", "flops/training", "flops/dense_gradient_steps"):
        assert whole[key] == halves[key]


def test_accumulation_ends_an_epoch_with_a_whole_step(train):
    metrics, _, _ = train("trainer.accumulate=16")  # 144 images one by one, 16 to a step
    assert metrics["steps"] == TOTAL
    with pytest.raises(UserError, match=r"batch_size=16.*trainer\.accumulate=3"):
        train("trainer.accumulate=3")


def test_channels_last_gives_the_masks_of_the_default_layout(train):
    _, _, first = train("model=tiny_conv")
    _, _, second = train("model=tiny_conv", "trainer.channels_last=false")
    one, other = masks_of(first), masks_of(second)
    assert all(torch.equal(one[name], other[name]) for name in one)
    for name, value in weights_of(first).items():
        assert torch.allclose(value, weights_of(second)[name], rtol=1e-2, atol=1e-4), name


# --- what changes the loss ----------------------------------------------------------------------


@pytest.mark.parametrize("dial", ["mixup=1.0", "cutmix=1.0"])
def test_mixed_images_carry_mixed_labels(monkeypatch, train, dial):
    seen = []
    step = Classifier.training_step

    def spy(self, batch, batch_idx):
        x, y = self.mix(*batch)
        seen.append((batch[0], batch[1], x, y))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", spy)
    metrics, _, _ = train(f"trainer.{dial}")
    plain_x, plain_y, x, y = seen[0]
    assert y.shape == (16, 10)
    assert torch.allclose(y.sum(1), torch.ones(16))
    share = y.gather(1, plain_y[:, None])  # of each image's own class, the least it can have
    assert (share < 1).any()
    assert not torch.equal(x, plain_x)
    if dial.startswith("cutmix"):  # each pixel is that of one of the two
        assert ((x == plain_x) | (x == plain_x.roll(1, 0))).all()
    monkeypatch.undo()
    assert metrics["train/loss"] > train()[0]["train/loss"]


def test_both_mixers_are_used_in_turn(monkeypatch, train):
    import torchvision.transforms.v2 as v2

    used = set()
    for kind in (v2.MixUp, v2.CutMix):
        forward = kind.forward
        monkeypatch.setattr(
            kind, "forward", lambda s, *a, f=forward, k=kind: used.add(k) or f(s, *a)
        )
    train("trainer.mixup=0.2", "trainer.cutmix=1.0")
    assert used == {v2.MixUp, v2.CutMix}


def test_mixing_needs_images(train):
    with pytest.raises(UserError, match=r"trainer\.mixup=0\.2.*mnist1d"):
        train("data=mnist1d", "trainer.mixup=0.2")


def test_bf16_keeps_weights_and_counts_in_full(train):
    metrics, _, kept = train("trainer=bf16")
    plain, _, _ = train()
    assert {value.dtype for value in weights_of(kept).values()} == {torch.float32}
    assert metrics["nonzeros"] == plain["nonzeros"]
    assert metrics["weights_sha256"] != plain["weights_sha256"]
    assert metrics["train/loss"] == pytest.approx(plain["train/loss"], rel=0.3)


def test_compiled_training_is_the_same_training(monkeypatch, train):
    backends = []
    compiled = nn.Module.compile

    def eagerly(self):  # inductor's own arithmetic is not ours to test, and wants a compiler
        backends.append(type(self))
        compiled(self, backend="eager")

    monkeypatch.setattr(nn.Module, "compile", eagerly)
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    metrics, _, kept = train("trainer.compile=true")
    assert backends == [nn.Sequential]
    monkeypatch.undo()
    plain, _, other = train()
    assert metrics["weights_sha256"] == plain["weights_sha256"]
    assert list(kept["state_dict"]) == list(other["state_dict"])


def test_compiling_without_a_compiler_is_refused(monkeypatch, train, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "my-c++")
    with pytest.raises(UserError, match=r"trainer\.compile=true.*'my-c\+\+'"):
        train("trainer.compile=true")
    assert not list(tmp_path.iterdir())


def test_threads_are_those_asked_for(monkeypatch, train):
    seen = set()
    step = Classifier.training_step
    monkeypatch.setattr(
        Classifier,
        "training_step",
        lambda s, *a: seen.add(torch.get_num_threads()) or step(s, *a),
    )
    before = torch.get_num_threads()
    try:
        train("trainer.threads=2")
    finally:
        torch.set_num_threads(before)
    assert seen == {2}


def test_patience_ends_training_early_and_for_good(train):
    still = ("optimizer.lr=1e-9", "trainer.patience=1", "epochs=6", "method.end=30%")
    metrics, folder, _ = train(*still)
    assert metrics["epochs"] == 2  # the second is no better than the first
    assert metrics["steps"] == 2 * PER_EPOCH
    (folder / "result.json").unlink()  # as if killed between the last epoch and the test
    again, _, _ = train(*still)
    assert again["weights_sha256"] == metrics["weights_sha256"]
    assert again["epochs"] == 2
    with pytest.raises(UserError, match=r"trainer\.patience=1.*data\.validation=0"):
        train("trainer.patience=1", "data.validation=0")


# --- files and counts ---------------------------------------------------------------------------

COLUMNS = [
    "epoch", "step", "lr", "train/loss", "validation/loss", "validation/accuracy",
    "validation/top5", "gradient_norm", "nonzeros", "sparsity", "itop_rate", "survived",
    "distance", "dead_units", "flops/inference", "flops/training", "flops/training_relative",
]  # fmt: skip


def test_the_last_row_is_what_the_masks_say(train):
    metrics, folder, kept = train("method=set", "sparsity=0.95", "method.drop_fraction=0.5")
    bare = Bare("method=set", "sparsity=0.95", "method.drop_fraction=0.5")
    table = rows(folder)
    assert list(table[0]) == COLUMNS
    assert [row["epoch"] for row in table] == [1, 2, 3]
    assert [row["step"] for row in table] == [PER_EPOCH, 2 * PER_EPOCH, TOTAL]
    masks, last = masks_of(kept), table[-1]
    size = sum(mask.numel() for mask in masks.values())
    count = sum(int(mask.sum()) for mask in masks.values())
    both = sum(int((masks[name] & bare.first[name]).sum()) for name in masks)
    expected = {
        "nonzeros": count,
        "sparsity": 1 - count / size,
        "itop_rate": sum(int(mask.sum()) for mask in bare.ever.values()) / size,
        "survived": both / count,
        "distance": 1 - both / count,
        "dead_units": sum(int((~mask.any(1)).sum()) for mask in masks.values()),
        "flops/inference": 2 * count,  # each weight of a linear layer is used once
    }
    assert expected["survived"] < 0.9
    assert expected["dead_units"] > 0
    for name, value in expected.items():
        assert last[name] == pytest.approx(value, rel=1e-12), name
        assert metrics[name] == last[name], name
    densities = {name: int(mask.sum()) / mask.numel() for name, mask in masks.items()}
    assert rows(folder, "density.csv")[-1] == {"epoch": 3, **densities}
    assert len(rows(folder, "seconds.csv")) == 3


def test_without_validation_there_are_no_columns_of_it(train):
    _, folder, _ = train("data.validation=0")
    assert list(rows(folder)[0]) == [c for c in COLUMNS if not c.startswith("validation")]


def test_a_run_that_is_done_is_not_done_again(train):
    metrics, folder, _ = train()
    stamp = (folder / "metrics.csv").stat().st_mtime_ns
    assert train()[0] == metrics
    assert (folder / "metrics.csv").stat().st_mtime_ns == stamp
    shutil.rmtree(folder)
    assert train()[0]["weights_sha256"] == metrics["weights_sha256"]
