"""The owner of what is sparse: packing, counts, the three storages, checkpoints."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparsebench.errors import UserError
from sparsebench.sparsity.masks import Masks, pack, unpack

KEEP = torch.tensor([[1, 0, 1], [0, 1, 0]], dtype=torch.bool)


def saved(state: dict) -> dict:
    """Through a file, as a checkpoint reads it."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def masks_of(storage: str = "zeroed") -> tuple[Masks, nn.Parameter]:
    parameter = nn.Parameter(torch.arange(1.0, 7.0).view(2, 3))
    masks = Masks({"w": parameter}, storage)
    masks.set("w", KEEP)
    return masks, parameter


@settings(max_examples=50)
@given(st.lists(st.booleans(), max_size=70))
def test_bits_are_numpys(mask):
    bits = pack(torch.tensor(mask, dtype=torch.bool))
    assert np.array_equal(bits.numpy(), np.packbits(np.array(mask, dtype=bool)))
    assert unpack(bits, torch.Size([len(mask)])).tolist() == mask


def test_counts():
    masks = Masks({"a": nn.Parameter(torch.ones(2, 3)), "b": nn.Parameter(torch.ones(4))})
    assert (masks.sparsity, masks.nonzeros) == (0.0, {"a": 6, "b": 4})
    masks.set("a", KEEP)
    assert masks.nonzeros == {"a": 3, "b": 4}
    assert masks.sizes == {"a": 6, "b": 4}
    assert masks.densities == {"a": 0.5, "b": 1.0}
    assert masks.sparsity == pytest.approx(0.3)
    assert [name for name, _ in masks.items()] == ["a", "b"]
    assert torch.equal(masks["a"], KEEP)
    assert masks.factor("a").dtype == torch.float32


def test_reading_a_mask_does_not_open_it_to_writing():
    masks, _ = masks_of()
    masks["w"].fill_(True)
    assert torch.equal(masks["w"], KEEP)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_factor_has_the_weights_type_and_layout(dtype):
    weight = torch.randn(4, 3, 2, 2).to(dtype, memory_format=torch.channels_last)
    masks = Masks({"w": nn.Parameter(weight)})
    assert masks.factor("w").dtype == dtype
    assert masks.factor("w").is_contiguous(memory_format=torch.channels_last)


def test_apply_zeroes_weights_and_state():
    masks, parameter = masks_of()
    optimizer = torch.optim.Adam([parameter])
    parameter.sum().backward()
    optimizer.step()
    masks.apply([optimizer])
    state = optimizer.state[parameter]
    for tensor in (parameter.detach(), state["exp_avg"], state["exp_avg_sq"]):
        assert torch.equal(tensor != 0, KEEP)
    assert float(state["step"]) == 1


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_move(layout):
    weight = torch.arange(1.0, 17.0).view(2, 2, 2, 2).to(memory_format=layout)
    parameter = nn.Parameter(weight)
    optimizer = torch.optim.SGD([parameter], lr=0.0, momentum=0.9)
    masks = Masks({"w": parameter})
    start = torch.arange(16) < 8
    masks.set("w", start.view(2, 2, 2, 2))
    masks.apply()
    parameter.grad = torch.ones_like(parameter)
    masks.mask_gradients()
    optimizer.step()
    version = masks.version
    masks.move("w", torch.tensor([0, 5]), torch.tensor([9, 15]), [optimizer])
    assert masks.version > version
    assert masks.nonzeros == {"w": 8}
    assert masks["w"].reshape(-1).nonzero().view(-1).tolist() == [1, 2, 3, 4, 6, 7, 9, 15]
    kept = torch.tensor([1, 2, 3, 4, 6, 7])
    expected = torch.zeros(16).index_copy(0, kept, kept + 1.0)
    assert torch.equal(parameter.detach().reshape(-1), expected)
    momentum = optimizer.state[parameter]["momentum_buffer"].reshape(-1)
    assert torch.equal(momentum, torch.zeros(16).index_fill(0, kept, 1.0))
    masks.check()


def test_gradients():
    for storage, expected in (("zeroed", KEEP), ("frozen", KEEP), ("shadow", KEEP | True)):
        masks, parameter = masks_of(storage)
        masks.mask_gradients()  # none yet
        parameter.grad = torch.ones(2, 3)
        masks.mask_gradients()
        assert torch.equal(parameter.grad != 0, expected)


def test_zeroed_weights_need_no_hiding():
    masks, parameter = masks_of()
    masks.apply()
    before = parameter.detach().clone()
    masks.hide()
    masks.reveal()
    assert torch.equal(parameter.detach(), before)
    assert masks.state_dict()["hidden"] == {}


@pytest.mark.parametrize("storage", ["frozen", "shadow"])
def test_hide_and_reveal_are_bitwise(storage):
    masks, parameter = masks_of(storage)
    dense = parameter.detach().clone()
    masks.apply()  # has nothing to say here
    masks.hide()
    masks.hide()  # a second forward pass of the same step
    assert torch.equal(parameter.detach(), dense * KEEP)
    masks.reveal()
    assert torch.equal(parameter.detach(), dense)


def test_frozen_weights_get_their_values_back_and_shadow_weights_learn():
    for storage in ("frozen", "shadow"):
        masks, parameter = masks_of(storage)
        dense = parameter.detach().clone()
        optimizer = torch.optim.SGD([parameter], lr=1.0, momentum=0.5, weight_decay=0.1)
        masks.hide()
        parameter.grad = torch.ones(2, 3)
        masks.mask_gradients()
        masks.reveal()
        optimizer.step()
        masks.settle([optimizer])
        learned = 0.9 * dense - 1.0
        momentum = optimizer.state[parameter]["momentum_buffer"]
        if storage == "frozen":
            learned = torch.where(KEEP, learned, dense)
            assert torch.equal(momentum != 0, KEEP)
        assert torch.allclose(parameter.detach(), learned)
        assert storage == "frozen" or (momentum != 0).all()


def test_a_dropped_shadow_weight_keeps_its_momentum_and_a_frozen_one_its_value():
    for storage, momentum in (("shadow", 1.0), ("frozen", 0.0)):
        masks, parameter = masks_of(storage)
        optimizer = torch.optim.SGD([parameter], lr=0.0, momentum=0.5)
        parameter.grad = torch.ones(2, 3)
        optimizer.step()
        masks.move("w", torch.tensor([0]), torch.tensor([1]), [optimizer])
        assert float(optimizer.state[parameter]["momentum_buffer"].view(-1)[0]) == momentum
        assert parameter.detach().view(-1)[:2].tolist() == [1.0, 2.0]


def test_check_finds_the_living_dead():
    masks, parameter = masks_of()
    with pytest.raises(RuntimeError, match="3 absent weights of 'w' are not zero"):
        masks.check()
    masks.apply()
    masks.check()
    masks, _ = masks_of("shadow")
    masks.check()


def test_digest_tells_masks_apart():
    one, _ = masks_of()
    two, _ = masks_of("shadow")
    assert one.digest() == two.digest()
    two.set("w", ~KEEP)
    assert one.digest() != two.digest()
    renamed = Masks({"v": nn.Parameter(torch.ones(2, 3))})
    renamed.set("v", KEEP)
    assert one.digest() != renamed.digest()


@pytest.mark.parametrize("storage", ["zeroed", "frozen", "shadow"])
def test_checkpoint_in_the_middle_of_a_step(storage):
    masks, parameter = masks_of(storage)
    masks.apply()
    dense = parameter.detach().clone()
    masks.hide()
    state, weights = saved(masks.state_dict()), parameter.detach().clone()
    other = Masks({"w": nn.Parameter(weights)}, storage)
    other.load_state_dict(state)
    assert torch.equal(other["w"], KEEP)
    assert other.nonzeros == {"w": 3}
    other.reveal()
    assert torch.equal(other.parameters["w"].detach(), dense)


def test_checkpoints_of_something_else_are_refused():
    state = masks_of()[0].state_dict()
    weight = nn.Parameter(torch.ones(2, 3))
    with pytest.raises(UserError, match="another model or selector"):
        Masks({"v": weight}).load_state_dict(state)
    with pytest.raises(UserError, match="mask of 'w' is of another shape"):
        Masks({"w": nn.Parameter(torch.ones(20))}).load_state_dict(state)
    with pytest.raises(UserError, match="method.storage=shadow: the checkpoint's .* zeroed"):
        Masks({"w": weight}, "shadow").load_state_dict(state)
    with pytest.raises(ValueError, match="storage 'dropped' is none of"):
        Masks({"w": weight}, "dropped")
