"""Learn a stream of tasks one after the other, and measure what is forgotten.

``epochs`` are those of each task. The network has one layer of outputs, a row for each class of
each task (in ``domain_il`` the same rows for all); which of them a sample competes among in
training is ``task.options.loss``: ``sliced`` is the classes of its own task, which trains each
row as a head of its own would be (a multi-head network is this one with ``selector.last=false``,
so that heads stay dense), ``seen`` all classes of tasks so far, and ``all`` those of tasks to come
too (as in SpaceNet's code).

Bounds: fine-tuning is ``replay=none``; ``mode=joint`` trains on all tasks at once for as many
steps; ``mode=independent`` trains each task from the first weights and masks. The folders of such
runs, given as ``joint`` and ``independent``, are what intransigence and transfer are measured by.

``remove`` leaves a share of a task's samples out, the easiest, in stages until ``remove_until`` of
the task: see ``continual/removal.py``. An epoch (``ep``) of a method's dials stays one of all
samples, and a share (``%``) is one of the steps that are left.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from sparsebench import data
from sparsebench.continual import bounds, mask_code, metrics, picture, regularise, streams
from sparsebench.continual.bounds import read_bound
from sparsebench.continual.checks import check_config
from sparsebench.continual.removal import Removal, stages_of
from sparsebench.continual.replay import Replay
from sparsebench.data import DataSets, TensorImages, TrainLoader
from sparsebench.errors import UserError
from sparsebench.sparsity.composed import Composed, rounds_of
from sparsebench.sparsity.examples import Examples
from sparsebench.sparsity.masks import Masks
from sparsebench.sparsity.method import Method
from sparsebench.sparsity.selector import select
from sparsebench.sparsity.spec import duration, number
from sparsebench.tasks.build import build_method, container
from sparsebench.tasks.preflight import check_run
from sparsebench.tasks.task import Prepared, Shape, Task, entry

if TYPE_CHECKING:
    from sparsebench.training.continual import ContinualLearner, Plan
    from sparsebench.training.learner import Learner
    from sparsebench.training.sparsify import Sparsify
    from sparsebench.training.trainer import Fitted

MODES = ("sequential", "joint", "independent")


def choice(default: Any, *choices: Any) -> Any:
    """A field that is one of some values."""
    return field(default=default, metadata={"choices": choices})


@dataclass(frozen=True)
class Options:
    """Options of the task."""

    mode: str = choice("sequential", *MODES)
    loss: str | None = choice(None, None, "sliced", "seen", "all")
    reset_optimizer: bool = choice(True, True, False)
    method_over: str | None = choice(None, None, "task", "stream")
    joint: str | None = None
    independent: str | None = None
    remove: float = number(0.0, "[0, 1)", "share of a task's samples that is left out at its end")
    remove_every: str = duration("10%", "length of a task between two removals")
    remove_until: str = duration("40%", "length of a task after which nothing more is removed")
    remove_by: str = choice("misclassified", "misclassified", "forgetting")


class Continual(Task):
    """Learns a stream; ``self.cfg.epochs`` are those of a task until all is checked."""

    Options = Options

    def __init__(self, cfg: DictConfig) -> None:
        """Take the config; a scenario that is not given is what the method can do."""
        super().__init__(cfg)
        if cfg.stream.scenario is None:
            method = build_method(cfg)
            told = self.options.mode != "joint" and needs_task(method) and not infers_task(method)
            self.cfg = _with(cfg, "stream.scenario", "task_il" if told else "class_il")

    def load(self) -> DataSets:
        """The data set of the config as a stream."""
        cfg, joint = self.cfg, self.options.mode == "joint"
        sets = data.load(container(cfg.data), allow=list(cfg.allow))
        epochs = cfg.epochs * (cfg.stream.tasks if joint else 1)
        keep = cfg.replay.name != "none"
        removal = None
        if self.options.remove:
            stages = stages_of(self.options, epochs)
            removal = Removal(stages, self.options.remove_by, cfg.seed)
        self.stream = streams.build(
            cfg.stream, sets, epochs, joint=joint, keep=keep, removal=removal
        )
        return self.stream.data

    def shapes(self, input_shape: Shape, num_classes: int) -> tuple[Shape, int]:
        """An output for each class of each task, or for each class of any."""
        if self.cfg.stream.name == "none":
            raise UserError(
                "stream=none: task=continual needs a stream, such as stream=split_digits"
            )
        return input_shape, streams.outputs_of(self.cfg.stream, num_classes)

    def prepare(self) -> Prepared:
        """As any task; from here on ``epochs`` are those of the whole stream."""
        check_config(self.cfg, self.options)
        self.bounds = {
            mode: read_bound(getattr(self.options, mode), mode, self.cfg.stream.tasks)
            for mode in MODES[1:]
        }
        prepared = super().prepare()
        self.task_cfg = self.cfg
        self.cfg = _with(self.cfg, "epochs", self.cfg.epochs * self.cfg.stream.tasks)
        if not self._over_tasks(prepared.method) or self.options.mode == "joint":
            check_run(self.cfg, prepared.data, prepared.model, prepared.method)
        return prepared

    # --- refusals ----------------------------------------------------------------------------

    def check(self, prepared: Prepared) -> None:
        """Methods that go back to earlier weights, and data that a buffer can't hold."""
        cfg = self.cfg
        per_epoch = len(prepared.data.train) // cfg.batch_size
        if rounds_of(prepared.method, per_epoch * cfg.epochs, per_epoch):
            raise UserError(
                f"method={cfg.method.name}: it goes back to earlier weights, which knew fewer tasks"
            )
        if needs_task(prepared.method) and self.options.mode != "joint":
            self._check_isolation(prepared)
        if check := getattr(prepared.method, "check_tasks", None):
            shapes = {n: p.shape for n, p in select(prepared.model, prepared.selector).items()}
            check(shapes, cfg.stream.tasks if self.options.mode == "sequential" else 1)
        if cfg.replay.name != "none":
            self._recipe(prepared)
        self._check_steps(prepared)

    def _check_steps(self, prepared: Prepared) -> None:
        """What remains to be seen once samples are removed."""
        train, cfg = self._train(prepared), self.cfg
        if train.removal is None:
            return
        least = train.size_at(train.epochs - 1)
        if least < cfg.batch_size:
            raise UserError(
                f"task.options.remove={self.options.remove}: leaves {least} samples of a task, "
                f"fewer than a batch (batch_size={cfg.batch_size})"
            )
        if isinstance(prepared.method, Composed):
            prepared.method.window(self._steps(prepared), len(train) // cfg.batch_size)

    def _steps(self, prepared: Prepared) -> int:
        """Optimizer steps that the method's schedule goes over."""
        cfg = self.cfg
        steps = self._train(prepared).steps(cfg.batch_size, cfg.trainer.accumulate)
        whole = self.options.mode == "joint" or self._over_tasks(prepared.method)
        return steps if whole else steps * int(cfg.stream.tasks)

    def _train(self, prepared: Prepared) -> streams.Training:
        train = prepared.data.train
        assert isinstance(train, streams.Training)
        return train

    def _check_isolation(self, prepared: Prepared) -> None:
        cfg = self.cfg
        untold = infers_task(prepared.method) and self.options.mode == "sequential"
        shared = cfg.stream.scenario == "domain_il" and self.options.mode == "sequential"
        if (shared or cfg.stream.scenario == "class_il") and not untold:
            raise UserError(
                f"stream.scenario={cfg.stream.scenario}: method={cfg.method.name} needs the task's "
                "identity; stream.scenario=task_il"
            )
        for group in ("replay", "regulariser"):
            if cfg[group].name != "none":
                raise UserError(
                    f"{group}={cfg[group].name}: not with method={cfg.method.name}, which has a "
                    "network for each task and forgets nothing"
                )
        if self.options.method_over == "stream":
            raise UserError(
                f"task.options.method_over=stream: method={cfg.method.name} begins anew with each "
                "task"
            )

    def _recipe(self, prepared: Prepared) -> Any:
        part = self._train(prepared).parts[0]
        images = part.images if isinstance(part, streams.View) else part.views[0].images
        if not isinstance(images, TensorImages):
            raise UserError(
                f"replay={self.cfg.replay.name}: data={self.cfg.data.name} are decoded batch by "
                "batch, and a buffer needs images that are in memory"
            )
        return images.recipe

    # --- training ----------------------------------------------------------------------------

    def _over_tasks(self, method: Method) -> bool:
        """Whether the method's schedule begins anew with each task."""
        if self.options.mode == "joint":
            return False
        if self.options.mode == "independent" or needs_task(method):
            return True
        if self.options.method_over is not None:
            return bool(self.options.method_over == "task")
        spec = getattr(method, "spec", None)
        return spec is None or spec.sparsity_schedule == "constant"

    def _plan(self, method: Method) -> Plan:
        from sparsebench.training.continual import Plan

        options, scenario = self.options, self.cfg.stream.scenario
        joint = options.mode == "joint"
        told = scenario == "task_il" or (needs_task(method) and not joint)
        return Plan(
            options.mode,
            loss=options.loss or ("sliced" if told else "seen"),
            reset=options.reset_optimizer,
            restart=self._over_tasks(method),
            epochs=self.cfg.epochs if joint else self.task_cfg.epochs,
        )

    def learner(self, prepared: Prepared) -> Learner:
        """One that goes from task to task."""
        from sparsebench.training.continual import ContinualLearner

        cfg, plan = self.cfg, self._plan(prepared.method)
        replay = None
        if cfg.replay.name != "none":
            replay = Replay(cfg.replay, cfg.batch_size, self._recipe(prepared), cfg.seed)
        held = None
        if cfg.regulariser.name != "none":
            kind = regularise.KINDS[cfg.regulariser.name]
            held = kind(cfg.regulariser, cfg.seed, cfg.batch_size)
        schedule = cfg if plan.mode == "joint" else self.task_cfg
        return ContinualLearner(
            prepared.model, schedule, self.stream, plan, replay, prepared.method, held
        )

    def sparsify(self, prepared: Prepared, learner: Learner) -> Sparsify:
        """A method may look at data of the task that is being learned, not at others."""
        found, learner = super().sparsify(prepared, learner), _ours(learner)
        train, cfg = self._train(prepared), self.cfg
        found.examples = Examples(
            lambda seed: TrainLoader(train, cfg.batch_size, seed).batches(learner.current_epoch),
            learner.example_loss,
        )
        if learner.replay is not None:
            found.memory = Examples(learner.replay.batches, learner.memory_loss)
        found.accuracy = learner.present_accuracy
        found.total_steps = self._steps(prepared)
        found.steps_per_epoch = len(train) // cfg.batch_size
        learner.sparsify = found
        return found

    # --- results -----------------------------------------------------------------------------

    def figures(self, prepared: Prepared, learner: Learner) -> dict[str, Any]:
        """All figures of a stream, bytes and distinct images of the buffer."""
        learner = _ours(learner)
        found: dict[str, Any] = {}
        examples = [len(test) for test in self.stream.tests]
        for scenario, matrix in self._matrices(learner).items():
            before: metrics.Row = learner.record.before.get(scenario, [None] * len(examples))
            empty: list[list[float | None]] = [[None] * len(examples) for _ in examples]
            values = metrics.figures(matrix or empty, before, examples)
            if self.options.mode == "independent":
                values["acc"] = values["learning_accuracy"]
            values |= bounds.figures(matrix or empty, scenario, self.bounds)
            if scenario == self.stream.scenario:
                found |= {f"continual/{name}": value for name, value in values.items()}
            found |= {f"continual/{scenario}/{name}": value for name, value in values.items()}
        if self.options.mode == "independent":  # the test of the last network means nothing
            found |= {"test/loss": None, "test/accuracy": None}
        if learner.replay is not None:
            found["replay/distinct"] = learner.replay.buffer.distinct
        if (train := self._train(prepared)).removal is not None:
            shown = sum(map(train.size_at, range(train.epochs)))
            found["continual/data_use"] = shown / (train.epochs * len(train))
        kept = getattr(prepared.method, "bytes_of", None)
        sizes = kept() if kept else bytes_of(prepared.model, learner.session.masks)
        if self.options.mode == "independent":  # there is a network for each task
            sizes = {name: size * len(examples) for name, size in sizes.items()}
        sizes["buffer"] = learner.replay.buffer.bytes if learner.replay else 0
        sizes |= learner.regulariser.bytes if learner.regulariser else {}
        sizes["total"] = sum(sizes.values())
        vault = getattr(prepared.method, "vault", None)
        if vault and vault.by_task and self.options.mode == "sequential":
            found |= mask_code.figures(vault)
        return found | {f"bytes/{name}": value for name, value in sizes.items()}

    def _matrices(self, learner: ContinualLearner) -> dict[str, Any]:
        """R by scenario; None where nothing was measured."""
        record = learner.record
        found = {name: record.full(name) for name in record.matrices}
        return {
            name: matrix if any(a is not None for row in matrix for a in row) else None
            for name, matrix in found.items()
        }

    def _test(self, prepared: Prepared, fitted: Fitted) -> dict[str, Any]:
        found = super()._test(prepared, fitted)
        learner, folder = _ours(fitted.module), fitted.measure.folder
        matrices = self._matrices(learner)
        picture.write_table(folder / "accuracy_matrix.csv", matrices)
        if self.cfg.plots:
            picture.draw(folder / "accuracy_matrix.png", matrices, folder.name)
        names = prepared.data.class_names
        return found | {
            "scenario": self.stream.scenario,
            "accuracy_matrix": matrices[self.stream.scenario],
            "accuracy_matrices": matrices,
            "tasks": [
                {"classes": [names[c] if names else str(c) for c in own], **shares}
                for own, shares in zip(self.stream.classes, learner.record.shares, strict=False)
            ],
        }


def _ours(learner: Learner) -> ContinualLearner:
    from sparsebench.training.continual import ContinualLearner

    assert isinstance(learner, ContinualLearner)
    return learner


def bytes_of(model: nn.Module, masks: Masks) -> dict[str, int]:
    """Bytes of a sparse network: its weights, its masks, and all else (biases, heads, norms)."""
    sizes, kept = masks.sizes, masks.nonzeros
    partly = sum(size for name, size in sizes.items() if kept[name] < size)
    sparse = {id(parameter) for parameter in masks.parameters.values()}
    rest = [t for t in (*model.parameters(), *model.buffers()) if id(t) not in sparse]
    return {
        "weights": 4 * sum(kept.values()),
        "masks": -(-partly // 8),
        "dense": sum(t.numel() * t.element_size() for t in rest),
    }


def needs_task(method: Method) -> bool:
    """Whether a method answers only where it is told the task."""
    return bool(getattr(method, "needs_task", False))


def infers_task(method: Method) -> bool:
    """Whether a method of several networks finds out itself which one a sample is for."""
    return bool(getattr(method, "infers_task", False))


def _with(cfg: DictConfig, key: str, value: Any) -> DictConfig:
    """A copy of a config with another value."""
    found = OmegaConf.create(cfg)
    assert isinstance(found, DictConfig)
    with open_dict(found):
        OmegaConf.update(found, key, value)
    return found


prepare, run = entry(Continual)
