"""Feature selection by an autoencoder: strengths, baselines, judges, and a planted truth."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from sparsebench.config.compose import compose
from sparsebench.data import load
from sparsebench.errors import UserError
from sparsebench.models.autoencoder import autoencoder
from sparsebench.run import run
from sparsebench.tasks import feature_selection as task

SMALL = [
    "task=feature_selection", "data=planted", "data.args.features=30", "data.args.train=300",
    "data.args.test=100", "data.args.redundant=5", "model.hidden=[40]", "task.options.k=10",
    "method=quickselection", "sparsity=0.8", "optimizer.lr=0.01", "schedule=constant",
    "batch_size=50", "plots=false", "quiet=true", "trainer.accelerator=cpu",
]  # fmt: skip


def train(folder, *words):
    result = run(compose([*SMALL, f"runs={folder}", *words]))
    assert result["status"] == "finished", result.get("error")
    return result["metrics"]


def prepared(*words):
    return task.prepare(compose([*SMALL, *words]))


# --- strength -----------------------------------------------------------------------------------


def test_the_strength_of_an_input_is_the_sum_of_its_magnitudes():
    encoder = torch.tensor([[1.0, -2.0, 0.0], [0.0, 0.5, 0.0]]).T  # [outputs, inputs]
    assert task.strength(encoder).tolist() == [3.0, 0.5]


def test_features_are_chosen_as_the_authors_code_does():
    """``fs_strength_w`` of zahraatashgahi/QuickSelection: the last K of an ascending sort."""
    found = prepared()
    weight = found.model.encoder.weight
    with torch.no_grad():
        weight.copy_(torch.randn(weight.shape) * (torch.rand(weight.shape) < 0.2))
    sums = np.abs(weight.detach().numpy().astype(np.float64)).sum(0)
    expected = sums.argsort()[-10:][::-1]
    assert found.task.choose(found.data, found.model).tolist() == expected.tolist()


def test_a_planted_structure_is_found(tmp_path):
    words = ["data.args.features=100", "data.args.redundant=15", "data.args.train=1000",
             "sparsity=0.7", "model.dropout=0.5", "optimizer.lr=0.003", "task.options.k=20",
             "epochs=20", "data.validation=0"]  # fmt: skip
    assert train(tmp_path, *words)["test/precision"] >= 0.9
    assert train(tmp_path, *words, "task.options.select=random", "epochs=1")["test/precision"] < 0.5


# --- baselines ----------------------------------------------------------------------------------


def test_the_laplacian_score_is_that_of_its_definition():
    torch.manual_seed(0)
    x = torch.randn(12, 3).double()
    x[:, 2] = 1.0
    n, near = len(x), 5
    d2 = [[float(((a - b) ** 2).sum()) for b in x] for a in x]
    neighbours = [sorted((j for j in range(n) if j != i), key=d2[i].__getitem__)[:near]
                  for i in range(n)]  # fmt: skip
    width = sum(d2[i][j] for i in range(n) for j in neighbours[i]) / (n * near)
    graph = np.zeros((n, n))
    for i in range(n):
        for j in neighbours[i]:
            graph[i, j] = graph[j, i] = np.exp(-d2[i][j] / width)
    degree = np.diag(graph.sum(1))
    expected = []
    for column in (0, 1):
        f = x[:, column].numpy()
        f = f - (f @ degree.sum(1)) / degree.sum()
        expected.append((f @ (degree - graph) @ f) / (f @ degree @ f))
    found = task.laplacian_score(x)
    assert found[:2].tolist() == pytest.approx(expected, rel=1e-9)
    assert found[2] == torch.inf


def test_each_selection_by_name():
    sets = prepared().data
    for name in ("variance", "random", "laplacian", "all"):
        found = prepared(f"task.options.select={name}")
        chosen = found.task.choose(found.data, found.model).tolist()
        assert len(set(chosen)) == len(chosen) == (30 if name == "all" else 10)
    by_variance = prepared("task.options.select=variance")
    order = sets.facts["variance"].argsort(descending=True)[:10]
    assert by_variance.task.choose(sets, by_variance.model).tolist() == order.tolist()
    seeds = [prepared("task.options.select=random", f"seed={seed}") for seed in (1, 1, 2)]
    first, same, other = (f.task.choose(f.data, f.model).tolist() for f in seeds)
    assert first == same != other


# --- judges -------------------------------------------------------------------------------------


def test_clusters_are_matched_to_classes_at_best():
    torch.manual_seed(1)
    clusters, classes = torch.randint(4, (60,)), torch.randint(4, (60,))
    best = max(
        sum(names[c] == y for c, y in zip(clusters.tolist(), classes.tolist(), strict=True))
        for names in itertools.permutations(range(4))
    )
    assert task.matched(clusters, classes, 4) == best / 60


def test_judges_tell_separate_classes_apart():
    y = torch.arange(3).repeat(20)
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)) + 20.0 * y[:, None]
    assert task.clustering_accuracy(x, y, 2, 0) == 1.0
    assert task.trees_accuracy((x, y), (x, y), 5, 0) == 1.0


# --- data ---------------------------------------------------------------------------------------


def test_features_are_standardised_by_the_training_samples():
    words = [word for word in SMALL if not word.startswith("data")]
    sets = task.prepare(compose([*words, "data=digits"])).data
    x, y = sets.train.tensors
    assert x.shape[1] == 64
    assert len(x) == len(y)
    moving = sets.facts["variance"] > 0
    assert not bool(moving.all())  # the corners of the digits are blank
    assert x.mean(0).abs().max() < 1e-5
    assert torch.allclose(x[:, moving].std(0, correction=0), torch.ones(int(moving.sum())))
    assert x[:, ~moving].abs().max() == 0


def test_planted_columns_are_those_that_carry_the_classes():
    cfg = compose(SMALL)
    sets = load(dict(cfg.data))
    relevant = sets.facts["relevant"]
    assert int(relevant.sum()) == 10  # 5 informative, 5 redundant
    x = sets.train.images[:, relevant].double()
    values = torch.linalg.svdvals((x - x.mean(0)) / x.std(0))
    assert int((values > 1e-4 * values[0]).sum()) == 5  # combinations of five
    again = load(dict(cfg.data))
    assert torch.equal(again.train.images, sets.train.images)


# --- the network and refusals -------------------------------------------------------------------


def test_the_autoencoder():
    model = autoencoder((1, 3, 4), hidden=[5], activation="tanh", output="sigmoid", dropout=0.5)
    assert [p.shape for p in (model.encoder.weight, model.decoder.weight)] == [(5, 12), (12, 5)]
    assert isinstance(model.hidden, nn.Tanh)
    assert isinstance(model.output, nn.Sigmoid)
    assert model(torch.zeros(2, 1, 3, 4)).shape == (2, 12)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["task.options.k=31"], "task.options.k=31: there are 30 features"),
        (["task.options.select=lapacian"], "did you mean 'laplacian'"),
        (["model.hidden=[3,3]"], "model.hidden=.*one layer"),
        (["model.args.activation=sigmod"], "model.args.activation=sigmod.*did you mean 'sigmoid'"),
        (["data.args.features=6"], "data.args.features=6.*need more"),
        (["data.args.clusters=17"], "the 32 corners"),
        (["data.args.train=0"], "data.args.train=0: a whole number of at least 1"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path, words, said):
    with pytest.raises(UserError, match=said):
        run(compose([*SMALL, f"runs={tmp_path}", *words]))
    assert not list(tmp_path.iterdir())
