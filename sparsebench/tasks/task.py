"""What all tasks that train have in common: prepare, train, test, and what a task says of its own.

A task is a module with a subclass of :class:`Task` and the line ``prepare, run = entry(Mine)``.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from omegaconf import DictConfig
from torch import nn

from sparsebench import data
from sparsebench.data import DataSets
from sparsebench.data.loader import TrainLoader
from sparsebench.models import probe
from sparsebench.sparsity.compact import keep_small, removes_channels
from sparsebench.sparsity.composed import NoOptions
from sparsebench.sparsity.examples import Examples
from sparsebench.sparsity.fields import read_options
from sparsebench.sparsity.flops import LayerFlops, layer_flops
from sparsebench.sparsity.method import Method
from sparsebench.sparsity.selector import select
from sparsebench.sparsity.spec import SelectorSpec
from sparsebench.tasks.budget import budgeted, first_counts
from sparsebench.tasks.build import build_method, container, network, own_code
from sparsebench.tasks.preflight import check_model, check_run
from sparsebench.training.ranks import check_devices, ranks

if TYPE_CHECKING:
    from sparsebench.training.learner import Learner
    from sparsebench.training.sparsify import Sparsify
    from sparsebench.training.trainer import Fitted

Shape = tuple[int, ...]


@dataclass
class Prepared:
    """All that a run needs, built and checked before anything is written."""

    task: Task
    data: DataSets
    model: nn.Module
    method: Method
    selector: SelectorSpec
    flops: LayerFlops
    dense_forward: float
    seconds: float


class Task:
    """Trains a network with a sparsity method, and tests it.

    A task of one's own says what it learns (:meth:`learner`), and where the usual is not it:
    which data (:meth:`load`), what the network takes and gives (:meth:`shapes`), what a sample
    costs (:meth:`flops`), and figures of the end (:meth:`figures`).

    Attributes:
        options: ``task.options`` of the config, as the class's ``Options``.
    """

    #: Dataclass of the options that a task takes, with rules as in ``sparsity.spec``.
    Options: ClassVar[type] = NoOptions

    def __init__(self, cfg: DictConfig) -> None:
        """Take the config.

        Raises:
            UserError: an option that does not exist, or a value that is not allowed.
        """
        self.cfg = cfg
        self.options: Any = read_options(self.Options, container(cfg.task.options), "task.options")

    # --- what a task says ------------------------------------------------------------------

    def learner(self, prepared: Prepared) -> Learner:
        """The LightningModule: its loss, and how a batch is evaluated."""
        raise NotImplementedError

    def load(self) -> DataSets:
        """Training, validation and test data; any that have the interface of ``Images``."""
        return data.load(container(self.cfg.data), allow=list(self.cfg.allow))

    def shapes(self, input_shape: Shape, num_classes: int) -> tuple[Shape, int]:
        """Shape of one input and number of outputs of a network for data like these."""
        return input_shape, num_classes

    def network(self, like: tuple[Shape, int]) -> tuple[nn.Module, float | None]:
        """The model, and the forward FLOPs of what it is compared with, if that is another."""
        return network(self.cfg, *like, self.flops)

    def refusal(self, model: nn.Module, like: tuple[Shape, int]) -> str | None:
        """Why a model of the user's own can't be trained on such data; None if it can."""
        return probe.refusal(lambda: model, *like)

    def flops(
        self, model: nn.Module, shape: Shape, *, names: Iterable[str] | None = None
    ) -> LayerFlops:
        """Dense FLOPs of a forward pass of one training sample."""
        return layer_flops(model, shape, names=names)

    def check(self, prepared: Prepared) -> None:
        """Refuse what can't work; nothing is written yet."""

    def figures(self, prepared: Prepared, learner: Learner) -> dict[str, Any]:
        """Further metrics of the trained network, for ``result.json``."""
        return {}

    def sparsify(self, prepared: Prepared, learner: Learner) -> Sparsify:
        """The callback that keeps the network sparse."""
        from sparsebench.training.sparsify import Sparsify

        return Sparsify(
            prepared.method,
            selector=prepared.selector,
            seed=self.cfg.seed,
            module="model",
            examples=self.examples(prepared, learner),
        )

    def examples(self, prepared: Prepared, learner: Learner) -> Examples:
        """Training batches for methods that look at some beside training."""
        train, size = prepared.data.train, self.cfg.batch_size
        return Examples(
            lambda seed: TrainLoader(train, size, seed).batches(0), learner.example_loss
        )

    # --- the rest is the same for all --------------------------------------------------------

    def prepare(self) -> Prepared:
        """Load the data, build model and method, and refuse what can't work.

        Where the config tells the data's shape the model comes before the data, and Lightning
        comes last of all, so that a refusal is quick.
        """
        cfg, begin = self.cfg, time.perf_counter()
        check_devices(cfg)
        method = build_method(cfg)
        shape, classes = cfg.data.input_shape, cfg.data.num_classes
        sets = None if shape and classes else self._load()
        found = (sets.input_shape, sets.num_classes) if sets else (tuple(shape), classes)
        like = self.shapes(*found)
        model, dense_forward = self.network(like)
        selector = SelectorSpec(**container(cfg.selector))
        weights = select(model, selector)
        check_model(cfg, model, method, weights, like, lambda net: self.refusal(net, like))
        sets = sets or self._load()
        flops = self.flops(model, self.shapes(sets.input_shape, sets.num_classes)[0], names=weights)
        prepared = Prepared(
            task=self,
            data=sets,
            model=model,
            method=method,
            selector=selector,
            flops=flops,
            dense_forward=dense_forward or flops.total,
            seconds=0.0,
        )
        if cfg.training_flops:
            self.cfg = cfg = budgeted(
                cfg, method, flops, weights, prepared.dense_forward, len(sets.train),
                lambda: self._first(prepared),
            )  # fmt: skip
        check_run(cfg, sets, model, method)
        self.check(prepared)
        prepared.seconds = time.perf_counter() - begin
        return prepared

    def _first(self, prepared: Prepared) -> dict[str, int]:
        """Connections of each layer before the first step."""
        trial = replace(prepared, model=copy.deepcopy(prepared.model))
        learner = self.learner(trial)
        examples = self.examples(trial, learner)
        return first_counts(self.cfg, trial.model, prepared.selector, examples)

    def _load(self) -> DataSets:
        with own_code("data._target_", self.cfg.data["_target_"]):
            return self.load()

    def run(self, folder: Path, prepared: Prepared) -> dict[str, Any]:
        """Train, test, and give what goes into ``result.json``."""
        from sparsebench.training.loggers import Mirror
        from sparsebench.training.measure import Measure
        from sparsebench.training.plots import draw
        from sparsebench.training.trainer import fit

        cfg, sets = self.cfg, prepared.data
        module = self.learner(prepared)
        sparsify = self.sparsify(prepared, module)
        measure = Measure(folder, sparsify, prepared.flops, prepared.dense_forward, cfg.batch_size)
        mirror = Mirror(cfg, folder, measure)
        loggers = [mirror] if mirror.wanted else []
        with ranks(cfg, folder):
            fitted = fit(cfg, folder, sets, module, sparsify, measure, loggers)
            found = self._test(prepared, fitted)
        if removes_channels(prepared.method) and fitted.trainer.is_global_zero:
            shape = self.shapes(sets.input_shape, sets.num_classes)[0]
            metrics, notes = keep_small(
                prepared.model, folder, lambda small: self.flops(small, shape).total
            )
            found["metrics"] |= metrics
            found["notes"] += notes
        found["notes"] += [*sets.notes, *mirror.notes]
        if cfg.plots and fitted.trainer.is_global_zero:
            draw(folder, measure.rows, measure.densities, folder.name)
        mirror.close(found["metrics"])
        return found

    def _test(self, prepared: Prepared, fitted: Fitted) -> dict[str, Any]:
        """Test on all ranks, and gather what was measured."""
        from sparsebench.training.outcome import outcome
        from sparsebench.training.trainer import eval_loader

        sets, module = prepared.data, fitted.module
        begin = time.perf_counter()
        fitted.trainer.test(module, eval_loader(self.cfg, sets.test, fitted.trainer), verbose=False)
        found = outcome(
            fitted, module.take_evaluation(), sum(p.numel() for p in prepared.model.parameters())
        )
        if fitted.trainer.is_global_zero:
            found["metrics"] |= self.figures(prepared, module)
        found["metrics"] |= {
            "seconds/testing": time.perf_counter() - begin,
            "seconds/setup": prepared.seconds,
            "seconds/fit": fitted.seconds,
        }
        found["data"] = {"fingerprint": sets.fingerprint, "train": len(sets.train)}
        return found


def entry(kind: type[Task]) -> tuple[Callable[..., Prepared], Callable[..., dict[str, Any]]]:
    """The functions ``prepare(cfg)`` and ``run(cfg, folder, prepared)`` of a task's module."""

    def prepare(cfg: DictConfig) -> Prepared:
        return kind(cfg).prepare()

    def run(cfg: DictConfig, folder: Path, prepared: Prepared) -> dict[str, Any]:
        return prepared.task.run(folder, prepared)

    return prepare, run
