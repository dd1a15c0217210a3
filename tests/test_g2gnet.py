"""G2GNet: group-to-group topologies, and growth by correlation, against numpy's on unfolded inputs.

No official code is public; the patterns and scores are written anew from the definitions.
"""

import numpy as np
import pytest
import torch
from torch import nn

from sparsebench.errors import UserError
from sparsebench.library import method
from sparsebench.sparsity import Session
from sparsebench.sparsity.examples import Examples
from sparsebench.sparsity.hebbian import Sums
from sparsebench.sparsity.methods.g2gnet import Pattern


def correlations(a, b):
    """|Pearson| of all columns of b with all of a, (columns of b, columns of a); constants 0."""
    found = np.zeros((b.shape[1], a.shape[1]))
    for j in range(b.shape[1]):
        for i in range(a.shape[1]):
            if a[:, i].std() > 1e-9 and b[:, j].std() > 1e-9:
                found[j, i] = abs(np.corrcoef(a[:, i], b[:, j])[0, 1])
    return torch.from_numpy(found)


def batch(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_correlation_of_a_linear_layer():
    torch.manual_seed(0)
    layer, x = nn.Linear(5, 3), batch(20, 5) + 3
    x[:, 4] = 2.0  # never varies
    y = layer(x).detach()
    found = Sums.of(layer, x, y).correlation()
    torch.testing.assert_close(found, correlations(x.numpy(), y.numpy()), rtol=1e-4, atol=1e-6)
    assert not found[:, 4].any()


def test_identical_and_opposite_activations_have_a_correlation_of_1():
    layer, x = nn.Linear(2, 2), batch(9, 2)
    y = torch.stack([x[:, 0], -3 * x[:, 1] + 1], 1)
    found = Sums.of(layer, x, y).correlation()
    assert found.diagonal().tolist() == pytest.approx([1, 1])


def test_positions_of_a_sequence_are_samples():
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 3), batch(2, 7, 4)
    y = layer(x).detach()
    found = Sums.of(layer, x, y).correlation()
    expected = correlations(x.reshape(14, 4).numpy(), y.reshape(14, 3).numpy())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dials", [{"padding": 1}, {"stride": 2}, {"padding": 2, "dilation": 2}])
def test_each_tap_of_a_convolution_is_a_connection(dials):
    torch.manual_seed(0)
    layer, x = nn.Conv2d(2, 3, 3, **dials), batch(4, 2, 6, 6)
    y = layer(x).detach()
    patches = nn.functional.unfold(x, 3, **dials)  # (batch, channels and taps, places)
    a = patches.transpose(1, 2).reshape(-1, 18).numpy()
    b = y.flatten(2).transpose(1, 2).reshape(-1, 3).numpy()
    found = Sums.of(layer, x, y).correlation()
    expected = correlations(a, b).view(3, 2, 3, 3)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_grouped_convolution_sees_its_own_channels():
    torch.manual_seed(0)
    layer, x = nn.Conv2d(4, 4, 1, groups=2, bias=False), batch(3, 4, 5, 5)
    y = layer(x).detach()
    a, b = (t.flatten(2).transpose(1, 2).reshape(-1, 4).numpy() for t in (x, y))
    every = correlations(a, b)
    found = Sums.of(layer, x, y).correlation().view(4, 2)
    torch.testing.assert_close(found[:2], every[:2, :2], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[2:], every[2:, 2:], rtol=1e-4, atol=1e-6)


def test_calls_of_one_layer_are_put_together():
    torch.manual_seed(0)
    layer, x = nn.Linear(3, 2), batch(10, 3)
    y = layer(x).detach()
    whole = Sums.of(layer, x, y).correlation()
    parts = Sums.of(layer, x[:4], y[:4]) + Sums.of(layer, x[4:], y[4:])
    torch.testing.assert_close(parts.correlation(), whole)


def session_of(net, x, name="g2gnet", sparsity=0.5, **dials):
    engine = method(
        name, sparsity=sparsity, every="1it", begin="0%", end="100%", drop_fraction=0.4,
        drop_schedule="constant", **dials,
    )  # fmt: skip
    examples = Examples(lambda seed: iter([(x, torch.zeros(len(x), dtype=torch.long))]))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    return Session(engine, net, optimizer, total_steps=4, seed=0, examples=examples)


def step(session):
    for parameter in session.state.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    assert not session.method.wants_dense_gradient(session.state)
    session.after_backward()
    return session.after_step()


@pytest.mark.parametrize("name", ["g2gnet", "set"])
def test_masks_of_an_update(name):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), batch(32, 6)
    session = session_of(net, x, name, grow="hebbian", distribution="strict_uniform")
    masks, weights = dict(session.masks.items()), [net[0].weight, net[2].weight]
    before = [w.detach().clone() for w in weights]
    with torch.no_grad():
        hidden = net[0](x)
        ends = [(x, hidden), (hidden.relu(), net(x))]
    assert step(session)
    for (layer, mask), weight, (a, b) in zip(masks.items(), before, ends, strict=True):
        k = int(0.4 * int(mask.sum()))
        flat, left = weight.view(-1), mask.clone().view(-1)
        present = left.nonzero().view(-1).tolist()
        left[sorted(present, key=lambda i, flat=flat: abs(float(flat[i])))[:k]] = False
        scores = correlations(a.numpy(), b.numpy()).view(-1)
        free = (~left).nonzero().view(-1).tolist()
        left[sorted(free, key=lambda i, scores=scores: -float(scores[i]))[:k]] = True
        assert torch.equal(session.masks[layer].view(-1), left)


def test_the_network_is_left_as_it_was():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 4))
    session = session_of(net, batch(32, 6))
    net.train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    session.method.observers["correlation"].values(session.state)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(module.training for module in net.modules())
    assert not any(module._forward_hooks for module in net.modules())


def test_a_layer_that_is_not_called_grows_at_random():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(6, 4), nn.Linear(10, 10)

        def forward(self, x):
            return self.used(x)

    moved = set()
    for seed in range(3):
        torch.manual_seed(seed)
        session = session_of(Unused(), batch(16, 6), distribution="strict_uniform")
        old = session.masks["idle.weight"]
        assert step(session)
        new = session.masks["idle.weight"] & ~old
        assert int(session.masks["idle.weight"].sum()) == int(old.sum())
        moved.add(tuple(new.view(-1).nonzero().view(-1).tolist()))
    assert len(moved) == 3


def test_growth_by_correlation_needs_data_and_activations():
    net = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2))
    session = session_of(nn.Sequential(nn.Linear(6, 4)), batch(4, 6))
    session.state.data = Examples()
    with pytest.raises(UserError, match="gets none"):
        step(session)
    session.state.model = net
    session.masks.parameters = {"0.weight": net[0].weight}
    with pytest.raises(UserError, match=r"grow=hebbian: '0.weight' belongs to Embedding"):
        session.method.observers["correlation"].values(session.state)


# --- topologies ------------------------------------------------------------------------------


@pytest.mark.parametrize("groups, others", [(4, 0), (4, 1), (8, 3), (5, 4)])
def test_density_of_the_pattern(groups, others):
    ranks = Pattern(groups, others).ranks(80, 120, torch.Generator().manual_seed(0))
    blocks = ranks.view(groups, 80 // groups, groups, 120 // groups)
    one = blocks[:, 0, :, 0]
    assert (blocks == one[:, None, :, None]).all()
    assert (one < 2).sum(1).tolist() == [1 + others] * groups
    assert float((ranks < 2).float().mean()) == pytest.approx((1 + others) / groups)
    assert one.diagonal().tolist() == [0] * groups
    assert int((one == 0).sum()) == groups


def static(sparsity, **options):
    net = nn.Sequential(nn.Linear(64, 32), nn.Conv2d(16, 16, 3), nn.Linear(32, 10))
    engine = method("g2g_static", sparsity=sparsity, options=options, every="1it")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    return Session(engine, net, optimizer, total_steps=4, seed=0).masks


def test_at_the_density_of_the_pattern_its_blocks_are_whole():
    masks = static(0.75)
    for name in ("0.weight", "1.weight"):
        mask = masks[name]
        n, m = mask.shape[0] // 8, mask.shape[1] // 8
        blocks = mask.view(8, n, 8, m, -1)
        whole, any_ = blocks.all(1).all(2).all(2), blocks.any(1).any(2).any(2)
        assert torch.equal(whole, any_)
        assert whole.diagonal().all()
        assert whole.sum(1).tolist() == [2] * 8
    assert masks.nonzeros == {"0.weight": 512, "1.weight": 576, "2.weight": 80}


def test_blocks_of_equal_number_come_first_and_what_is_left_over_last():
    mask = static(0.9)["0.weight"].view(8, 4, 8, 8)  # 205 of 2048; eight blocks of 32 are 256
    assert int(mask.sum()) == 205
    assert int(torch.einsum("gigj->", mask.int())) == 205
    spread = static(0.9, inside="random")["0.weight"].view(8, 4, 8, 8)
    within = int(torch.einsum("gigj->", spread.int()))
    assert 80 < within < 125  # half of 205, give or take three standard deviations
    full = static(0.5)["0.weight"].view(8, 4, 8, 8)  # 1024: the pattern of 512, and 512 elsewhere
    assert int((full.sum((1, 3)) == 32).sum()) >= 16
    assert int(full.sum()) == 1024


def test_any_method_may_start_from_groups():
    net = nn.Linear(80, 40)
    engine = method(
        "set", sparsity=0.75, initial="group_to_group", distribution="strict_uniform", every="1it"
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    masks = Session(engine, net, optimizer, total_steps=4).masks
    assert int(torch.einsum("gigj->", masks["weight"].view(8, 5, 8, 10).int())) == 400


@pytest.mark.parametrize(
    "options, said",
    [
        ({"groups": 0}, "method.options.groups=0: a whole number from 1"),
        ({"inside": "sparse"}, "method.options.inside=sparse: one of dense, random"),
        ({"group": 4}, "method.options.group=4: no such option; there are: groups,"),
    ],
)
def test_bad_options(options, said):
    with pytest.raises(UserError, match=said):
        method("g2gnet", options=options)


def test_groups_have_counts_of_layers():
    net = nn.Linear(80, 40)
    engine = method("g2gnet", initial_scope="global", every="1it")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    with pytest.raises(UserError, match="layer by layer"):
        Session(engine, net, optimizer, total_steps=4)
