"""Recovery training in whole runs: a tiny LLaMA that reads bytes, on text made here."""

import json
import random

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs the extra llm")

from safetensors.torch import load_file  # noqa: E402 - after the skip
from test_llm_disk import Letters  # noqa: E402
from test_llm_layers import tiny  # noqa: E402

from sparsebench.config.compose import compose  # noqa: E402
from sparsebench.config.identity import run_folder  # noqa: E402
from sparsebench.config.paths import config_files  # noqa: E402
from sparsebench.errors import UserError  # noqa: E402
from sparsebench.llm.evaluate import Evaluation  # noqa: E402
from sparsebench.llm.models import tiny_llama  # noqa: E402
from sparsebench.llm.perplexity import perplexity  # noqa: E402
from sparsebench.run import run  # noqa: E402
from sparsebench.sparsity.masks import unpack  # noqa: E402
from sparsebench.training.learner import Learner  # noqa: E402

ALL = [name for name in config_files("recovery") if name != "none"]
STEPS = 24


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text") / "words"
    folder.mkdir()
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefgh", k=4)) for _ in range(12)]
    for split in ("train", "validation", "test"):
        rows = [" ".join(draw.choices(words, k=15)) for _ in range(40)]
        (folder / f"{split}.txt").write_text("\n".join(rows))
    return folder


@pytest.fixture
def words(text, tmp_path):
    return [
        "task=prune_llm", "model=tiny_llama", "+model.args.hidden=32", "method=magnitude",
        "structure=nm_2_4", "quiet=true", f"runs={tmp_path / 'runs'}",
        f"calibration.dataset={text}", "calibration.samples=4", "calibration.length=32",
        f"eval.dataset={text}", "eval.lengths=[32]", "eval.max_segments=6", "eval.dense=false",
        "recovery.split=train", "recovery.batch=4", "recovery.length=32",
        f"recovery.tokens={STEPS * 4 * 32}", "optimizer.lr=0.003", "trainer.accelerator=cpu",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def gpt2(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    tiny("GPT2").save_pretrained(folder)
    Letters.save(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    joined = (text / "test.txt").read_text().replace("\n", "\n\n")
    (folder / "ids.json").write_text(json.dumps(tokenizer(joined)["input_ids"]))
    return folder


def prune(words, *more):
    cfg = compose([*words, *more])
    result = run(cfg)
    assert result["status"] == "finished", result.get("error")
    return result, run_folder(cfg)


def figures(result):
    skipped = ("seconds/", "memory/")
    return {k: v for k, v in result["metrics"].items() if not k.startswith(skipped)}


@pytest.mark.parametrize("name", ALL)
def test_a_technique_recovers_and_leaves_exactly_two_of_four(words, text, name):
    result, folder = prune(words, f"recovery={name}", "save_model=true")
    metrics = result["metrics"]
    before, after = (metrics[f"perplexity{what}/{text}@32"] for what in ("_pruned", ""))
    assert after < 0.98 * before
    assert metrics["recovery/tokens"] == STEPS * 4 * 32
    assert metrics["recovery/steps"] == STEPS
    assert metrics["flops/recovery"] > 0
    assert metrics["nonzeros"] == metrics["weights"] // 2
    still = name in ("finetune", "lora")
    assert result["kind"] == {
        "when": "after",
        "start": "dense" if still else "dense weights kept",
        "masks": "static" if still else "dynamic",
        "pattern": "2:4",
        "dense_gradient": "never" if still else "each step",
    }
    assert (metrics["recovery/flips"] > 0) == (name not in ("finetune", "lora"))
    assert (metrics["recovery/moved"] > 0) == (metrics["recovery/flips"] > 0)
    state = load_file(folder / "model" / "model.safetensors")
    for weight in result["layers"]:
        groups = (state[weight] != 0).view(-1, 4).sum(1)
        assert groups.unique().tolist() == [2]
    assert not list(folder.glob("*.ckpt"))
    card = (folder / "model" / "README.md").read_text()
    assert f"name: {name}" in card
    assert "recovery: words" not in card  # a folder is named in full
    assert f"recovery: {text} (train), {STEPS * 128} tokens" in card
    if name == "lora":
        return  # measured with what is apart
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    ids = torch.tensor(list((text / "test.txt").read_bytes().replace(b"\n", b"\n\n")))
    assert perplexity(model, ids, 32, 6).value == pytest.approx(after, rel=1e-6)


def test_lora_leaves_the_pruned_model_bitwise_as_it_was(words, tmp_path):
    untouched = [word for word in words if not word.startswith(("recovery", "optimizer"))]
    _, plain = prune(untouched, "save_model=true")
    result, folder = prune(words, "recovery=lora", "save_model=true")
    before, after = (load_file(f / "model" / "model.safetensors") for f in (plain, folder))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    adapter = load_file(folder / "model" / "adapter" / "adapter_model.safetensors")
    stem = "base_model.model.model.layers.1.self_attn.v_proj"
    assert adapter[f"{stem}.lora_A.weight"].shape == (8, 32)
    assert adapter[f"{stem}.lora_B.weight"].shape == (16, 8)
    assert len(adapter) == 2 * 2 * 2  # A and B of queries and values of two blocks
    metrics = result["metrics"]
    total = sum(tensor.numel() for tensor in adapter.values())
    assert metrics["recovery/adapter_parameters"] == metrics["recovery/parameters"] == total
    config = json.loads((folder / "model" / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (8, 16, "LORA")
    assert "LoRA is apart from the sparse weights" in (folder / "model" / "README.md").read_text()


@pytest.mark.parametrize("merge", ["masked", "training"])
def test_merged_lora_is_in_the_weights_inside_the_masks(words, text, merge):
    result, folder = prune(words, "recovery=lora", f"recovery.merge={merge}", "save_model=true")
    metrics = result["metrics"]
    assert metrics["nonzeros"] == metrics["weights"] // 2
    assert metrics["recovery/adapter_parameters"] == 0
    assert metrics["recovery/parameters"] > 0
    assert not (folder / "model" / "adapter").exists()
    after = metrics[f"perplexity/{text}@32"]
    assert after < metrics[f"perplexity_pruned/{text}@32"]
    state = load_file(folder / "model" / "model.safetensors")
    first = tiny_llama(None, 0, hidden=32).model.state_dict()
    changed = {
        n for n in state if not torch.equal(state[n][state[n] != 0], first[n][state[n] != 0])
    }
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "v_proj"}


def test_slorb_is_counted_and_apart(words, text):
    result, folder = prune(words, "recovery=ast", "recovery.slorb=16", "save_model=true")
    metrics = result["metrics"]
    adapter = load_file(folder / "model" / "adapter" / "adapter_model.safetensors")
    learned = sum(t.numel() for name, t in adapter.items() if name.endswith(".b"))
    assert learned == metrics["weights"] // 16 == metrics["recovery/adapter_parameters"]
    assert metrics["nonzeros"] == metrics["weights"] // 2
    assert any("SLoRB is apart" in note for note in result["notes"])
    assert metrics[f"perplexity/{text}@32"] < metrics[f"perplexity_pruned/{text}@32"]


def test_only_the_pruned_layers_learn_where_that_is_asked_for(words):
    _, folder = prune(words, "recovery=finetune", "recovery.train=linears", "save_model=true")
    state = load_file(folder / "model" / "model.safetensors")
    first = tiny_llama(None, 0, hidden=32).model.state_dict()
    same = {name for name in state if torch.equal(state[name], first[name])}
    assert same == {name for name in state if "_proj" not in name}


def test_masks_may_follow_inputs_too_and_unstructured_counts_hold(words):
    words = [word for word in words if not word.startswith("structure")]
    result, _ = prune(words, "recovery=ast", "recovery.score=wanda", "method=wanda", "sparsity=0.6")
    assert {layer["nonzeros"] for layer in result["layers"].values()} == {
        rows * (columns - int(columns * 0.6))
        for rows, columns in ((32, 32), (16, 32), (64, 32), (32, 64))
    }
    assert result["metrics"]["recovery/flips"] > 0


@pytest.mark.parametrize("more", [[name] for name in ALL if name != "ast"] + [
    ["ast", "recovery.decay_in=after_momentum", "recovery.slorb=16"],
])  # fmt: skip
def test_a_killed_recovery_goes_on_bitwise(words, tmp_path, monkeypatch, more):
    more = [f"recovery={more[0]}", *more[1:], "recovery.tokens=768", "trainer.checkpoint_every=0"]
    whole = prune(words, *more, f"runs={tmp_path / 'whole'}")[0]
    step, seen = Learner.training_step, []

    def mortal(self, *args):
        if len(seen) == 4:
            raise RuntimeError("power cut")
        seen.append(self.global_step)
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "training_step", mortal)
        assert run(compose([*words, *more]))["status"] == "failed"

    def counted(self, *args):
        seen.append(self.global_step)
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "training_step", counted)
        again = prune(words, *more)[0]
    assert seen == [0, 1, 2, 3, 4, 5]  # no step twice
    assert figures(again) == figures(whole)
    assert again["layers"] == whole["layers"]


@pytest.mark.parametrize("name", ["ast", "lora"])
def test_a_run_killed_after_its_training_only_measures(words, tmp_path, monkeypatch, name):
    more = [f"recovery={name}", "recovery.tokens=384"]
    whole = prune(words, *more, f"runs={tmp_path / 'whole'}")[0]
    measure = Evaluation.measure

    def mortal(self, say, suffix=""):
        if not suffix:
            raise RuntimeError("power cut")
        return measure(self, say, suffix)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluation, "measure", mortal)
        assert run(compose([*words, *more]))["status"] == "failed"
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "training_step", lambda *args: pytest.fail("no step is left"))
        again = prune(words, *more)[0]
    assert figures(again) == figures(whole)
    assert again["layers"] == whole["layers"]


@pytest.mark.parametrize(
    "more", [["finetune"], ["ast", "recovery.slorb=16"], ["cast"], ["lora"]], ids=lambda m: m[0]
)
def test_a_gpt2_whose_weights_lie_transposed_is_recovered(gpt2, words, text, more):
    words = [word for word in words if not word.startswith(("model", "+model"))]
    words += ["model=hf", f"model.path={gpt2}", "save_model=true"]
    more = [f"recovery={more[0]}", *more[1:]]
    if more[0] == "recovery=lora":
        with pytest.raises(UserError, match=r"recovery\.targets.*c_attn"):
            run(compose([*words, *more]))
        more += ["recovery.targets=['*.c_attn']"]
    result, folder = prune(words, *more, "save_masks=true")
    metrics = result["metrics"]
    before, after = (metrics[f"perplexity{what}/{text}@32"] for what in ("_pruned", ""))
    assert after < 0.98 * before
    assert metrics["nonzeros"] == metrics["weights"] // 2
    state = load_file(folder / "model" / "model.safetensors")
    masks = load_file(folder / "masks.safetensors")
    assert len(result["layers"]) == 3 * 4
    for name in result["layers"]:
        stored = state.get(name, state.get(name.removeprefix("transformer.")))
        assert (stored.t().reshape(-1, 4) != 0).sum(1).unique().tolist() == [2]
        assert torch.equal(unpack(masks[name], stored.shape), stored != 0)
    adapter = folder / "model" / "adapter"
    assert adapter.exists() == (len(more) > 1)
    if more[0] == "recovery=lora":
        assert json.loads((adapter / "adapter_config.json").read_text())["fan_in_fan_out"] is True
    if not adapter.exists():  # what is left is the whole model
        ids = json.loads((gpt2 / "ids.json").read_text())
        model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model")
        assert perplexity(model, torch.tensor(ids), 32, 6).value == after


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more, said",
    [
        (["recovery=finetun"], "did you mean 'finetune'"),
        (["recovery=finetune", "recovery.tokens=1000"], r"tokens=1000: a multiple of .*128"),
        (["recovery=finetune", "recovery.length=1024", "recovery.tokens=4096"], "context of 512"),
        (["recovery=finetune", "recovery.split=test"], r"split=test: .*are the same text"),
        (["recovery=finetune", "recovery.split=tests"], r"recovery\.split=tests.*did you mean"),
        (["recovery=finetune", "recovery.decay=0.1"], r"recovery\.decay=0\.1: has no effect"),
        (["recovery=finetune", "recovery.alpha=3"], r"recovery\.alpha=3.*without a recovery\.rank"),
        (["recovery=finetune", "recovery.temperature=2"], "without a recovery.distill"),
        (["recovery=finetune", "method=svd"], "method=svd leaves none"),
        (["recovery=lora", "recovery.absent=shadow"], "where only LoRA learns"),
        (["recovery=lora", "recovery.targets=['*.c_attn']"], r"recovery\.targets.*q_proj"),
        (["recovery=ast", "recovery.decay_in=decoupled"], r"decay_in=decoupled: coupled or"),
        (["recovery=ast", "recovery.decay=null"], r"recovery\.decay=null"),
        (["recovery=ast", "recovery.decay_in=after_momentum", "optimizer=adam",
          "optimizer.weight_decay=0"], "needs optimizer=adamw"),
        (["recovery=ast", "recovery.slorb=5"], r"recovery\.slorb=5: .*must divide"),
        (["recovery=cast", "recovery.slorb=4"], "a layer has one extra"),
        (["recovery=ast", "recovery.ramp=100it"], r"recovery\.ramp=100it: training has 24"),
        (["recovery=finetune", "trainer.devices=2"], r"trainer\.devices=2"),
        (["recovery=finetune", "trainer.ema=0.9"], r"trainer\.ema=0\.9"),
        (["recovery=none"], r"optimizer\.lr=0\.003: has no effect where nothing is trained"),
    ],
)  # fmt: skip
def test_what_can_not_work_is_refused_before_anything_is_written(words, tmp_path, more, said):
    if "method=svd" in more:
        words = [word for word in words if not word.startswith("structure")]
    with pytest.raises(UserError, match=said):
        run(compose([*words, *more]))
    assert not (tmp_path / "runs").exists()


def test_other_tasks_have_nothing_to_recover():
    with pytest.raises(UserError, match="without task=prune_llm"):
        run(compose(["recovery=finetune", "data=digits"]))
