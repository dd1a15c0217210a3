"""The network without its dead channels computes the same, and is as small as it can be."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparsebench.errors import UserError
from sparsebench.models.cifar_resnet import resnet20
from sparsebench.models.lenet import lenet5
from sparsebench.models.mlp import mlp
from sparsebench.models.tiny import tiny_conv, tiny_vit
from sparsebench.models.vgg import vgg11
from sparsebench.sparsity.compact import FILE, chains, compact, keep_small, load, save, silence


def filled(model):
    """The network with all its values at random, as after training."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
                if name.endswith("running_var"):
                    tensor.abs_().add_(0.5)
    return model.eval()


@torch.no_grad()
def kill(model, every=2, silent=True):
    """Each ``every``-th channel that can go loses its weights; how many parameters that frees."""
    for name, chain in chains(model).items():
        weight = model.get_parameter(name)
        dead = torch.arange(weight.shape[0]) % every == 0
        weight[dead] = 0
        if silent:
            silence(model, chain, dead)
    return model


NETWORKS = {
    "mlp": (lambda: mlp((1, 8, 8), 10, hidden=(20, 12)), (1, 8, 8)),
    "conv": (lambda: tiny_conv((3, 8, 8), 10), (3, 8, 8)),
    "lenet5": (lambda: lenet5((1, 28, 28), 10, width=0.5), (1, 28, 28)),
    "vgg11": (lambda: vgg11((3, 32, 32), 10, width=0.125), (3, 32, 32)),
    "resnet20": (lambda: resnet20((3, 16, 16), 10, width=0.5), (3, 16, 16)),
}
every_network = pytest.mark.parametrize("network", NETWORKS)


@every_network
@pytest.mark.parametrize("silent", [True, False])
def test_outputs_are_equal_and_the_network_given_stays(network, silent):
    build, shape = NETWORKS[network]
    model = kill(filled(build()), silent=silent).double()
    before = copy.deepcopy(model.state_dict())
    small = compact(model)
    x = torch.randn(4, *shape, dtype=torch.float64)
    assert torch.allclose(small.model(x), model(x), atol=1e-10)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    if silent:
        expected = {n: -(-model.get_parameter(n).shape[0] // 2) for n in chains(model)}
        assert small.removed == expected
        assert small.parameters < sum(p.numel() for p in model.parameters())


def test_parameters_of_the_small_network_by_hand():
    model = kill(filled(mlp((1, 8, 8), 10, hidden=(20, 12))))
    assert compact(model).parameters == 64 * 10 + 10 + 10 * 6 + 6 + 6 * 10 + 10
    model = kill(filled(tiny_conv((1, 8, 8), 10)))
    assert compact(model).parameters == 9 * 4 + 8 + 9 * 4 * 8 + 16 + 8 * 10 + 10


def test_of_a_resnet_only_the_inner_convolutions_become_narrower():
    model = kill(filled(NETWORKS["resnet20"][0]()))
    assert set(chains(model)) == {
        f"layer{stage}.{block}.conv1.weight" for stage in (1, 2, 3) for block in range(3)
    }
    small = compact(model).model
    block = small.layer2[1]
    assert (block.conv1.in_channels, block.conv1.out_channels, block.bn1.num_features) == (16, 8, 8)
    assert (block.conv2.in_channels, block.conv2.out_channels) == (8, 16)


def test_constants_are_added_to_the_bias_of_the_reader():
    model = filled(mlp((1, 2, 2), 3, hidden=(4,)))
    model.fc1.weight.data[1] = 0
    model.fc1.bias.data[1] = 2.0
    wanted = model.fc2.bias + 2.0 * model.fc2.weight[:, 1]
    small = compact(model)
    assert small.removed == {"fc1.weight": 1}
    assert torch.allclose(small.model.fc2.bias, wanted)


def test_a_constant_in_front_of_padding_stays_as_it_is_no_constant_behind_it():
    model = filled(tiny_conv((1, 8, 8), 10))
    model.conv1.weight.data[0] = 0
    model.bn1.bias.data[0] = 5.0
    assert compact(model).removed == {}
    model.bn1.bias.data[0] = -5.0
    model.bn1.running_mean.data[0] = 0.0  # below zero: the ReLU makes it 0
    assert compact(model).removed == {"conv1.weight": 1}


def test_channels_that_nobody_reads_go_and_then_those_that_only_they_read():
    model = filled(mlp((1, 2, 2), 3, hidden=(4, 4)))
    model.fc3.weight.data[:, 2] = 0
    model.fc2.weight.data[[0, 1, 3], 1] = 0  # of fc1's channel 1 only fc2's channel 2 makes use
    small = compact(model)
    assert small.removed == {"fc1.weight": 1, "fc2.weight": 1}
    x = torch.randn(3, 1, 2, 2)
    assert torch.allclose(small.model(x), model(x), atol=1e-6)


def test_a_layer_without_a_live_channel_keeps_one_with_a_note():
    model = filled(mlp((1, 2, 2), 3, hidden=(4, 4)))
    model.fc2.weight.data.zero_()
    small = compact(model)
    assert small.model.fc2.out_features == 1
    assert small.model.fc1.out_features == 1  # as nobody reads it any more
    assert small.notes == [
        f"compact: '{name}.weight' has no live channel left; one is kept" for name in ("fc1", "fc2")
    ]
    x = torch.randn(3, 1, 2, 2)
    assert torch.allclose(small.model(x), model(x), atol=1e-6)


def test_a_first_layer_that_lost_all_inputs_is_refused(tmp_path):
    model = filled(mlp((1, 2, 2), 3, hidden=(4,)))
    model.fc1.weight.data.zero_()
    with pytest.raises(UserError, match="lost all its inputs"):
        compact(model)
    metrics, notes = keep_small(model, tmp_path, lambda net: 0.0)  # a run that is over goes on
    assert (metrics, list(tmp_path.iterdir())) == ({}, [])
    assert "lost all its inputs" in notes[0]


class Shared(nn.Module):
    """One layer used twice, and one whose output is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = F.relu(self.a(F.relu(self.a(x))))
        y = F.relu(self.b(x))
        return self.c(y) + y


class Unreadable(nn.Module):
    """What it does depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.b(self.a(x)) if x.sum() > 0 else x


def test_what_is_shared_or_not_understood_stays():
    assert chains(Shared()) == {}
    assert chains(Unreadable()) == {}
    model = filled(Unreadable())
    model.a.weight.data[0] = 0
    assert compact(model).removed == {}
    groups = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1, groups=2))
    assert chains(groups) == {}
    vit = filled(tiny_vit((1, 8, 8), 10))
    assert torch.allclose(compact(vit).model(x := torch.randn(2, 1, 8, 8)), vit(x), atol=1e-6)


@every_network
def test_the_file_is_the_small_network(network, tmp_path):
    build, shape = NETWORKS[network]
    model = kill(filled(build()))
    small = compact(model)
    save(small, tmp_path)
    read = load(build(), tmp_path / FILE).eval()
    x = torch.randn(2, *shape)
    assert torch.equal(read(x), small.model(x))
    assert repr(read) == repr(small.model)


def test_nothing_is_written_where_nothing_is_dead(tmp_path):
    model = filled(mlp((1, 2, 2), 3, hidden=(4,)))
    assert keep_small(model, tmp_path, lambda net: 0.0) == ({}, [])
    assert not list(tmp_path.iterdir())
