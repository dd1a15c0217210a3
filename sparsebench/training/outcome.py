"""The end of a run: its test, its final counts, the digest of its weights."""

from __future__ import annotations

import hashlib
import resource
import sys
from typing import Any

import torch
from torch import nn

from sparsebench.sparsity.flops import model_size_bytes
from sparsebench.sparsity.masks import Masks
from sparsebench.training.trainer import Fitted


def outcome(fitted: Fitted, test: dict[str, float], parameters: int) -> dict[str, Any]:
    """What goes into ``result.json`` beside config and environment.

    Args:
        fitted: the trained model.
        test: loss, accuracy and top-5 accuracy on the test set.
        parameters: number of all parameters of the model.
    """
    assert fitted.sparsify.session is not None
    masks, measure = fitted.sparsify.session.masks, fitted.measure
    topology = measure.topology()
    training = measure.training
    absent = sum(masks.sizes.values()) - sum(masks.nonzeros.values())
    dense = parameters - sum(masks.sizes.values())
    validation = measure.rows[-1] if measure.rows else {}
    metrics = {
        **{f"test/{name}": value for name, value in test.items()},
        **{k: v for k, v in validation.items() if k.startswith(("validation/", "train/"))},
        "epochs": len(measure.rows),
        "steps": training.steps,
        "parameters": parameters,
        "weights": sum(masks.sizes.values()),
        "sparsity_all": absent / parameters,
        **topology,
        "size/bytes": model_size_bytes(masks.sizes, masks.nonzeros, dense_values=dense),
        "flops/inference_dense": training.dense_forward,
        "flops/inference_relative": topology["flops/inference"] / training.dense_forward,
        "flops/training": training.total,
        "flops/training_relative": training.relative,
        "flops/dense_gradient_steps": training.dense_gradient_steps,
        **_seconds(fitted),
        "memory/peak_bytes": peak_memory(),
        "weights_sha256": weights_digest(fitted.module.model, masks),
    }
    layers = {
        name: {
            "order": order,
            "shape": list(masks.parameters[name].shape),
            "weights": masks.sizes[name],
            "nonzeros": masks.nonzeros[name],
            "sparsity": 1.0 - masks.densities[name],
            "flops_dense": measure.flops.dense[name],
        }
        for order, name in enumerate(masks)
    }
    notes = [*fitted.notes, *fitted.sparsify.session.state.notes]
    return {"metrics": metrics, "layers": layers, "notes": notes}


def _seconds(fitted: Fitted) -> dict[str, float]:
    """Where the time went; a step's is that of the fastest epoch, the least disturbed one."""
    rows = fitted.measure.seconds
    total = {k: sum(row[k] for row in rows) for k in ("training", "validation", "mask_updates")}
    steps = fitted.measure.training.steps
    fastest = min((row["training"] for row in rows), default=0.0)
    return {
        **{f"seconds/{name}": value for name, value in total.items()},
        "seconds/step": fastest * len(rows) / max(steps, 1),
        "seconds/checkpoints": fitted.checkpoint.seconds,
    }


def peak_memory() -> int:
    """Most memory in use so far, in bytes: the GPU's if there is one, else the process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def weights_digest(model: nn.Module, masks: Masks) -> str:
    """sha256 over the final weights and masks, in the order of their names."""
    digest = hashlib.sha256()
    for entries in (model.state_dict(), masks.packed()):
        for name in sorted(entries):
            tensor = entries[name].detach().cpu().contiguous()
            digest.update(name.encode())
            digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
