"""The model card of an exported model: what it was made from, how, and what it measures."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

_SHOWN = (
    "perplexity/",
    "perplexity_pruned/",
    "perplexity_dense/",
    "recovery/",
    "segments/",
    "sparsity",
    "nonzeros",
    "weights",
)
_RECIPE = ("model", "method", "structure", "sparsity", "seed", "calibration", "eval")
_TRAINING = ("recovery", "optimizer", "schedule", "trainer")


def card(cfg: DictConfig, metrics: dict[str, Any], notes: list[str]) -> str:
    """Markdown with the front matter that the hub reads.

    Args:
        cfg: of the run.
        metrics: of ``result.json``.
        notes: of ``result.json``.
    """
    trained = _TRAINING if cfg.recovery.name != "none" else ()
    recipe = OmegaConf.to_yaml(OmegaConf.masked_copy(cfg, [*_RECIPE, *trained]), resolve=True)
    shown = {key: value for key, value in metrics.items() if key.startswith(_SHOWN)}
    rows = "\n".join(f"| {key} | {value:.6g} |" for key, value in shown.items())
    front = "---\nlibrary_name: transformers\ntags: [pruning, sparse]\n"
    if cfg.model.path:
        front += f"base_model: {cfg.model.path}\n"
    said = "\n".join(f"- {note}" for note in notes)
    return f"""{front}---
# {cfg.model.name}, pruned by {cfg.method.name} to {cfg.sparsity:g} sparsity

Zeros are stored as zeros: any version of transformers loads the weights. `masks.safetensors` has
the masks as packed bits by parameter (first element in the highest bit; shapes in its metadata).

| measure | value |
| --- | --- |
{rows}

{said}

## Recipe

```yaml
{recipe}```
"""
