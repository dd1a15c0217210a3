"""The LightningModule that learns one task after the other.

One fit goes through the whole stream, so that a checkpoint of any step is one of the run. What
begins anew with a task begins at its first batch: the optimizer's state, the learning rate's
schedule and, where it goes over tasks, that of the sparsity method.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from omegaconf import DictConfig
from torch import Tensor, nn
from torchmetrics import MeanMetric

from sparsebench.continual.record import SCENARIOS, Accuracies, Record
from sparsebench.continual.regularise import Before, Regulariser
from sparsebench.continual.replay import Replay, cross_entropy
from sparsebench.continual.streams import Batch, Joined, Present, Stream, Training
from sparsebench.continual.untold import by_task, untold
from sparsebench.data import EvalLoader
from sparsebench.errors import UserError
from sparsebench.sparsity.method import Method
from sparsebench.sparsity.optimizer_state import forget
from sparsebench.sparsity.session import Session
from sparsebench.training.learner import Learner
from sparsebench.training.sparsify import Sparsify


@dataclass(frozen=True)
class Plan:
    """How a stream is learned.

    Attributes:
        mode: ``sequential``, ``joint`` (all tasks at once) or ``independent`` (each from the
            first weights).
        loss: what a sample competes among: the classes of its task (``sliced``), those of tasks so
            far (``seen``), or ``all`` outputs, those of tasks to come too.
        reset: the optimizer forgets at a new task.
        restart: the method's schedule begins anew at a new task.
        epochs: of each task; of all training where that is joint.
    """

    mode: str
    loss: str
    reset: bool
    restart: bool
    epochs: int


class ContinualLearner(Learner):
    """Cross-entropy over a stream, with or without replay.

    Attributes:
        sparsify: holds the masks; to be set before training.
        record: what was measured so far.
        task: the task that is being learned; -1 before training.
    """

    monitor = "accuracy"
    mode = "max"
    sparsify: Sparsify
    own: Tensor  # outputs of each task, bool [tasks, outputs]
    seen: Tensor  # of it and those before, bool [tasks, outputs]

    def __init__(
        self,
        model: nn.Module,
        cfg: DictConfig,
        stream: Stream,
        plan: Plan,
        replay: Replay | None,
        method: Method,
        regulariser: Regulariser | None = None,
    ) -> None:
        """Wrap a model.

        Args:
            model: maps inputs to logits (batch, outputs of the stream).
            cfg: the whole config, ``epochs`` being those of one schedule of the learning rate.
            stream: what is learned.
            plan: how.
            replay: what is kept of past tasks, if anything is.
            method: the sparsity method.
            regulariser: what holds the network to what it was, if anything does.
        """
        super().__init__(model, cfg, {"loss": MeanMetric(), "accuracy": MeanMetric()}, method)
        self.stream, self.plan, self.replay = stream, plan, replay
        self.regulariser = regulariser
        self.record = Record(len(stream.classes))
        self.task = -1
        self.knows_task = bool(getattr(method, "needs_task", False)) and plan.mode != "joint"
        alone = self.knows_task and plan.mode == "sequential"
        #: Whether the method finds out the task itself, where the scenario does not tell it.
        self.infers = alone and bool(getattr(method, "infers_task", False))
        #: Scenarios in which the accuracy on an earlier task must not change.
        self.isolated = SCENARIOS[: 1 if self.infers else None] if alone else ()
        tasks, outputs = len(stream.classes), stream.outputs
        own = torch.zeros(tasks, outputs, dtype=torch.bool)
        for task in range(tasks):
            own[task, stream.slice_of(task)] = True
        self.register_buffer("own", own, persistent=False)  # [tasks, outputs]
        self.register_buffer("seen", own.cumsum(0) > 0, persistent=False)
        independent = plan.mode == "independent"
        self._first = {n: t.clone() for n, t in model.state_dict().items()} if independent else {}

    @property
    def session(self) -> Session:
        """The masks at work."""
        assert self.sparsify.session is not None
        return self.sparsify.session

    # --- the loss ----------------------------------------------------------------------------

    def _seen(self) -> Tensor:
        """Outputs of the tasks so far, bool [outputs]."""
        known: Tensor = self.seen[-1 if self.plan.mode == "joint" else max(self.task, 0)]
        return known

    def _allowed(self, task: Tensor) -> Tensor:
        """Outputs that samples of some tasks compete among in training."""
        found: Tensor = self.seen[-1] if self.plan.loss == "all" else self._seen()
        return self.own[task] if self.plan.loss == "sliced" else found

    def train_loss(self, batch: Any) -> Tensor:
        """Mean cross-entropy on a batch, and what replay and a regulariser add."""
        batch = Batch(*batch)
        allowed = self._allowed(batch.task)
        if self.replay is None:
            logits = self(batch.x)
            loss = cross_entropy(logits, batch.y, allowed).mean()
        else:
            loss, logits = self.replay.loss(self, batch, allowed, self._seen())
            self.extra_samples = self.replay.presented
        if (removal := self._training.removal) is not None:
            answer = logits.detach().masked_fill(~allowed, -torch.inf).argmax(1)
            removal.observe(batch.place, answer == batch.y)
        if self.regulariser is not None:
            loss = loss + self.regulariser.term(self.model, batch, logits)
        return loss

    @property
    def _training(self) -> Training:
        train = self.stream.data.train
        assert isinstance(train, Training)
        return train

    def example_loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Mean cross-entropy without replay."""
        batch = Batch(*batch)
        return cross_entropy(model(batch.x), batch.y, self._allowed(batch.task)).mean()

    def memory_loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Mean cross-entropy on samples (x, y) that replay has kept."""
        x, y = batch
        return cross_entropy(model(x), y, self._seen()).mean()

    # --- from task to task -------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Measure the network before training."""
        if self.plan.mode == "sequential" and not self.record.before:
            self.record.before = self._accuracies(-1)

    def on_train_epoch_start(self) -> None:
        """Leave samples out if it is time, and tell Lightning that the epoch is shorter."""
        train = self._training
        train.begin_epoch(self.current_epoch)
        if train.removal is not None:
            assert self.trainer.train_dataloader is not None
            batches = len(self.trainer.train_dataloader)
            self.trainer.fit_loop.max_batches = self.trainer.val_check_batch = batches

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """At the first batch of a task, begin it (a resumed run has begun its task already)."""
        task = self.current_epoch // self.plan.epochs
        if task != self.task:
            self._begin(task)

    def _begin(self, task: int) -> None:
        if task and self.regulariser is not None:
            self._look_back(self.regulariser, task)
        self._move_to(task)
        session = self.session
        if task and self.plan.reset:
            forget(self.trainer.optimizers)
        if task and self.plan.mode == "independent":
            session.masks.reveal()
            self.model.load_state_dict(self._first)
            self.sparsify.start_anew(self.trainer, self).before_forward()
        elif task and self.plan.restart:
            session.state.step = 0
        if self.plan.mode != "joint":
            self.session.begin_task(task, self.own[task])

    def _look_back(self, regulariser: Regulariser, task: int) -> None:
        """Let the regulariser see the network that the task before left."""
        before = Before(
            task,
            self.model,
            self.session.masks,
            self._training.parts,
            rivals=self._allowed(torch.tensor(task - 1, device=self.device)),
            past=self.seen[task - 1],
        )
        with self._testing():
            self.extra_passes += regulariser.begin(before)

    def _move_to(self, task: int) -> None:
        self.task = task
        if isinstance(self.stream.data.validation, Present):
            self.stream.data.validation.part = task

    def on_train_batch_end(self, outputs: STEP_OUTPUT, batch: Any, batch_idx: int) -> None:
        """At the last batch of a task, test on all tasks."""
        if not self.trainer.is_last_batch or (self.current_epoch + 1) % self.plan.epochs:
            return
        task = len(self.stream.classes) - 1 if self.plan.mode == "joint" else self.task
        if self.plan.mode != "joint":
            self.session.end_task(task)
        self.record.add(self._accuracies(task), self.session.masks, isolated=self.isolated)

    @property
    def schedule_steps(self) -> int:
        """Optimizer steps of a task (of all training where that is joint)."""
        return self._training.steps(self.cfg.batch_size, self.cfg.trainer.accumulate)

    def configure_optimizers(self) -> Any:
        """Optimizer and schedule of the config, the schedule once for each task."""
        found = super().configure_optimizers()
        schedule, steps = found["lr_scheduler"]["scheduler"], self.schedule_steps
        once = schedule.lr_lambdas
        schedule.lr_lambdas = [lambda step, curve=each: curve(step % steps) for each in once]
        return found

    # --- tests -------------------------------------------------------------------------------

    def _accuracies(self, task: int) -> Accuracies:
        """Accuracy in percent on each task after ``task``, in each scenario that is sound.

        Class-incremental: among the classes of all tasks so far, for these tasks. It is not for
        a method that is told the task. Domain-incremental: for streams with shared outputs.
        """
        tasks = range(len(self.stream.classes))
        found: Accuracies = {name: [None for _ in tasks] for name in SCENARIOS}
        with self._testing():
            for other in tasks:
                if self.plan.mode == "independent" and other != task:
                    continue
                if self.knows_task and other > task:  # it has no network for it
                    continue
                with self.session.as_task(other):
                    right = self._right(other, task)
                if self.infers:
                    right["domain_il" if self.stream.shared else "class_il"] = self._untold(other)
                for name, hits in right.items():
                    found[name][other] = 100.0 * hits / len(self.stream.tests[other])
        return found

    def _right(self, other: int, task: int) -> dict[str, int]:
        """Right answers on the test samples of ``other`` after ``task``, by scenario."""
        if self.stream.shared:
            among = {"domain_il": self.own[other]}
        else:
            among = {"task_il": self.own[other]}
            if other <= task and not self.knows_task and self.plan.mode != "independent":
                among["class_il"] = self.seen[task]
        hits = dict.fromkeys(among, 0)
        size = max(2 * self.cfg.batch_size, 256)
        for batch in EvalLoader(self.stream.tests[other], size):
            logits = self(batch.x.to(self.device)).float()
            y = batch.y.to(self.device)
            for name, allowed in among.items():
                answer = logits.masked_fill(~allowed, -torch.inf).argmax(1)
                hits[name] += int((answer == y).sum())
        return hits

    def _untold(self, other: int) -> int:
        """Right answers on the test samples of a task that nobody tells."""
        hits = 0
        for batch in EvalLoader(self.stream.tests[other], max(2 * self.cfg.batch_size, 256)):
            own = self.own[: self.task + 1]
            answers = untold(self.session, self, batch.x.to(self.device), own)
            hits += int((answers.argmax(1) == batch.y.to(self.device)).sum())
        return hits

    def present_accuracy(self) -> float:
        """Percent of right answers on the present task's validation samples.

        Where none are held out, on its training samples.
        """
        held = self.stream.data.validation
        parts = held.parts if isinstance(held, Present) else self._training.parts
        part = parts[min(self.task, len(parts) - 1)]
        samples = part if isinstance(part, Joined) else Joined((part,))
        hits = 0
        with self._testing():
            for batch in EvalLoader(samples, max(2 * self.cfg.batch_size, 256)):
                rivals = self._rivals(batch.task.to(self.device))
                answer = self(batch.x.to(self.device)).float().masked_fill(~rivals, -torch.inf)
                hits += int((answer.argmax(1) == batch.y.to(self.device)).sum())
        self.extra_passes += len(samples)
        return 100.0 * hits / len(samples)

    def _rivals(self, task: Tensor) -> Tensor:
        """Outputs that samples of some tasks compete among where the scenario is tested."""
        return self.own[task] if self.stream.scenario == "task_il" else self._seen()

    @contextmanager
    def _testing(self) -> Iterator[None]:
        """The network as it is tested."""
        self.session.before_forward()
        modes = {module: module.training for module in self.model.modules()}
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            for module, training in modes.items():
                module.training = training

    def evaluate(self, batch: Any) -> None:
        """Add a batch to loss and accuracy in the scenario that is asked."""
        batch = Batch(*batch)
        logits = self._answers(batch).float().masked_fill(~self._rivals(batch.task), -torch.inf)
        loss = nn.functional.cross_entropy(logits, batch.y, reduction="none")
        self.evaluation["loss"].update(loss)
        self.evaluation["accuracy"].update((logits.argmax(1) == batch.y).float())

    def _answers(self, batch: Batch) -> Tensor:
        """Logits of a batch, each sample by the network of its task where tasks have their own."""
        if not self.knows_task:
            answers: Tensor = self(batch.x)
            return answers
        if self.infers and self.stream.scenario != "task_il":
            return untold(self.session, self, batch.x, self.own[: self.task + 1])
        return by_task(self.session, self, batch.x, batch.task, self.stream.outputs)

    def row(self) -> dict[str, float]:
        """The task of an epoch, and the accuracy on each task when it was last tested.

        It is 0 for classes that were not seen yet, which nobody would answer.
        """
        if self.plan.mode != "sequential":
            return {"task": self.task}
        rows = self.record.matrices[self.stream.scenario]
        last = rows[-1] if rows else self.record.before[self.stream.scenario]
        known = {f"continual/task_{task}": value or 0.0 for task, value in enumerate(last)}
        return {"task": self.task, **known}

    # --- checkpoints -------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Where in the stream training is, what was measured, and the buffer."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["continual"] = {
            "classes": [list(own) for own in self.stream.classes],
            "task": self.task,
            "record": self.record.state_dict(),
            "buffer": self.replay.buffer.state_dict() if self.replay else {},
            "regulariser": self.regulariser.state_dict() if self.regulariser else {},
            "removal": removal.state_dict() if (removal := self._training.removal) else {},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back.

        Raises:
            UserError: the checkpoint's stream has its classes in another order.
        """
        super().on_load_checkpoint(checkpoint)
        kept = checkpoint["continual"]
        if kept["classes"] != [list(own) for own in self.stream.classes]:
            raise UserError(
                f"stream: the checkpoint's tasks have the classes {kept['classes']}, this run's "
                f"{[list(own) for own in self.stream.classes]}; it can't be resumed"
            )
        self._move_to(kept["task"])
        self.record.load_state_dict(kept["record"])
        if self.replay:
            self.replay.buffer.load_state_dict(kept["buffer"])
        if self.regulariser:
            self.regulariser.load_state_dict(kept["regulariser"])
        if self._training.removal:
            self._training.removal.load_state_dict(kept["removal"])
