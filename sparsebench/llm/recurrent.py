"""A character LSTM: an embedding, LSTM layers and a linear head, over a fixed set of characters.

The cells are written out, and all of a layer's weights are those of two linear layers, so masks,
FLOPs, hooks and precision are those of any linear layer. They compute what ``torch.nn.LSTM`` does
(Hochreiter and Schmidhuber 1997), whose second bias would only be added to the first.
"""

from __future__ import annotations

import string

import torch
from torch import Tensor, nn

from sparsebench.errors import UserError, bad_value
from sparsebench.llm.models import LanguageModel
from sparsebench.models.common import scaled

#: The 65 characters of tinyshakespeare.
SHAKESPEARE = "\n !$&',-.3:;?" + string.ascii_uppercase + string.ascii_lowercase


class Characters:
    """A tokenizer whose tokens are the characters of a text, numbered as they are listed."""

    def __init__(self, characters: str) -> None:
        """Number the characters.

        Raises:
            UserError: there are fewer than two, or one is there twice.
        """
        self.ids = {character: i for i, character in enumerate(characters)}
        if not 2 <= len(self.ids) == len(characters):
            allowed = "two characters or more, each once"
            raise bad_value("model.args.characters", repr(characters), allowed)

    def __call__(self, text: str) -> dict[str, list[int]]:
        """Numbers of the characters.

        Raises:
            UserError: the text has a character that is not listed.
        """
        if unknown := sorted(set(text) - self.ids.keys()):
            raise UserError(
                f"model.args.characters: the text has {unknown[0]!r}, which is not one of them "
                f"({len(unknown)} such in all); list them all"
            )
        return {"input_ids": [self.ids[character] for character in text]}


class Cell(nn.Module):
    """One LSTM layer, which begins each sequence at zero.

    ``input`` and ``hidden`` make the gates of all units, in the order of ``torch.nn.LSTM``: input,
    forget, candidate, output. Forget gates begin at a bias of 1, so that cells remember
    (Jozefowicz et al. 2015).
    """

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.input = nn.Linear(inputs, 4 * units)
        self.hidden = nn.Linear(units, 4 * units, bias=False)
        with torch.no_grad():
            self.input.bias[units : 2 * units].fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (batch, length, units) of a sequence (batch, length, inputs)."""
        state = cell = x.new_zeros(len(x), self.hidden.in_features)
        states = []
        for gates in self.input(x).unbind(1):
            i, f, g, o = (gates + self.hidden(state)).chunk(4, dim=-1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            state = o.sigmoid() * cell.tanh()
            states.append(state)
        return torch.stack(states, dim=1)


class CharLSTM(nn.Module):
    """Logits of the next character at each place of a sequence."""

    def __init__(self, vocabulary: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, hidden)
        nn.init.uniform_(self.embed.weight, -(hidden**-0.5), hidden**-0.5)
        self.layers = nn.ModuleList(Cell(hidden, hidden) for _ in range(layers))
        self.head = nn.Linear(hidden, vocabulary)

    def get_input_embeddings(self) -> nn.Embedding:
        """As models of transformers name it."""
        return self.embed

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Tensor:
        """Logits (batch, length, vocabulary) of tokens (batch, length).

        Args:
            input_ids: numbers of characters.
            use_cache: is of no use here; models of transformers are asked so.
        """
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(x)
        return logits


def char_lstm(
    path: str | None,
    seed: int,
    hidden: int = 128,
    layers: int = 1,
    characters: str = SHAKESPEARE,
    width: float = 1.0,
) -> LanguageModel:
    """An LSTM with random weights, over characters.

    Args:
        path: is of no use here.
        seed: of the weights.
        hidden: units of each layer, and width of the embedding.
        layers: number of LSTM layers.
        characters: all that a text may have.
        width: multiplies ``hidden``.

    Raises:
        UserError: a size below 1, or characters that are no set.
    """
    for name, size in (("hidden", hidden), ("layers", layers)):
        if not isinstance(size, int) or size < 1:
            raise bad_value(f"model.args.{name}", size, "a whole number from 1")
    tokenizer = Characters(characters)
    torch.manual_seed(seed)
    model = CharLSTM(len(characters), scaled(hidden, width), layers)
    return LanguageModel(model, tokenizer, "char_lstm")
