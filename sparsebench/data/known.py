"""What is known about the named image sets: where they lie, their size, their recipe."""

from __future__ import annotations

from dataclasses import dataclass

from sparsebench.data.augment import Recipe


@dataclass(frozen=True)
class Known:
    """One named set."""

    name: str
    folders: tuple[str, ...]  # names of its folder, in the order they are looked for
    hub: str  # its repository; empty if there is none
    shape: tuple[int, int, int]  # (C, H, W) of a sample
    recipe: Recipe  # mean and std over the training images, and the usual augmentation
    label_column: str | None = None  # where the data hold more than one
    tests: tuple[str, ...] = ("test",)  # names of the split that is tested on
    packages: tuple[str, ...] = ()  # other ways to get it
    lossless: bool = True  # the original is: a copy in JPEG is said to be one

    @property
    def advice(self) -> str:
        """How to get it, in words."""
        command = f"hf download {self.hub} --repo-type dataset --local-dir <root>/{self.name}"
        ways = (command, *self.packages) if self.hub else self.packages
        return " or ".join(f"'{way}'" for way in ways)


def _cifar(mean: tuple[float, ...], std: tuple[float, ...]) -> Recipe:
    return Recipe(mean=mean, std=std, pad=4, flip=True)


KNOWN = {
    known.name: known
    for known in (
        Known(
            "mnist",
            ("mnist", "MNIST/raw", "MNIST"),
            "ylecun/mnist",
            (1, 28, 28),
            Recipe(mean=(0.1307,), std=(0.3081,)),
        ),
        Known(
            "fashion_mnist",
            ("fashion_mnist", "fashion-mnist", "FashionMNIST/raw", "FashionMNIST"),
            "zalando-datasets/fashion_mnist",
            (1, 28, 28),
            Recipe(mean=(0.2860,), std=(0.3530,)),
            packages=("apt install dataset-fashion-mnist",),
        ),
        Known(
            "cifar10",
            ("cifar10", "cifar-10-batches-py"),
            "uoft-cs/cifar10",
            (3, 32, 32),
            _cifar((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        ),
        Known(
            "cifar100",
            ("cifar100", "cifar-100-python"),
            "uoft-cs/cifar100",
            (3, 32, 32),
            _cifar((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
            label_column="fine_label",
        ),
        Known(
            "svhn",
            ("svhn/cropped_digits", "svhn"),
            "ufldl-stanford/svhn",
            (3, 32, 32),
            Recipe(mean=(0.4377, 0.4438, 0.4728), std=(0.1980, 0.2010, 0.1970)),
        ),
        Known(
            "notmnist",
            ("notmnist", "notMNIST"),
            "",
            (1, 28, 28),
            Recipe(mean=(0.5,), std=(0.5,)),
            packages=("folders <root>/notmnist/{train,test}/<letter> of images",),
        ),
        Known(
            "mini_imagenet",
            ("mini_imagenet", "mini-imagenet"),
            "timm/mini-imagenet",
            (3, 84, 84),
            _cifar((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)),
            lossless=False,
        ),
        Known(
            "tiny_imagenet",
            ("tiny_imagenet", "tiny-imagenet-200", "tiny-imagenet"),
            "zh-plus/tiny-imagenet",
            (3, 64, 64),
            _cifar((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)),
            tests=("valid", "validation", "val"),
            lossless=False,
        ),
        Known(
            "imagenet",
            ("imagenet", "imagenet-1k", "ILSVRC2012"),
            "ILSVRC/imagenet-1k",
            (3, 224, 224),
            Recipe(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), flip=True),
            tests=("validation", "val", "valid"),
            lossless=False,
        ),
    )
}
