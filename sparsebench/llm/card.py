"""The model card of an exported model: what it was made from, how, and what it measures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

_SHOWN = (
    "perplexity/",
    "perplexity_pruned/",
    "perplexity_dense/",
    "recovery/",
    "segments/",
    "sparsity",
    "compression",
    "storage",
    "parameters",
    "nonzeros",
    "weights",
)
_RECIPE = ("model", "method", "structure", "sparsity", "seed", "calibration", "eval")
_TRAINING = ("recovery", "optimizer", "schedule", "trainer")

_MASKS = """`masks.safetensors` has the masks as packed bits by parameter (first element in the
highest bit; shapes in its metadata)"""


def _what(cfg: DictConfig) -> str:
    """The end of the title, and what is in the folder."""
    if "compression" in cfg.method:
        return f"""with weights as products by {cfg.method.name}, {cfg.method.compression:.1%} saved

The weights are multiplied out, so that any version of transformers loads them, and are as large
as before. `factors/` has what they are products of, by block: a weight (outputs x inputs) is
`codes` (outputs x k) times `atoms` (k x inputs). Sparse codes are `values` (outputs x s), by
ascending atom, and `places`, the packed bits of (outputs x k), first element in the highest bit. A
layer without atoms has those of its kind in the first block of the file."""
    title = f"pruned by {cfg.method.name} to {cfg.sparsity:g} sparsity"
    if cfg.structure.name == "channel":
        return f"""{title}

Heads and channels are gone from the matrices: any version of transformers loads the smaller
model. {_MASKS}, in the shapes of the model before."""
    return f"""{title}

Zeros are stored as zeros: any version of transformers loads the weights. {_MASKS}."""


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
    if cfg.model.path and not Path(cfg.model.path).expanduser().exists():  # a name on the hub
        front += f"base_model: {cfg.model.path}\n"
    said = "\n".join(f"- {note}" for note in notes)
    return f"""{front}---
# {cfg.model.name}, {_what(cfg)}

| measure | value |
| --- | --- |
{rows}

{said}

## Recipe

```yaml
{recipe}```
"""
