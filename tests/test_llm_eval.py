"""What pruned models are measured by: the cloze, zero-shot tasks, errors of layers, counts."""

import importlib.util
import math

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

transformers = pytest.importorskip("transformers", reason="needs the extra llm")

from test_llm_layers import tiny, tokens  # noqa: E402 - after the skip
from test_llm_run import WEIGHTS, prune, text, words  # noqa: E402, F401 - fixtures are used by name

from sparsebench.errors import UserError  # noqa: E402
from sparsebench.llm.cloze import Share, cloze, items_of  # noqa: E402
from sparsebench.llm.counts import counts, sizes_of  # noqa: E402
from sparsebench.llm.evaluate import Evaluation  # noqa: E402
from sparsebench.llm.layers import find_blocks  # noqa: E402
from sparsebench.llm.likelihood import Likelihood  # noqa: E402
from sparsebench.llm.perplexity import perplexity  # noqa: E402
from sparsebench.llm.pipeline import output_error  # noqa: E402
from sparsebench.llm.text import tokens_of  # noqa: E402
from sparsebench.llm.zero_shot import share_of  # noqa: E402

# --- likelihood -------------------------------------------------------------------------------


class Table(nn.Module):
    """A model whose next token depends on the last one alone."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, input_ids, use_cache):
        return type("Output", (), {"logits": self.logits[input_ids]})


def test_losses_are_those_of_each_token():
    model, sequences = tiny("Llama"), tokens(3, 20)
    found = list(Likelihood(model).losses(sequences))
    for sequence, losses in zip(sequences, found, strict=True):
        with torch.no_grad():
            logits = model(input_ids=sequence.unsqueeze(0)).logits[0, :-1]
        chosen = logits.double().log_softmax(-1).gather(1, sequence[1:, None])[:, 0]
        torch.testing.assert_close(losses.double(), -chosen, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chance", [1 / 8, 1 / 4])
def test_perplexity_of_a_constant_probability_is_its_inverse(chance):
    rest = math.log((1 - chance) / 7)
    logits = torch.full((8, 8), rest)
    logits[torch.arange(8), (torch.arange(8) + 1) % 8] = math.log(chance)
    ids = torch.arange(70) % 8  # each token is followed by the next one
    assert perplexity(Table(logits), ids, 10).value == pytest.approx(1 / chance, rel=1e-6)


# --- cloze ------------------------------------------------------------------------------------


def test_items_are_of_their_own_stretches_and_the_true_choice_is_the_first():
    ids = torch.arange(1000)
    items = items_of(ids, 20, context=6, continuation=3)
    assert items.shape == (20, 4, 9)
    assert torch.equal(items, items_of(ids, 20, 6, 3))
    for number, choices in enumerate(items):
        first = int(choices[0, 0])
        assert number * 50 <= first <= number * 50 + 50 - 18
        assert choices[0].tolist() == list(range(first, first + 9))
        assert all(torch.equal(one[:6], choices[0, :6]) for one in choices)
        ends = [range(first + 6 + 3 * k, first + 9 + 3 * k) for k in range(4)]
        assert [one[6:].tolist() for one in choices] == [list(end) for end in ends]
    with pytest.raises(UserError, match=r"eval\.questions=56: .*room for 55"):
        items_of(ids, 56, 6, 3)


def test_the_cloze_knows_a_model_that_knows_the_text_and_one_that_guesses():
    ids = torch.arange(400) % 20
    items = items_of(ids, 10, context=4, continuation=3)
    knows = torch.zeros(20, 20)
    knows[torch.arange(20), (torch.arange(20) + 1) % 20] = 9.0
    assert cloze(Likelihood(Table(knows)), items, 3).right == 10
    assert cloze(Likelihood(Table(-knows)), items, 3).right == 0
    assert (
        cloze(Likelihood(Table(torch.zeros(20, 20))), items, 3).right == 0
    )  # all alike: no choice


def test_only_the_continuation_counts():
    ids = torch.arange(100) % 5
    items = items_of(ids, 2, context=8, continuation=2)
    items[:, 1:, :8] = 0  # contexts that are less likely must not matter
    logits = torch.zeros(5, 5)
    logits[:, 0] = -9.0
    scores = list(Likelihood(Table(logits)).losses(list(items.flatten(0, 1))))
    expected = torch.stack([each[-2:].sum() for each in scores]).view(2, 4)
    right = (expected[:, 0] < expected[:, 1:].amin(1)).sum()
    assert cloze(Likelihood(Table(logits)), items, 2).right == right


def test_the_interval_is_wilsons():
    low, high = Share(20, 100).interval
    assert (low, high) == pytest.approx((0.1334, 0.2888), abs=1e-4)
    assert Share(0, 10).interval[0] == pytest.approx(0)


def test_a_run_with_the_cloze_says_accuracy_chance_and_interval(words, tmp_path):  # noqa: F811
    more = ["eval=cloze", words[7], "eval.questions=12", "eval.lengths=[32]", "method=magnitude"]
    metrics = prune(words, *more, "sparsity=0.5")[0]["metrics"]
    for kind in ("cloze", "cloze_dense"):
        found = [metrics[f"{kind}/{name}"] for name in ("low", "accuracy", "high", "chance")]
        assert 0 <= found[0] <= found[1] <= found[2] <= 1
        assert found[3] == 0.25
        assert found[1] * 12 == pytest.approx(round(found[1] * 12))
    assert metrics["cloze/items"] == 12


# --- zero-shot --------------------------------------------------------------------------------


def test_share_and_chance_of_the_harness_samples():
    samples = [
        {"acc": 1.0, "resps": [[0], [1]]},
        {"acc": 0.0, "resps": [[0], [1], [2], [3]]},
        {"acc": 1.0, "resps": [[0], [1], [2], [3]]},
    ]
    share, chance = share_of("rte", samples)
    assert (share.right, share.items) == (2, 3)
    assert chance == pytest.approx((0.5 + 0.25 + 0.25) / 3)
    with pytest.raises(UserError, match=r"eval\.tasks=wikitext: .* no accuracy"):
        share_of("wikitext", [{"word_perplexity": 20.0, "resps": [[0]]}])


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="is installed")
def test_without_the_harness_the_extra_is_named(words, tmp_path):  # noqa: F811
    with pytest.raises(UserError, match=r"pip install 'sparsebench\[lm_eval\]'"):
        prune(words, "eval=zero_shot", "method=magnitude")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "more, said",
    [
        (["eval.measures=[perplexity,perplexities]"], r"eval\.measures=perplexities.*did you mean"),
        (["eval.questions=3"], r"eval\.questions=3: has no effect without cloze"),
        (["eval.tasks=[rte]"], r"eval\.tasks=.*has no effect without zero_shot"),
        (["eval=cloze", "eval.questions=100000"], r"eval\.questions=100000"),
        (["eval=cloze", "eval.context=510"], r"eval\.context=510"),
    ],
)
def test_measures_that_can_not_be_are_refused(words, tmp_path, more, said):  # noqa: F811
    dataset = next(word for word in words if word.startswith("eval.dataset="))
    with pytest.raises(UserError, match=said):
        prune(words, *more, dataset, "method=magnitude")
    assert not (tmp_path / "runs").exists()


def test_nothing_to_measure_is_refused():
    with pytest.raises(UserError, match=r"eval\.measures=\[\]: at least one is needed"):
        Evaluation.prepare(OmegaConf.create({"measures": []}), None, None, None)


# --- errors of layers -------------------------------------------------------------------------


def test_the_error_of_a_layer_is_that_of_its_outputs():
    x, w = torch.randn(50, 8), torch.randn(5, 8)
    pruned = w * (torch.rand(5, 8) > 0.5)
    expected = (x @ (w - pruned).t()).square().sum() / (x @ w.t()).square().sum()
    assert output_error(x.t() @ x, w, pruned) == pytest.approx(float(expected), rel=1e-4)
    assert output_error(x.t() @ x, w, w) == 0
    assert output_error(x.t() @ x, w, torch.zeros_like(w)) == pytest.approx(1)


def test_sparsegpt_errs_less_than_wanda_and_magnitude_most(words):  # noqa: F811
    errors = {}
    for name in ("magnitude", "wanda", "sparsegpt"):
        result = prune(words, f"method={name}", "sparsity=0.5", "eval.errors=true")[0]
        errors[name] = [layer["error"] for layer in result["layers"].values()]
        assert all(0 < error < 1 for error in errors[name])
    # layers of the first block see the same inputs
    first = {name: torch.tensor(found[:3]) for name, found in errors.items()}
    assert (first["sparsegpt"] < first["wanda"]).all()
    assert (first["wanda"] < first["magnitude"]).all()


# --- counts -----------------------------------------------------------------------------------


def test_bytes_by_format():
    # 4 x 8 of two bytes, 16 non-zeros
    assert sizes_of(4, 8, 16, 2) == {"dense": 64, "bitmap": 4 + 32, "csr": 16 * 4 + 4 * 5}
    assert sizes_of(4, 8, 16, 2, (2, 4))["nm"] == 32 + 16 * 2 // 8
    assert sizes_of(4, 8, 10, 2, (4, 8))["nm"] == 32 + 16 * 3 // 8  # places, filled or not
    assert sizes_of(1, 70_000, 10, 4)["csr"] == 10 * 8 + 8


def test_counts_are_of_the_model_as_it_is():
    model = tiny("GPT2")
    blocks = find_blocks(model)
    with torch.no_grad():
        for linear in (linear for block in blocks for linear in block.linears):
            linear.weight[:, ::2] = 0
    given = dict.fromkeys((one.name for block in blocks for one in block.linears), 0.5)
    metrics, layers = counts(model, blocks, given)
    weights = 3 * 12 * 32 * 32
    assert (metrics["weights"], metrics["nonzeros"]) == (weights, weights // 2)
    assert metrics["flops/token"] == 2 * (weights // 2 + 64 * 32)
    assert metrics["flops/token_dense"] == 2 * (weights + 64 * 32)
    assert metrics["bytes/dense"] == 4 * weights
    assert metrics["bytes/bitmap"] == weights // 8 + 2 * weights
    assert all(layer["sparsity"] == 0.5 for layer in layers.values())


def test_a_run_counts_its_pattern(words):  # noqa: F811
    metrics = prune(words, "method=magnitude", "structure=nm_2_4")[0]["metrics"]
    assert metrics["bytes/nm"] == WEIGHTS // 2 * 4 + WEIGHTS // 2 * 2 // 8
    assert metrics["bytes/nm"] == metrics["bytes/bitmap"] < metrics["bytes/csr"]


# --- text -------------------------------------------------------------------------------------


def test_the_tokens_of_a_long_text_are_remembered():
    class Counting:
        calls = 0

        def __call__(self, given):
            self.calls += 1
            return {"input_ids": [len(given), 0]}

    tokenizer = Counting()
    for long, calls in (("a" * 200_000, 1), ("a" * 200_000, 1), ("b" * 300_000, 2), ("c", 3)):
        assert tokens_of(long, tokenizer, 10**6).tolist() == [len(long), 0]
        assert tokenizer.calls == calls
    tokens_of("c", tokenizer, 10)
    assert tokenizer.calls == 4
