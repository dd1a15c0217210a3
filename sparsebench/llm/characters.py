"""A small language model that reads bytes, made here, and the tokenizer that goes with it."""

from __future__ import annotations

from typing import Any

import torch

from sparsebench.errors import bad_value
from sparsebench.llm.models import LanguageModel, transformers_library


def byte_tokenizer() -> Any:
    """A tokenizer of transformers whose tokens are the bytes of the text, ids 0 to 255.

    It is saved and loaded as any other. A BPE without merges: each byte has the character that
    GPT-2's byte-level tokenizers write it as.
    """
    import tokenizers

    transformers = transformers_library()
    bare = tokenizers.Tokenizer(tokenizers.models.BPE({_letter(b): b for b in range(256)}, []))
    bare.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bare, clean_up_tokenization_spaces=False
    )


def _letter(byte: int) -> str:
    """The printable character that stands for a byte (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if byte in plain:
        return chr(byte)
    return chr(256 + sum(other not in plain for other in range(byte)))


def char_gpt(
    path: str | None,
    seed: int,
    hidden: int = 128,
    layers: int = 4,
    heads: int = 4,
    context: int = 256,
) -> LanguageModel:
    """A decoder of LLaMA's blocks with random weights, over bytes.

    Args:
        path: is of no use here.
        seed: of the weights.
        hidden: width; the feed-forward layers are three times as wide.
        layers: number of blocks.
        heads: of attention.
        context: longest sequence.

    Raises:
        UserError: the width does not divide into even parts by heads.
    """
    if hidden % (2 * heads):
        raise bad_value("model.args.hidden", hidden, f"a multiple of 2 x heads = {2 * heads}")
    transformers = transformers_library()
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=context,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(config).eval()
    return LanguageModel(model, byte_tokenizer(), "char_gpt")
