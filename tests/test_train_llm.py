"""task=train_llm: a small model of bytes, trained with any method and saved for transformers."""

import math
import random

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs the extra llm")

from sparsebench.config.compose import compose  # noqa: E402 - after the skip
from sparsebench.config.identity import run_folder  # noqa: E402
from sparsebench.data.loader import TrainLoader  # noqa: E402
from sparsebench.errors import UserError  # noqa: E402
from sparsebench.llm.characters import byte_tokenizer, char_gpt  # noqa: E402
from sparsebench.llm.corpus import Segments  # noqa: E402
from sparsebench.llm.perplexity import perplexity  # noqa: E402
from sparsebench.run import run  # noqa: E402
from sparsebench.training.language import cross_entropy, divergence  # noqa: E402
from sparsebench.training.learner import Learner  # noqa: E402

BLOCKS = 2 * (4 * 16 * 16 + 3 * 16 * 48)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text") / "words"
    folder.mkdir()
    draw = random.Random(0)
    for split, lines in (("train", 40), ("validation", 10), ("test", 10)):
        rows = [" ".join(draw.choices(["abc", "de", "fghi"], k=20)) for _ in range(lines)]
        (folder / f"{split}.txt").write_text("\n".join(rows))
    return folder


@pytest.fixture
def words(text, tmp_path):
    return [
        "task=train_llm", f"+data.args.dataset={text}", "data.args.length=32", "epochs=2",
        "+model.args.hidden=16", "+model.args.layers=2", "+model.args.context=64",
        "batch_size=8", "plots=false", "quiet=true", "trainer.accelerator=cpu",
        f"runs={tmp_path / 'runs'}", "optimizer.lr=0.01", "method.every=3it",
    ]  # fmt: skip


def train(words, *more):
    cfg = compose([*words, *more])
    result = run(cfg)
    assert result["status"] == "finished", result.get("error")
    return result, run_folder(cfg)


# --- tokens and segments ----------------------------------------------------------------------


def test_tokens_are_the_bytes_and_stay_so_when_saved(tmp_path):
    tokenizer = byte_tokenizer()
    text = "First Citizen:\n\tWe are — “accounted” poor\n\n  citizens.\x00\xad"
    assert tokenizer(text)["input_ids"] == list(text.encode())
    assert tokenizer.decode(list(text.encode())) == text
    tokenizer.save_pretrained(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert again(text)["input_ids"] == list(text.encode())


def test_a_pass_has_each_token_once_and_each_pass_is_cut_elsewhere():
    ids = torch.arange(100)
    data = Segments(ids, 8, number=25)
    assert data.whole == 11
    loader = TrainLoader(data, 5, seed=0)
    (epoch,) = [torch.cat([batch[0] for batch in loader.batches(0)])]
    assert epoch.shape == (25, 8)
    assert (epoch.diff(dim=1) == 1).all()
    starts = epoch[:, 0]
    passes = [starts[loader.order(0) // 11 == number] for number in range(3)]
    assert [len(found) for found in passes] == [11, 11, 3]
    for found in passes:
        assert len(set((found % 8).tolist())) == 1
        assert len(set(found.tolist())) == len(found)
    assert len({int(found[0]) % 8 for found in passes}) > 1
    assert torch.equal(epoch, torch.cat([batch[0] for batch in loader.batches(0)]))
    plain = Segments(ids, 8, shift=False)
    assert len(plain) == 12
    assert set(plain.draw(0, 3).tolist()) == {0}


def test_losses_are_those_of_transformers():
    model = char_gpt(None, 0, hidden=16, layers=1, context=32).model
    ids = torch.randint(0, 256, (3, 20), generator=torch.Generator().manual_seed(0))
    found = model(input_ids=ids, labels=ids)
    assert cross_entropy(found.logits, ids).item() == pytest.approx(found.loss.item(), rel=1e-6)


def test_divergence_is_that_of_the_teacher_from_the_student():
    g = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 5, 7, generator=g, dtype=torch.float64) for _ in range(2))
    total = 0.0
    for b in range(2):
        for t in range(4):  # nothing is predicted at the last token
            p, q = ((x[b, t] / 2).softmax(0) for x in (teacher, student))
            total += float((p * (p / q).log()).sum())
    assert divergence(student, teacher, 2.0).item() == pytest.approx(4 * total / 8, rel=1e-5)
    assert divergence(teacher, teacher, 1.0).item() == pytest.approx(0, abs=1e-7)


# --- whole runs -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["dense", "rigl", "sr_ste", "gmp"])
def test_a_method_trains_blocks_only_and_the_model_is_loaded_by_transformers(words, text, method):
    result, folder = train(words, f"method={method}", "save_model=true",
                           *([] if method == "sr_ste" else ["sparsity=0.75"]))  # fmt: skip
    metrics = result["metrics"]
    share = {"dense": 0.0, "sr_ste": 0.5}.get(method, 0.75)
    assert metrics["weights"] == BLOCKS
    assert metrics["nonzeros"] == round((1 - share) * BLOCKS)
    assert metrics["test/perplexity"] == pytest.approx(math.exp(metrics["test/loss"]))
    assert metrics["test/perplexity"] < 20  # 256 for a guess
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    ids = torch.tensor(list((text / "test.txt").read_bytes().replace(b"\n", b"\n\n")))
    measured = perplexity(model, ids, 32).value
    assert metrics["test/perplexity"] == pytest.approx(measured, rel=1e-5)
    state = model.state_dict()
    zeros = sum(int((state[name] == 0).sum()) for name in result["layers"])
    assert zeros == BLOCKS - metrics["nonzeros"]
    assert bool((state["lm_head.weight"] != 0).all())


def test_a_trained_model_is_pruned_from_its_folder(words, text, tmp_path):
    dense, folder = train(words, "method=dense", "save_model=true")
    pruned = run(
        compose([
            "task=prune_llm", "model=hf", f"model.path={folder / 'model'}", "method=magnitude",
            "structure=nm_2_4", f"eval.dataset={text}", "eval.lengths=[32]", "quiet=true",
            f"runs={tmp_path / 'pruned'}", "trainer.accelerator=cpu",
        ])
    )  # fmt: skip
    before = pruned["metrics"][f"perplexity_dense/{text}@32"]
    assert before == pytest.approx(dense["metrics"]["test/perplexity"], rel=1e-5)
    assert pruned["metrics"]["nonzeros"] == BLOCKS // 2


def test_an_interrupted_run_goes_on_bitwise(words, tmp_path, monkeypatch):
    whole, _ = train(words, "method=rigl", "sparsity=0.75", f"runs={tmp_path / 'whole'}")
    step, calls = Learner.training_step, iter(range(1000))

    def mortal(self, *args):
        if next(calls) == whole["metrics"]["steps"] // 2:
            raise RuntimeError("power cut")
        return step(self, *args)

    more = ["method=rigl", "sparsity=0.75", "trainer.checkpoint_every=0"]
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "training_step", mortal)
        assert run(compose([*words, *more]))["status"] == "failed"
    again, _ = train(words, *more)
    same = {k: v for k, v in whole["metrics"].items() if not k.startswith(("seconds", "memory"))}
    assert same == {k: again["metrics"][k] for k in same}


@pytest.mark.parametrize(
    "more, said",
    [
        (["model=tiny_mlp"], "model=tiny_mlp: task=train_llm needs a language"),
        (["method=wanda"], "method=wanda: prunes a trained language model"),
        (["method=small_dense"], "method=small_dense: model=char_gpt has no width"),
        (["data=digits"], "data=digits: task=train_llm needs a text"),
        (["data.args.length=65"], r"data\.args\.length=65.*context of 64"),
        (["data.args.length=1"], r"data\.args\.length=1"),
        (["data.subset=0.5"], r"data\.subset=0\.5: .*no subset"),
        (["+data.args.test=train"], "are the same text"),
        (["+data.args.test=tests"], r"split=tests.*did you mean 'test'"),
        (["model.args.hidden=20"], r"model\.args\.hidden=20"),
        (["eval.lengths=[8]"], r"eval\.lengths=\[8\]: has no effect"),
    ],
)
def test_what_can_not_work_is_refused_before_anything_is_written(words, tmp_path, more, said):
    group = more[0].partition("=")[0]  # another option of a group does without the first's dials
    words = [word for word in words if not word.lstrip("+").startswith(f"{group}.")]
    with pytest.raises(UserError, match=said):
        run(compose([*words, *more]))
    assert not (tmp_path / "runs").exists()
