"""A run interrupted after any batch goes on bitwise, by the loader alone."""

import contextlib
import warnings

import pytest
import torch

lightning = pytest.importorskip("lightning")

from lightning.pytorch import Callback, LightningModule, Trainer  # noqa: E402 - after the check

from sparsebench.data import EvalLoader, Recipe, TensorImages, TrainLoader  # noqa: E402

SAMPLES, BATCH, EPOCHS = 22, 5, 3  # four batches an epoch, two samples left over
STEPS = SAMPLES // BATCH * EPOCHS


def images():
    """Images whose brightness tells which sample they are; padded, cropped and flipped."""
    values = torch.arange(1, SAMPLES + 1, dtype=torch.uint8).view(-1, 1, 1, 1)
    stored = values.expand(-1, 3, 6, 6).clone()
    stored[..., 0] += 100  # a bright edge, so that a flip shows
    recipe = Recipe(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), pad=1, flip=True)
    return TensorImages.of(stored, torch.arange(SAMPLES) % 3, recipe)


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(108, 3))
        self.seen = []

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.seen.append((self.current_epoch, batch_idx, x.double().sum().item(), y.tolist()))
        return torch.nn.functional.cross_entropy(self.net(x), y)

    def validation_step(self, batch, batch_idx):
        self.net(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Save(Callback):
    """Write a checkpoint at one hook; ``stop`` ends the run there."""

    def __init__(self, path, hook, step):
        self.path, self.hook, self.step = path, hook, step

    def _save(self, trainer, hook):
        if hook == self.hook and trainer.global_step == self.step and not trainer.sanity_checking:
            trainer.save_checkpoint(self.path, weights_only=False)
            raise KeyboardInterrupt

    def on_train_batch_end(self, trainer, *_):
        self._save(trainer, "batch")

    def on_validation_end(self, trainer, _):
        self._save(trainer, "validation")

    def on_train_epoch_end(self, trainer, _):
        self._save(trainer, "epoch")


def fit(callbacks=(), checkpoint=None, **options):
    net = Net()
    trainer = Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
        **options,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(SystemExit):  # Lightning's answer to the KeyboardInterrupt above
            trainer.fit(
                net,
                TrainLoader(images(), BATCH, seed=3),
                EvalLoader(images(), BATCH),
                ckpt_path=checkpoint,
                weights_only=True if checkpoint else None,
            )
    return net


def interrupted(path, hook, step, **options):
    """What a run saw until it was killed, and what the resumed one saw and became."""
    first = fit([Save(path, hook, step)], **options)
    assert path.exists()
    torch.manual_seed(99)  # another process has other global generators
    second = fit(checkpoint=path, **options)
    return first.seen, second


def assert_equal_to_uninterrupted(seen, resumed, **options):
    whole = fit(**options)
    assert seen + resumed.seen == whole.seen
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


@pytest.mark.parametrize("step", range(1, STEPS))
def test_resumes_bitwise_after_any_batch(tmp_path, step):
    seen, resumed = interrupted(tmp_path / "last.ckpt", "batch", step)
    assert len(seen) == step
    assert_equal_to_uninterrupted(seen, resumed)


@pytest.mark.parametrize("hook", ["validation", "epoch"])
@pytest.mark.parametrize("step", [4, 8])
def test_resumes_bitwise_at_the_end_of_an_epoch(tmp_path, hook, step):
    seen, resumed = interrupted(tmp_path / "last.ckpt", hook, step)
    assert_equal_to_uninterrupted(seen, resumed)


@pytest.mark.parametrize("step", [2, 3, 4])
def test_resumes_with_fewer_batches_an_epoch(tmp_path, step):
    seen, resumed = interrupted(tmp_path / "a.ckpt", "batch", step, limit_train_batches=3)
    assert_equal_to_uninterrupted(seen, resumed, limit_train_batches=3)


@pytest.mark.parametrize("step", [2, 4, 6])
def test_resumes_with_validation_inside_the_epoch(tmp_path, step):
    seen, resumed = interrupted(tmp_path / "a.ckpt", "validation", step, val_check_interval=2)
    assert_equal_to_uninterrupted(seen, resumed, val_check_interval=2)
