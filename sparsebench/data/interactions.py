"""Implicit feedback: which users chose which items, split for ranking."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsebench.data.images import DataSets
from sparsebench.data.named import find_folder, places
from sparsebench.data.options import Options
from sparsebench.data.seeding import generator
from sparsebench.data.tensors import TensorRows, fingerprint
from sparsebench.errors import UserError, bad_value
from sparsebench.sparsity.fields import read_options
from sparsebench.sparsity.spec import number, whole


@dataclass(frozen=True)
class Interactions:
    """All that is known of who chose what."""

    pairs: Tensor  # int64 [N, 2], user and item, none twice
    users: int
    items: int
    facts: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Taste:
    """Options of :func:`synthetic`."""

    users: int = whole(600, 2, "number of users")
    items: int = whole(400, 2, "number of items")
    rank: int = whole(8, 1, "dimensions of taste")
    strength: float = number(3.0, "[0, inf)", "deviation of taste in the logits")
    popularity: float = number(1.0, "[0, inf)", "deviation of popularity in the logits")
    least: int = whole(20, 5, "items of a user at least")
    most: int = whole(60, 5, "and at most")
    seed: int = whole(0, 0, "of the data")


def synthetic(config: Mapping[str, Any]) -> Interactions:
    """Choices of users whose taste is of low rank, among items of unequal popularity.

    User u draws its items without replacement with probabilities softmax_i(s_ui), where
    s_ui = strength / sqrt(rank) * p_u . q_i + popularity * b_i, all of p, q and b standard normal.

    Args:
        config: the group ``data``; its ``args`` are those of :class:`Taste`.

    Returns:
        The choices, and as the fact ``scores`` the float32 [users, items] that they come from.

    Raises:
        UserError: users with more items than there are.
    """
    plan = read_options(Taste, config.get("args") or {}, "data.args")
    if not plan.least <= plan.most < plan.items:
        allowed = f"from data.args.least={plan.least} to below data.args.items={plan.items}"
        raise bad_value("data.args.most", plan.most, allowed)
    stream = torch.Generator().manual_seed(plan.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=stream)

    taste = normal(plan.users, plan.rank) @ normal(plan.rank, plan.items) / plan.rank**0.5
    scores = plan.strength * taste + plan.popularity * normal(plan.items)
    uniform = torch.rand(scores.shape, generator=stream).clamp_min(1e-30)
    order = (scores - (-uniform.log()).log()).argsort(1, descending=True)  # Gumbel: no replacement
    counts = torch.randint(plan.least, plan.most + 1, (plan.users, 1), generator=stream)
    user, place = (torch.arange(plan.items) < counts).nonzero(as_tuple=True)
    pairs = torch.stack([user, order[user, place]], 1)
    return Interactions(pairs, plan.users, plan.items, {"scores": scores})


def movielens(config: Mapping[str, Any]) -> Interactions:
    """MovieLens-100k (Harper and Konstan 2015), every rating an interaction.

    Read from a folder ``ml-100k`` with ``u.data`` (GroupLens) or ``ml-100k.inter`` (RecBole).

    Raises:
        UserError: no such folder or file, or a line that is no rating.
    """
    options = Options.of(config)
    folder = find_folder(("ml-100k", "ml_100k", "movielens"), options)
    if folder is None:
        raise UserError(
            f"data={options.name}: not found; looked for ml-100k in {places(options)}; it is "
            "inside the Python package recbole (dataset_example/ml-100k), or at grouplens.org"
        )
    path = next((folder / n for n in ("ml-100k.inter", "u.data") if (folder / n).is_file()), None)
    if path is None:
        raise UserError(f"data={options.name}: {folder} has neither ml-100k.inter nor u.data")
    pairs = _read(path)
    users, user = np.unique(pairs[:, 0].numpy(), return_inverse=True)
    items, item = np.unique(pairs[:, 1].numpy(), return_inverse=True)
    once = torch.from_numpy(np.unique(user * len(items) + item)).long()
    numbered = torch.stack([once // len(items), once % len(items)], 1)
    return Interactions(numbered, len(users), len(items))


def _read(path: Path) -> Tensor:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    first = 1 if lines and ":token" in lines[0] else 0
    try:
        rows = [[int(word) for word in line.split()[:2]] for line in lines[first:] if line]
        pairs = torch.tensor(rows, dtype=torch.int64).view(-1, 2)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"data: {path} has a line that is no rating ({error})") from error
    if not len(pairs):
        raise UserError(f"data: {path} has no rating")
    return pairs


def split(found: Interactions, options: Options, test: float) -> DataSets:
    """Hold interactions of each user out, for validation and test.

    Args:
        found: all interactions.
        options: the config group ``data``: name, share for ``validation``, ``split_seed``.
        test: share of each user's interactions to test on, rounded down.

    Returns:
        Training rows are (user, item); rows of validation and test are a user, bool [items] of
        what it chose before (not to be recommended) and bool [items] of what is to be found, for
        users who have something to find. ``input_shape`` is (users,), ``num_classes`` the items.

    Raises:
        UserError: nothing is left to train or to test on, or a user has chosen all items.
    """
    pairs = found.pairs
    order = torch.randperm(len(pairs), generator=generator("interactions", options.split_seed))
    pairs = pairs[order][pairs[order][:, 0].argsort(stable=True)]
    counts = torch.bincount(pairs[:, 0], minlength=found.users)
    if bool((counts >= found.items).any()):
        raise UserError(f"data={options.name}: a user has chosen all {found.items} items")
    place = torch.arange(len(pairs)) - (counts.cumsum(0) - counts)[pairs[:, 0]]
    tested = (counts.double() * test).floor().long()
    checked = ((counts - tested).double() * options.validation).floor().long()
    role = (place < (tested + checked)[pairs[:, 0]]).long() + (place < tested[pairs[:, 0]]).long()
    parts = [pairs[role == which] for which in (0, 1, 2)]
    train = TensorRows((parts[0][:, 0].contiguous(), parts[0][:, 1].contiguous()))
    shape = (found.users, found.items)
    validation = _ranking(parts[0], parts[1], shape) if options.validation else None
    tests = _ranking(torch.cat(parts[:2]), parts[2], shape)
    for rows, what in ((train, "to train on"), (tests, "to test on"), (validation, "to validate")):
        if rows is not None and not len(rows):
            raise UserError(f"data={options.name}: no interaction is left {what}")
    return DataSets(
        name=options.name,
        num_classes=found.items,
        input_shape=(found.users,),
        train=train,
        validation=validation,
        test=tests,
        class_names=(),
        fingerprint=fingerprint(train, validation, tests),
        facts=found.facts,
    )


def _ranking(seen: Tensor, wanted: Tensor, shape: tuple[int, int]) -> TensorRows:
    tables = []
    for pairs in (seen, wanted):
        table = torch.zeros(shape, dtype=torch.bool)
        table[pairs[:, 0], pairs[:, 1]] = True
        tables.append(table)
    users = tables[1].any(1).nonzero().view(-1)
    return TensorRows((users, tables[0][users], tables[1][users]))


def check(options: Options) -> None:
    """Refuse dials of ``data`` that mean nothing for interactions.

    Raises:
        UserError: naming the dial.
    """
    if options.subset is not None:
        raise bad_value("data.subset", options.subset, "interactions have no subset")
    if not 0 <= options.validation < 1:
        allowed = "a share of each user's interactions in [0, 1) is needed"
        raise bad_value("data.validation", options.validation, allowed)
