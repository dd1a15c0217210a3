"""What is measured of a stream of T tasks, from the accuracies R[i][j].

R[i][j] is the accuracy in percent on task j, measured after training task i with the weights of
that moment; None where it was not measured or can't be. A figure whose accuracies are not all
there is None.

Sources: GEM (Lopez-Paz and Ranzato 2017, arXiv 1706.08840) for backward and forward transfer;
Chaudhry et al. 2018 (arXiv 1801.10112) for forgetting and intransigence; Diaz-Rodriguez et al.
2018 (arXiv 1810.13166) for the averages over all later moments; WSN (Kang et al., ICML 2022) for
the capacity.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Row = Sequence[float | None]
Matrix = Sequence[Row]
Figure = float | None


def mean(values: Iterable[float | None]) -> Figure:
    """The mean; None if there is nothing, or something is missing."""
    found = list(values)
    total = 0.0
    for value in found:
        if value is None:
            return None
        total += value
    return total / len(found) if found else None


def less(a: Figure, b: Figure) -> Figure:
    """The difference of two figures; None if either is."""
    return None if a is None or b is None else a - b


def final_accuracy(matrix: Matrix) -> Figure:
    """ACC, the mean over the last row: each task counts the same."""
    return mean(matrix[-1])


def weighted_accuracy(matrix: Matrix, examples: Sequence[int]) -> Figure:
    """ACC with each task weighted by its number of test examples."""
    last = [None if a is None else a * n for a, n in zip(matrix[-1], examples, strict=True)]
    found = mean(last)
    return None if found is None else found * len(last) / sum(examples)


def accuracy_after(matrix: Matrix) -> list[Figure]:
    """A_i, the mean accuracy after task i on the tasks up to it: the curve to plot."""
    return [mean(row[: i + 1]) for i, row in enumerate(matrix)]


def average_incremental(matrix: Matrix) -> Figure:
    """AIA, the mean of A_i; not ACC."""
    return mean(accuracy_after(matrix))


def learning_accuracy(matrix: Matrix) -> Figure:
    """LA, the mean accuracy on each task just after it was learned.

    ``ACC = LA + BWT (T - 1) / T``.
    """
    return mean(row[i] for i, row in enumerate(matrix))


def transfer_by_task(matrix: Matrix) -> list[Figure]:
    """Backward transfer after each task, as the code of CL-with-DST (arXiv 2308.14831) lists it.

    The i-th is the mean over t < i of R[i][t] - R[t][t]; the first is 0.
    """
    return [
        0.0 if i == 0 else mean(less(row[t], matrix[t][t]) for t in range(i))
        for i, row in enumerate(matrix)
    ]


def backward_transfer(matrix: Matrix) -> Figure:
    """BWT of GEM: mean over all tasks but the last of R[T-1][j] - R[j][j]; None for one task."""
    return transfer_by_task(matrix)[-1] if len(matrix) > 1 else None


def backward_transfer_tri(matrix: Matrix) -> Figure:
    """BWT averaged over all later moments: mean over i > j of R[i][j] - R[j][j]."""
    return mean(less(matrix[i][j], matrix[j][j]) for i in range(len(matrix)) for j in range(i))


def remembering(matrix: Matrix) -> Figure:
    """REM = 1 - abs(min(BWT_tri, 0)), on a scale from 0 to 1."""
    found = backward_transfer_tri(matrix)
    return None if found is None else 1.0 - abs(min(found / 100.0, 0.0))


def forward_transfer(matrix: Matrix, before: Row) -> Figure:
    """FWT of GEM: mean over all tasks but the first of R[j-1][j] - b[j].

    Args:
        matrix: accuracies.
        before: b, the accuracy on each task of the network before training.
    """
    return mean(less(matrix[j - 1][j], before[j]) for j in range(1, len(matrix)))


def forward_transfer_tri(matrix: Matrix) -> Figure:
    """Mean over i < j of R[i][j], no baseline subtracted."""
    return mean(row[j] for i, row in enumerate(matrix) for j in range(i + 1, len(matrix)))


def forward_rows(matrix: Matrix) -> Figure:
    """What the code of CL-with-DST calls forward transfer: mean over rows of their right side.

    About chance for a head of many tasks; not to be set beside :func:`forward_transfer`.
    """
    return mean(mean(row[i + 1 :]) for i, row in enumerate(matrix[:-1]))


def forgetting(matrix: Matrix) -> Figure:
    """F of Chaudhry: mean over all tasks but the last of the best earlier R less the last.

    Below 0 for a task that the last one made better.
    """
    tasks = len(matrix) - 1
    return mean(less(_best(matrix, j, tasks), matrix[-1][j]) for j in range(tasks))


def forgetting_clipped(matrix: Matrix) -> Figure:
    """F as Mammoth and SparCL have it: the best over the last row too, so never below 0."""
    tasks = len(matrix) - 1
    return mean(less(_best(matrix, j, tasks + 1), matrix[-1][j]) for j in range(tasks))


def _best(matrix: Matrix, task: int, end: int) -> Figure:
    """The best accuracy on a task from when it was learned up to the row before ``end``."""
    column = [row[task] for row in matrix[task:end]]
    found = [value for value in column if value is not None]
    return max(found) if len(found) == len(column) and found else None


def intransigence(matrix: Matrix, joint: Row) -> Figure:
    """What is missing of joint training: mean of a*_j - R[j][j].

    Args:
        matrix: accuracies.
        joint: a*, accuracy on each task of a network trained on all at once.
    """
    return mean(less(joint[j], row[j]) for j, row in enumerate(matrix))


def transfer_from_scratch(matrix: Matrix, alone: Row) -> Figure:
    """Mean of R[j][j] - s_j.

    Args:
        matrix: accuracies.
        alone: s, accuracy on each task of the same model trained on that task alone.
    """
    return mean(less(row[j], alone[j]) for j, row in enumerate(matrix))


def capacity(used: float, tasks: int, saved: float = 0.0) -> float:
    """CAP of WSN, in percent of the network's 32-bit weights: those in use, and a mask a task.

    Args:
        used: share of the weights that any task uses.
        tasks: number of masks kept.
        saved: share that compression takes off a mask; WSN has 0.78 with a Huffman code.
    """
    return 100.0 * (used + (1.0 - saved) * tasks / 32.0)


def figures(matrix: Matrix, before: Row, examples: Sequence[int]) -> dict[str, Figure]:
    """All figures of one scenario by name.

    Args:
        matrix: accuracies, T rows of T.
        before: accuracies before training.
        examples: test examples of each task.
    """
    return {
        "acc": final_accuracy(matrix),
        "acc_weighted": weighted_accuracy(matrix, examples),
        "average_incremental_accuracy": average_incremental(matrix),
        "learning_accuracy": learning_accuracy(matrix),
        "bwt": backward_transfer(matrix),
        "bwt_tri": backward_transfer_tri(matrix),
        "remembering": remembering(matrix),
        "fwt": forward_transfer(matrix, before),
        "fwt_tri": forward_transfer_tri(matrix),
        "forgetting": forgetting(matrix),
        "forgetting_clipped": forgetting_clipped(matrix),
    }
