"""Growth by the shape of the network alone: Cannistraci-Hebb training.

A layer is a bipartite graph: inputs u and outputs v, joined where a connection exists. A missing
connection (u, v) is judged by its paths of length three, u - a - b - v, over an output a of u and
an input b of v. All such a and b are its local community; i_x counts the links of x to others of
them, and e_x its links elsewhere, those to u and v apart (Zhang et al., ICLR 2024, openreview
iayEcORsGd; the soft rule and the node-based scores: arXiv 2501.19107):

    CH3-L3 = sum over paths of 1 / sqrt((1 + e_a) (1 + e_b))
    CH2-L3 = sum over paths of sqrt((1 + i_a) (1 + i_b)) / sqrt((1 + e_a) (1 + e_b))

With M the mask, i_a is the number of inputs that a and v share, (M M')[a, v], and 1 + e_a is what a
has beside them. So all paths of an output are a few matrix products, at a cost of at most
(connections x inputs x outputs) multiplications: for 784 x 300 about a second on one core at a
density of 10 %, a fifth of that at 1 %. The node-based scores ``ch3_l3n`` and ``ch2_l3n``, which
add 1 / (1 + e) or (1 + i) / (1 + e) over the nodes instead of the paths, are four matrix products
for a whole layer, a tenth of a second.

Only masks are looked at, as they are when the weights to drop are gone: no gradient and no data.

Official code: github.com/biomedical-cybernetics/Cannistraci-Hebb-training. We differ on purpose:

* Where fewer connections have a path than are grown, the rest is drawn at random; the code adds a
  constant to all scores, which in its hard rule grows every missing connection.
* The last layer is sparse like the others, unless the selector leaves it out; in the code it stays
  dense. The code knows linear layers only: a convolution is read as a matrix of outputs by (input
  channel and tap).
* Of the variants in the code there are neither chain removal (neurons with no link on one side lose
  those on the other) nor early stopping of a layer, nor its correlated first topology: counts are
  exact here.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sparsebench.errors import UserError
from sparsebench.sparsity import updates
from sparsebench.sparsity.initial import places
from sparsebench.sparsity.method import TrainState
from sparsebench.sparsity.observers import Observer
from sparsebench.sparsity.scores import Layer, needs, random
from sparsebench.sparsity.spec import MethodSpec
from sparsebench.sparsity.window import Window

REWIRED = 0.25  # share of a small world's connections that go anywhere


def path_scores(mask: Tensor, *, internal: bool = False) -> Tensor:
    """CH3-L3 of every missing connection, or CH2-L3.

    Args:
        mask: bool, (outputs, inputs).
        internal: count the links within the local community too (CH2).

    Returns:
        Scores, float64, (outputs, inputs); zero at connections and where there is no path.
    """
    if mask.shape[0] > mask.shape[1]:  # the graph has no direction: walk the smaller side
        return path_scores(mask.T, internal=internal).T
    links = mask.to(torch.float64)
    by_output = _links_elsewhere(links @ links.T, internal).sqrt()
    by_input = _links_elsewhere(links.T @ links, internal).sqrt().T.contiguous()
    scores = torch.zeros_like(links)
    for v, row in enumerate(mask):
        b, a = row.nonzero().view(-1), by_output[v].nonzero().view(-1)
        from_a = links[a]
        paths = from_a[:, b].T @ (by_output[v, a, None] * from_a)  # (b, inputs)
        scores[v] = (by_input[b] * paths).sum(0)
    return scores.masked_fill(mask, 0.0)


def node_scores(mask: Tensor, *, internal: bool = False) -> Tensor:
    """The same judged node by node: the sum over the local community; as :func:`path_scores`."""
    links = mask.to(torch.float64)
    by_output = _links_elsewhere(links @ links.T, internal)
    by_input = _links_elsewhere(links.T @ links, internal)
    return (by_output @ links + links @ by_input.T).masked_fill(mask, 0.0)


def _links_elsewhere(shared: Tensor, internal: bool) -> Tensor:
    """Of nodes [v, a] of one side, a on a path that ends in v: 1 / (1 + e_a), or 0 for no path.

    Where a has no link of its own, each of its missing connections is one that v has: no path of a
    missing connection leads there, and the zero put there is never looked at.
    """
    own = shared.diagonal() - shared
    value = (1.0 + shared if internal else 1.0) / own.clamp_min(1.0)
    return torch.where((shared > 0) & (own > 0), value, 0.0)


def _matrix(layer: Layer) -> Tensor:
    return layer.mask.view(layer.shape[0], -1)


def _or_random(layer: Layer, found: Tensor) -> Tensor:
    """Positive scores, and random ones below them all.

    They are rounded to float32, so that sums that are equal but for the order of their terms tie.
    """
    flat = found.reshape(-1).to(torch.float32)
    return torch.where(flat > 0, flat, random(layer).to(flat) - 1.0)


def _sampled(layer: Layer, found: Tensor) -> Tensor:
    """Keys whose k highest are a draw without replacement in proportion to ``found``.

    Gumbel's trick: log of the weight, plus noise. What has no weight comes last, in random order.
    """
    uniform = random(layer).double().clamp_min(torch.finfo(torch.float64).tiny)
    keys = found.reshape(-1).double().log() - (-uniform.log()).log()
    return torch.where(keys.isinf(), uniform - 1e6, keys)


def ch3_l3(layer: Layer) -> Tensor:
    """CH3-L3 over the paths of each missing connection."""
    return _or_random(layer, path_scores(_matrix(layer)))


def ch2_l3(layer: Layer) -> Tensor:
    """CH2-L3 over the paths of each missing connection."""
    return _or_random(layer, path_scores(_matrix(layer), internal=True))


def ch3_l3n(layer: Layer) -> Tensor:
    """CH3-L3 over the nodes of each missing connection's paths."""
    return _or_random(layer, node_scores(_matrix(layer)))


def ch2_l3n(layer: Layer) -> Tensor:
    """CH2-L3 over the nodes of each missing connection's paths."""
    return _or_random(layer, node_scores(_matrix(layer), internal=True))


def ch3_l3_soft(layer: Layer) -> Tensor:
    """Drawn in proportion to CH3-L3 over paths (CHTs)."""
    return _sampled(layer, path_scores(_matrix(layer)))


def ch3_l3n_soft(layer: Layer) -> Tensor:
    """Drawn in proportion to CH3-L3 over nodes (CHTs)."""
    return _sampled(layer, node_scores(_matrix(layer)))


def relative_importance(layer: Layer) -> Tensor:
    """|w| as a share of all of its output's weights, plus as a share of all of its input's.

    The code adds 1e-5 for each position to both sums, so that no sum is zero.
    """
    size = layer.weight.abs().view(layer.shape[0], -1)
    shares = [size / size.sum(side, keepdim=True) for side in (0, 1)]
    return sum(share.nan_to_num(0.0) for share in shares).reshape(-1)  # type: ignore[union-attr]  # of tensors


@needs("temperature")
def magnitude_soft(layer: Layer) -> Tensor:
    """Weights to keep are drawn in proportion to |w| ** T (CHTs); T rises from 1 to 3."""
    return _sampled(layer, layer.weight.abs().double() ** layer["temperature"])


class Temperature(Observer):
    """T = 1 + 2 (step / end of the update window)."""

    def __init__(self, spec: MethodSpec) -> None:
        """Keep the dials of the window."""
        self.spec = spec

    def values(self, state: TrainState) -> Mapping[str, Tensor]:
        """One number for each sparse parameter."""
        end = Window.of(self.spec, state.total_steps, state.steps_per_epoch).end
        return {
            name: torch.tensor(1.0 + 2.0 * state.step / max(end, 1), device=parameter.device)
            for name, parameter in state.masks.parameters.items()
        }


@places
def small_world(state: TrainState, counts: updates.Counts) -> dict[str, Tensor]:
    """Bipartite small world: each node of the longer side joined to a window of the other.

    The window moves along with the node, as in a ring lattice, and a quarter of the connections is
    then moved anywhere (the code's ``--WS --beta 0.25``, with exact counts).

    Raises:
        UserError: the counts are not of each layer.
    """
    if isinstance(counts, int):
        raise UserError("method.initial_scope=global: a small world has its counts layer by layer")
    masks = {}
    for name, parameter in state.masks.parameters.items():
        shape = (parameter.shape[0], parameter[0].numel())
        wide = shape[0] < shape[1]
        rows, columns = (shape[1], shape[0]) if wide else shape
        mask = _lattice(rows, columns, counts[name], state.generator)
        mask = _rewired(mask, state.generator)
        mask = (mask.T if wide else mask).reshape(parameter.shape)
        masks[name] = mask.to(parameter.device)
    return masks


def _lattice(rows: int, columns: int, number: int, generator: torch.Generator) -> Tensor:
    """(rows, columns): row i has its connections around column i x columns / rows."""
    each = torch.full((rows,), number // rows)
    each[torch.randperm(rows, generator=generator)[: number % rows]] += 1
    middle = torch.arange(rows) * columns // rows
    offset = (torch.arange(columns) - middle[:, None] + each[:, None] // 2) % columns
    return offset < each[:, None]


def _rewired(mask: Tensor, generator: torch.Generator) -> Tensor:
    flat = mask.reshape(-1)
    there = flat.nonzero().view(-1)
    moved = there[torch.rand(there.numel(), generator=generator) < REWIRED]
    flat = flat.index_fill(0, moved, False)
    free = (~flat).nonzero().view(-1)
    new = free[torch.randperm(free.numel(), generator=generator)[: moved.numel()]]
    return flat.index_fill(0, new, True).view(mask.shape)
