"""Iterative magnitude pruning: train, prune, go back, and again (the lottery ticket hypothesis).

A round trains the network to its end, removes the smallest weights and sends what is left back.
Sources: Frankle and Carbin, arXiv 1803.03635 (back to the weights at initialisation); Frankle et
al., arXiv 1912.05671 (to those after some steps); Renda et al., arXiv 2003.02389 (only the learning
rate goes back). The rounds are the update window of the method: the state to go back to is that
at ``begin``, a round takes ``every`` more steps, and the last one all that are left after ``end``.
So with T = begin + every, each round but the last covers steps begin to T of the learning-rate
schedule of a training of T steps (see ``Window.place``).

The optimizer starts afresh after rewinding. The open_lth code prunes one weight more a round than
the paper says, and leaves the last layer whole; here counts are exact, and all is as selected.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsebench.sparsity.method import TrainState
from sparsebench.sparsity.optimizer_state import forget


class Rewinding:
    """Takes weights, buffers and optimizers back after each pruning.

    After the last pruning the ticket can be put to a test (arXiv 1803.03635, 2011.14439):

    * ``original``: it is trained as found.
    * ``reinit``: the mask stays, the weights are drawn anew: all values of each tensor at the
      rewind point change places, which needs no knowledge of how they were drawn.
    * ``random_mask``: each layer keeps its number of connections, at random places.
    * ``shuffled_inputs``: the columns of the first sparse layer, mask and weights, change places.
      Training it is the same as training the ticket on inputs whose features are in another
      order: what it knew of their neighbourhood is lost, and nothing else.

    Attributes:
        kept: parameters and buffers at the rewind point, by name; empty before it.
    """

    def __init__(self, what: str, ticket: str) -> None:
        """Say what goes back.

        Args:
            what: ``weights``, or ``learning_rate`` (then weights stay as trained).
            ticket: what is trained after the last pruning.
        """
        self.weights = what == "weights"
        self.ticket = ticket
        self.kept: dict[str, Tensor] = {}

    def keep(self, state: TrainState) -> None:
        """This is the point to come back to."""
        if self.weights or self.ticket == "reinit":
            self.kept = {n: t.detach().clone() for n, t in state.model.state_dict().items()}

    def back(self, state: TrainState, *, last: bool) -> None:
        """A round is over and its weights are pruned: begin the next one.

        Args:
            state: the run; its masks are those of the next round.
            last: no pruning will follow.
        """
        ticket = self.ticket if last else "original"
        if ticket == "reinit":
            drawn = dict(state.model.named_parameters())  # buffers, such as running means, are not
            _load(
                state,
                {
                    name: _shuffled(tensor, state.generator) if name in drawn else tensor
                    for name, tensor in self.kept.items()
                },
            )
        elif self.weights:
            _load(state, self.kept)
        if ticket == "random_mask":
            for name, mask in state.masks.items():
                state.masks.set(name, _shuffled(mask, state.generator))
        if ticket == "shuffled_inputs":
            _shuffle_inputs(state)
        forget(state.optimizers)
        state.masks.apply(state.optimizers)


def _load(state: TrainState, kept: dict[str, Tensor]) -> None:
    for name, tensor in state.model.state_dict().items():  # tensors of the model, not copies
        tensor.copy_(kept[name])


def _shuffled(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """All values at other places of the tensor."""
    order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
    return tensor.reshape(-1)[order].view(tensor.shape)


def _shuffle_inputs(state: TrainState) -> None:
    name, weight = next(iter(state.masks.parameters.items()))
    order = torch.randperm(weight.shape[1], generator=state.generator).to(weight.device)
    weight.copy_(weight[:, order])
    state.masks.set(name, state.masks[name][:, order])
