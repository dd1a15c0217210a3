"""Heads and channels that are removed compute what zeros in the full model compute."""

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs the extra llm")

from sparsebench.errors import UserError  # noqa: E402 - after the skip
from sparsebench.llm.layers import find_blocks  # noqa: E402
from sparsebench.llm.structured import Units  # noqa: E402
from sparsebench.sparsity.masks import pack  # noqa: E402

SIZES = {"vocab_size": 64, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2}
USUAL = SIZES | {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 8,
}  # fmt: skip
MODELS = {
    "Llama": USUAL | {"num_key_value_heads": 4},
    "Mistral": USUAL | {"num_key_value_heads": 4},
    "Qwen2": USUAL | {"num_key_value_heads": 4},
    "Qwen3": USUAL | {"num_key_value_heads": 4, "head_dim": 6},
    "Gemma2": USUAL | {"num_key_value_heads": 4, "head_dim": 6},
    "Phi": USUAL,
    "OPT": SIZES | {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48,
                    "num_hidden_layers": 2, "num_attention_heads": 8},
    "GPT2": {"vocab_size": 64, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 8,
             "n_inner": 48, "bos_token_id": 1, "eos_token_id": 2},
    "GPTNeoX": USUAL,
}  # fmt: skip
WHOLE = ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma2")


def tiny(name, **more):
    config = getattr(transformers, f"{name}Config")(**MODELS[name] | more)
    torch.manual_seed(0)
    kind = "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases too, which are zero at first
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def pruned(model, which, sparsity):
    """The units, and the masks by name; the model has zeros where units are left out."""
    blocks = find_blocks(model)
    units = Units.of(model, blocks, which, sparsity)
    masks = {}
    for block in blocks:
        chosen = units.masks(block, lambda linear: linear.weight.abs())
        for linear in block.linears:
            linear.weight.mul_(chosen[linear.name])
            stored = chosen[linear.name].t() if linear.transposed else chosen[linear.name]
            masks[linear.name] = pack(stored.contiguous())
    return units, masks


def logits(model):
    ids = torch.arange(3, 43).view(2, 20)
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize(
    ("name", "which"),
    [(name, which) for name in WHOLE for which in ("heads", "channels", "both")]
    + [(name, "channels") for name in MODELS if name not in WHOLE],
)
def test_removing_is_zeroing_and_transformers_loads_what_is_left(name, which, tmp_path):
    model = tiny(name)
    before = logits(model)
    units, masks = pruned(model, which, 0.5)
    small = units.shrink(model, masks)
    zeroed = logits(model)
    assert torch.allclose(logits(small), zeroed, atol=1e-5)
    assert not torch.allclose(before, zeroed, atol=1e-2)
    sizes = [sum(p.numel() for p in each.parameters()) for each in (model, small)]
    gone = sum(int((linear.weight == 0).sum()) for b in find_blocks(model) for linear in b.linears)
    assert 0 < gone <= sizes[0] - sizes[1]  # biases go too
    small.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(loaded), logits(small))
    if which != "channels":
        assert loaded.config.num_key_value_heads == 2
        assert loaded.config.num_attention_heads == 4
        assert loaded.config.hidden_size == 32


def test_the_units_of_the_lowest_scores_go_with_all_their_layers():
    model = tiny("Llama")
    (first, _) = find_blocks(model)
    named = {linear.name.rsplit(".", 2)[1]: linear.weight for linear in first.linears}
    heads = named["o_proj"].abs().sum(0).view(4, 8).sum(1).argsort()[:2]  # 2 heads of 4 a group
    channels = named["down_proj"].abs().sum(0).argsort()[:24]
    pruned(model, "both", 0.5)
    rows = torch.cat([torch.arange(8 * int(h), 8 * int(h) + 8) for h in heads])
    keys = torch.cat([torch.arange(4 * int(h), 4 * int(h) + 4) for h in heads])
    for name, axis, where in (
        ("q_proj", 1, rows), ("k_proj", 1, keys), ("v_proj", 1, keys), ("o_proj", 0, rows),
        ("gate_proj", 1, channels), ("up_proj", 1, channels), ("down_proj", 0, channels),
    ):  # fmt: skip
        empty = (named[name] == 0).all(axis).nonzero().squeeze(1)
        assert empty.tolist() == sorted(where.tolist()), name


def test_channels_make_up_for_heads_that_go_by_whole_groups():
    model = tiny("Llama", hidden_size=48, intermediate_size=80)
    units = Units.of(model, find_blocks(model), "both", 0.3)
    assert units.removed["heads"] == 1  # of 4: a quarter
    weights = 2 * (48 * 48 + 24 * 48), 3 * 80 * 48
    wanted = 0.3 * sum(weights) - weights[0] / 4
    assert units.removed["channels"] == int(wanted / (3 * 48))
    assert units.said == "of each block stay 3 of 4 groups of heads and 54 of 80 channels"
    alone = Units.of(model, find_blocks(model), "channels", 0.3)
    assert dict(alone.removed) == {"channels": 24}


@pytest.mark.parametrize(
    ("name", "which", "sparsity", "said"),
    [
        ("GPT2", "both", 0.5, "no q_proj, k_proj and v_proj of its own.*method.units=channels"),
        ("GPTNeoX", "heads", 0.5, "no q_proj, k_proj and v_proj of its own"),
        ("OPT", "heads", 0.5, "the config of OPTForCausalLM can't say so"),
        ("Llama", "heads", 0.3, r"stay 3 of 4 groups of heads, and LlamaForCausalLM can't be so"),
        ("Llama", "heads", 0.2, r"sparsity=0\.2: of the 4 heads of a block not one would go"),
        ("Llama", "both", 0.99, r"sparsity=0\.99: all 48 channels of a block would go"),
    ],
)
def test_what_a_model_can_not_be_is_refused(name, which, sparsity, said):
    model = tiny(name)
    with pytest.raises(UserError, match=said):
        Units.of(model, find_blocks(model), which, sparsity)


def test_a_block_of_experts_is_refused():
    config = transformers.MixtralConfig(**USUAL, num_key_value_heads=4, num_local_experts=2)
    model = transformers.MixtralForCausalLM(config)
    with pytest.raises(UserError, match="structure=channel: the MLP of 'model.layers.0'"):
        Units.of(model, find_blocks(model), "channels", 0.5)
