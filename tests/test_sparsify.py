"""The Lightning callback in a plain module of a user's own, and in the user's own Trainer."""

import copy
import logging
import math
import pickle

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from sparsebench.errors import UserError
from sparsebench.library import method
from sparsebench.sparsity import Session
from sparsebench.training.sparsify import Sparsify

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
pytestmark = pytest.mark.filterwarnings("ignore")
RIGL = {"sparsity": 0.8, "every": "2it", "end": "100%", "drop_fraction": 0.5}


class Plain(LightningModule):
    """What a user has: a network, a loss, an optimizer."""

    def __init__(self, compiled: bool = False, momentum: float = 0.9) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 12), nn.Linear(12, 4))
        self.run = torch.compile(self.net, backend="eager") if compiled else self.net
        self.momentum = momentum

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.run(batch[0]), batch[1])

    def validation_step(self, batch, index):
        return self.training_step(batch, index)

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=self.momentum)


def data(n: int = 48) -> TensorDataset:
    generator = torch.Generator().manual_seed(3)
    x = (torch.randn(n, 6, generator=generator) * 4).round() / 8
    return TensorDataset(x, torch.randint(4, (n,), generator=generator))


def trainer(folder, *callbacks, **settings) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"accelerator": "cpu", "enable_checkpointing": False, "num_sanity_val_steps": 0}
    settings = {**quiet, "max_epochs": 2, "default_root_dir": folder, **settings}
    return Trainer(callbacks=list(callbacks), **settings)


def loader(batch: int = 8) -> DataLoader:
    return DataLoader(data(), batch_size=batch)


def rigl(**dials) -> Sparsify:
    return Sparsify(method("rigl", **{**RIGL, **dials}), seed=1)


class Watch(Callback):
    """Checks at the start of each batch what the forward pass will see."""

    def __init__(self, sparsify: Sparsify) -> None:
        self.sparsify = sparsify
        self.digests: list[str] = []

    def on_train_batch_start(self, trainer, module, batch, index):
        masks = self.sparsify.session.masks
        masks.check()
        self.digests.append(masks.digest())


# --- the same as a bare loop -------------------------------------------------------------------


def test_is_the_bare_loop(tmp_path):
    sparsify, module = rigl(), Plain()
    watch = Watch(sparsify)
    trainer(tmp_path, sparsify, watch).fit(module, loader())
    bare = Plain()
    optimizer = bare.configure_optimizers()
    engine = method("rigl", **RIGL)
    session = Session(engine, bare, optimizer, total_steps=12, steps_per_epoch=6, seed=1)
    digests = []
    for batch in [*loader(), *loader()]:
        digests.append(session.masks.digest())
        session.before_forward()
        bare.training_step(batch, 0).backward()
        session.after_backward()
        optimizer.step()
        optimizer.zero_grad()
        session.after_step()
    assert watch.digests == digests
    assert len(set(digests)) > 4
    for name, value in bare.state_dict().items():
        assert torch.equal(value, module.state_dict()[name])
    assert list(sparsify.session.masks) == ["net.0.weight", "net.2.weight", "net.3.weight"]


def test_a_name_and_plain_values_are_enough(tmp_path):
    sparsify = Sparsify("static", sparsity=0.5, selector={"exclude": ["3.*"]}, module="net")
    trainer(tmp_path, sparsify).fit(Plain(), loader())
    assert sparsify.session.masks.sparsity == pytest.approx(0.5)
    assert list(sparsify.session.masks) == ["0.weight", "2.weight"]


@pytest.mark.parametrize("name", ["rigl", "snfs"])
def test_accumulation_gives_the_masks_of_the_large_batch(tmp_path, name):
    runs = []
    for batch, accumulate in ((16, 1), (4, 4)):
        sparsify, module = Sparsify(method(name, **RIGL), seed=1), Plain().double()
        settings = {"accumulate_grad_batches": accumulate, "precision": "64-true"}
        watch = Watch(sparsify)
        trainer(tmp_path, sparsify, watch, max_epochs=4, **settings).fit(module, loader(batch))
        runs.append((watch.digests[::accumulate], sparsify.session.masks.digest(), module))
    assert runs[0][:2] == runs[1][:2]
    assert len(set(runs[0][0])) > 3
    for one, two in zip(*(module.parameters() for _, _, module in runs), strict=True):
        assert torch.allclose(one, two)


def test_the_last_incomplete_window_of_accumulation_counts_as_a_step(tmp_path):
    sparsify = rigl()
    run = trainer(tmp_path, sparsify, accumulate_grad_batches=4)
    run.fit(Plain(), loader())  # 6 batches an epoch: 4 and 2
    assert sparsify.session.state.step == run.global_step == 4
    assert sparsify.session.state.total_steps == 4
    assert sparsify.session.state.steps_per_epoch == 2


def test_growth_sees_the_gradient_before_clipping(tmp_path):
    class Gradients(Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            kept = sparsify.method.observers["gradient"].kept
            if kept:
                seen.append(max(float(g.abs().max()) for g in kept.values()))
                masked = all((p.grad[~sparsify.session.masks[n]] == 0).all() for n, p in named())
                assert masked

    def named():
        return sparsify.session.masks.parameters.items()

    seen: list[float] = []
    sparsify, module = rigl(), Plain()
    clip = {"gradient_clip_val": 1e-6, "gradient_clip_algorithm": "value"}
    trainer(tmp_path, sparsify, Gradients(), **clip).fit(module, loader())
    assert len(seen) == 6
    assert min(seen) > 1e-3
    sparsify.session.masks.check()


# --- precision ---------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_precisions(tmp_path, precision):
    sparsify, module = rigl(), Plain()
    watch = Watch(sparsify)
    trainer(tmp_path, sparsify, watch, precision=precision).fit(module, loader())
    masks = sparsify.session.masks
    assert len(set(watch.digests)) > 3
    weights = sum(p.numel() for p in masks.parameters.values())
    assert sum(masks.nonzeros.values()) == round(0.2 * weights)
    assert all(masks.factor(n).dtype == p.dtype for n, p in masks.parameters.items())


class Overflow(MixedPrecision):
    """fp16's scaler on a CPU, whose third and fourth steps overflow."""

    def __init__(self) -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        super().__init__("16-mixed", "cpu", scaler)
        self.calls = 0

    def forward_context(self):
        return torch.autocast("cpu", enabled=False)

    def pre_backward(self, tensor, module):
        self.calls += 1
        scaled = super().pre_backward(tensor, module)
        return scaled * math.inf if self.calls in (3, 4) else scaled


@pytest.mark.parametrize("name", ["rigl", "snfs"])
def test_a_step_the_scaler_skips_does_not_count(tmp_path, name):
    sparsify, module = Sparsify(method(name, **RIGL), seed=1), Plain()
    run = trainer(tmp_path, sparsify, plugins=[Overflow()])
    run.fit(module, loader())
    assert sparsify.session.state.step == 10
    assert sparsify.session.state.notes == []
    sparsify.session.masks.check()
    assert all(p.isfinite().all() for p in module.parameters())
    if name == "snfs":
        kept = sparsify.method.observers["momentum"].kept
        assert all(m.isfinite().all() for m in kept.values())


def test_a_compiled_network_follows_the_masks(tmp_path):
    runs = []
    for compiled in (False, True):
        sparsify, module = Sparsify(method("rigl", **RIGL), seed=1, module="net"), Plain(compiled)
        trainer(tmp_path, sparsify, Watch(sparsify)).fit(module, loader())
        runs.append((sparsify.session.masks.digest(), list(module.net.parameters())))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(a, b) for a, b in zip(runs[0][1], runs[1][1], strict=True))


# --- checkpoints of the user's own -------------------------------------------------------------


@pytest.mark.parametrize(
    "name, dials",
    [
        ("rigl", RIGL), ("set", RIGL), ("snfs", RIGL), ("rigl", {**RIGL, "storage": "frozen"}),
        ("gmp", {"sparsity": 0.8, "every": "2it"}), ("set", {**RIGL, "storage": "shadow"}),
    ],
    ids=["rigl", "set", "snfs", "frozen", "gmp", "shadow"],
)  # fmt: skip
def test_resume_in_a_fresh_trainer_is_bitwise(tmp_path, name, dials):
    def run(folder, resume=None, seed=1):
        sparsify, module = Sparsify(method(name, **dials), seed=seed), Plain()
        keep = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=3)
        fit = trainer(folder, sparsify, keep, max_epochs=4, enable_checkpointing=True)
        fit.fit(module, loader(16), loader(16), ckpt_path=resume, weights_only=True)
        return torch.load(folder / "step=12.ckpt", weights_only=True), sparsify

    whole, first = run(tmp_path / "whole")
    for step in (3, 6, 9):
        resumed, again = run(tmp_path / str(step), tmp_path / f"whole/step={step}.ckpt", seed=9)
        for part in ("state_dict", "optimizer_states"):
            assert_same(whole[part], resumed[part])
        key = first.state_key
        assert_same(whole["callbacks"][key], resumed["callbacks"][key])
        assert first.session.masks.digest() == again.session.masks.digest()


def assert_same(a, b):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict | list | tuple):
        assert len(a) == len(b)
        for x, y in zip(*(v.values() if isinstance(v, dict) else v for v in (a, b)), strict=True):
            assert_same(x, y)
    else:
        assert a == b


# --- other trainers and modules ----------------------------------------------------------------


def test_evaluation_sees_the_sparse_weights(tmp_path):
    class Look(Callback):
        def on_validation_batch_start(self, trainer, module, batch, index, dataloader_idx=0):
            for name, mask in sparsify.session.masks.items():
                assert torch.equal(module.get_parameter(name) != 0, mask)
                seen.append(name)

    seen: list[str] = []
    sparsify, module = rigl(storage="shadow"), Plain()
    trainer(tmp_path, sparsify, Look()).fit(module, loader(), loader())
    assert len(seen) == 2 * 6 * 3


def test_what_is_left_is_sparse(tmp_path):
    sparsify, module = rigl(storage="shadow"), Plain()
    trainer(tmp_path, sparsify).fit(module, loader())
    for name, mask in sparsify.session.masks.items():
        assert torch.equal(module.get_parameter(name) != 0, mask)


class Adversaries(LightningModule):
    """Two networks, two optimizers, manual optimization."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = False
        self.first, self.second = nn.Linear(6, 30), nn.Linear(30, 6)

    def training_step(self, batch, index):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.second(self.first(batch[0])).pow(2).mean())
            optimizer.step()

    def configure_optimizers(self):
        networks = (self.first, self.second)
        return [torch.optim.SGD(n.parameters(), lr=0.1, momentum=0.9) for n in networks]


def test_two_optimizers_in_turn(tmp_path):
    sparsify, module = rigl(), Adversaries()
    trainer(tmp_path, sparsify, Watch(sparsify)).fit(module, loader())
    sparsify.session.masks.check()
    assert sparsify.session.state.step == 12


class Stream(IterableDataset):
    def __iter__(self):
        yield from data()


def test_data_without_a_length(tmp_path):
    stream = DataLoader(Stream(), batch_size=8)
    sparsify = rigl()
    trainer(tmp_path, sparsify, max_epochs=-1, max_steps=9).fit(Plain(), stream)
    assert sparsify.session.state.total_steps == sparsify.session.state.step == 9
    with pytest.raises(UserError, match="trainer.max_steps: must be set"):
        trainer(tmp_path, rigl(), max_epochs=2).fit(Plain(), stream)


def test_an_exception_lets_go_of_the_optimizer(tmp_path):
    class Stop(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, index):
            optimizers.append(trainer.optimizers[0])
            raise ZeroDivisionError

    optimizers: list[torch.optim.Optimizer] = []
    with pytest.raises(ZeroDivisionError):
        trainer(tmp_path, rigl(), Stop()).fit(Plain(), loader())
    assert not optimizers[0]._optimizer_step_post_hooks


def test_a_callback_can_be_copied_and_pickled(tmp_path):
    digests = []
    for copied in (rigl(), copy.deepcopy(rigl()), pickle.loads(pickle.dumps(rigl()))):
        trainer(tmp_path, copied).fit(Plain(), loader())
        digests.append(copied.session.masks.digest())
    assert len(set(digests)) == 1


def test_mistakes_are_told_before_the_first_step(tmp_path):
    with pytest.raises(UserError, match="no update would happen"):
        trainer(tmp_path, rigl(every="100it")).fit(Plain(), loader())
    with pytest.raises(UserError, match="method=rigI.*did you mean 'rigl'"):
        Sparsify("rigI")
