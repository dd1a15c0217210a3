"""task=prune_llm in whole runs: a tiny LLaMA that reads bytes, on text made here."""

import random

import pytest
import torch
from omegaconf import OmegaConf

transformers = pytest.importorskip("transformers", reason="needs the extra llm")

from safetensors.torch import load_file  # noqa: E402 - after the skip

from sparsebench.config.compose import compose  # noqa: E402
from sparsebench.config.identity import run_folder  # noqa: E402
from sparsebench.config.paths import methods  # noqa: E402
from sparsebench.errors import UserError  # noqa: E402
from sparsebench.llm import pipeline  # noqa: E402
from sparsebench.llm.activations import Activations  # noqa: E402
from sparsebench.llm.layers import find_blocks  # noqa: E402
from sparsebench.llm.models import tiny_llama  # noqa: E402
from sparsebench.llm.parts import Parts  # noqa: E402
from sparsebench.llm.perplexity import perplexity  # noqa: E402
from sparsebench.llm.pipeline import Pipeline  # noqa: E402
from sparsebench.llm.spec import PrunerSpec  # noqa: E402
from sparsebench.llm.text import Text, calibration_samples, check_apart, load_text  # noqa: E402
from sparsebench.run import run  # noqa: E402
from sparsebench.sparsity.masks import unpack  # noqa: E402

LAYERWISE = ("owl", "alphapruning")  # their counts are rounded in each block
WEIGHTS = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 128 * 64)


def write(folder, split, seed, lines=60):
    """Sentences of words that no other seed has."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefgh", k=5)) + str(seed) for _ in range(50)]
    rows = [" ".join(draw.choices(words, k=20)) for _ in range(lines)]
    (folder / f"{split}.txt").write_text("\n".join(rows))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text") / "words"
    folder.mkdir()
    for seed, split in enumerate(("train", "validation", "test")):
        write(folder, split, seed)
    return folder


@pytest.fixture
def words(text, tmp_path):
    return [
        "task=prune_llm", "model=tiny_llama", "quiet=true", f"runs={tmp_path / 'runs'}",
        f"calibration.dataset={text}", "calibration.samples=4", "calibration.length=32",
        f"eval.dataset={text}", "eval.lengths=[32,64]", "eval.max_segments=6",
        "trainer.accelerator=cpu",
    ]  # fmt: skip


def prune(words, *more):
    cfg = compose([*words, *more])
    result = run(cfg)
    assert result["status"] == "finished", result.get("error")
    return result, run_folder(cfg)


def figures(result):
    skipped = ("seconds/", "memory/")
    return {k: v for k, v in result["metrics"].items() if not k.startswith(skipped)}


@pytest.mark.parametrize("name", methods("pruner"))
def test_a_method_prunes_to_the_count_and_is_measured(words, name):
    result, _ = prune(words, f"method={name}", "sparsity=0.5")
    metrics, dataset = result["metrics"], OmegaConf.from_dotlist([words[4]]).calibration.dataset
    assert metrics["weights"] == WEIGHTS
    assert metrics["sparsity"] == pytest.approx(
        0.5, abs=0.02 if name in ("owl", "alphapruning") else 0
    )
    assert metrics["sparsity_all"] == pytest.approx(
        (WEIGHTS - metrics["nonzeros"]) / metrics["parameters"]
    )
    assert sum(layer["nonzeros"] for layer in result["layers"].values()) == metrics["nonzeros"]
    for length in (32, 64):
        assert metrics[f"segments/{dataset}@{length}"] == 6
        pruned, dense = (
            metrics[f"{p}/{dataset}@{length}"] for p in ("perplexity", "perplexity_dense")
        )
        assert 100 < dense < 600  # 256 for a guess
        assert pruned != dense
    for key in ("seconds/pruning", "seconds/calibration_forward", "memory/peak_bytes"):
        assert metrics[key] >= 0
    assert (metrics["calibration/tokens"] == 0) == (name == "magnitude")
    assert result["kind"]["when"] == "after"


def test_sparsity_0_is_the_model_untouched(words):
    metrics = prune(words, "method=sparsegpt", "sparsity=0")[0]["metrics"]
    for key in [key for key in metrics if key.startswith("perplexity/")]:
        assert metrics[key] == metrics[key.replace("perplexity", "perplexity_dense")]


def test_ratios_meet_the_total(words):
    even = prune(words, "method=magnitude", "sparsity=0.6")[0]
    for ratios in ("er", "global"):
        result = prune(words, "method=magnitude", f"method.ratios={ratios}", "sparsity=0.6")[0]
        assert result["metrics"]["nonzeros"] == pytest.approx(0.4 * WEIGHTS, abs=1)
        assert result["layers"] != even["layers"]
    owl = prune(words, "method=owl", "sparsity=0.6")[0]
    given = {layer["given"] for layer in owl["layers"].values()}
    assert max(given) - min(given) == pytest.approx(0.16)
    assert sum(given) / 2 == pytest.approx(0.6)


def test_layers_of_one_shape_draw_their_own_random_numbers():
    model = tiny_llama(None, 0).model
    parts = Parts.of(PrunerSpec(score="random"))
    Pipeline(model, find_blocks(model), parts, 0.5).run([])
    for first, second in (("gate_proj", "up_proj"), ("down_proj", "down_proj")):
        one = getattr(model.model.layers[0].mlp, first).weight != 0
        other = getattr(model.model.layers[int(first == second)].mlp, second).weight != 0
        assert 0.4 < (one == other).float().mean() < 0.6


def test_global_needs_a_score_without_activations(words):
    with pytest.raises(UserError, match=r"method\.ratios=global"):
        prune(words, "method=wanda", "method.ratios=global")


def test_an_export_is_loaded_by_transformers_and_measures_the_same(words):
    result, folder = prune(words, "method=sparsegpt", "sparsity=0.5", "save_model=true",
                           "save_masks=true")  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    data = {"root": None}
    ids = torch.tensor(
        list(load_text("eval", str(dataset_of(words)), "test", data).joined.encode())
    )
    for length in (32, 64):
        key = f"perplexity/{dataset_of(words)}@{length}"
        assert perplexity(model, ids, length, 6).value == result["metrics"][key]
    masks, state = load_file(folder / "masks.safetensors"), model.state_dict()
    assert len(masks) == 14
    for name, bits in masks.items():
        mask = unpack(bits, state[name].shape)
        assert torch.equal(state[name] != 0, mask)
        assert int(mask.sum()) == result["layers"][name]["nonzeros"]
    before = tiny_llama(None, 0).model.state_dict()
    for name in set(state) - set(masks):  # embeddings, head and norms
        assert torch.equal(state[name], before[name])
    card = (folder / "model" / "README.md").read_text()
    assert "sparsegpt" in card
    assert "samples: 4" in card
    assert not (folder / "blocks").exists()


def dataset_of(words):
    return words[4].partition("=")[2]


@pytest.mark.parametrize("more", [["method=wanda"], ["method=owl"], ["method=sparsegpt"],
                                  ["method=dsnot", "structure=nm_2_4"]])  # fmt: skip
def test_a_killed_run_goes_on_at_its_block(words, tmp_path, monkeypatch, more):
    more = [*more, *([] if len(more) > 1 else ["sparsity=0.6"]), "model.args.layers=4"]
    more[-1] = "+" + more[-1]
    whole = prune(words, *more, f"runs={tmp_path / 'whole'}")[0]
    write, seen = pipeline.Kept.write, []

    def mortal(self, number, *args):
        write(self, number, *args)
        seen.append(number)
        if number == 1 and len(seen) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(pipeline.Kept, "write", mortal)
    with pytest.raises(KeyboardInterrupt):
        prune(words, *more)
    again = prune(words, *more)[0]
    assert seen == [0, 1, 2, 3]  # no block twice
    assert figures(again) == figures(whole)
    assert again["layers"] == whole["layers"]
    assert "went on at block 2 of 4" in again["notes"]


@pytest.mark.parametrize("propagate", [True, False])
def test_a_block_sees_what_the_pruned_ones_before_it_make(words, text, propagate):
    result, folder = prune(
        words, "method=wanda", f"method.propagate={propagate}", "save_model=true"
    )
    pruned = transformers.AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    dense = tiny_llama(None, 0).model
    samples = list(
        torch.tensor(list(text.joinpath("validation.txt").read_bytes()))[:128].view(4, 32)
    )
    # The second block's query sees its inputs behind the first block, pruned or not.
    before = find_blocks(pruned if propagate else dense)
    acts = Activations(pruned if propagate else dense, before, samples)
    acts.carry()
    norms = acts.measure({"squares"})["model.layers.1.self_attn.q_proj.weight"].norms
    weight = dense.model.layers[1].self_attn.q_proj.weight.detach()
    order = (weight.abs() * norms).argsort(dim=1, stable=True)
    expected = torch.ones_like(weight, dtype=torch.bool).scatter_(1, order[:, :57], False)
    found = pruned.model.layers[1].self_attn.q_proj.weight.detach() != 0
    assert result["metrics"]["sparsity"] == pytest.approx(0.9, abs=0.01)  # 57 of 64, 115 of 128
    assert torch.equal(found, expected)


# --- text -------------------------------------------------------------------------------------


def text_of(rows, split="train", **more):
    return Text("mine", split, rows, "here", **more)


class Letters:
    """A token for each character."""

    def __call__(self, text):
        return {"input_ids": [ord(c) for c in text]}


def test_first_takes_consecutive_segments_and_random_goes_by_seed():
    text = text_of(["abcdef", "ghij"])  # "abcdef\n\nghij"
    take = lambda order, seed=0, samples=3: [  # noqa: E731 - the same call many times
        "".join(map(chr, found.tolist()))
        for found in calibration_samples(
            text, Letters(), 200, {"samples": samples, "length": 4, "order": order}, seed
        )
    ]
    assert take("first") == ["abcd", "ef\n\n", "ghij"]
    assert take("random") == take("random") != take("random", seed=1)
    starts = [text.joined.index(found) for found in take("random", samples=50)]
    assert min(starts) == 0
    assert max(starts) == 7  # never the last one possible, as in the official loaders
    with pytest.raises(UserError, match=r"calibration\.samples=4.*16 tokens.*has 12"):
        take("first", samples=4)


def test_random_documents_are_longer_than_a_sequence_and_never_joined():
    text = text_of(["ab", "cdefghij", "klmnopq"], documents=True)
    wanted = {"samples": 20, "length": 4, "order": "random"}
    found = calibration_samples(text, Letters(), 200, wanted, 0)
    said = {"".join(map(chr, sample.tolist())) for sample in found}
    assert all(one in "cdefghij" or one in "klmnopq" for one in said)
    with pytest.raises(UserError, match="hardly a document"):
        calibration_samples(text, Letters(), 200, wanted | {"length": 8}, 0)


def test_text_that_is_measured_on_is_no_calibration_text():
    line = (
        "a sentence that is long enough to be told from any other one, which headings are not " * 2
    )
    with pytest.raises(UserError, match="are the same text"):
        check_apart(text_of(["a"]), text_of(["a"]))
    with pytest.raises(UserError, match=r"share 1 lines, such as 'a sentence"):
        check_apart(text_of(["b", line]), text_of(["c", f" {line}\n"], "test"))
    check_apart(text_of([line, " = Heading = "]), text_of([" = Heading = ", line[1:]], "test"))


@pytest.mark.parametrize(
    "name, content",
    [("test.parquet", b"no table"), ("test.txt", b"\xff\xfe"), ("test.jsonl", b'{"words": ""}'),
     ("test.json.gz", b"\x1f\x8b\x08 cut off")],
)  # fmt: skip
def test_damaged_text_is_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"eval\.dataset=.* can't be read: \S"):
        load_text("eval", str(tmp_path), "test", {"root": None})


def test_a_tokenizer_of_another_model_is_refused():
    wanted = {"samples": 1, "length": 2, "order": "first"}
    with pytest.raises(UserError, match=r"gives token 122, and the model knows 100"):
        calibration_samples(text_of(["abcz"]), Letters(), 100, wanted, 0)


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more, said",
    [
        (["method=rigl"], "method=rigl: trains a network"),
        (["eval.lengths=[]"], r"eval\.lengths=\[\]: at least one"),
        (["eval.lengths=[1]"], r"eval\.lengths=1: from 2 to"),
        (["method=dense"], "method=dense: trains a network"),
        (["model=tiny_mlp"], "model=tiny_mlp: task=prune_llm needs a language model"),
        (["model=hf"], r"model\.path=null"),
        (["model=hf", "model.path={tmp}"], r"has no config\.json"),
        (["structure=nm", "structure.n=2", "structure.m=3", "sparsity=0.333"], "divide by 3"),
        (["structure=block", "structure.block=[4,4]"], "structure=block"),
        (["structure=nm_2_4", "method=owl"], r"method\.ratios=owl: with an N:M"),
        (["sparsity=1.0"], "sparsity=1.0"),
        (["calibration.samples=1000"], r"calibration\.samples=1000"),
        (["calibration.length=1024"], r"calibration\.length=1024.*context of 512"),
        (["eval.lengths=[1024]"], r"eval\.lengths=1024.*context of 512"),
        (["calibration.split=test"], "are the same text"),
        (["calibration.split=tests"], r"calibration\.split=tests.*did you mean 'test'"),
        (["eval.dataset=c5"], r"eval\.dataset=c5: not found"),
        (["optimizer.lr=0.5"], r"optimizer\.lr=0\.5: has no effect where nothing is trained"),
        (["distribution=er"], r"distribution\.name=er"),
        (["method.spread=0.1"], r"method\.spread=0\.1: has no effect without method\.ratios=owl"),
        (["method.damping=0.1"], r"method\.damping=0\.1: has no effect"),
        (["method.swap_cycles=3"], r"method\.swap_cycles=3: has no effect"),
        (["method.score=wandaa"], r"method\.score=wandaa.*did you mean 'wanda'"),
        (["+model.args.depth=3"], r"model\.args\.depth=3"),
    ],
)  # fmt: skip
def test_what_can_not_work_is_refused_before_anything_is_written(words, tmp_path, more, said):
    with pytest.raises(UserError, match=said):
        run(compose([*words, *(word.format(tmp=tmp_path) for word in more)]))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("task", ["classification", "profile", "feature_selection"])
def test_other_tasks_refuse_what_is_for_language_models(tmp_path, task):
    for word in ("method=wanda", "model=tiny_llama"):
        with pytest.raises(UserError, match=r"needs task=prune_llm"):
            run(compose([f"task={task}", word, f"runs={tmp_path}"]))


def test_nan_in_activations_names_the_layer_and_leaves_nothing(words, tmp_path, monkeypatch):
    from sparsebench.llm import models

    def broken(path, seed):
        found = tiny_llama(path, seed)
        found.model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
        return found

    monkeypatch.setattr(models, "tiny_llama", broken)
    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.down_proj\.weight.*NaN"):
        run(compose([*words, "method=wanda", "eval.dense=false"]))
    assert not (tmp_path / "runs").exists()
