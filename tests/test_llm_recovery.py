"""Parts of recovery training against calculations written from the papers and their codes."""

import math

import pytest
import torch
from torch import nn

from sparsebench.llm.choose import Pattern
from sparsebench.llm.recovery.extras import Lora, Scales, Slorb, attach, detach, projection
from sparsebench.llm.recovery.method import Recovery, shrink
from sparsebench.llm.recovery.optimizer import PulledAdamW
from sparsebench.llm.recovery.run import training_flops
from sparsebench.llm.recovery.spec import RecoverySpec
from sparsebench.sparsity.flops import LayerFlops
from sparsebench.sparsity.masks import pack
from sparsebench.sparsity.session import Session

TWO_OF_FOUR = Pattern(0.5, nm=(2, 4))
AST = {"absent": "shadow", "every": 1}
CAST = {"absent": "decay", "decay_in": "decoupled", "every": 1}


def layer_of(rows):
    weight = torch.tensor(rows, dtype=torch.float32)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data.copy_(weight)
    return layer


def choose(name, weight):
    return TWO_OF_FOUR.keep(weight.abs())


def session_of(layer, spec, decay=0.0, optimizer=None, steps=100):
    optimizer = optimizer or torch.optim.SGD(layer.parameters(), lr=0.1)
    mask = {"weight": pack(choose("weight", layer.weight.detach()))}
    method = Recovery(spec, mask, choose, decay)
    return Session(method, layer, optimizer, total_steps=steps), optimizer, method


def step(session, optimizer, layer, gradient):
    """A step with a given gradient of the outputs' sum over inputs: d loss / d weight."""
    session.before_forward()
    layer.weight.grad = torch.as_tensor(gradient, dtype=torch.float32).reshape(layer.weight.shape)
    session.after_backward()
    optimizer.step()
    session.after_step()


def test_the_usual_tokens_are_whole_batches():
    usual = RecoverySpec()
    assert usual.tokens == usual.steps * usual.batch * usual.length


# --- straight through: SR-STE and AST ---------------------------------------------------------


def test_2_4_keeps_the_two_largest():
    mask = choose("", torch.tensor([[4.0, 1.0, 3.0, 2.0]]))
    assert mask.tolist() == [[True, False, True, False]]


def test_the_forward_pass_is_sparse_and_the_gradient_that_of_a_dense_layer():
    layer, x = layer_of([[4, 1, 3, 2]]), torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    session, optimizer, _ = session_of(layer, RecoverySpec(**AST))
    session.before_forward()
    out = layer(x)
    assert out.item() == 4 * 1 + 3 * 3
    (5 * out).sum().backward()
    session.after_backward()
    assert layer.weight.grad.tolist() == [[5, 10, 15, 20]]  # 5 x, masked or not
    assert layer.weight.tolist() == [[4, 1, 3, 2]]  # the optimizer moves the dense weights
    optimizer.step()
    assert layer.weight.tolist() == [pytest.approx([3.5, 0, 1.5, 0], abs=1e-6)]


def test_masks_stand_still_without_learning_and_flips_are_counted():
    layer = layer_of([[4, 1, 3, 2]])
    session, optimizer, method = session_of(layer, RecoverySpec(**AST))
    step(session, optimizer, layer, [[0, 0, 0, 0]])
    assert method.flips == 0
    step(session, optimizer, layer, [[0, -25, 0, 0]])  # 1 -> 3.5: in for 3
    assert session.masks["weight"].tolist() == [[True, True, False, False]]
    assert method.flips == 2
    step(session, optimizer, layer, [[30, 0, 0, 0]])  # 4 -> 1: out for 3
    assert session.masks["weight"].tolist() == [[False, True, True, False]]
    assert method.flips == 4
    assert method.state_dict() == {"flips": 4}


def test_masks_are_chosen_every_so_many_steps():
    layer = layer_of([[4, 1, 3, 2]])
    session, optimizer, method = session_of(layer, RecoverySpec(absent="shadow", every=3))
    counts = []
    for _ in range(4):
        step(session, optimizer, layer, [[0, -30, 0, 0]])
        counts.append(method.flips)
    assert counts == [0, 0, 2, 2]


def test_the_pull_rises_linearly_and_acts_in_the_gradient():
    layer = layer_of([[4, 1, 3, 2]])
    spec = RecoverySpec(**AST, ramp="50%")
    session, optimizer, method = session_of(layer, spec, decay=0.8, steps=8)
    assert [method.rate(t) for t in range(7)] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    step(session, optimizer, layer, [[0, 0, 0, 0]])
    assert layer.weight.tolist() == [[4, 1, 3, 2]]
    step(session, optimizer, layer, [[1, 1, 1, 1]])
    expected = [4 - 0.1, 1 - 0.1 * 1.2, 3 - 0.1, 2 - 0.1 * 1.4]  # 0.2 w outside the mask
    assert layer.weight.tolist() == [pytest.approx(expected)]


def test_behind_the_momentum_the_pull_is_in_the_update_and_its_square_only():
    layer = layer_of([[4, 1, 3, 2]])
    rate, beta1, beta2, eps, decay, rotten = 0.01, 0.9, 0.95, 1e-8, 0.5, 0.1
    optimizer = PulledAdamW(
        layer.parameters(), lr=rate, betas=(beta1, beta2), eps=eps, weight_decay=rotten
    )
    spec = RecoverySpec(**AST, decay_in="after_momentum")
    session, _, _ = session_of(layer, spec, decay, optimizer)
    w, m, v = torch.tensor([4.0, 1.0, 3.0, 2.0]).double(), torch.zeros(4), torch.zeros(4)
    m, v = m.double(), v.double()
    outside = torch.tensor([0.0, 1.0, 0.0, 1.0]).double()
    for t in range(1, 4):
        g = torch.tensor([0.3, -0.2, 0.1, 0.4]).double() * t
        w = w * (1 - rate * rotten)
        m = beta1 * m + (1 - beta1) * g
        u = m + decay * outside * w
        v = beta2 * v + (1 - beta2) * u**2
        w = w - rate / (1 - beta1**t) * u / ((v / (1 - beta2**t)).sqrt() + eps)
        step(session, optimizer, layer, g.tolist())
        assert layer.weight[0].tolist() == pytest.approx(w.tolist(), rel=1e-5)


def test_a_weight_without_mask_moves_as_in_adamw():
    first, second = (nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2))
    ours = PulledAdamW([first], lr=0.1, betas=(0.8, 0.9), weight_decay=0.2)
    theirs = torch.optim.AdamW([second], lr=0.1, betas=(0.8, 0.9), weight_decay=0.2)
    for t in range(3):
        first.grad = second.grad = torch.tensor([0.5 * t - 0.3, 2.0])
        ours.step()
        theirs.step()
        assert first.tolist() == pytest.approx(second.tolist(), rel=1e-6)


# --- zero and decay: fine-tuning and CAST -----------------------------------------------------


def test_fine_tuning_leaves_zeros_alone():
    layer = layer_of([[4, 0, 3, 0]])
    session, optimizer, method = session_of(layer, RecoverySpec())
    step(session, optimizer, layer, [[1, 50, 1, 50]])
    assert layer.weight.tolist() == [[pytest.approx(3.9), 0, pytest.approx(2.9), 0]]
    assert method.flips == 0


@pytest.mark.parametrize("value", [1.0, -1.0, 0.3])
def test_a_soft_threshold_ends_at_exactly_0_and_never_beyond(value):
    rate, pull = 0.1, 0.7
    weight = torch.tensor([[value, 5.0]])
    kept = torch.tensor([[False, True]])
    steps = math.ceil(abs(value) / (rate * pull))
    for _ in range(steps - 1):
        shrink(weight, kept, rate * pull)
        assert weight[0, 0] * value > 0
    shrink(weight, kept, rate * pull)
    assert weight.tolist() == [[0.0, 5.0]]
    shrink(weight, kept, rate * pull)
    assert weight.tolist() == [[0.0, 5.0]]


def test_what_decays_is_seen_until_it_is_gone_and_all_shrink_at_one_speed():
    layer, x = layer_of([[4, 1, 3, 2]]), torch.ones(1, 4)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.0)
    session, _, method = session_of(layer, RecoverySpec(**CAST), 2.0, optimizer)
    session.before_forward()
    assert layer(x).item() == 10  # dense
    session.masks.reveal()
    for t in range(1, 11):
        step(session, optimizer, layer, [[0, 0, 0, 0]])
        gone = [4, max(1 - 0.2 * t, 0), 3, max(2 - 0.2 * t, 0)]
        assert layer.weight.tolist() == [pytest.approx(gone, abs=1e-5)]
    assert layer.weight[0, 1] == 0
    assert float(layer.weight.detach()[0, 3]) == pytest.approx(0, abs=1e-5)
    before = layer(x)
    layer.weight.data.mul_(session.masks.factor("weight"))
    assert layer(x).item() == pytest.approx(before.item(), abs=1e-5)  # removed without a jump
    assert method.flips == 0


def test_a_coupled_pull_is_the_sign_in_the_gradient():
    layer = layer_of([[4, -1, 3, 2]])
    spec = RecoverySpec(absent="decay", decay_in="coupled", every=100)
    session, optimizer, _ = session_of(layer, spec, decay=0.5)
    step(session, optimizer, layer, [[0, 0, 0, 0]])
    assert layer.weight.tolist() == [pytest.approx([4, -0.95, 3, 1.95])]


def test_scales_are_one_for_each_output_and_group_and_fold_into_the_weight():
    layer, x = layer_of([[4, 0, 3, 0, 1], [0, 2, 0, 5, 1]]), torch.arange(1.0, 6.0).unsqueeze(0)
    extra = Scales(layer, RecoverySpec(scale=2))
    before = layer(x)
    attach(layer, extra)
    assert torch.equal(layer(x), before)
    assert extra.factors.shape == (2, 3)
    extra.factors.data = torch.tensor([[2.0, 3.0, 5.0], [1.0, 0.5, -1.0]])
    seen = layer(x)
    assert seen.tolist() == [[8 * 1 + 9 * 3 + 5 * 5, 2 * 2 + 2.5 * 4 - 5]]
    assert detach(layer, layer.weight != 0) is None
    assert layer.weight.tolist() == [[8, 0, 9, 0, 5], [0, 2, 0, 2.5, -1]]
    assert torch.equal(layer(x), seen)
    assert [name for name, _ in layer.named_parameters()] == ["weight"]


# --- extras that stay -------------------------------------------------------------------------


def test_slorb_begins_with_the_means_of_what_was_pruned():
    assert projection(4, 2).tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]
    layer = layer_of([[4, 0, 3, 0]])
    extra = Slorb(layer, RecoverySpec(slorb=2), torch.tensor([[0.0, 1.0, 0.0, 2.0]]))
    assert extra.b.tolist() == [[0.5, 1.0]]
    assert [p.requires_grad for p in extra.parameters()] == [False, True]
    attach(layer, extra)
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert layer(x).item() == 4 * 1 + 3 * 3 + 0.5 * (1 + 2) + 1.0 * (3 + 4)
    assert detach(layer, layer.weight != 0) is extra
    assert layer.weight.tolist() == [[4, 0, 3, 0]]


def lora_layer(**dials):
    torch.manual_seed(0)
    layer = nn.Linear(16, 8)
    kept = TWO_OF_FOUR.keep(layer.weight.detach().abs())
    layer.weight.data.masked_fill_(~kept, 0.0)
    extra = Lora(layer, RecoverySpec(rank=2, alpha=6.0, **dials), kept, 0, "name")
    return layer, kept, extra, torch.randn(5, 16)


@pytest.mark.parametrize("merge", ["none", "masked", "training"])
def test_lora_changes_nothing_at_first_and_is_the_scaled_product_then(merge):
    layer, kept, extra, x = lora_layer(merge=merge, dropout=0.0)
    before, weight = layer(x), layer.weight.detach().clone()
    attach(layer, extra)
    assert torch.equal(layer(x), before)
    assert float(extra.a.detach().abs().max()) <= 1 / math.sqrt(16)  # Kaiming with a = sqrt 5
    extra.b.data.normal_()
    delta = 3.0 * extra.b @ extra.a  # alpha / rank
    inside = delta * kept if merge == "training" else delta
    seen = layer(x)
    expected = torch.nn.functional.linear(x, weight + inside, layer.bias)
    assert torch.allclose(seen, expected, atol=1e-5)
    assert torch.equal(layer.weight, weight)
    apart = detach(layer, kept)
    assert (apart is extra) == (merge == "none")
    merged = weight if merge == "none" else weight + delta * kept
    assert torch.allclose(layer.weight, merged, atol=1e-6)
    assert bool((layer.weight[~kept] == 0).all())
    assert torch.allclose(layer(x), seen, atol=1e-5) == (merge == "training")
    assert bool(((weight + delta)[~kept] != 0).all())  # the trap: merged unmasked, all is filled


def test_dropout_is_of_loras_inputs_and_of_training_only():
    layer, _, extra, x = lora_layer(dropout=0.5)
    extra.b.data.normal_()
    attach(layer.train(), extra)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


# --- counting ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dials, each, added",
    [
        ({}, 3 * 70, 0),
        ({"absent": "shadow"}, 2 * 70 + 110, 0),
        ({"absent": "shadow", "distill": 0.67}, 2 * 70 + 2 * 110, 0),
        ({"absent": "decay"}, 3 * 110, 0),
        ({"rank": 8}, 2 * 70, 6),
    ],
)
def test_flops_are_those_of_the_passes(dials, each, added):
    spec = RecoverySpec(tokens=240, batch=4, length=6, **dials)
    flops = LayerFlops({"a": 60, "b": 20}, 30)
    assert spec.steps == 10
    found = training_flops(spec, flops, {"a": 0.5, "b": 0.5}, added)
    assert found == 40 * each + 6 * added * 240
