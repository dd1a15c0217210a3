"""A whole run over hand-written PyTorch that does the same work.

    python scripts/bench/whole_run.py [digits|cifar10|common]

``digits`` and ``cifar10`` (random images of its shape): the bare loop has the data in memory,
augments in batches, masks, evaluates each epoch and at the end, and nothing else. ``common`` is
the loop people write: a torchvision set, transforms for each sample, a DataLoader with a worker
for each core, default memory layout.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import Ratio, alternate, report
from torch import Tensor, nn

from sparsebench.config.compose import compose
from sparsebench.models import build
from sparsebench.run import run
from sparsebench.sparsity.distributions import allocate

DIGITS_EPOCHS, CIFAR_IMAGES, CIFAR_EPOCHS = 100, 2560, 1


def ours(overrides: list[str]) -> Callable[[], None]:
    """One run of the runner, in this process, in a fresh folder each time."""
    cfg = compose([*overrides, "quiet=true", "plots=false"])

    def whole() -> None:
        with tempfile.TemporaryDirectory() as folder:
            cfg.runs = folder
            result = run(cfg)
        assert result["status"] == "finished", result.get("error")

    return whole


def masks_for(model: nn.Module) -> dict[nn.Parameter, Tensor]:
    """Random ERK masks at 90 %."""
    weights = {n: p for n, p in model.named_parameters() if p.ndim > 1}
    counts = allocate({n: p.shape for n, p in weights.items()}, 0.1, name="erk")
    masks = {}
    for name, parameter in weights.items():
        mask = torch.zeros(parameter.numel())
        mask[torch.randperm(parameter.numel())[: counts[name]]] = 1
        masks[parameter] = torch.ones_like(parameter).mul_(mask.view(parameter.shape))
    return masks


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of correct answers."""
    model.eval()
    right = sum(
        int((model(a).argmax(1) == b).sum())
        for a, b in zip(x.split(256), y.split(256), strict=True)
    )
    model.train()
    return right / len(y)


def bare(
    model: nn.Module,
    train: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    epochs: int,
    batch: int,
    augment: bool,
) -> None:
    """The loop a careful person writes for one experiment."""
    x, y = train
    masks = masks_for(model)
    steps = len(x) // batch
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    criterion = nn.CrossEntropyLoss()
    total = torch.zeros(())
    for _ in range(epochs):
        order = torch.randperm(len(x))
        for positions in order[: steps * batch].split(batch):
            loss = criterion(model(prepare(x[positions], augment)), y[positions])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                for parameter, mask in masks.items():
                    parameter.mul_(mask)
                    optimizer.state[parameter]["momentum_buffer"].mul_(mask)
            total += loss.detach()
        accuracy(model, prepare(validation[0], False), validation[1])
    accuracy(model, prepare(test[0], False), test[1])


def prepare(images: Tensor, augment: bool) -> Tensor:
    """uint8 images as channels-last floats; random crops and flips where asked."""
    if images.dtype != torch.uint8:
        return images
    if augment:
        n = len(images)
        padded = nn.functional.pad(images, (4, 4, 4, 4))
        windows = padded.unfold(2, 32, 1).unfold(3, 32, 1)
        rows, columns = torch.randint(9, (2, n))
        images = windows[torch.arange(n), :, rows, columns]
        flip = (torch.rand(n) < 0.5).view(-1, 1, 1, 1)
        images = torch.where(flip, images.flip(3), images)
    return (
        images.to(torch.float32)
        .div_(255)
        .sub_(0.5)
        .div_(0.25)
        .contiguous(memory_format=torch.channels_last)
    )


def digits() -> Ratio:
    """MLP on digits."""
    from sklearn.datasets import load_digits

    def loop() -> None:
        x, y = load_digits(return_X_y=True)
        x, y = torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)
        model = nn.Sequential(
            nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
        )
        parts = ((x[:1293], y[:1293]), (x[1293:1437], y[1293:1437]), (x[1437:], y[1437:]))
        bare(model, *parts, DIGITS_EPOCHS, 128, augment=False)

    overrides = ["method=static", f"epochs={DIGITS_EPOCHS}"]
    name = f"whole run / bare loop, MLP on digits, {DIGITS_EPOCHS} epochs"
    return alternate(name, ours(overrides), loop, target=1.6, pairs=30)


def fake_cifar(folder: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random images in CIFAR-10's shape, on disk as the hub has it, and as tensors."""
    from datasets import ClassLabel, Dataset, Features, Image

    rng = np.random.default_rng(0)
    features = Features({"img": Image(), "label": ClassLabel(num_classes=10)})
    (folder / "cifar10").mkdir(parents=True)
    tensors = []
    for split, n in (("train", CIFAR_IMAGES), ("test", 512)):
        images = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
        labels = np.arange(n) % 10
        rows = Dataset.from_dict({"img": list(images), "label": labels}, features=features)
        rows.to_parquet(str(folder / "cifar10" / f"{split}.parquet"))
        tensors += [
            torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
            torch.from_numpy(labels),
        ]
    train, labels, test, test_labels = tensors
    return train, labels, test, test_labels


def resnet() -> nn.Module:
    """ResNet-20."""
    return build({"_target_": "sparsebench.models.cifar_resnet.resnet20"}, (3, 32, 32), 10)


def cifar10() -> Ratio:
    """ResNet-20 on images of CIFAR-10's shape, against a bare loop."""
    x, y, tx, ty = cifar_data()
    cut = len(x) - 256

    def loop() -> None:
        model = resnet().to(memory_format=torch.channels_last)
        bare(
            model, (x[:cut], y[:cut]), (x[cut:], y[cut:]), (tx, ty), CIFAR_EPOCHS, 128, augment=True
        )

    name = f"whole run / bare loop, ResNet-20, {CIFAR_EPOCHS} epoch of {CIFAR_IMAGES}"
    return alternate(name, ours(cifar_overrides()), loop, target=1.1, pairs=30, warm_up=1)


def common_loop() -> Ratio:
    """ResNet-20 against the loop people write."""
    from torchvision import transforms
    from torchvision.datasets import CIFAR10

    x, y, tx, ty = cifar_data()
    cut = len(x) - 256

    class Memory(CIFAR10):
        """torchvision's set, with our arrays in place of its download."""

        def __init__(self, images: Tensor, labels: Tensor, transform: object) -> None:
            self.data, self.targets = images.permute(0, 2, 3, 1).numpy(), labels.tolist()
            self.transform, self.target_transform = transform, None

    normal = transforms.Normalize((0.49, 0.48, 0.45), (0.25, 0.24, 0.26))
    plain = transforms.Compose([transforms.ToTensor(), normal])
    random = transforms.Compose(
        [
            transforms.RandomCrop(32, 4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            normal,
        ]
    )

    def loader(
        images: Tensor, labels: Tensor, transform: object, train: bool
    ) -> torch.utils.data.DataLoader:
        sets = Memory(images, labels, transform)
        workers = os.cpu_count() or 1
        return torch.utils.data.DataLoader(
            sets, 128, shuffle=train, drop_last=train, num_workers=workers
        )

    def loop() -> None:
        model = resnet()
        masks = masks_for(model)
        optimizer = torch.optim.SGD(
            model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
        criterion = nn.CrossEntropyLoss()
        for _ in range(CIFAR_EPOCHS):
            for images, labels in loader(x[:cut], y[:cut], random, True):
                optimizer.zero_grad()
                criterion(model(images), labels).backward()
                optimizer.step()
                with torch.no_grad():
                    for parameter, mask in masks.items():
                        parameter.mul_(mask)
            for part in ((x[cut:], y[cut:]), (tx, ty)):
                model.eval()
                with torch.no_grad():
                    for images, labels in loader(*part, plain, False):
                        (model(images).argmax(1) == labels).sum().item()
                model.train()

    name = "whole run / the common loop, ResNet-20"
    return alternate(name, ours(cifar_overrides()), loop, target=0.8, pairs=30, warm_up=1)


_FOLDER = Path(tempfile.gettempdir()) / f"sparsebench-bench-{os.getpid()}"
_DATA: list[tuple[Tensor, ...]] = []


def cifar_data() -> tuple[Tensor, ...]:
    """Made once."""
    if not _DATA:
        _DATA.append(fake_cifar(_FOLDER))
    return _DATA[0]


def cifar_overrides() -> list[str]:
    """The same work, as overrides."""
    return [
        "model=resnet20", "data=cifar10", f"data.root={_FOLDER}", "data.validation=256",
        f"data.train_size={CIFAR_IMAGES}", "method=static", f"epochs={CIFAR_EPOCHS}",
    ]  # fmt: skip


def main() -> None:
    """Measure and print."""
    parts = {"digits": digits, "cifar10": cifar10, "common": common_loop}
    chosen = sys.argv[1:] or list(parts)
    try:
        report("whole_run", [parts[name]() for name in chosen])
    finally:
        shutil.rmtree(_FOLDER, ignore_errors=True)


if __name__ == "__main__":
    main()
