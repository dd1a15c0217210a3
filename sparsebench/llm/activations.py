"""Calibration text on its way through the blocks: hidden states held once, moved block by block."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsebench.errors import UserError
from sparsebench.llm.inputs import Inputs
from sparsebench.llm.layers import Block, Linear, device_of
from sparsebench.llm.onfile import OnFile

#: Arguments of a block that hold what earlier tokens left: there are none.
CACHES = ("past_key_value", "past_key_values", "layer_past", "past", "cache_position")


class _Stop(Exception):
    """All that was wanted of a forward pass is known."""


class Activations:
    """What goes into a block, for each calibration sequence, and the arguments it goes with.

    Attributes:
        hidden: (1, tokens, width) of each sequence, in front of block ``at``.
        at: number of the next block.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[Block],
        samples: Sequence[Tensor],
        folder: Path | None = None,
    ) -> None:
        """Run all that comes before the first block.

        Args:
            model: a causal language model.
            blocks: its decoder blocks.
            samples: token ids, (tokens) each, all of one length.
            folder: where the hidden states are held in a file; None: in memory.

        Raises:
            UserError: the sequences differ in length, so that arguments can't be shared.
        """
        if len({len(sample) for sample in samples}) != 1:
            raise UserError("calibration: all sequences must have the same length")
        self.blocks = blocks
        self.at = 0
        self.hidden: list[Tensor] | OnFile = OnFile(folder) if folder else []
        self._arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = [((), {})] * len(blocks)
        device = device_of(model)
        with _recorded(blocks, self._record), torch.no_grad():
            for sample in samples:
                with suppress(_Stop):
                    model(input_ids=sample.unsqueeze(0).to(device), use_cache=False)

    def _record(self, number: int, real: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Stand in for a block: note what it is given, and give the hidden states back."""
        given = dict(kwargs)
        hidden = args[0] if args else given.pop("hidden_states")
        for cache in CACHES:
            given.pop(cache, None)
        if "use_cache" in given:
            given["use_cache"] = False
        self._arguments[number] = (args[1:], given)
        if number == 0:
            self.hidden.append(hidden)
            if len(self.hidden) == 1:  # the form of what a block gives must be known once
                with self.blocks[0].loaded():
                    self._form_of(real(hidden, *args[1:], **given))
        if number == len(self.blocks) - 1:  # the head behind costs as much as many blocks
            raise _Stop
        return (hidden, *self._rest) if self._tuple else hidden

    def _form_of(self, output: Any) -> None:
        self._tuple = isinstance(output, tuple)
        self._rest: tuple[Any, ...] = tuple(output[1:]) if self._tuple else ()

    def through(self, number: int) -> Tensor:
        """What the next block makes of a sequence's hidden states."""
        args, kwargs = self._arguments[self.at]
        out = self.blocks[self.at].module(self.hidden[number], *args, **kwargs)
        found: Tensor = out[0] if isinstance(out, tuple) else out
        return found

    @torch.no_grad()
    def carry(self) -> None:
        """Bring all sequences through the next block, as it is now."""
        with self.blocks[self.at].loaded():
            for number in range(len(self.hidden)):
                self.hidden[number] = self.through(number)
        self.at += 1

    @contextmanager
    def ended(self, number: int, tokens: int | None = None) -> Iterator[None]:
        """Have the blocks give what they have made of a sequence, to run what is behind them.

        Args:
            number: of the sequence.
            tokens: only so many, from its start; None: all.
        """
        made = self.hidden[number][:, :tokens]

        def give(block: int, real: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            given = args[0] if args else kwargs["hidden_states"]
            hidden = made if block == len(self.blocks) - 1 else given
            return (hidden, *self._rest) if self._tuple else hidden

        with _recorded(self.blocks, give):
            yield

    @torch.no_grad()
    def measure(self, measures: Collection[str], carry: bool = False) -> dict[str, Inputs]:
        """Measure the inputs of the next block's linear layers.

        Layers that read the same tensor share what is measured, and without ``carry`` a pass
        ends where the last of them has its input.

        Args:
            measures: what parts declared.
            carry: go on with what the block makes of its inputs, as it is now.

        Returns:
            By the name of each layer's weight.

        Raises:
            UserError: a layer saw NaN or infinite values, or no token at all.
        """
        block = self.blocks[self.at]
        watch = _Watch(block.linears, measures, stop=not carry)
        with block.loaded(), watch:
            for number in range(len(self.hidden)):
                with suppress(_Stop):
                    out = self.through(number)
                    if carry:
                        self.hidden[number] = out
                watch.learn()
        self.at += carry
        return watch.found(block)


class _Watch:
    """Hooks that take in what goes into linear layers."""

    def __init__(self, linears: Sequence[Linear], measures: Collection[str], stop: bool) -> None:
        self.linears = linears
        self.measures = measures
        self.stop = stop
        self.inputs: dict[str, Inputs] = {}
        self.leader: dict[str, str] = {}  # of each layer, the first that reads the same input
        self.last: str | None = None
        self.seen: list[tuple[Linear, Tensor]] = []
        self.handles: dict[str, Any] = {}

    def __enter__(self) -> None:
        for linear in self.linears:
            hook = self._hook(linear)
            self.handles[linear.name] = linear.module.register_forward_pre_hook(hook)

    def __exit__(self, *_: object) -> None:
        for handle in self.handles.values():
            handle.remove()

    def _hook(self, linear: Linear) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def look(module: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0]
            if linear.name not in self.leader:
                same = next((other for other, seen in self.seen if seen is x), linear)
                self.seen.append((linear, x))
                self.leader[linear.name] = self.leader.get(same.name, same.name)
            leader = self.leader[linear.name]
            if leader != linear.name:
                return
            if leader not in self.inputs:
                self.inputs[leader] = Inputs(x.shape[-1], self.measures, x.device)
            self.inputs[leader].add(x)
            if leader == self.last:
                raise _Stop

        return look

    def learn(self) -> None:
        """After a pass in which each layer was seen: those that follow a leader need no hook."""
        if self.last is not None or len(self.leader) < len(self.linears):
            self.seen.clear()
            return
        leaders = set(self.leader.values())
        for linear in self.linears:
            if linear.name not in leaders and linear.name in self.handles:
                self.handles.pop(linear.name).remove()
        if self.stop and len(self.seen) == len(self.linears):  # one pass has reached them all
            self.last = [linear.name for linear, _ in self.seen if linear.name in leaders][-1]
        self.seen.clear()

    def found(self, block: Block) -> dict[str, Inputs]:
        for linear in self.linears:
            inputs = self.inputs.get(self.leader.get(linear.name, ""))
            if inputs is None or inputs.tokens == 0:
                raise UserError(
                    f"{linear.name}: no calibration token reached this layer; "
                    "more are needed (calibration.samples)"
                )
            if not inputs.finite:
                raise UserError(f"{linear.name}: its input holds NaN or infinite values")
        return {linear.name: self.inputs[self.leader[linear.name]] for linear in self.linears}


@contextmanager
def _recorded(blocks: Sequence[Block], record: Callable[..., Any]) -> Iterator[None]:
    """Have a function called in place of each block."""

    def stand_in(number: int, real: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: record(number, real, args, kwargs)

    before = [vars(block.module).get("forward") for block in blocks]  # a wrapper of somebody's
    try:
        for number, block in enumerate(blocks):
            vars(block.module)["forward"] = stand_in(number, block.module.forward)
        yield
    finally:
        for block, own in zip(blocks, before, strict=True):
            del vars(block.module)["forward"]
            if own is not None:
                vars(block.module)["forward"] = own
