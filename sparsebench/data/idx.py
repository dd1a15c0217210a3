"""The idx files of MNIST and Fashion-MNIST, plain or gzipped."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

from torch import Tensor

from sparsebench.errors import UserError

PREFIXES = {"train": "train", "test": "t10k"}


def idx_files(folder: Path) -> dict[str, Path] | None:
    """The four files by ``<split>_<images|labels>``, or None if the first is not there.

    Raises:
        UserError: some of the four are missing.
    """
    found: dict[str, Path] = {}
    for split, prefix in PREFIXES.items():
        for part, dimensions in (("images", 3), ("labels", 1)):
            stem = f"{prefix}-{part}-idx{dimensions}-ubyte"
            there = [path for path in (folder / f"{stem}.gz", folder / stem) if path.exists()]
            if not there and not found:
                return None
            if not there:
                raise UserError(f"{folder}: {stem}.gz is missing; copy the four files again")
            found[f"{split}_{part}"] = there[0]
    return found


def read_idx(files: dict[str, Path]) -> dict[str, Tensor]:
    """Read the four files.

    Returns:
        ``train_images`` and ``test_images`` (uint8 [N, 1, H, W]) and their labels.

    Raises:
        UserError: a file is damaged or empty, or the counts do not fit.
    """
    tensors = {name: _read(path, name.endswith("images")) for name, path in files.items()}
    for split in PREFIXES:
        images, labels = tensors[f"{split}_images"], tensors[f"{split}_labels"]
        if len(images) != len(labels):
            path = files[f"{split}_images"]
            raise UserError(f"{path}: {len(images)} images, but {len(labels)} labels beside it")
    return tensors


def _read(path: Path, images: bool) -> Tensor:
    from torchvision.datasets.mnist import read_image_file, read_label_file

    try:
        data = path.read_bytes()
        with tempfile.NamedTemporaryFile() as plain:  # torchvision reads no gzip
            plain.write(gzip.decompress(data) if path.suffix == ".gz" else data)
            plain.flush()
            tensor: Tensor = read_image_file(plain.name) if images else read_label_file(plain.name)
    except Exception as error:  # torchvision asserts, indexes and reshapes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: not an intact idx file ({reason}); copy it again") from error
    return tensor.unsqueeze(1) if images else tensor
