"""A stream: any data set, as a sequence of tasks.

``split`` shares the classes out over tasks; ``permuted`` and ``rotated`` show all classes in each
task, the pixels in another order or turned. What is to be learned is one of three scenarios (van
de Ven and Tolias 2019, arXiv 1904.07734): ``task_il`` and ``class_il`` have an output for each
class of each task, ``domain_il`` has outputs that all tasks share.

An epoch shows one task and has the same number of steps in each: those of a task of mean size, so
that it does not depend on the order of classes. A smaller task begins anew before the epoch ends;
of a larger one, other samples are left out in each epoch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsebench.continual.order import tasks_of
from sparsebench.continual.removal import Removal
from sparsebench.continual.transforms import Transform, transforms
from sparsebench.data.augment import augment, normalise
from sparsebench.data.images import DataSets, Images, TensorImages
from sparsebench.data.seeding import generator
from sparsebench.errors import UserError

_NOWHERE = torch.zeros(0, dtype=torch.int64)


class Batch(NamedTuple):
    """Samples, and what continual learning must know of them."""

    x: Tensor  # float32 [B, ...]
    y: Tensor  # int64 [B], outputs
    task: Tensor  # int64 [B]
    stored: Tensor  # [B, ...] not augmented and not normalised; empty where nobody asked
    fresh: Tensor  # bool [B], whether this is the first time that training shows it
    place: Tensor = _NOWHERE  # int64 [B] in training, which of the task's samples


@dataclass(frozen=True, eq=False)
class View:
    """The samples of one task.

    Attributes:
        images: of its classes.
        task: its number.
        outputs: int64 [classes of the data], output of each class; -1 for classes of others.
        transform: what the task does to stored images.
        keep: whether batches carry the stored images.
    """

    images: Images
    task: int
    outputs: Tensor
    transform: Transform | None = None
    keep: bool = False

    def __len__(self) -> int:
        return len(self.images)

    def draw(self, seed: int, epoch: int) -> Any:
        """The augmentation of every sample in an epoch."""
        return self.images.draw(seed, epoch)

    def cut(self, positions: Tensor, draw: Any = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The first four parts of a batch; without ``draw`` nothing is random."""
        images = self.images
        task = torch.full((len(positions),), self.task)
        if not isinstance(images, TensorImages):
            x, y = next(iter(images.batches([positions], draw)))
            return x, self.outputs[y], task, x[:0]
        stored = images.storage.index_select(0, images.rows[positions])
        if self.transform is not None:
            stored = self.transform(stored)
        shown = stored if draw is None else augment(stored, images.recipe, draw, positions)
        y = self.outputs[images.labels[positions]]
        return normalise(shown, images.recipe), y, task, stored if self.keep else stored[:0]


@dataclass(frozen=True, eq=False)
class Joined:
    """The samples of several tasks as one set."""

    views: tuple[View, ...]

    def __len__(self) -> int:
        return sum(map(len, self.views))

    def draw(self, seed: int, epoch: int) -> list[Any]:
        """The augmentation of every sample in an epoch."""
        return [view.draw(seed, epoch) for view in self.views]

    def cut(self, positions: Tensor, draw: Any = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The first four parts of a batch, in the order of the positions."""
        ends = torch.tensor([len(view) for view in self.views]).cumsum(0)
        owner = torch.bucketize(positions, ends, right=True)
        parts, places = [], []
        for task in sorted(set(owner.tolist())):
            where = (owner == task).nonzero().flatten()
            begin = int(ends[task]) - len(self.views[task])
            drawn = None if draw is None else draw[task]
            parts.append(self.views[task].cut(positions[where] - begin, drawn))
            places.append(where)
        back = torch.cat(places).argsort()
        x, y, tasks, stored = (torch.cat(part) for part in zip(*parts, strict=True))
        return x[back], y[back], tasks[back], stored[back] if len(stored) else stored

    def batches(self, positions: Iterable[Tensor], draw: Any = None) -> Iterator[Batch]:
        """One batch for each tensor of positions."""
        for each in positions:
            yield Batch(*self.cut(each, draw), torch.zeros(len(each), dtype=torch.bool))


class Turn(NamedTuple):
    """The random choices of an epoch."""

    part: View | Joined
    order: Tensor  # int64, which samples of it in turn
    drawn: Any
    first: bool  # the epoch is the first that shows this part


@dataclass(frozen=True, eq=False)
class Training:
    """What training shows: one part after the other, each for so many epochs."""

    parts: tuple[View | Joined, ...]
    epochs: int
    size: int  # samples of an epoch, before any are removed
    removal: Removal | None = None

    def __len__(self) -> int:
        return self.size

    def size_at(self, epoch: int) -> int:
        """Samples of an epoch."""
        if self.removal is None:
            return self.size
        return self.removal.stages.left(self.size, epoch % self.epochs)

    def steps(self, batch_size: int, accumulate: int = 1) -> int:
        """Optimizer steps that a part is trained for."""
        micro = batch_size // accumulate
        return sum(self.size_at(epoch) // micro // accumulate for epoch in range(self.epochs))

    def begin_epoch(self, epoch: int) -> None:
        """Before an epoch is drawn: remove samples if it is time."""
        if self.removal is not None:
            task = epoch // self.epochs
            self.removal.begin_epoch(len(self.parts[task]), task, epoch % self.epochs)

    def draw(self, seed: int, epoch: int) -> Turn:
        """Which samples an epoch shows, and how."""
        part = self.parts[min(epoch // self.epochs, len(self.parts) - 1)]
        kept = None if self.removal is None else self.removal.kept
        left, size = len(part) if kept is None else len(kept), self.size_at(epoch)
        order = torch.cat(
            [
                torch.randperm(left, generator=generator("turn", seed, epoch, number))
                for number in range(-(-size // left))
            ]
        )[:size]
        order = order if kept is None else kept[order]
        return Turn(part, order, part.draw(seed, epoch), epoch % self.epochs == 0)

    def batches(self, positions: Iterable[Tensor], draw: Turn | None = None) -> Iterator[Batch]:
        """One batch for each tensor of positions."""
        turn = draw or self.draw(0, 0)
        for each in positions:
            fresh, places = (each < len(turn.part)) & turn.first, turn.order[each]
            yield Batch(*turn.part.cut(places, draw and turn.drawn), fresh, places)


@dataclass(eq=False)
class Present:
    """The validation samples of the task that is being learned.

    Attributes:
        part: of that task; whoever trains moves it on.
    """

    parts: tuple[View | Joined, ...]
    part: int = 0

    def __len__(self) -> int:
        return max(map(len, self.parts))

    def draw(self, seed: int, epoch: int) -> None:
        """Nothing."""

    def batches(self, positions: Iterable[Tensor], draw: Any = None) -> Iterator[Batch]:
        """One batch for each tensor of positions, less those that this task does not have."""
        part = self.parts[self.part]
        for each in positions:
            there = each[each < len(part)]
            if len(there):
                yield Batch(*part.cut(there), torch.zeros(len(there), dtype=torch.bool))


@dataclass(frozen=True, eq=False)
class Stream:
    """A data set as a sequence of tasks.

    Attributes:
        scenario: what is asked: ``task_il``, ``class_il`` or ``domain_il``.
        classes: for each task its classes, in the order of their outputs.
        outputs: number of outputs a network needs.
        data: training one task after the other, validation of the present one, test of all.
        tests: test samples of each task.
    """

    scenario: str
    classes: tuple[tuple[int, ...], ...]
    outputs: int
    data: DataSets
    tests: tuple[Joined, ...] = field(default=())

    @property
    def shared(self) -> bool:
        """Whether all tasks have the same outputs."""
        return self.scenario == "domain_il"

    def slice_of(self, task: int) -> slice:
        """The outputs of a task."""
        if self.shared:
            return slice(0, self.outputs)
        size = len(self.classes[task])
        return slice(task * size, (task + 1) * size)


def outputs_of(config: Any, classes: int) -> int:
    """Outputs that a network for a stream needs.

    Args:
        config: the config group ``stream``.
        classes: classes of the data.

    Raises:
        UserError: see :func:`sparsebench.continual.order.tasks_of`.
    """
    tasks = tasks_of(config, classes)
    return len(tasks[0]) * (1 if config.scenario == "domain_il" else len(tasks))


def build(
    config: Any,
    sets: DataSets,
    epochs: int,
    *,
    joint: bool = False,
    keep: bool = False,
    removal: Removal | None = None,
) -> Stream:
    """Make a stream of a data set.

    Args:
        config: the config group ``stream``.
        sets: the data set, loaded and split.
        epochs: for which training shows each task.
        joint: training shows all tasks at once.
        keep: training batches carry the stored images, for replay.
        removal: which samples training leaves out, if any.

    Raises:
        UserError: a stream that can't be made of these data.
    """
    classes = tasks_of(config, sets.num_classes, sets.class_names)
    changes = transforms(config, sets.input_shape)
    outputs = outputs_of(config, sets.num_classes)
    shared = config.scenario == "domain_il"

    def views(images: Any, what: str, keep: bool = False) -> tuple[View, ...]:
        found = []
        for task, (own, change) in enumerate(zip(classes, changes, strict=True)):
            begin = 0 if shared else task * len(own)
            lookup = torch.full((sets.num_classes,), -1)
            lookup[list(own)] = begin + torch.arange(len(own))
            chosen = (lookup[images.labels] >= 0).nonzero().flatten()
            if not len(chosen):
                raise UserError(f"stream={config.name}: task {task} has no {what} images")
            found.append(View(_ready(images.select(chosen), config), task, lookup, change, keep))
        return tuple(found)

    trained, tested = views(sets.train, "training", keep), views(sets.test, "test")
    parts: tuple[View | Joined, ...] = (Joined(trained),) if joint else trained
    held: tuple[View | Joined, ...] | None = None
    if sets.validation is not None:
        held = views(sets.validation, "validation")
        held = (Joined(held),) if joint else held
    data = replace(
        sets,
        train=Training(parts, epochs, sum(map(len, parts)) // len(classes), removal),
        validation=None if held is None else Present(held),
        test=Joined(tested),
    )
    return Stream(
        config.scenario, classes, outputs, data, tuple(Joined((view,)) for view in tested)
    )


def _ready(images: Any, config: Any) -> Any:
    """Images as a stream shows them: a crop or a mirror image makes no sense of mixed pixels."""
    if config.kind == "split":
        return images
    if not isinstance(images, TensorImages):
        raise UserError(f"stream.kind={config.kind}: needs images that fit into memory")
    if config.kind == "permuted":
        return replace(images, recipe=images.recipe.without_augmentation())
    return images
