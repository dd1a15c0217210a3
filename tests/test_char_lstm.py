"""The character LSTM: torch's LSTM, exact counts and FLOPs, training by any method, refusals."""

import random

import pytest
import torch
from torch import nn

from sparsebench.config.compose import compose
from sparsebench.config.identity import run_folder
from sparsebench.errors import UserError
from sparsebench.llm.building import language_model
from sparsebench.llm.recurrent import SHAKESPEARE, Characters, char_lstm
from sparsebench.run import run
from sparsebench.sparsity.flops import layer_flops
from sparsebench.training.language import cross_entropy, logits
from sparsebench.training.learner import Learner

CHARACTERS = "\n abcdefghi"
VOCABULARY, UNITS, LAYERS, LENGTH = len(CHARACTERS), 12, 2, 16
CELLS = LAYERS * 2 * 4 * UNITS * UNITS
ALL = CELLS + 2 * VOCABULARY * UNITS


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text") / "words"
    folder.mkdir()
    draw = random.Random(0)
    for split, lines in (("train", 20), ("test", 3)):
        rows = [" ".join(draw.choices(["abc", "de", "fghi"], k=12)) for _ in range(lines)]
        (folder / f"{split}.txt").write_text("\n".join(rows))
    return folder


@pytest.fixture
def words(text, tmp_path):
    return [
        "task=train_llm", "model=char_lstm", f"+data.args.dataset={text}", "epochs=1",
        f"data.args.length={LENGTH}", "data.validation=0", f"+model.args.hidden={UNITS}",
        f"+model.args.layers={LAYERS}", f'+model.args.characters="{CHARACTERS}"', "batch_size=8",
        "plots=false", "quiet=true", "trainer.accelerator=cpu", f"runs={tmp_path / 'runs'}",
        "optimizer.lr=0.01", "method.every=2it",
    ]  # fmt: skip


EVERYTHING = ["selector=weights", "selector.kinds=[linear,embedding]"]


def train(words, *more):
    cfg = compose([*words, *more])
    result = run(cfg)
    assert result["status"] == "finished", result.get("error")
    return result["metrics"], run_folder(cfg)


# --- the model --------------------------------------------------------------------------------


def test_its_cells_compute_what_the_lstm_of_torch_does():
    model = char_lstm(None, 0, hidden=6, layers=2).model.double()
    theirs = nn.LSTM(6, 6, num_layers=2, batch_first=True).double()
    with torch.no_grad():
        for k, cell in enumerate(model.layers):
            getattr(theirs, f"weight_ih_l{k}").copy_(cell.input.weight)
            getattr(theirs, f"weight_hh_l{k}").copy_(cell.hidden.weight)
            getattr(theirs, f"bias_ih_l{k}").copy_(cell.input.bias)
            getattr(theirs, f"bias_hh_l{k}").zero_()
    ids = torch.randint(65, (3, 10), generator=torch.Generator().manual_seed(0))
    expected = model.head(theirs(model.embed(ids))[0])
    assert torch.allclose(model(ids), expected, atol=1e-12)
    assert torch.equal(theirs.bias_ih_l0[6:12], torch.ones(6, dtype=torch.float64))
    ours = torch.autograd.grad(cross_entropy(logits(model, ids), ids), [*model.layers.parameters()])
    found = torch.autograd.grad(cross_entropy(expected, ids), [*theirs.parameters()])
    assert torch.allclose(ours[0], found[0], atol=1e-12)  # weight_ih_l0
    assert torch.allclose(ours[2], found[1], atol=1e-12)  # weight_hh_l0, of all times


def test_its_width_and_its_seed_are_those_asked():
    wide, narrow = (char_lstm(None, 3, hidden=10, width=w).model for w in (1.0, 0.25))
    assert wide.head.weight.shape == (65, 10)
    assert narrow.layers[0].hidden.weight.shape == (12, 3)
    again = char_lstm(None, 3, hidden=10).model.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in wide.state_dict().items())


def test_flops_are_those_of_every_time():
    model = char_lstm(None, 0, hidden=UNITS, layers=LAYERS, characters=CHARACTERS).model
    found = layer_flops(model, (LENGTH,), dtype=torch.long)
    each = {f"layers.{k}.{part}.weight" for k in range(LAYERS) for part in ("input", "hidden")}
    products = dict.fromkeys(each, 2 * LENGTH * 4 * UNITS * UNITS)  # 2 per weight and time
    assert found.dense == {**products, "head.weight": 2 * LENGTH * UNITS * VOCABULARY}
    assert found.other == 0  # to look an embedding up costs nothing


def test_characters_are_numbered_and_others_refused():
    assert len(SHAKESPEARE) == len(set(SHAKESPEARE)) == 65
    assert Characters("ab\n")("b\na") == {"input_ids": [1, 2, 0]}
    with pytest.raises(UserError, match=r"model\.args\.characters: the text has '\\t', .* \(2 "):
        Characters("ab\n")("b\ta~")


# --- whole runs -------------------------------------------------------------------------------


class Forwards:
    """Remembers, of each training forward, whether absent weights were exactly zero."""

    def __init__(self, monkeypatch):
        self.counts, self.alive = [], 0
        step = Learner.training_step

        def watched(learner, *args):
            masks = next(c for c in learner.trainer.callbacks if hasattr(c, "session")).session
            self.counts.append(sum(masks.masks.nonzeros.values()))
            for name, mask in masks.masks.items():
                self.alive += int(learner.model.get_parameter(name)[~mask].count_nonzero())
            return step(learner, *args)

        monkeypatch.setattr(Learner, "training_step", watched)


@pytest.mark.parametrize(
    "more",
    [["method=gmp"], ["method=rigl"], ["method=gmp_frozen"], ["method=dpf"], ["method=synflow"],
     ["method=grasp"], ["method=snfs", "trainer.precision=bf16"]],
    ids=lambda more: more[0],
)  # fmt: skip
def test_a_method_keeps_absent_weights_at_zero_in_each_forward(words, monkeypatch, more):
    seen = Forwards(monkeypatch)
    metrics, folder = train(words, *EVERYTHING, "sparsity=0.75", *more)
    assert metrics["weights"] == ALL
    assert metrics["nonzeros"] == ALL // 4
    assert len(seen.counts) == metrics["steps"]
    assert seen.alive == 0
    assert min(seen.counts) < ALL / 2
    kept = torch.load(folder / "last.ckpt", weights_only=True)
    packed = kept["callbacks"]["Sparsify"]["masks"]["packed"]
    assert {"embed.weight", "head.weight", "layers.1.hidden.weight"} <= packed.keys()
    assert metrics["test/perplexity"] < 12  # 11 for a guess, about 3 when all is learned


def test_cells_alone_are_sparse_by_default_and_their_flops_are_counted(words):
    metrics, _ = train(words, "method=static", "sparsity=0.5", "distribution=strict_uniform")
    assert metrics["weights"] == CELLS
    assert metrics["nonzeros"] == CELLS // 2
    head = VOCABULARY * UNITS
    assert metrics["flops/inference"] == 2 * LENGTH * (CELLS / 2 + head)
    assert metrics["flops/inference_dense"] == 2 * LENGTH * (CELLS + head)


def test_a_narrower_one_has_at_most_as_many_weights(words):
    metrics, folder = train(words, *EVERYTHING, "method=small_dense", "sparsity=0.75")

    def size(units):
        return LAYERS * 8 * units**2 + 2 * VOCABULARY * units

    assert size(5) <= ALL / 4 < size(6)
    assert metrics["nonzeros"] == metrics["weights"] == size(5)
    state = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    assert state["model.head.weight"].shape == (VOCABULARY, 5)
    cells, head = LAYERS * 8 * 5**2, VOCABULARY * 5
    relative = (cells + head) / (CELLS + VOCABULARY * UNITS)
    assert metrics["flops/inference_relative"] == pytest.approx(relative, rel=1e-12)
    assert metrics["size/bytes"] == 4 * (size(5) + LAYERS * 4 * 5 + VOCABULARY)


def test_an_interrupted_run_goes_on_bitwise(words, tmp_path, monkeypatch):
    more = [*EVERYTHING, "method=gmp", "sparsity=0.75", "trainer.checkpoint_every=0", "epochs=2"]
    whole, _ = train(words, *more, f"runs={tmp_path / 'whole'}")
    step, calls = Learner.training_step, iter(range(1000))

    def mortal(self, *args):
        if next(calls) == whole["steps"] // 2:
            raise RuntimeError("power cut")
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "training_step", mortal)
        assert run(compose([*words, *more]))["status"] == "failed"
    again, _ = train(words, *more)
    same = {k: v for k, v in whole.items() if not k.startswith(("seconds", "memory"))}
    assert same == {k: again[k] for k in same}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["model.args.hidden=0"], r"model\.args\.hidden=0: a whole number from 1"),
        (["model.args.layers=two"], r"model\.args\.layers=two: a whole number"),
        (["+model.args.units=3"], r"model\.args\.units=3: not an option of 'char_lstm'"),
        (['model.args.characters="aa"'], r"model\.args\.characters='aa': two characters or more"),
        (['model.args.characters="abc"'], r"the text has '\\n', which is not one of them"),
        (["save_model=true"], r"save_model=true: model=char_lstm is none of transformers"),
        (["method=small_dense", "sparsity=0.9999"], r"no width gives"),
        (["model.width=0"], r"model\.width=0"),
    ],
)
def test_what_can_not_work_is_refused_before_anything_is_written(words, tmp_path, more, said):
    with pytest.raises(UserError, match=said):
        run(compose([*words, *more]))
    assert not (tmp_path / "runs").exists()


def test_it_is_none_of_the_models_that_are_pruned_after_training():
    with pytest.raises(UserError, match="model=char_lstm: task=prune_llm prunes models of"):
        language_model(compose(["task=prune_llm", "model=char_lstm", "method=magnitude"]))
