"""N:M structures: groups, ties, layers that do not divide, combinations, words of refusals."""

import itertools
import math

import pytest
import torch
from torch import nn

from sparsebench.config.check import check
from sparsebench.config.compose import compose
from sparsebench.config.words import spelled
from sparsebench.errors import UserError
from sparsebench.library import method
from sparsebench.sparsity import Session
from sparsebench.sparsity.forecast import forecast
from sparsebench.sparsity.nm import NM, groups, mask, top_n, ungrouped
from sparsebench.sparsity.spec import StructureSpec

PATTERNS = [(2, 4), (1, 4), (3, 4), (4, 8), (1, 8), (5, 8), (1, 16), (8, 64), (3, 32)]


def stable(row, n):
    """The n largest by a stable sort, in plain Python."""
    return set(sorted(range(len(row)), key=lambda i: -row[i])[:n])


def net(inputs=16, outputs=8, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, outputs))


def session(model, name, steps=8, lr=0.1, examples=None, **dials):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    return Session(
        method(name, **dials), model, optimizer, total_steps=steps, seed=0, examples=examples
    )


def train(run, steps, inputs=16):
    """Steps on noise; what each group of the masks has after each step."""
    seen = []
    for _ in range(steps):
        step(run, inputs)
        seen.append(per_group(run, 4))
    return seen


def step(run, inputs):
    """One step on noise."""
    model, (optimizer,) = run.state.model, run.state.optimizers
    run.before_forward()
    generator = torch.Generator().manual_seed(run.state.step)
    model(torch.randn(5, inputs, generator=generator)).square().sum().backward()
    run.after_backward()
    optimizer.step()
    optimizer.zero_grad()
    run.after_step()


def per_group(run, m):
    """How many weights each group has: the set of numbers."""
    return {int(k) for _, mask in run.masks.items() for k in mask.reshape(-1, m).sum(1)}


# --- the choice -------------------------------------------------------------------------------


@pytest.mark.parametrize("n, m", PATTERNS)
def test_top_n_is_a_stable_sort_also_among_equals(n, m):
    generator = torch.Generator().manual_seed(n * m)
    scores = torch.randint(0, 4, (200, m), generator=generator).float()
    found = top_n(scores, n)
    for row, chosen in zip(scores.tolist(), found.tolist(), strict=True):
        assert {i for i, kept in enumerate(chosen) if kept} == stable(row, n)


@pytest.mark.parametrize("m", [4, 32])
def test_top_n_of_a_number_for_each_row(m):
    generator = torch.Generator().manual_seed(m)
    scores = torch.randint(0, 4, (200, m), generator=generator).float()
    n = torch.randint(0, 4, (200, 1), generator=generator)
    found = top_n(scores, n)
    for row, k, chosen in zip(scores.tolist(), n.view(-1).tolist(), found.tolist(), strict=True):
        assert {i for i, kept in enumerate(chosen) if kept} == stable(row, k)


@pytest.mark.parametrize("m", [4, 32])
def test_what_may_not_be_chosen_is_never_chosen(m):
    scores = torch.full((3, m), -math.inf)
    scores[:, 2] = -5.0
    assert top_n(scores, 2).nonzero().tolist() == [[0, 2], [1, 2], [2, 2]]


@pytest.mark.parametrize("shape", [(3, 8), (2, 8, 3), (2, 8, 3, 2), (4, 6)])
@pytest.mark.parametrize("dim", [0, 1])
def test_groups_run_along_one_dimension_and_come_back(shape, dim):
    weight = torch.arange(math.prod(shape), dtype=torch.float32)
    cut = groups(weight, shape, 4, -1.0, dim)
    assert torch.equal(ungrouped(cut, shape, 4, dim), weight)
    others = [range(size) for place, size in enumerate(shape) if place != dim]
    rows = iter(cut.tolist())
    for rest in itertools.product(*others):
        for first in range(0, shape[dim], 4):
            places = [(*rest[:dim], k, *rest[dim:]) for k in range(first, first + 4)]
            inside = [p for p in places if p[dim] < shape[dim]]
            values = [float(weight.view(shape)[p]) for p in inside]
            assert next(rows) == values + [-1.0] * (4 - len(inside))


def test_asp_example():
    assert mask(torch.tensor([[0.1, -0.5, 0.3, 0.2]]), 2, 4).tolist() == [
        [False, True, True, False]
    ]


def test_groups_do_not_straddle_rows():
    weight = torch.tensor([[9.0, 8, 7, 6, 5, 4], [1.0, 1, 1, 1, 1, 1]])  # 12 weights are 3 x 4
    assert mask(weight, 2, 4).all()  # six inputs do not divide by four: dense
    assert mask(weight, 2, 4, pad=True).tolist() == [[True, True, False, False, True, True]] * 2


def test_nan_is_the_lowest():
    weight = torch.tensor([[math.nan, 1.0, math.inf, 2.0]])
    assert mask(weight, 2, 4).tolist() == [[False, False, True, True]]


# --- in training ------------------------------------------------------------------------------

EVERY = {"every": "1it", "begin": "0%", "end": "100%"}
METHODS = {
    "static": {}, "set": {}, "rigl": {}, "set_itop": {}, "rigl_itop": {}, "acdc": {},
    "magnitude_init": {"initial_scope": "layer"}, "sr_ste": {}, "ste_nm": {},
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in METHODS if name != "acdc"])
def test_sparse_training_has_n_in_every_group_at_every_step(name):
    run = session(net(), name, structure="nm_2_4", **METHODS[name], **EVERY)
    assert per_group(run, 4) == {2}
    assert all(found == {2} for found in train(run, 8))
    assert run.masks.sparsity == 0.5


def test_drop_is_by_layer_and_growth_gives_each_group_its_own_back():
    model = nn.Sequential(nn.Linear(8, 1, bias=False))
    model[0].weight.data.copy_(torch.tensor([[4.0, 3, 0, 0, 0.1, 0.2, 0, 0]]))
    dials = {"drop_fraction": 0.5, "initial": "magnitude", "drop_schedule": "constant"}
    run = session(model, "rigl", structure="nm_2_4", lr=0.0, **dials, **EVERY)
    assert run.masks["0.weight"].nonzero()[:, 1].tolist() == [0, 1, 4, 5]
    model[0].weight.grad = torch.tensor([[0.0, 0, 9, 9, 1, 2, 3, 4]])
    run.after_backward()
    run.state.optimizers[0].step()
    run.after_step()
    # the lowest two of the layer are those of the second group, which grows two of its own
    assert run.masks["0.weight"].nonzero()[:, 1].tolist() == [0, 1, 6, 7]


def test_acdc_goes_from_dense_to_the_pattern_and_back():
    found = train(
        session(net(), "acdc", structure="nm_2_4", steps=12, every="2it", scope="layer"), 12
    )
    assert {2} in found[:-1]
    assert {4} in found
    assert found[-1] == {2}
    assert set(map(frozenset, found)) == {frozenset({2}), frozenset({4})}


def test_gradual_pruning_goes_by_whole_numbers():
    run = session(net(), "gmp", structure="nm_1_4", steps=10, every="1it", begin="0%", end="90%")
    found = train(run, 10)
    expected = []
    for t in range(1, 11):
        sparsity = 0.75 * (1 - (1 - min(t / 9, 1)) ** 3)
        expected.append({max(1, round(4 * (1 - sparsity)))})
    assert found == expected
    assert {3} in found
    assert {2} in found
    assert found[-1] == {1}


def test_one_shot_and_asp_prune_at_once():
    for name, at in (("one_shot", 6), ("asp", 4)):
        dials = {} if name == "one_shot" else {"every": "50%"}
        found = train(session(net(), name, structure="nm_2_4", **dials), 8)
        assert found == [{4}] * (at - 1) + [{2}] * (9 - at)


def test_asp_begins_the_learning_rate_and_the_optimizer_anew():
    run = session(net(), "asp", every="50%")
    window = run.method.rounds(8, 8)
    assert [window.place(t, 8)[0] for t in range(8)] == [0, 1, 2, 3, 0, 1, 2, 3]
    train(run, 3)
    before = {n: p.detach().clone() for n, p in run.state.model.named_parameters()}
    train(run, 1)
    state = run.state.optimizers[0].state
    assert not any(v.any() for s in state.values() for v in s.values() if torch.is_tensor(v))
    assert any(not torch.equal(before[n], p) for n, p in run.state.model.named_parameters())
    after = {n: m.clone() for n, m in run.masks.items()}
    train(run, 4)
    assert all(torch.equal(after[n], m) for n, m in run.masks.items())


def test_layers_that_do_not_divide_stay_dense_and_a_note_says_so():
    model = net(inputs=6)
    run = session(model, "rigl", structure="nm_2_4", **EVERY)
    assert run.masks["0.weight"].all()
    assert run.state.notes == ["dense, since their inputs do not divide by M=4: 0.weight"]
    train(run, 4, inputs=6)
    assert run.masks["0.weight"].all()
    assert run.masks.nonzeros["2.weight"] == 8 * 16 / 2


def test_padded_groups_keep_n_of_what_there_is():
    structure = {"name": "nm", "n": 2, "m": 4, "misfit": "pad"}
    run = session(net(inputs=7), "rigl", structure=structure, drop_fraction=0.5, **EVERY)
    for _ in range(3):
        first = run.masks["0.weight"]
        assert first[:, :4].sum(1).eq(2).all()
        assert first[:, 4:].sum(1).eq(2).all()
        step(run, 7)


def test_misfits_may_be_refused():
    structure = {"name": "nm", "n": 2, "m": 4, "misfit": "refuse"}
    with pytest.raises(UserError, match=r"structure.m=4: the weight '0.weight' of shape \(16, 6\)"):
        session(net(inputs=6), "static", structure=structure)


def test_a_pattern_that_fits_nowhere_is_refused():
    structure = {"name": "nm", "n": 2, "m": 5, "misfit": "skip"}
    with pytest.raises(UserError, match="no weight fits"):
        session(net(), "static", structure=structure)


def test_n_equal_to_m_is_dense_training():
    dense, same = net(), net()
    train(session(dense, "dense"), 4)
    train(session(same, "sr_ste", structure={"name": "nm", "n": 4, "m": 4}), 4)
    pairs = zip(dense.parameters(), same.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_forecast_knows_the_counts_of_the_run():
    model = net(inputs=6)
    run = session(model, "gmp", structure="nm_1_4", steps=10, every="1it", begin="0%", end="90%")
    shapes = {n: p.shape for n, p in run.masks.parameters.items()}
    foretold = []
    for stretch in forecast(run.method, shapes, 10, 10):
        foretold += [stretch.nonzeros] * stretch.steps
    for counts in foretold:
        assert run.masks.nonzeros == counts
        step(run, 6)


def test_convolutions_have_groups_of_input_channels():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = Session(method("static", structure="nm_2_8"), model, optimizer, total_steps=2, seed=0)
    assert run.masks["0.weight"].all()
    assert run.masks["1.weight"].sum(1).eq(2).all()


# --- words ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, said",
    [
        (["structure=3:7"], "structure=3:7: N:M is written structure=2_4, or"),
        (["structure=3_7"], "structure=3_7: N:M is written structure=2_4, or"),
        (["structure=nm_3_7"], "structure=nm_3_7: N:M is written"),
        (["structure=nm"], "structure.n=None structure.m=None: both are needed"),
        (["structure=nm", "structure.n=5", "structure.m=4"], "N must be from 1 to M"),
        (["structure=nm_1_8", "sparsity=0.9"], r"sparsity=0.9: 1 of every 8 .* sparsity=0.875"),
        (["structure=nm_2_4", "distribution=balanced"], "distribution.name=balanced: has no eff"),
        (["structure=nm_2_4", "distribution.first_dense=true"], "distribution.first_dense=True"),
        (["structure=nm_2_4", "method=gmp_global"], "method.scope=global"),
        (["structure=nm_2_4", "method=snfs"], "method.redistribute=momentum"),
        (["structure=nm_2_4", "method.regrow=never"], "method.regrow=never"),
        (["structure=nm_2_4", "method.drop_scope=global"], "method.drop_scope=global"),
        (["structure=nm_2_4", "method=imp", "method.ticket=random_mask"], "method.ticket"),
        (["structure=nm_2_4", "method=sr_ste", "structure.misfit=paad"], "did you mean 'pad'"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(words, said):
    with pytest.raises(UserError, match=said):
        check(compose([*words, "data=cifar10"]))


@pytest.mark.parametrize("word", ["2:4", "2_4", "'2:4'", '"2_4"', "nm_2_4"])
def test_a_pattern_is_meant_however_it_is_written(word):
    assert compose([f"structure={word}"]).structure == compose(["structure=nm_2_4"]).structure
    assert spelled(f"structure={word},4:8,unstructured") == "structure=nm_2_4,nm_4_8,unstructured"


def test_the_library_knows_a_pattern_by_its_numbers():
    assert method("rigl", structure="1:8").sparsity == method("rigl", structure="nm_1_8").sparsity


def test_sparsity_follows_from_the_pattern():
    assert compose(["structure=nm_2_4"]).sparsity == 0.5
    assert compose(["method=sr_ste"]).sparsity == 0.5
    assert compose(["structure=nm", "structure.n=1", "structure.m=16"]).sparsity == 0.9375
    assert compose(["structure=nm_2_4", "sparsity=0"]).sparsity == 0
    assert compose([]).sparsity == 0.9
    assert method("rigl", structure="nm_1_8").sparsity == 0.875
    assert method("sr_ste").sparsity == 0.5
    assert method("rigl").sparsity == 0.9


@pytest.mark.parametrize("name", ["bdwp", "pgf_mask_decay", "pgf_structure_decay"])
def test_engines_of_n_m_need_one(name):
    with pytest.raises(UserError, match="needs an N:M structure"):
        method(name, structure="unstructured")


def test_a_structure_without_numbers_is_refused():
    with pytest.raises(UserError, match="both are needed"):
        NM(StructureSpec("nm"))
