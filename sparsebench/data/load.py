"""From the config group ``data`` to the three sets of a run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsebench.config.importing import resolve
from sparsebench.data import builtin
from sparsebench.data.images import DataSets, Images
from sparsebench.data.options import Options
from sparsebench.data.source import Source, of_arrays
from sparsebench.data.stratify import amount, others, stratified
from sparsebench.errors import UserError, bad_value

NAMES = (
    *("digits", "mnist1d", "mnist1d_shuffled", "mnist", "fashion_mnist"),
    *("svhn", "notmnist", "cifar10", "cifar100", "mini_imagenet", "tiny_imagenet"),
    *("imagenet", "hf", "five_datasets"),
)


def load(config: Mapping[str, Any], *, allow: Sequence[str] = ()) -> DataSets:
    """Load, check and split the data set that the config group ``data`` describes.

    The training images are first cut down to ``subset``, then ``validation`` is held out
    of them. Both parts keep the class shares exactly and depend on ``split_seed`` alone.

    Args:
        config: the group: a ``name``, or a ``_target_`` that is the import path of a
            builder. A builder is called with the group as its one argument (its own dials
            are under ``args``) and returns ``DataSets``, ``Source`` or ``((images, labels),
            (images, labels))``, training before test; ``source.of_arrays`` has the types.
        allow: packages that ``_target_`` may come from beside the usual ones.

    Returns:
        Training, validation and test images and what is known about them.

    Raises:
        UserError: the set is missing, damaged or contradicts the config.
    """
    options = Options.of(config)
    built = _builder(config, options, allow)(config)
    if isinstance(built, DataSets):
        return built
    key = f"data={options.name}"
    source = built if isinstance(built, Source) else of_arrays(built, options, key)
    classes = _check(source, options)
    train, validation = _split(source.train, options)
    return DataSets(
        name=options.name,
        num_classes=classes,
        input_shape=tuple(source.train.shape),
        train=train,
        validation=validation,
        test=source.test,
        class_names=source.class_names,
        fingerprint=_fingerprint(source, train, validation),
        notes=source.notes,
        facts=source.facts,
    )


def _builder(
    config: Mapping[str, Any], options: Options, allow: Sequence[str]
) -> Callable[[Mapping[str, Any]], Any]:
    target = config.get("_target_")
    if not target:
        if options.name not in NAMES:
            raise bad_value("data", options.name, f"is none of {', '.join(NAMES)}", NAMES)
        target = f"{builtin.__name__}.{options.name}"
    found = resolve(target, "data._target_", allow)
    if not callable(found):
        raise UserError(f"data._target_={target}: is no function")
    return found


def _check(source: Source, options: Options) -> int:
    """Compare the data with the config; returns the number of classes."""
    name = f"{options.name} at {source.where}" if source.where else options.name
    for split, images in (("training", source.train), ("test", source.test)):
        if len(images) == 0:
            raise UserError(f"data={name}: has no {split} images")
        low, high = images.labels.aminmax()
        if low < 0:
            raise UserError(f"data={name}: a {split} image has the label {low}, so no class")
        known = len(source.class_names)
        if known and high >= known:
            raise UserError(
                f"data={name}: a {split} label is {high}, but there are {known} classes"
            )
    if _one_class(source.train):
        only = int(source.train.labels[0])
        raise UserError(f"data={name}: all training images are of one class ({only})")
    _check_shape(source, options, name)
    return _classes(source, options, name)


def _check_shape(source: Source, options: Options, name: str) -> None:
    shape, size = tuple(source.train.shape), len(source.train)
    if options.input_shape is not None and options.input_shape != shape:
        raise bad_value("data.input_shape", list(options.input_shape), f"{name} has {list(shape)}")
    if options.train_size is not None and options.train_size != size:
        raise bad_value(
            "data.train_size", options.train_size, f"{name} has {size} images (incomplete?)"
        )


def _classes(source: Source, options: Options, name: str) -> int:
    labels = max(int(source.train.labels.max()), int(source.test.labels.max())) + 1
    found = len(source.class_names) or labels
    given = options.num_classes
    # without names the data may lack the last classes, but never hold more than configured
    if given is not None and (given < found or (source.class_names and given != found)):
        raise bad_value("data.num_classes", given, f"{name} has {found} classes")
    return given or found


def _split(images: Images, options: Options) -> tuple[Images, Images | None]:
    """Cut down to the subset and hold the validation images out."""
    if options.subset is not None:
        count = amount("data.subset", options.subset, len(images))
        if count == 0:
            raise bad_value("data.subset", options.subset, "leaves no image")
        chosen = stratified(images.labels, count, "subset", options.split_seed)
        images = images.select(chosen)
        if _one_class(images):
            raise bad_value("data.subset", options.subset, "leaves images of one class only")
    held = amount("data.validation", options.validation, len(images))
    if held == 0 and options.validation != 0:
        what = f"of {len(images)} images leaves none to validate on; 0 is for no validation"
        raise bad_value("data.validation", options.validation, what)
    if held == len(images):
        raise bad_value("data.validation", options.validation, "leaves no image to train on")
    if held == 0:
        return images, None
    chosen = stratified(images.labels, held, "validation", options.split_seed)
    return images.select(others(chosen, len(images))), images.select(chosen)


def _one_class(images: Images) -> bool:
    return bool((images.labels == images.labels[0]).all())


def _fingerprint(source: Source, train: Images, validation: Images | None) -> str:
    """Hash of the content and of which images are used for what."""
    total = hashlib.sha256(source.digest.encode())
    for images in (train, validation, source.test):
        for tensor in (images.rows, images.labels) if images is not None else ():
            total.update(_bytes(tensor))
        total.update(b"|")
    return total.hexdigest()[:16]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.to(torch.int64).numpy().tobytes()
