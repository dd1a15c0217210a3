"""What a run over a stream can't do, as its config alone tells."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sparsebench.errors import UserError, bad_value


def check_config(cfg: DictConfig, options: Any) -> None:
    """Refuse what does not go with a stream, or with the way it is learned.

    Args:
        cfg: the whole config.
        options: ``task.options``.

    Raises:
        UserError: naming the key.
    """
    for key, why in (
        ("trainer.ema", "an average would mix the weights of several tasks"),
        ("trainer.patience", "it would end the stream, not a task"),
        ("training_flops", "give epochs"),
    ):
        if value := OmegaConf.select(cfg, key):
            raise UserError(f"{key}={value}: not with task=continual; {why}")
    if cfg.trainer.devices > 1:
        raise UserError(f"trainer.devices={cfg.trainer.devices}: task=continual runs on one device")
    if options.mode == "independent" and cfg.stream.scenario == "class_il":
        raise UserError(
            "task.options.mode=independent: a network for each task can't tell classes of "
            "different tasks apart; stream.scenario=task_il or domain_il"
        )
    _check_removal(options)
    _check_regulariser(cfg, options.mode)
    _check_replay(cfg, options.mode)


def _check_removal(options: Any) -> None:
    if options.remove:
        return
    for spec in fields(options):
        value = getattr(options, spec.name)
        if spec.name.startswith("remove_") and value != spec.default:
            raise UserError(
                f"task.options.{spec.name}={value}: has no effect without task.options.remove"
            )


def _check_regulariser(cfg: DictConfig, mode: str) -> None:
    name = cfg.regulariser.name
    if name != "none" and mode != "sequential":
        raise UserError(f"regulariser={name}: there is nothing to hold to in mode={mode}")


def _check_replay(cfg: DictConfig, mode: str) -> None:
    replay = cfg.replay
    if replay.name == "none":
        return
    if mode != "sequential":
        raise UserError(f"replay={replay.name}: there is nothing to replay in mode={mode}")
    if cfg.trainer.accumulate > 1:
        raise UserError(
            f"trainer.accumulate={cfg.trainer.accumulate}: not with replay={replay.name}"
        )
    batch = replay.batch or cfg.batch_size
    key = "batch_size" if replay.batch is None else "replay.batch"
    if replay.size < batch:
        raise bad_value("replay.size", replay.size, f"smaller than a batch ({key}={batch})")
