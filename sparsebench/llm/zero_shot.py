"""Zero-shot tasks by EleutherAI's lm-evaluation-harness, where it is installed.

What papers of pruning report is the mean of the tasks' ``acc`` (not ``acc_norm``): the choice
whose tokens have the highest sum of log-probabilities. Versions of the harness differ by points, so
its version is in the result, as are the share that chance gives, which is near what small models
reach on most tasks, and the 95 % interval.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sparsebench.errors import UserError, bad_value
from sparsebench.llm.cloze import Share
from sparsebench.llm.models import LanguageModel


@dataclass(frozen=True)
class ZeroShot:
    """Tasks whose data are there.

    Attributes:
        tasks: of the harness, by name.
        limit: only so many items of each, from the start; None: all.
        manager: of the harness, which takes long to build.
    """

    tasks: dict[str, Any]
    limit: int | None
    manager: Any = None

    @classmethod
    def of(cls, names: Sequence[str], limit: int | None) -> ZeroShot:
        """Load the tasks' data.

        Raises:
            UserError: the harness is not installed, has no such task, or can't get its data.
        """
        try:
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise UserError(
                "eval.measures=[zero_shot]: lm-evaluation-harness is needed; "
                "pip install 'sparsebench[lm_eval]'; eval=cloze needs nothing"
            ) from error
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        manager: Any = TaskManager()
        for name in names:
            if name not in manager.all_tasks:
                raise bad_value(
                    "eval.tasks", name, "a task of the harness", list(manager.all_tasks)
                )
        found: dict[str, Any] = {}
        for name in names:
            try:
                found |= manager.load_task_or_group([name])
            except Exception as error:  # of many kinds: no network, no such file, a gated set
                said = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise UserError(f"eval.tasks={name}: its data can't be loaded: {said}") from error
        return cls(found, limit, manager)

    def measure(self, language: LanguageModel) -> dict[str, Any]:
        """Figures by name: of each task, and the mean over tasks.

        Args:
            language: whose blocks are in memory.
        """
        import lm_eval
        from lm_eval.models.huggingface import HFLM

        wrapped: Any = HFLM(
            pretrained=language.model,
            tokenizer=language.tokenizer,
            batch_size=1,
            max_length=language.context,
        )
        found: Any = lm_eval.simple_evaluate(
            wrapped,
            tasks=_flat(self.tasks),
            num_fewshot=0,
            limit=self.limit,
            log_samples=True,
            bootstrap_iters=0,
            task_manager=self.manager,
            verbosity="ERROR",
        )
        metrics: dict[str, Any] = {}
        means = []
        for name, samples in found["samples"].items():
            share, chance = share_of(name, samples)
            low, high = share.interval
            metrics |= {
                f"{name}/acc": share.value,
                f"{name}/low": low,
                f"{name}/high": high,
                f"{name}/chance": chance,
                f"{name}/items": share.items,
            }
            means.append((share.value, chance))
        metrics["mean/acc"] = sum(value for value, _ in means) / len(means)
        metrics["mean/chance"] = sum(chance for _, chance in means) / len(means)
        return metrics


def share_of(task: str, samples: Sequence[dict[str, Any]]) -> tuple[Share, float]:
    """How many of the harness's samples are right, and the share that guessing gives.

    Raises:
        UserError: the task is measured by something else.
    """
    if "acc" not in samples[0]:
        raise UserError(f"eval.tasks={task}: the harness measures no accuracy (acc) of it")
    right = sum(round(sample["acc"]) for sample in samples)
    chance = sum(1.0 / len(sample["resps"]) for sample in samples) / len(samples)
    return Share(int(right), len(samples)), chance


def _flat(tasks: dict[Any, Any]) -> list[Any]:
    """The tasks themselves, those of groups too."""
    parts = [_flat(one) if isinstance(one, dict) else [one] for one in tasks.values()]
    return [task for part in parts for task in part]
