"""Scores, masks, SparseGPT, DSnoT and OWL against calculations written from papers and codes."""

import math

import pytest
import torch

from sparsebench.config.compose import compose
from sparsebench.config.paths import methods
from sparsebench.errors import UserError
from sparsebench.llm.choose import Pattern, number
from sparsebench.llm.inputs import STRIP, Inputs
from sparsebench.llm.parts import Parts
from sparsebench.llm.ratios import owl_densities
from sparsebench.llm.scores import Weights
from sparsebench.llm.spec import PrunerSpec
from sparsebench.tasks.build import container

ALL = {"squares", "moments", "gram"}


def inputs_of(*batches, measures=ALL):
    found = Inputs(batches[0].shape[-1], measures, torch.device("cpu"))
    for batch in batches:
        found.add(batch)
    return found


def weights_of(values, inputs=None, **dials):
    values = torch.as_tensor(values, dtype=torch.float32)
    inputs = inputs or Inputs(values.shape[1], (), values.device)
    return Weights("w", values, inputs, PrunerSpec(**dials), torch.Generator().manual_seed(0))


def prune(values, inputs=None, sparsity=0.5, nm=None, **dials):
    weights = weights_of(values, inputs, **dials)
    spec = weights.spec
    return Parts.of(spec).prune(weights, Pattern(sparsity, spec.scope, spec.columns, nm))


def random_layer(rows=24, columns=32, sequences=5, tokens=16, seed=0):
    """Weights and correlated inputs."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=g)
    x = torch.randn(sequences, tokens, columns, generator=g) @ mix + 0.3
    return torch.randn(rows, columns, generator=g), x


# --- measures ---------------------------------------------------------------------------------


def test_one_batch_of_four_sequences_is_four_of_one():
    _, x = random_layer(sequences=4)
    whole, parts = inputs_of(x), inputs_of(*x.unsqueeze(1))
    for what in ("mean_squares", "variance", "gram", "sums"):
        assert torch.equal(getattr(whole, what), getattr(parts, what))


@pytest.mark.parametrize("width", [7, STRIP, STRIP + 8, 2 * STRIP + 50])
def test_a_gram_matrix_is_whole_whenever_it_is_looked_at(width):
    g = torch.Generator().manual_seed(0)
    first, second = (torch.randn(1, 12, width, generator=g) for _ in range(2))
    found = inputs_of(first)
    assert torch.allclose(found.gram, first[0].T @ first[0], atol=1e-4)
    found.add(second)
    seen = torch.cat([first, second], dim=1)[0].double()
    assert torch.allclose(found.gram.double(), seen.T @ seen, atol=1e-4)
    assert torch.equal(found.mean_squares, found.gram.diagonal() / 2)


def test_squares_are_divided_by_sequences_and_norms_are_of_all_tokens():
    x = torch.tensor([[[3.0, 0.0], [4.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
    found = inputs_of(x, measures={"squares", "moments"})
    assert found.mean_squares.tolist() == [12.5, 1.5]
    assert found.norms.tolist() == pytest.approx([5.0, math.sqrt(3)])
    assert found.variance.tolist() == pytest.approx([(0.25 + 0) / 2, (0.25 + 0) / 2])


# --- masks ------------------------------------------------------------------------------------


def test_magnitude_by_layer_row_and_group():
    w = [[4.0, -1, 3, 2], [8, 7, -6, 5]]
    assert prune(w)[1].tolist() == [[False] * 4, [True] * 4]
    row = [[True, False, True, False], [True, True, False, False]]
    assert prune(w, scope="row")[1].tolist() == row
    assert prune(w, nm=(2, 4))[1].tolist() == row


@pytest.mark.parametrize("dials", [{}, {"scope": "row"}, {"nm": (2, 4)}, {"scope": "columns"}])
def test_of_equal_scores_the_lower_index_goes(dials):
    mask = prune(torch.ones(1, 4), **dials)[1]
    assert mask.tolist() == [[False, False, True, True]]


def test_counts_are_rounded_down_and_not_by_noise():
    assert number(576, 0.7) == 403
    assert number(100, 0.29) == 29  # the product is 28.999999999999996
    assert number(10, 0.0) == 0


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.77, 0.99])
def test_counts_are_exact_in_each_scope(sparsity):
    g = torch.Generator().manual_seed(0)
    w = torch.randn(12, 40, generator=g).round(decimals=1)  # with many ties
    w, mask = prune(w, sparsity=sparsity, scope="row")
    assert (~mask).sum(1).tolist() == [number(40, sparsity)] * 12
    assert int((~prune(w, sparsity=sparsity)[1]).sum()) == number(480, sparsity)
    blocks = prune(w, sparsity=sparsity, scope="columns", columns=16)[1]
    found = [int((~part).sum()) for part in blocks.split(16, dim=1)]
    assert found == [number(192, sparsity), number(192, sparsity), number(96, sparsity)]


@pytest.mark.parametrize("n, m", [(2, 4), (4, 8), (1, 4), (5, 8)])
def test_every_group_keeps_n(n, m):
    w, x = random_layer()
    for dials in ({}, {"score": "wanda"}, {"score": "obs", "solver": "sparsegpt", "columns": 12}):
        mask = prune(w, inputs_of(x), nm=(n, m), **dials)[1]
        assert set(mask.view(-1, m).sum(1).tolist()) == {n}


def test_a_pattern_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match=r"structure\.m=4: 'w' has 6 inputs"):
        prune(torch.ones(2, 6), nm=(2, 4))


# --- scores -----------------------------------------------------------------------------------


def test_wanda_weighs_by_the_norm_of_the_input():
    norms = torch.tensor([1.0, 8.0, 2.0, 1.0])
    inputs = inputs_of(torch.diag(norms).unsqueeze(0))
    mask = prune([[4.0, -1, 3, 2]], inputs, score="wanda", scope="row")[1]
    assert mask.tolist() == [[False, True, True, False]]


def official_wanda(w, x, sparsity, nm=None):
    """As locuslab/wanda prunes: running mean of squared norms, stable sort of each row."""
    scaler = torch.zeros(w.shape[1])
    for seen, sequence in enumerate(x):
        scaler *= seen / (seen + 1)
        scaler += torch.norm(sequence.t(), p=2, dim=1) ** 2 / (seen + 1)
    metric = w.abs() * torch.sqrt(scaler.reshape(1, -1))
    gone = torch.zeros_like(w, dtype=torch.bool)
    if nm:
        for j in range(0, w.shape[1], nm[1]):
            lowest = torch.topk(metric[:, j : j + nm[1]], nm[1] - nm[0], dim=1, largest=False)[1]
            gone.scatter_(1, j + lowest, True)
        return ~gone
    order = torch.sort(metric, dim=-1, stable=True)[1]
    return ~gone.scatter_(1, order[:, : int(w.shape[1] * sparsity)], True)


@pytest.mark.parametrize("nm", [None, (2, 4), (4, 8)])
@pytest.mark.parametrize("seed", range(3))
def test_wanda_is_the_official_mask(seed, nm):
    w, x = random_layer(seed=seed)
    for sparsity in [0.5] if nm else [0.3, 0.5, 0.7]:
        found, mask = prune(w, inputs_of(x), sparsity, nm, score="wanda", scope="row")
        assert torch.equal(mask, official_wanda(w, x, sparsity, nm))
        assert torch.equal(found, w)


def test_ria_is_the_relative_importance_of_its_paper():
    w, x = random_layer(rows=3, columns=4)
    size, norms = w.abs(), x.flatten(0, 1).norm(dim=0)
    expected = torch.empty(3, 4)
    for i in range(3):
        for j in range(4):
            shares = size[i, j] / size[i].sum() + size[i, j] / size[:, j].sum()
            expected[i, j] = shares * norms[j] ** 0.5
    found = Parts.of(PrunerSpec(score="ria")).score(weights_of(w, inputs_of(x)))
    torch.testing.assert_close(found, expected)


# --- SparseGPT --------------------------------------------------------------------------------


def official_sparsegpt(w, x, sparsity, nm=None, width=128, damping=0.01):
    """As IST-DASLab/sparsegpt prunes, in float64, with an exact count in place of a threshold."""
    w, x = w.double().clone(), x.double()
    columns = w.shape[1]
    h = 2 / len(x) * sum(s.t() @ s for s in x)
    dead = h.diagonal() == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    h += damping * h.diagonal().mean() * torch.eye(columns, dtype=h.dtype)
    u = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    gone = torch.zeros_like(w, dtype=torch.bool)
    for first in range(0, columns, width):
        last = min(first + width, columns)
        if nm is None:
            score = w[:, first:last] ** 2 / u.diagonal()[first:last] ** 2
            order = score.flatten().argsort()[: int(score.numel() * sparsity + 1e-9)]
            gone[:, first:last] = torch.zeros(score.numel()).index_fill(0, order, 1).view_as(score)
        for j in range(first, last):
            if nm and j % nm[1] == 0:
                score = w[:, j : j + nm[1]] ** 2 / u.diagonal()[j : j + nm[1]] ** 2
                lowest = score.topk(nm[1] - nm[0], dim=1, largest=False)[1]
                gone.scatter_(1, j + lowest, True)
            error = torch.where(gone[:, j], w[:, j], 0) / u[j, j]
            w[gone[:, j], j] = 0
            w[:, j + 1 :] -= error[:, None] * u[j, j + 1 :]  # in one go: blocks only delay it
    return w.float(), ~gone


SPARSEGPT = {"score": "obs", "scope": "columns", "solver": "sparsegpt"}


@pytest.mark.parametrize("nm", [None, (2, 4), (4, 8)])
@pytest.mark.parametrize("columns", [8, 24, 128])  # 24 leaves a last block of 8
@pytest.mark.parametrize("seed", range(3))
def test_sparsegpt_is_the_official_mask_and_update(seed, columns, nm):
    w, x = random_layer(seed=seed)
    x[..., 5] = 0.0  # a dead input
    for sparsity in [0.5] if nm else [0.4, 0.7]:
        found, mask = prune(w, inputs_of(x), sparsity, nm, columns=columns, **SPARSEGPT)
        expected, kept = official_sparsegpt(w, x, sparsity, nm, columns)
        assert torch.equal(mask, kept)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert not found[~mask].any()


def test_sparsegpt_by_hand():
    root = torch.linalg.cholesky(torch.tensor([[2.0, 1], [1, 2]]) / 2).t()  # x^T x = H / 2
    found, mask = prune([[1.0, 2.0]], inputs_of(root.unsqueeze(0)), 0.5, damping=0.0, **SPARSEGPT)
    assert mask.tolist() == [[False, True]]
    assert found.flatten().tolist() == pytest.approx([0.0, 2.5])


def test_sparsegpt_with_inputs_that_do_not_correlate_is_magnitude():
    w, _ = random_layer()
    found, mask = prune(w, inputs_of(3 * torch.eye(32).unsqueeze(0)), 0.6, **SPARSEGPT)
    assert torch.equal(mask, prune(w, sparsity=0.6)[1])
    assert torch.equal(found, w * mask)


@pytest.mark.parametrize("name", methods("pruner"))
def test_at_sparsity_0_nothing_changes(name):
    spec = PrunerSpec(**container(compose(["task=prune_llm", f"method={name}"]).method))
    w, x = random_layer()
    before = w.clone()
    found, mask = Parts.of(spec).prune(
        Weights("w", w, inputs_of(x), spec, torch.Generator()), Pattern(0.0, spec.scope)
    )
    assert mask.all()
    assert torch.equal(found, before)


@pytest.mark.parametrize("name", methods("pruner"))
def test_a_method_leaves_the_given_weights_alone(name):
    """Parts get a view of what the model computes with, also one stored transposed."""
    spec = PrunerSpec(**container(compose(["task=prune_llm", f"method={name}"]).method))
    w, x = random_layer()
    for values in (w.clone(), w.t().contiguous().t()):
        weights = Weights("w", values, inputs_of(x), spec, torch.Generator().manual_seed(1))
        found, mask = Parts.of(spec).prune(weights, Pattern(0.5, spec.scope))
        assert torch.equal(values, w)
        assert int(mask.sum()) == mask.numel() // 2
        if spec.solver == "none":
            assert torch.equal(found, w)


def test_an_update_makes_up_for_a_mask_from_elsewhere():
    w, x = random_layer(tokens=64)
    flat = x.flatten(0, 1)
    for score in ("wanda", "magnitude"):
        _, mask = prune(w, inputs_of(x), score=score, scope="row")
        found, same = prune(w, inputs_of(x), score=score, scope="row", solver="sparsegpt")
        assert torch.equal(mask, same)
        before, after = (((w - v) @ flat.t()).square().sum() for v in (w * mask, found))
        assert after < 0.9 * before


def test_a_singular_hessian_is_damped_more_and_said_so(capsys):
    w, x = random_layer(sequences=1, tokens=3)
    found, _ = prune(w, inputs_of(x), damping=0.0, **SPARSEGPT)
    assert torch.isfinite(found).all()
    assert "its Hessian is singular, damping" in capsys.readouterr().err


# --- DSnoT ------------------------------------------------------------------------------------


def slow_dsnot(w, x, mask, score=None, m=None, *, cycles=50, threshold=0.1, sign=True, power=1.0):
    """Row by row and swap by swap, from the paper's algorithm; ``mask`` is what is kept."""
    mean = x.sum((0, 1)) / len(x)  # the sum over a sequence
    variance = x.var(1, correction=0).mean(0)
    norms = x.flatten(0, 1).norm(dim=0)
    kept = mask.clone()
    for i in range(len(w)):
        c = (w[i] * mean).tolist()
        growth = (w[i] * mean / variance**power).tolist()
        importance = (w[i].abs() * norms).tolist() if m is None else score[i].tolist()
        pruned = sorted((j for j in range(w.shape[1]) if not mask[i, j]), key=lambda j: growth[j])
        alive = sorted((j for j in range(w.shape[1]) if mask[i, j]), key=lambda j: importance[j])
        eps = first = sum(c[j] for j in pruned)
        for _ in range(cycles):
            if not pruned or abs(eps) <= threshold:
                break
            back = pruned.pop(-1 if eps > 0 else 0)
            if m is None:
                fitting = [j for j in alive if (c[j] < 0 if eps > 0 else c[j] > 0)]
            else:
                fitting = [j for j in alive if j // m == back // m]
            if not fitting:
                break
            gone = fitting[0]
            after = eps + c[gone] - c[back]
            if (sign or m) and (after > 0) != (first > 0):
                break
            alive.remove(gone)
            kept[i, back], kept[i, gone] = True, False
            eps = after
    return kept


@pytest.mark.parametrize("sign", [True, False])
@pytest.mark.parametrize("start", ["wanda", "magnitude", "obs"])
@pytest.mark.parametrize("seed", range(4))
def test_dsnot_is_the_algorithm_row_by_row(seed, start, sign):
    w, x = random_layer(seed=seed)
    for sparsity, cycles, power in [(0.5, 50, 1.0), (0.7, 5, 0.0), (0.9, 50, 0.5)]:
        _, mask = prune(w, inputs_of(x), sparsity, score=start, scope="row")
        dials = {"swap_sign": sign, "swap_cycles": cycles, "swap_power": power}
        found = prune(w, inputs_of(x), sparsity, score=start, scope="row", swap="dsnot", **dials)[1]
        expected = slow_dsnot(w, x, mask, sign=sign, cycles=cycles, power=power)
        assert torch.equal(found, expected)
        assert found.sum(1).tolist() == mask.sum(1).tolist()
    assert not torch.equal(found, mask)


@pytest.mark.parametrize("n, m", [(2, 4), (4, 8)])
@pytest.mark.parametrize("seed", range(3))
def test_dsnot_swaps_within_groups(seed, n, m):
    w, x = random_layer(seed=seed)
    inputs = inputs_of(x)
    score = Parts.of(PrunerSpec(score="wanda")).score(weights_of(w, inputs))
    mask = prune(w, inputs, nm=(n, m), score="wanda")[1]
    found = prune(w, inputs, nm=(n, m), score="wanda", swap="dsnot")[1]
    assert set(found.view(-1, m).sum(1).tolist()) == {n}
    assert torch.equal(found, slow_dsnot(w, x, mask, score, m))
    assert not torch.equal(found, mask)


def test_dsnot_by_hand():
    """W = 1 2 3 4, E[x] = 1 -1 1 -1, S = 1, variance 1: eps = -1, and a swap would make it 4."""
    w = torch.tensor([[1.0, 2, 3, 4]])
    inputs = Inputs(4, ALL, torch.device("cpu"))
    inputs.sequences, inputs.tokens = 1, 1
    inputs.gram.fill_diagonal_(1.0)
    inputs.sums = torch.tensor([1.0, -1, 1, -1], dtype=torch.float64)
    inputs.within = torch.ones(4, dtype=torch.float64)
    dials = {"score": "wanda", "scope": "row", "swap": "dsnot"}
    assert prune(w, inputs, **dials)[1].tolist() == [[False, False, True, True]]
    one = prune(w, inputs, swap_sign=False, swap_cycles=1, **dials)[1]
    assert one.tolist() == [[False, True, False, True]]
    two = prune(w, inputs, swap_sign=False, swap_cycles=2, **dials)[1]
    assert two.tolist() == [[True, True, False, False]]
    for idle in ({"swap_threshold": math.inf}, {"swap_cycles": 0}, {"swap_skip": ["*"]}):
        assert prune(w, inputs, **idle, **dials)[1].tolist() == [[False, False, True, True]]


def test_without_a_mean_dsnot_is_its_start():
    w, x = random_layer()
    x = torch.cat((x, -x), dim=1)
    plain = prune(w, inputs_of(x), score="wanda", scope="row")[1]
    found = prune(w, inputs_of(x), score="wanda", scope="row", swap="dsnot")[1]
    assert torch.equal(found, plain)


# --- ratios -----------------------------------------------------------------------------------


def test_owl_by_hand():
    assert owl_densities([1.0, 2.0, 3.0], 0.7, 0.08) == pytest.approx([0.22, 0.30, 0.38])
    assert owl_densities([2.0, 2.0], 0.7, 0.08) == pytest.approx([0.3, 0.3])
    with pytest.raises(UserError, match=r"method\.spread=0\.08"):
        owl_densities([1.0, 2.0], 0.95, 0.08)


def test_a_score_of_ones_own_is_named_by_its_import_path(tmp_path, monkeypatch):
    (tmp_path / "own_llm.py").write_text(
        "from sparsebench.sparsity.scores import needs\n\n\n"
        "@needs('squares')\n"
        "def mine(weights):\n"
        "    return weights.values.abs() * weights.inputs.norms\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    w, x = random_layer()
    spec = PrunerSpec(score="own_llm.mine", scope="row")
    with pytest.raises(UserError, match="package 'own_llm' is not allowed"):
        Parts.of(spec)
    parts = Parts.of(spec, ["own_llm"])
    assert parts.measures == {"squares"}
    _, mask = parts.prune(weights_of(w, inputs_of(x), scope="row"), Pattern(0.5, "row"))
    assert torch.equal(mask, official_wanda(w, x, 0.5))
