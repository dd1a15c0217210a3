"""Structured pruning: attention heads and channels of MLPs, removed so that matrices are smaller.

A unit is what one layer reads and others write: a channel of an MLP (a row of ``up`` and ``gate``,
a column of ``down``), or the heads that share keys and values (rows of query, key and value,
columns of the output), which leaves the number of heads in a group and the dimensions of rotary
embeddings alone. It is judged by what reads it, as in FLAP (arXiv 2312.11983): the sum of any
score over its columns. All blocks lose the same number, so that the model's own config can say
its new sizes and any version of transformers loads it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from sparsebench.errors import UserError
from sparsebench.llm.choose import lowest, number
from sparsebench.llm.layers import Block, Linear
from sparsebench.sparsity.masks import unpack

#: Names that configs give to the number of an MLP's channels.
WIDTHS = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")


@dataclass(frozen=True)
class Part:
    """Units of one kind in a block.

    Attributes:
        what: ``heads`` or ``channels``.
        units: how many there are.
        writers: layers with a share of their outputs for each unit.
        reader: the layer with a share of its inputs for each unit.
    """

    what: str
    units: int
    writers: tuple[Linear, ...]
    reader: Linear

    @property
    def weights(self) -> int:
        """Of all its layers."""
        return sum(linear.weight.numel() for linear in (*self.writers, self.reader))

    def masks(self, score: Tensor, removed: int) -> dict[str, Tensor]:
        """Masks (outputs, inputs) without the units of the lowest scores; of equal ones the first.

        Args:
            score: of the reader's weights (outputs, inputs).
            removed: how many units go.
        """
        of_unit = score.sum(0).view(1, self.units, -1).sum(2)
        kept = ~lowest(of_unit, removed)[0]
        masks = {}
        for linear in self.writers:
            rows = kept.repeat_interleave(linear.weight.shape[0] // self.units)
            masks[linear.name] = rows.unsqueeze(1).expand(linear.weight.shape).contiguous()
        columns = kept.repeat_interleave(self.reader.weight.shape[1] // self.units)
        masks[self.reader.name] = columns.expand(self.reader.weight.shape).contiguous()
        return masks


@dataclass(frozen=True)
class Units:
    """What is removed of a model, the same number in each block.

    Attributes:
        parts: of each block.
        removed: units that go, by kind.
    """

    parts: Sequence[Sequence[Part]]
    removed: Mapping[str, int]

    @classmethod
    def of(cls, model: Any, blocks: Sequence[Block], which: str, sparsity: float) -> Units:
        """Find the units of a model, and how many of them go.

        Args:
            model: of transformers.
            blocks: its decoder blocks.
            which: ``heads``, ``channels`` or ``both``.
            sparsity: share of the weights of the layers that units are in; with ``both``, heads
                go by whole groups and channels make up for what is missing.

        Raises:
            UserError: the blocks are not built so, or nothing or all would go.
        """
        parts = [_parts(block, model.config, which) for block in blocks]
        if len({tuple((p.what, p.units, p.weights) for p in found) for found in parts}) > 1:
            raise UserError("structure=channel: the model's blocks differ in size")
        found = cls(parts, _removed(parts[0], which, sparsity))
        found.check(model)
        return found

    def masks(self, block: Block, score: Callable[[Linear], Tensor]) -> dict[str, Tensor]:
        """Masks of all layers of a block, by name of the weight.

        Args:
            block: not pruned yet.
            score: of a layer's weights (outputs, inputs).
        """
        masks = {one.name: torch.ones_like(one.weight, dtype=torch.bool) for one in block.linears}
        for part in self.parts[block.linears[0].block]:
            masks |= part.masks(score(part.reader), self.removed[part.what])
        return masks

    @property
    def said(self) -> str:
        """What stays, in words."""
        found = []
        for part in self.parts[0]:
            name = "groups of heads" if part.what == "heads" else "channels"
            found.append(f"{part.units - self.removed[part.what]} of {part.units} {name}")
        return f"of each block stay {' and '.join(found)}"

    def config(self, model: Any) -> Any:
        """The model's config with its new sizes.

        Raises:
            UserError: it has no key for them.
        """
        config = copy.deepcopy(model.config)
        for part in self.parts[0]:
            left = part.units - self.removed[part.what]
            if part.what == "heads":
                heads = config.num_attention_heads // part.units
                config.head_dim = part.reader.weight.shape[1] // config.num_attention_heads
                config.num_attention_heads = heads * left
                if hasattr(config, "num_key_value_heads"):
                    config.num_key_value_heads = left
                continue
            keys = [key for key in WIDTHS if getattr(config, key, None) == part.units]
            if not keys:
                raise UserError(
                    f"structure=channel: {type(config).__name__} has none of {', '.join(WIDTHS)} "
                    f"with the {part.units} channels of the model"
                )
            setattr(config, keys[0], left)
        return config

    def empty(self, model: Any) -> nn.Module:
        """A model of the new sizes, whose parameters are on the device ``meta``.

        Raises:
            UserError: the library does not build one.
        """
        from accelerate import init_empty_weights

        try:
            config = type(model.config).from_dict(self.config(model).to_dict())
            config._attn_implementation = model.config._attn_implementation
            with init_empty_weights(include_buffers=False):
                small: nn.Module = type(model)(config)
        except Exception as error:  # of many kinds, by version and by what does not fit
            said = str(error).strip().splitlines()[-1].strip()
            raise UserError(
                f"structure=channel: {self.said}, and {type(model).__name__} can't be so: {said}"
            ) from error
        return small.eval()

    def check(self, model: Any) -> None:
        """Refuse a model whose config can't say what it would be.

        Raises:
            UserError: naming a parameter.
        """
        wanted = {name: tuple(p.shape) for name, p in model.named_parameters()}
        for part in (part for found in self.parts for part in found):
            share = (part.units - self.removed[part.what]) / part.units
            for linear in part.writers:
                axis = 1 if linear.transposed else 0
                wanted[linear.name] = _less(wanted[linear.name], axis, share)
                if (bias := linear.name.removesuffix("weight") + "bias") in wanted:
                    wanted[bias] = _less(wanted[bias], 0, share)
            name = part.reader.name
            wanted[name] = _less(wanted[name], 0 if part.reader.transposed else 1, share)
        found = {name: tuple(p.shape) for name, p in self.empty(model).named_parameters()}
        for name, shape in wanted.items():
            if found.get(name) != shape:
                raise UserError(
                    f"structure=channel: the config of {type(model).__name__} can't say so: "
                    f"'{name}' would be {shape}, and it makes it {found.get(name)}; "
                    "method.units=channels may do"
                )

    def shrink(self, model: Any, masks: Mapping[str, Tensor]) -> nn.Module:
        """A smaller model that computes the same as the pruned one.

        Args:
            model: pruned; not changed.
            masks: packed bits by name of the weight.
        """
        state = dict(model.state_dict())
        for part in (part for found in self.parts for part in found):
            for linear in part.writers:
                rows = _mask(linear, masks).any(1)
                _cut(state, linear.name, 1 if linear.transposed else 0, rows)
                if (bias := linear.name.removesuffix("weight") + "bias") in state:
                    _cut(state, bias, 0, rows)
            columns = _mask(part.reader, masks).any(0)
            _cut(state, part.reader.name, 0 if part.reader.transposed else 1, columns)
        small: Any = self.empty(model)
        small.load_state_dict(state, assign=True)
        small.tie_weights()
        small.generation_config = getattr(model, "generation_config", None)
        made: nn.Module = small.to(next(model.parameters()).device)
        return made


def units_of(cfg: DictConfig, model: Any, blocks: Sequence[Block]) -> Units | None:
    """What goes as a whole by a config of ``structure=channel``; None with any other.

    Raises:
        UserError: the method can't do it, or the model is not built so.
    """
    if cfg.structure.name != "channel":
        return None
    for dial, usual in (("ratios", "uniform"), ("swap", None)):
        if cfg.method[dial] != usual:
            raise UserError(
                f"method.{dial}={cfg.method[dial]}: with structure=channel all blocks lose the "
                "same number of whole units"
            )
    if cfg.recovery.name != "none":
        raise UserError(
            f"recovery={cfg.recovery.name}: trains weights behind masks, and structure=channel "
            "removes them; train the model it saves"
        )
    return Units.of(model, blocks, cfg.method.units, cfg.sparsity)


def _less(shape: tuple[int, ...], axis: int, share: float) -> tuple[int, ...]:
    return (*shape[:axis], round(shape[axis] * share), *shape[axis + 1 :])


def _mask(linear: Linear, masks: Mapping[str, Tensor]) -> Tensor:
    """The mask of a layer as (outputs, inputs)."""
    mask = unpack(masks[linear.name], torch.Size(linear.stored_shape))
    return mask.t() if linear.transposed else mask


def _cut(state: dict[str, Tensor], name: str, axis: int, kept: Tensor) -> None:
    tensor = state[name]
    where = kept.nonzero().squeeze(1).to(tensor.device)
    state[name] = tensor.index_select(axis, where).contiguous()


def _removed(parts: Sequence[Part], which: str, sparsity: float) -> dict[str, int]:
    """Units of a block that go, by kind.

    Raises:
        UserError: none would go, or all.
    """
    left = sparsity * sum(part.weights for part in parts)
    removed = {}
    for part in parts:  # heads, which are few, before channels
        last = part is parts[-1]
        share = left * part.units / part.weights if last else part.units * sparsity
        removed[part.what] = found = number(1, max(share, 0.0))
        left -= found * part.weights / part.units
        if found >= part.units:
            raise UserError(
                f"sparsity={sparsity:g}: all {part.units} {part.what} of a block would go "
                f"(method.units={which})"
            )
    if sparsity and not any(removed.values()):
        said = " and ".join(f"{part.units} {part.what}" for part in parts)
        raise UserError(
            f"sparsity={sparsity:g}: of the {said} of a block not one would go "
            f"(method.units={which}); heads that share keys and values go together"
        )
    return removed


def _parts(block: Block, config: Any, which: str) -> list[Part]:
    """The units of a block.

    Raises:
        UserError: it is not built so.
    """
    found = []
    if which != "channels":
        found.append(_heads(block, config))
    if which != "heads":
        found.append(_channels(block))
    return found


def _home(linear: Linear) -> str:
    """Name of the module that a layer is in."""
    return linear.name.rsplit(".", 2)[0]


def _heads(block: Block, config: Any) -> Part:
    named = {linear.name.rsplit(".", 2)[1]: linear for linear in block.linears}
    writers = tuple(named[key] for key in ("q_proj", "k_proj", "v_proj") if key in named)
    if len(writers) < 3:
        raise UserError(
            f"structure=channel: '{block.name}' has no q_proj, k_proj and v_proj of its own, so "
            "its heads can't be told apart; use method.units=channels"
        )
    together = [one for one in block.linears if _home(one) == _home(writers[0])]
    readers = [one for one in together if one not in writers]
    groups = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    query, key, value = (one.weight.shape[0] for one in writers)
    plain = len(readers) == 1 and readers[0].weight.shape[1] == query and key == value
    if not plain or math.gcd(query, key, groups) != groups:
        raise UserError(f"structure=channel: the heads of '{block.name}' are of no kind known here")
    return Part("heads", groups, writers, readers[0])


def _channels(block: Block) -> Part:
    """The last layer of a block reads what the others beside it write."""
    reader = block.linears[-1]
    writers = tuple(one for one in block.linears[:-1] if _home(one) == _home(reader))
    width = reader.weight.shape[1]
    if not writers or any(one.weight.shape[0] != width for one in writers):
        raise UserError(
            f"structure=channel: the MLP of '{block.name}' is not one layer that reads what one or "
            "two others write, so its channels can't be removed; use method.units=heads"
        )
    return Part("channels", width, writers, reader)
