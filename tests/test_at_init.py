"""Pruning at initialisation: figures by hand, what paths promise, and what is refused."""

import math

import pytest
import torch
from torch import nn

from sparsebench.errors import UserError
from sparsebench.library import method
from sparsebench.models.cifar_resnet import cifar_resnet
from sparsebench.models.mlp import mlp
from sparsebench.models.tiny import tiny_conv, tiny_vit
from sparsebench.models.vgg import vgg11
from sparsebench.sparsity import Session
from sparsebench.sparsity.examples import Examples


def squared(model, batch):
    x, y = batch
    return 0.5 * ((model(x) - y) ** 2).sum()


def images(shape=(3, 16, 16), count=8):
    def batches(seed):
        generator = torch.Generator().manual_seed(seed)
        while True:
            x = torch.randn(count, *shape, generator=generator)
            yield x, torch.randint(10, (count,), generator=generator)

    return Examples(batches)


def begin(name, net, sparsity=0.9, seed=0, examples=None, **dials):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    made = method(name, sparsity=sparsity, **dials)
    return Session(made, net, optimizer, total_steps=10, seed=seed, examples=examples)


def linear(*rows, bias=False):
    layer = nn.Linear(len(rows[0]), len(rows), bias=bias)
    layer.weight.data.copy_(torch.tensor(rows))
    return layer


def kept(session):
    return sum(session.masks.nonzeros.values())


# --- by hand -----------------------------------------------------------------------------------


def test_snip_by_hand():
    # out 0, error -1, dL/dw = (-1, -1, -2): |w g| = (1, 2, 1)
    batch = torch.tensor([[1.0, 1.0, 2.0]]), torch.tensor([[1.0]])
    examples = Examples(lambda seed: iter([batch]), squared)
    session = begin("snip", linear([1.0, -2.0, 0.5]), 2 / 3, examples=examples)
    assert session.masks["weight"].tolist() == [[False, True, False]]


def test_grasp_by_hand():
    # L = sum a w^2 / 2 / T^2: g = a w, Hg = a^2 w, score a^2 w^2 = (1, 16, 9, 0.25)
    a, w = torch.tensor([1.0, 4.0, 1.0, 0.5]), [1.0, -1.0, 3.0, 1.0]
    batch = torch.diag(a.sqrt()), torch.zeros(4, 1)
    examples = Examples(lambda seed: iter([batch]), squared)
    session = begin("grasp", linear(w), 0.5, examples=examples)
    assert session.masks["weight"].tolist() == [[False, True, True, False]]


def test_synflow_by_hand():
    net = nn.Sequential(linear([1.0, -2.0], [3.0, 0.5]), nn.ReLU(), linear([2.0, -1.0]))
    # R = 9.5, scores [[2, 4], [3, .5]] and [[6, 3.5]]
    session = begin("synflow", net, 0.5, initial_rounds=1)
    assert session.masks["0.weight"].tolist() == [[False, True], [False, False]]
    assert session.masks["2.weight"].tolist() == [[True, True]]
    flow = session.method.observers["flow"].values(session.state)
    assert flow["2.weight"].tolist() == [[2.0, 0.0]]  # at the masked weights: h = (2, 0)


def test_synflow_is_conserved_from_layer_to_layer():
    net = mlp((5,), 3, hidden=(7, 6))
    session = begin("synflow", net, 1e-9)  # all weights stay
    flow = session.method.observers["flow"].values(session.state)
    shares = {n: flow[n] * p.detach().double().abs() for n, p in session.masks.parameters.items()}
    totals = [float(share.sum()) for share in shares.values()]
    assert totals == pytest.approx([totals[0]] * 3, rel=1e-12)
    first, second, third = shares.values()
    assert torch.allclose(first.sum(1), second.sum(0), rtol=1e-12)
    assert torch.allclose(second.sum(1), third.sum(0), rtol=1e-12)


def test_synflow_needs_its_rounds_to_keep_every_layer_alive():
    torch.manual_seed(0)
    net = mlp((100,), 10, hidden=(100, 100, 100))
    sparsity = 1 - 60 / 31_000
    alive = begin("synflow", net, sparsity)
    assert min(alive.masks.nonzeros.values()) > 0
    assert not alive.state.notes


# --- paths -------------------------------------------------------------------------------------


def off_paths(session, shape):
    """Weights kept through which nothing flows from input to output, seen by |weights| alone."""
    net = session.state.model.double().eval()
    for name, parameter in net.named_parameters():
        parameter.data = torch.zeros_like(parameter) if "bias" in name else parameter.data.abs()
    for name, parameter in session.masks.parameters.items():
        parameter.data = session.masks[name].double()
    weights = list(session.masks.parameters.values())
    out = net(torch.ones(1, *shape, dtype=torch.float64)).sum()
    flow = torch.autograd.grad(out, weights)
    return sum(int((w.bool() & (g <= 0)).sum()) for w, g in zip(weights, flow, strict=True))


@pytest.mark.parametrize(
    "build, shape",
    [
        (lambda: mlp((784,), 10, hidden=(300, 100)), (784,)),
        (lambda: cifar_resnet((3, 16, 16), 10, depth=8), (3, 16, 16)),
        (lambda: tiny_conv((3, 16, 16), 10), (3, 16, 16)),
        (lambda: vgg11((3, 64, 64), 10, width=0.125), (3, 64, 64)),
    ],
    ids=["mlp", "resnet8", "conv", "vgg"],
)
@pytest.mark.parametrize("sparsity", [0.7, 0.9, 0.98])
def test_every_weight_of_phew_is_on_a_path(build, shape, sparsity):
    torch.manual_seed(1)
    net = build()
    size = {n: float(p.detach().abs().mean()) for n, p in net.named_parameters()}
    session = begin("phew", net, sparsity, examples=images(shape, 2))
    assert kept(session) == round((1 - sparsity) * sum(session.masks.sizes.values()))
    for name, parameter in session.masks.parameters.items():
        mean = float(parameter.detach().abs()[session.masks[name]].mean())
        assert mean > size[name] or session.masks.nonzeros[name] < 50  # it prefers large weights
    assert off_paths(session, shape) == 0


def test_the_first_walk_of_phew_is_drawn_by_size():
    # from input 0 to unit j with |w_j0| / sum = .1 .2 .7; then to output k with .25 .75
    counts = torch.zeros(3, 2)
    for seed in range(300):
        net = nn.Sequential(
            linear([0.1, 9.0], [-0.2, 9.0], [0.7, 9.0]),
            linear([1.0, -1.0, 1.0], [3.0, 3.0, -3.0]),
        )
        session = begin("phew", net, 1 - 2 / 12, seed=seed)
        first, second = session.masks["0.weight"], session.masks["1.weight"]
        (unit, entry), (out, middle) = first.nonzero()[0], second.nonzero()[0]
        assert (int(entry), int(middle)) == (0, int(unit))
        counts[unit, out] += 1
    for found, chance in zip(
        [*counts.sum(1), *counts.sum(0)], [0.1, 0.2, 0.7, 0.25, 0.75], strict=True
    ):
        assert abs(float(found) - 300 * chance) < 4 * math.sqrt(300 * chance * (1 - chance))


def test_phew_walks_through_shortcuts_and_attention():
    torch.manual_seed(0)
    session = begin("phew", tiny_vit((1, 8, 8), 10), 0.8, examples=images((1, 8, 8)))
    assert min(session.masks.nonzeros.values()) > 0


class Concatenated(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(6, 2)

    def forward(self, x):
        return self.c(torch.cat([self.a(x), self.b(x)], 1))


def one():
    return nn.Linear(4, 3)


class Idle(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.a(x)


@pytest.mark.parametrize(
    "name, net, dials, said",
    [
        ("phew", Concatenated, {}, "features that are put together can't be followed"),
        ("phew", Idle, {}, "'b.weight' is on no path"),
        ("phew", one, {"initial_scope": "layer"}, "needs method.initial_scope=global"),
        ("phew", lambda: mlp((4,), 2), {"sparsity": 1 - 2 / 31_400}, "no path fits into"),
        ("phew", one, {"initial_rounds": 2}, "in one round"),
        ("snip", one, {}, "method.initial=saliency: it looks at training data"),
        ("force", one, {}, "method.initial=saliency: it looks at training data"),
        ("grasp", one, {}, "method.initial=grasp: it looks at training data"),
        ("synflow", lambda: nn.Conv2d(4, 3, 1), {}, "it needs the shape of an input"),
        ("random_search", one, {}, "looks at training data"),
        ("random_search", one, {"options": {"candidates": 0}}, "candidates=0"),
        ("random_search", one, {"options": {"space": "edges"}}, "space=edges"),
    ],
)  # fmt: skip
def test_refused(name, net, dials, said):
    with pytest.raises(UserError, match=said):
        begin(name, net(), **{"sparsity": 0.5, **dials})


# --- collapse ----------------------------------------------------------------------------------


def uneven():
    return nn.Sequential(linear([9.0, 8.0], [7.0, 6.0]), linear([1.0, 2.0]))


def test_a_layer_left_without_weights_is_named_in_the_result():
    session = begin("magnitude_init", uneven(), 0.5)
    assert session.masks.nonzeros == {"0.weight": 3, "1.weight": 0}
    assert session.state.notes == [
        "no weight is left in 1.weight (from step 0 on): nothing passes through"
    ]
    resumed = Session(
        session.method, uneven(), session.state.optimizers[0], total_steps=10,
        resume=session.state_dict(),
    )  # fmt: skip
    assert resumed.state.notes == session.state.notes  # said once


def test_a_layer_left_without_weights_is_refused_if_asked():
    with pytest.raises(UserError, match="method.collapse=refuse: no weight is left in 1.weight"):
        begin("magnitude_init", uneven(), 0.5, collapse="refuse")
    assert kept(begin("magnitude_init", uneven(), 1 / 6, collapse="refuse")) == 5


def test_a_layer_that_is_emptied_while_training_is_named_too():
    net = uneven()
    session = begin("gmp_global", net, 0.5, begin="0%", end="100%", every="5it")
    for _ in range(10):
        net(torch.ones(1, 2)).sum().backward()
        net.zero_grad()
        session.after_backward()
        session.after_step()
    assert [note[:28] for note in session.state.notes] == ["no weight is left in 1.weigh"]


# --- what is left as it was --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["snip", "force", "grasp", "synflow", "phew", "random_search"])
def test_the_network_is_as_it_was_but_for_its_masks(name):
    torch.manual_seed(0)
    net = tiny_conv((3, 16, 16), 10)
    net.bn1.eval()
    before = {n: tensor.clone() for n, tensor in net.state_dict().items()}
    state = torch.get_rng_state()
    options = {"options": {"candidates": 3}} if name == "random_search" else {}
    session = begin(name, net, 0.5, examples=images(), **options)
    for n, tensor in net.state_dict().items():
        mask = session.masks.factor(n) if n in session.masks.parameters else 1
        assert torch.equal(tensor, before[n] * mask)
    assert (net.training, net.bn1.training, net.bn2.training) == (True, False, True)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


@pytest.mark.parametrize("name, base", [("snip_ratio", "snip"), ("synflow_ratio", "synflow")])
def test_ratios_keep_each_layers_count_and_no_place(name, base):
    found = []
    for each in (name, base):
        torch.manual_seed(0)
        found.append(begin(each, tiny_conv((3, 16, 16), 10), examples=images()))
    shuffled, original = found
    assert shuffled.masks.nonzeros == original.masks.nonzeros
    assert not torch.equal(shuffled.masks["conv2.weight"], original.masks["conv2.weight"])


# --- random search -----------------------------------------------------------------------------


def searched(candidates, space="nodes", seed=0, sparsity=0.9):
    torch.manual_seed(0)
    net = mlp((20,), 10, hidden=(40, 30))
    options = {"candidates": candidates, "space": space}
    return begin("random_search", net, sparsity, seed, images((20,)), options=options)


def loss_of(session):
    (batch,) = images((20,)).take(session.state, 1)
    return float(nn.functional.cross_entropy(session.state.model(batch[0]), batch[1]))


def test_one_random_candidate_is_static():
    torch.manual_seed(0)
    static = begin("static", mlp((20,), 10, hidden=(40, 30)))
    session = searched(1, "weights")
    assert session.masks.digest() == static.masks.digest()
    assert session.state.notes == []


@pytest.mark.parametrize("space", ["nodes", "layers", "weights"])
def test_more_candidates_have_no_higher_loss(space):
    said = []
    for candidates in (2, 5, 20):
        session = searched(candidates, space)
        assert kept(session) == round(0.1 * 2300)
        said.append(session.state.notes[0])
    lowest = [float(note.split(" is ")[1].split()[0]) for note in said]
    first = {note.rpartition("first ")[2] for note in said}
    assert len(first) == 1  # the same candidates, and more
    assert lowest == sorted(lowest, reverse=True)
    assert lowest[-1] < float(first.pop().rstrip(")"))
    one = searched(1, space)
    assert one.masks.digest() != searched(20, space).masks.digest()


def test_the_best_candidate_is_the_one_that_is_kept():
    torch.manual_seed(0)
    x, y = torch.randn(8, 20), torch.arange(8)
    net = mlp((20,), 10, hidden=(40, 30))
    options = {"candidates": 10, "space": "weights"}
    examples = Examples(lambda seed: iter([(x, y)]))
    session = begin("random_search", net, 0.9, 0, examples, options=options)
    now = float(nn.functional.cross_entropy(net(x), y).detach())
    assert f"is {now:.5g} (" in session.state.notes[0]


def test_nodes_are_kept_or_left_out_as_wholes():
    session = searched(1, sparsity=0.9)
    first, second, third = (mask for _, mask in session.masks.items())
    units, more = first.any(1), second.any(1)
    assert units.sum() < 20  # of 40
    assert more.sum() < 15  # of 30
    assert not second[:, ~units].any()
    assert not third[:, ~more].any()
    pairs = int(units.sum()) * 20 + int(more.sum()) * (int(units.sum()) + 10)
    assert kept(session) / pairs > 0.85  # what is too many was removed


def test_nodes_of_a_residual_network_are_channels():
    torch.manual_seed(0)
    session = begin(
        "random_search", cifar_resnet((3, 16, 16), 10, depth=8), 0.9, examples=images(),
        options={"candidates": 1},
    )  # fmt: skip
    inner = session.masks["layer1.0.conv1.weight"].any(3).any(2).any(1)
    assert 0 < inner.sum() < 16
    assert not session.masks["layer1.0.conv2.weight"][:, ~inner].any()
