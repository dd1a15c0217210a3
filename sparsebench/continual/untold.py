"""Answers of a network that each task has a state of its own of, task by task or untold."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sparsebench.sparsity.session import Session

#: Least log-probability: of classes of all tasks but the one that a sample is taken to be of.
ELSEWHERE = -30.0


def by_task(
    session: Session, network: Callable[[Tensor], Tensor], x: Tensor, task: Tensor, outputs: int
) -> Tensor:
    """Logits (batch, outputs), each sample's by the network as its task left it.

    Args:
        session: the masks at work.
        network: maps inputs to logits.
        x: inputs (batch, ...).
        task: of each input, int64 [batch].
        outputs: number of logits.
    """
    logits = x.new_empty(len(x), outputs)
    for each in sorted(set(task.tolist())):
        mine = task == each
        with session.as_task(each):
            logits[mine] = network(x[mine]).to(logits.dtype)
    return logits


def untold(session: Session, network: Callable[[Tensor], Tensor], x: Tensor, own: Tensor) -> Tensor:
    """Log-probabilities (batch, outputs) where nobody says which task a sample is of.

    The method infers it from the sample, and then the classes of that task compete.

    Args:
        session: the masks at work; its method can infer tasks.
        network: maps inputs to logits; in eval mode.
        x: inputs (batch, ...).
        own: outputs of each task so far, bool [tasks, outputs].
    """
    task = session.infer(x, own.any(0), len(own))
    logits = by_task(session, network, x, task, own.shape[1]).float()
    return logits.masked_fill(~own[task], -torch.inf).log_softmax(1).clamp(min=ELSEWHERE)
