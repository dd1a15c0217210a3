"""What recovery training gave: figures, and what is part of the model beside its weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsebench.files import write_atomically, write_json
from sparsebench.llm.recovery.extras import Extra, Lora, detach, tensors_of
from sparsebench.llm.recovery.turned import Turned

ADAPTER = "adapter"  # folder in an exported model


@dataclass
class Recovered:
    """Figures, and extras that stay apart; they are attached until :meth:`take_off`.

    Attributes:
        metrics: for ``result.json``.
        notes: likewise.
        apart: of layers, by their names, the extras.
        layers: these layers.
        turned: layers that stand in for GPT-2's.
    """

    metrics: dict[str, Any]
    notes: list[str]
    apart: dict[str, Extra] = field(default_factory=dict)
    layers: dict[str, nn.Linear] = field(default_factory=dict)
    turned: list[Turned] = field(default_factory=list)

    def take_off(self) -> None:
        """Leave the layers with their weights alone, as they are counted and exported."""
        for name in self.apart:
            layer = self.layers[name]
            detach(layer, torch.ones_like(layer.weight, dtype=torch.bool))
        for turned in self.turned:
            turned.back()

    def export(self, folder: Path) -> None:
        """Write what is apart into a model's folder; LoRA as PEFT reads it."""
        from safetensors.torch import save

        if not self.apart:
            return
        place = folder / ADAPTER
        place.mkdir()
        content = save(tensors_of(self.apart))
        path = place / "adapter_model.safetensors"
        write_atomically(path, lambda file: file.write(content))
        first = next(iter(self.apart.values()))
        if isinstance(first, Lora):
            config = _peft(first, sorted(self.apart), transposed=bool(self.turned))
            write_json(place / "adapter_config.json", config)


def _peft(lora: Lora, targets: list[str], transposed: bool) -> dict[str, Any]:
    rank = lora.a.shape[0]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": lora.factor * rank,
        "lora_dropout": lora.share,
        "target_modules": targets,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "inference_mode": True,
    }
