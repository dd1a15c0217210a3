"""Loading weights from a local file, with one clear line when they do not fit."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsebench.errors import UserError
from sparsebench.models.probe import first_line


def load_weights(model: nn.Module, path: str, *, num_classes: int, new_head: bool = False) -> None:
    """Load a file of weights into a model, changed in place.

    Args:
        model: the network.
        path: file written by ``torch.save`` (a state dict, or a checkpoint that holds one
            under ``state_dict`` or ``model``) or a ``.safetensors`` file. Nothing but tensors
            and plain values is unpickled.
        num_classes: outputs of the model.
        new_head: leave the classifier at its initialisation where the file's is for another
            number of classes.

    Raises:
        UserError: the file is missing or unreadable, or its tensors are not the model's.
    """
    fit(
        model,
        read_weights(path),
        where=f"model.checkpoint={path}",
        num_classes=num_classes,
        new_head=new_head,
    )


def read_weights(path: str) -> dict[str, Tensor]:
    """The named tensors of a file, see ``load_weights``."""
    where = f"model.checkpoint={path}"
    if not Path(path).is_file():
        raise UserError(f"{where}: no such file")
    try:
        content = _read(path)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise UserError(f"{where}: cannot be read as weights ({first_line(error)})") from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(
        isinstance(value, Tensor) for value in content.values()
    ):
        raise UserError(f"{where}: holds no dictionary of tensors")
    return dict(content)


def _read(path: str) -> Any:
    if not path.endswith(".safetensors"):
        return torch.load(path, map_location="cpu", weights_only=True)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def fit(
    model: nn.Module, state: dict[str, Tensor], *, where: str, num_classes: int, new_head: bool
) -> None:
    """Load named tensors, or say in one line which is the first that does not fit.

    Args:
        model: the network, changed in place.
        state: tensors by name; a wrapper's common prefix (``module.``, ``model.``) is ignored.
        where: start of the error message: key and file.
        num_classes: outputs of the model.
        new_head: see ``load_weights``.

    Raises:
        UserError: a tensor is missing, unknown or of another shape.
    """
    own = model.state_dict()
    state = _without_wrappers(dict(state), own)
    renewed: set[str] = set()  # layers left at their initialisation: one at most, the classifier
    for name, tensor in own.items():
        if name not in state:
            raise UserError(f"{where}: has no '{name}'; the model's is {_shape(tensor)}")
        given = state[name]
        if given.shape == tensor.shape:
            continue
        layer = {name.rpartition(".")[0]}
        if new_head and renewed <= layer and _is_head(tensor, given, num_classes):
            state[name] = tensor
            renewed = layer
            continue
        raise UserError(
            f"{where}: '{name}' has the shape {_shape(given)}, the model's is {_shape(tensor)}"
        )
    unknown = [name for name in state if name not in own]
    if unknown:
        raise UserError(f"{where}: has '{unknown[0]}', which the model does not have")
    model.load_state_dict(state)


def _is_head(own: Tensor, given: Tensor, num_classes: int) -> bool:
    """Whether two tensors differ only in their first dimension, the number of classes."""
    return (
        own.ndim == given.ndim > 0
        and own.shape[0] == num_classes
        and own.shape[1:] == given.shape[1:]
    )


def _without_wrappers(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take off what DDP, compile or a Lightning module put in front of every name."""
    while state and not own.keys() & state.keys():
        heads = {name.partition(".")[0] for name in state}
        if len(heads) > 1 or any("." not in name for name in state):
            break
        state = {name.partition(".")[2]: tensor for name, tensor in state.items()}
    return state


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
