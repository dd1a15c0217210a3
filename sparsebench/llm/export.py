"""What a pruned model leaves beside ``result.json``: packed masks, and a folder of transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from torch import Tensor

from sparsebench.files import check_room, write_atomically
from sparsebench.llm.layers import Block
from sparsebench.llm.models import LanguageModel, save_folder


def save_masks(path: Path, masks: Mapping[str, Tensor], blocks: Sequence[Block]) -> None:
    """Write packed masks by name of the weight; their shapes are in the metadata.

    Args:
        path: of the safetensors file.
        masks: packed bits, the first element of a weight in the highest bit of the first byte.
        blocks: that hold the weights.
    """
    shapes = {
        linear.name: list(linear.stored_shape) for block in blocks for linear in block.linears
    }
    header: dict[str, Any] = {"__metadata__": {"shapes": json.dumps(shapes)}}
    end = 0
    for name, bits in masks.items():
        begin, end = end, end + bits.numel()
        header[name] = {"dtype": "U8", "shape": [bits.numel()], "data_offsets": [begin, end]}
    head = json.dumps(header).encode()

    def write(file: IO[bytes]) -> None:
        """The format of safetensors; its library would hold the whole content in memory."""
        padded = head + b" " * (-len(head) % 8)
        file.write(len(padded).to_bytes(8, "little") + padded)
        for bits in masks.values():
            file.write(bits.cpu().numpy().data)

    write_atomically(path, write)


def save_factors(kept: Path, folder: Path) -> None:
    """Copy what products are made of beside the weights that they were multiplied out to.

    Args:
        kept: folder with a safetensors file for each block, or group of blocks.
        folder: of the model; gets ``factors/``.
    """
    place = folder / "factors"
    place.mkdir()
    for path in sorted(kept.glob("*.safetensors")):
        shutil.copy(path, place / path.name)


def save_model(
    folder: Path,
    language: LanguageModel,
    blocks: Sequence[Block],
    masks: Mapping[str, Tensor],
    card: str,
    more: Callable[[Path], None] = lambda fresh: None,
) -> None:
    """Write the model, its tokenizer, its masks and its card, whole or not at all.

    Args:
        folder: replaced if it is there.
        language: the pruned model.
        blocks: its decoder blocks.
        masks: packed bits by name of the weight.
        card: Markdown.
        more: writes further files into the folder.

    Raises:
        UserError: the disk is full or the folder can't be written to.
    """

    def finish(fresh: Path) -> None:
        if masks:
            save_masks(fresh / "masks.safetensors", masks, blocks)
        more(fresh)

    model, disk = language.model, language.disk
    check_room(folder.parent, sum(p.numel() * p.element_size() for p in model.parameters()))
    save_folder(
        model,
        language.tokenizer,
        folder,
        {"README.md": card},
        finish=finish,
        weights=(lambda fresh: disk.write(fresh, blocks)) if disk else None,
    )
