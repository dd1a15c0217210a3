"""A language model that this project trains first, once, and keeps in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from sparsebench.data.cache import folder as cache_folder
from sparsebench.errors import UserError
from sparsebench.llm.models import LanguageModel, pretrained


def trained(
    path: str | None, seed: int, outer: DictConfig, overrides: Sequence[str]
) -> LanguageModel:
    """What ``task=train_llm`` gives with some overrides and the run's seed.

    It is trained if it is not in the cache, under the identity of its own run; of several that
    want it one trains and the others wait, and a killed training goes on where it was.

    Args:
        path: is of no use here.
        seed: of the training.
        outer: config of the run that wants the model: where data lie, and on what to train.
        overrides: as on the command line; ``task=train_llm`` goes before them.

    Raises:
        UserError: an override is wrong, or the training did not end well.
    """
    from sparsebench.config.compose import compose
    from sparsebench.config.identity import run_folder

    cfg = compose(["task=train_llm", *overrides])
    cfg.seed, cfg.runs = seed, str(cache_folder() / "models" / "trained")
    cfg.save_model, cfg.plots, cfg.quiet, cfg.allow = True, False, outer.quiet, outer.allow
    for key in ("root", "download", "cache"):
        cfg.data[key] = outer.data[key]
    for key in ("accelerator", "threads"):
        cfg.trainer[key] = outer.trainer[key]
    folder = run_folder(cfg)
    if not (folder / "model" / "config.json").exists():
        _train(cfg, folder)
    found = pretrained(str(folder / "model"), seed, "float32")
    return LanguageModel(found.model, found.tokenizer, folder.name)


def _train(cfg: DictConfig, folder: Path) -> None:
    from sparsebench.run import run

    print(f"sparsebench: training {folder.name} first, once", flush=True)
    result = run(cfg)
    if result["status"] == "finished" and not (folder / "model" / "config.json").exists():
        cfg.force = True  # a result without its model
        result = run(cfg)
    if result["status"] != "finished":
        said = result.get("error", result["status"])
        raise UserError(f"model.args.overrides: the training in {folder} has failed: {said}")
    for path in folder.glob("*.ckpt"):
        path.unlink()
