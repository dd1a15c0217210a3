"""Recommendation with sparse tables of embeddings, and growth by the gradient since an update."""

import math

import numpy as np
import pytest
import torch

from sparsebench.config.compose import compose
from sparsebench.data import interactions
from sparsebench.data.options import Options
from sparsebench.errors import UserError
from sparsebench.library import method
from sparsebench.models.factorisation import Factorisation, matrix_factorisation
from sparsebench.run import run
from sparsebench.sparsity.selector import SelectorSpec
from sparsebench.sparsity.session import Session
from sparsebench.tasks import recommend as task
from sparsebench.training.ranker import Ranker

SMALL = [
    "task=recommend", "data.args.users=60", "data.args.items=50", "data.args.rank=3",
    "data.args.least=10", "data.args.most=20", "model.args.dimensions=16", "task.options.top=10",
    "optimizer=adam", "optimizer.lr=0.02", "optimizer.weight_decay=0", "batch_size=32",
    "method.every=5it", "plots=false", "quiet=true", "trainer.accelerator=cpu",
]  # fmt: skip
TABLES = SelectorSpec(kinds=["embedding"])


def train(folder, *words):
    result = run(compose([*SMALL, f"runs={folder}", *words]))
    assert result["status"] == "finished", result.get("error")
    return result["metrics"]


def prepared(*words):
    return task.prepare(compose([*SMALL, *words]))


# --- DSL ----------------------------------------------------------------------------------------


def session(every="3it", **dials):
    torch.manual_seed(0)
    model = Factorisation(6, 5, 4, 1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dsl = method("dsl", sparsity=0.5, every=every, end="100%", **dials)
    return model, optimizer, Session(
        dsl, model, optimizer, total_steps=30, seed=1, selector=TABLES
    )  # fmt: skip


def step(model, optimizer, running, users, items):
    vectors, others = model.tables()
    loss = ((vectors[users] * others[items]).sum(1) - 1.0).square().sum()
    optimizer.zero_grad()
    loss.backward()
    dense = {name: p.grad.numpy().astype(np.float64).copy() for name, p in model.named_parameters()}
    running.after_backward()
    optimizer.step()
    before = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    running.after_step()
    return dense, before


def test_masks_are_those_of_an_independent_calculation():
    """Global drop of the smallest, global growth by the summed gradient, drawn up in numpy."""
    model, optimizer, running = session()
    names = list(dict(running.masks.items()))
    for update in range(1, 6):
        masks = {name: mask.numpy().copy() for name, mask in running.masks.items()}
        total = {name: np.zeros(masks[name].shape) for name in names}
        for _ in range(3):
            users, items = torch.randint(6, (4,)), torch.randint(5, (4,))
            dense, before = step(model, optimizer, running, users, items)
            for name in names:
                total[name] += dense[name]
        flat = np.concatenate([masks[n].ravel() for n in names])
        size = np.concatenate([np.abs(before[n] * masks[n]).ravel() for n in names])
        gain = np.concatenate([np.abs(total[n]).ravel() for n in names])
        fraction = 0.3 * (1 + math.cos(math.pi * 3 * update / 30)) / 2
        number = math.floor(fraction * flat.sum() + 1e-9)
        drop = [i for i in np.argsort(size, kind="stable") if flat[i]][:number]
        left = flat.copy()
        left[drop] = False
        grow = [i for i in np.argsort(-gain.astype(np.float32), kind="stable") if not left[i]]
        left[grow[:number]] = True
        found = np.concatenate([mask.numpy().ravel() for _, mask in running.masks.items()])
        assert (found == left).all()
        assert number > 0


def test_the_budget_is_exact_at_every_step_and_moves_between_tables():
    model, optimizer, running = session(every="1it", drop_fraction=0.5)
    counts = []
    for _ in range(30):
        step(model, optimizer, running, torch.tensor([0, 1]), torch.arange(2))
        counts.append(tuple(running.masks.nonzeros.values()))
        assert sum(counts[-1]) == 22  # half of 6 x 4 and 5 x 4
    assert len(set(counts)) > 1


def test_rows_that_no_step_has_seen_do_not_grow():
    model, optimizer, running = session(every="2it")
    before = {name: mask.clone() for name, mask in running.masks.items()}
    seen = {"users.weight": [0, 1, 2, 3], "items.weight": [0, 1, 2, 3]}
    for pair in ([0, 1], [2, 3]):  # each of them in one step of two: by the last alone half would
        step(model, optimizer, running, torch.tensor(pair), torch.tensor(pair))
    grown = {n: (mask & ~before[n]).any(1).nonzero().view(-1) for n, mask in running.masks.items()}
    assert sum(map(len, grown.values())) > 0
    for name, rows in grown.items():
        assert set(rows.tolist()) <= set(seen[name])
    assert any(set(rows.tolist()) & {0, 1} for rows in grown.values())


def test_dsl_ranks_better_than_static_tables(tmp_path):
    words = ["sparsity=0.9", "epochs=8"]
    dsl, static = (train(tmp_path, *words, f"method={name}") for name in ("dsl", "static"))
    assert dsl["nonzeros"] == static["nonzeros"] == 176  # a tenth of 110 rows of 16
    assert dsl["test/recall"] > static["test/recall"]
    assert dsl["oracle/recall"] > dsl["popularity/recall"] > 0
    assert dsl["oracle/recall"] > dsl["test/recall"]


# --- ranking ------------------------------------------------------------------------------------


def test_recall_and_ndcg_by_hand():
    scores = torch.tensor([[9.0, 8, 7, 6, 5], [1.0, 2, 3, 4, 5]])
    seen = torch.tensor([[1, 0, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    wanted = torch.tensor([[0, 0, 1, 0, 1], [0, 0, 0, 0, 1]], dtype=torch.bool)
    recall, ndcg = task.ranking(scores, seen, wanted, 2)  # lists: 1, 2 and 4, 3
    assert recall.tolist() == [0.5, 1.0]
    best = 1 + 1 / math.log2(3)
    assert ndcg.tolist() == pytest.approx([1 / math.log2(3) / best, 1.0])


def test_the_loss_is_that_of_bpr():
    torch.manual_seed(3)
    model = Factorisation(2, 3, 4, 1.0)
    chosen = torch.tensor([[1, 1, 0], [0, 1, 1]], dtype=torch.bool)  # each leaves one item
    ranker = Ranker(model, compose(SMALL), chosen, 1, 0.5)
    users, items = torch.tensor([0, 1]), torch.tensor([1, 2])
    p, q = (table.detach().double() for table in model.tables())
    expected = 0.0
    for u, i, j in ((0, 1, 2), (1, 2, 0)):
        margin = float(p[u] @ q[i] - p[u] @ q[j])
        size = float(p[u] @ p[u] + q[i] @ q[i] + q[j] @ q[j])
        expected += (math.log1p(math.exp(-margin)) + 0.25 * size) / 2
    assert ranker.train_loss((users, items)).item() == pytest.approx(expected, rel=1e-5)


def test_flops_are_those_of_two_products():
    found = prepared("method=static", "sparsity=0.5")
    assert found.flops.dense == {"users.weight": 32, "items.weight": 32}
    assert found.dense_forward == 64  # two products of 16 multiplications and additions


# --- data ---------------------------------------------------------------------------------------


def test_each_interaction_is_in_one_part():
    found = interactions.synthetic({"args": {"users": 30, "items": 40, "least": 9, "most": 20}})
    counts = torch.bincount(found.pairs[:, 0])
    assert 9 <= int(counts.min()) <= int(counts.max()) <= 20
    assert len(found.pairs.unique(dim=0)) == len(found.pairs)
    sets = interactions.split(found, Options(name="x", validation=0.25), 0.2)
    train = torch.zeros(30, 40, dtype=torch.bool)
    train[sets.train.tensors] = True
    assert int(train.sum()) == len(sets.train)
    _, seen, held = sets.validation.tensors
    assert torch.equal(seen, train)
    users, known, wanted = sets.test.tensors
    assert torch.equal(known, train | held)
    assert not bool((known & wanted).any())
    assert torch.equal(wanted.sum(1), (counts.double() * 0.2).long())
    assert torch.equal(held.sum(1), ((counts - wanted.sum(1)).double() * 0.25).long())
    assert torch.equal((known | wanted).nonzero(), found.pairs.unique(dim=0))
    assert users.tolist() == list(range(30))


def test_synthetic_choices_follow_taste_and_popularity():
    found = interactions.synthetic({"args": {"popularity": 0.0, "strength": 4.0}})
    scores = found.facts["scores"]
    values = torch.linalg.svdvals(scores.double())
    assert int((values > 1e-5 * values[0]).sum()) == 8
    chosen = scores[found.pairs[:, 0], found.pairs[:, 1]].mean()
    assert chosen > scores.mean() + 2 * scores.std() * 0.5
    again = interactions.synthetic({"args": {"popularity": 0.0, "strength": 4.0}})
    assert torch.equal(again.pairs, found.pairs)


@pytest.mark.parametrize(
    ("name", "header"), [("u.data", ""), ("ml-100k.inter", "user_id:token\titem_id:token\n")]
)
def test_movielens_in_either_layout(tmp_path, name, header):
    folder = tmp_path / "ml-100k"
    folder.mkdir()
    (folder / name).write_text(header + "196\t242\t3\t9\n196\t30\t1\t8\n22\t242\t4\t7\n")
    found = interactions.movielens({"name": "movielens", "root": str(tmp_path)})
    assert (found.users, found.items) == (2, 2)
    assert found.pairs.tolist() == [[0, 1], [1, 0], [1, 1]]
    (folder / name).write_text(header + "196\tx\t3\n")
    with pytest.raises(UserError, match="a line that is no rating"):
        interactions.movielens({"name": "movielens", "root": str(tmp_path)})


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data=movielens", "data.root=nowhere"], "not found.*recbole"),
        (["data.args.most=50"], "data.args.most=50.*below data.args.items=50"),
        (["data.subset=0.5"], "data.subset=0.5: interactions have no subset"),
        (["data.validation=20"], "data.validation=20.*a share"),
        (["task.options.top=50"], "task.options.top=50: there are 50 items"),
        (["task.options.test=0.001"], "no interaction is left to test on"),
        (["model.args.dimensions=0"], "model.args.dimensions=0: a whole number"),
        (["selector=weights"], "kinds=.'linear', 'conv'. matches no weight"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path, words, said):
    if words[0].startswith("data="):
        given = [word for word in SMALL if not word.startswith("data.args")]
    else:
        given = SMALL
    with pytest.raises(UserError, match=said):
        run(compose([*given, f"runs={tmp_path}", *words]))
    assert not list(tmp_path.iterdir())


def test_the_network():
    model = matrix_factorisation((7,), 9, width=0.5, dimensions=6)
    assert [table.shape for table in model.tables()] == [(7, 3), (9, 3)]
    users = torch.tensor([2, 2, 6])
    p, q = model.tables()
    assert torch.allclose(model(users), torch.stack([q @ p[2], q @ p[2], q @ p[6]]))
