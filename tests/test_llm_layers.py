"""Blocks and linear layers are found in any causal LM of transformers, and measured as they are."""

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers", reason="needs the extra llm")

from sparsebench.errors import UserError  # noqa: E402 - after the skip
from sparsebench.llm.activations import Activations  # noqa: E402
from sparsebench.llm.layers import find_blocks, others  # noqa: E402
from sparsebench.llm.perplexity import perplexity  # noqa: E402

SIZES = {"vocab_size": 64, "max_position_embeddings": 64}
USUAL = SIZES | {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
}  # fmt: skip
GROUPED = USUAL | {"num_key_value_heads": 2}
LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
#: Class, dials of its config, where the blocks are, and what a block's layers are called.
CAUSAL = {
    "Llama": (GROUPED, "model.layers", LLAMA),
    "Mistral": (GROUPED, "model.layers", LLAMA),
    "Qwen2": (GROUPED, "model.layers", LLAMA),
    "Qwen3": (GROUPED | {"head_dim": 8}, "model.layers", LLAMA),
    "Gemma2": (GROUPED | {"head_dim": 8}, "model.layers", LLAMA),
    "Phi": (USUAL, "model.layers", ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2")),
    "OPT": (
        SIZES | {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48,
                 "num_hidden_layers": 3, "num_attention_heads": 4},
        "model.decoder.layers", ("k_proj", "v_proj", "q_proj", "out_proj", "fc1", "fc2"),
    ),
    "GPT2": (
        {"vocab_size": 64, "n_positions": 64, "n_embd": 32, "n_layer": 3, "n_head": 4},
        "transformer.h", ("c_attn", "c_proj", "c_fc", "c_proj"),
    ),
    "GPTNeoX": (
        USUAL, "gpt_neox.layers", ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
    ),
}  # fmt: skip
#: The class of the whole model, where it is not named after the config.
HEADS = {"GPT2": "GPT2LMHeadModel"}


def tiny(name):
    dials = CAUSAL[name][0]
    config = getattr(transformers, f"{name}Config")(
        **dials, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    torch.manual_seed(0)
    model = getattr(transformers, HEADS.get(name, f"{name}ForCausalLM"))(config)
    return model.eval()


def tokens(count, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 64, (length,), generator=generator) for _ in range(count)]


@pytest.mark.parametrize("name", CAUSAL)
def test_blocks_and_layers_are_found(name):
    model, (_, where, layers) = tiny(name), CAUSAL[name]
    blocks = find_blocks(model)
    assert [block.name for block in blocks] == [f"{where}.{k}" for k in range(3)]
    for number, block in enumerate(blocks):
        assert tuple(one.name.split(".")[-2] for one in block.linears) == layers
        assert {one.block for one in block.linears} == {number}
    parameters = dict(model.named_parameters())
    for one in (one for block in blocks for one in block.linears):
        stored = parameters[one.name]
        expected = stored.t() if name == "GPT2" else stored
        assert torch.equal(one.weight, expected)
        assert one.weight.data_ptr() == stored.data_ptr()  # a view: what is written counts
    assert others(blocks) == []


def test_a_model_without_blocks_is_refused_with_what_was_looked_for():
    with pytest.raises(UserError, match=r"Sequential: no decoder blocks.*ModuleList.*nn\.Linear"):
        find_blocks(nn.Sequential(nn.Linear(3, 3)))


@pytest.mark.parametrize("name", CAUSAL)
def test_the_last_hidden_states_are_those_of_the_model(name):
    model = tiny(name)
    blocks, samples = find_blocks(model), tokens(3, 12)
    seen = []
    last = blocks[-1].module
    hook = last.register_forward_hook(
        lambda module, args, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        for sample in samples:
            model(input_ids=sample.unsqueeze(0), use_cache=False)
    hook.remove()
    acts = Activations(model, blocks, samples)
    for _ in blocks:
        acts.carry()
    assert all(torch.equal(a, b) for a, b in zip(acts.hidden, seen, strict=True))
    assert all("forward" not in vars(block.module) for block in blocks)


@pytest.mark.parametrize("name", CAUSAL)
def test_measures_are_of_what_goes_into_each_layer(name):
    model = tiny(name)
    blocks, samples = find_blocks(model), tokens(3, 12)
    seen = {one.name: [] for one in blocks[1].linears}
    for one in blocks[1].linears:
        one.module.register_forward_pre_hook(
            lambda module, args, name=one.name: seen[name].append(args[0].view(12, -1))
        )
    with torch.no_grad():
        for sample in samples:
            model(input_ids=sample.unsqueeze(0), use_cache=False)
    inputs = {name: torch.stack(found).double() for name, found in seen.items()}
    acts = Activations(model, blocks, samples)
    acts.carry()
    for carry in (False, True):
        found = acts.measure({"squares", "moments", "gram"}, carry=carry)
        assert list(found) == [one.name for one in blocks[1].linears]
        for key, x in inputs.items():
            flat, measured = x.flatten(0, 1), found[key]
            assert (measured.sequences, measured.tokens) == (3, 36)
            torch.testing.assert_close(
                measured.gram.double(), flat.t() @ flat, rtol=1e-5, atol=1e-6
            )
            torch.testing.assert_close(measured.norms.double(), flat.norm(dim=0), rtol=1e-5, atol=0)
            torch.testing.assert_close(measured.sums, flat.sum(0), rtol=1e-4, atol=1e-5)
            within = x.var(1, correction=0).mean(0)
            torch.testing.assert_close(measured.variance.double(), within, rtol=1e-4, atol=1e-8)
    assert acts.at == 2
    same = found[blocks[1].linears[0].name] is found[blocks[1].linears[1].name]
    assert same == (name not in ("GPT2", "GPTNeoX"))  # these have query, key and value in one


@pytest.mark.parametrize("name", CAUSAL)
def test_perplexity_is_that_of_the_models_own_loss(name):
    model, (ids,) = tiny(name), tokens(1, 50)
    with torch.no_grad():
        segment = ids[:40].unsqueeze(0)
        own = float(model(input_ids=segment, labels=segment).loss.exp())
    found = perplexity(model, ids, 40)
    assert found.value == pytest.approx(own, rel=1e-6)
    assert (found.segments, found.tokens) == (1, 39)
