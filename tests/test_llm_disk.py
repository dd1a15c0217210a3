"""Blocks that stay on disk: all figures, masks and weights are those of a model in memory."""

import resource

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs the extra llm")
pytest.importorskip("accelerate", reason="needs the extra llm")

from safetensors.torch import load_file, save_file  # noqa: E402 - after the skip
from test_llm_layers import CAUSAL, tiny, tokens  # noqa: E402
from test_llm_run import write  # noqa: E402

from sparsebench.cli import main  # noqa: E402
from sparsebench.config.compose import compose  # noqa: E402
from sparsebench.config.identity import run_folder  # noqa: E402
from sparsebench.errors import UserError  # noqa: E402
from sparsebench.llm.activations import Activations  # noqa: E402
from sparsebench.llm.disk import skeleton  # noqa: E402
from sparsebench.llm.kept import Kept  # noqa: E402
from sparsebench.llm.layers import find_blocks  # noqa: E402
from sparsebench.llm.likelihood import Likelihood  # noqa: E402
from sparsebench.llm.onfile import OnFile  # noqa: E402
from sparsebench.llm.perplexity import perplexity  # noqa: E402
from sparsebench.run import run  # noqa: E402


class Letters:
    """A tokenizer of letters that transformers saves and loads."""

    @staticmethod
    def save(folder):
        from tokenizers import Tokenizer, models, pre_tokenizers

        vocabulary = {letter: number for number, letter in enumerate("!abcdefgh0123456789 \n")}
        letters = Tokenizer(models.WordLevel(vocabulary, unk_token="!"))
        letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        made = transformers.PreTrainedTokenizerFast(tokenizer_object=letters, unk_token="!")
        made.save_pretrained(folder)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of each kind of model, and one of text."""
    root = tmp_path_factory.mktemp("saved")
    for name in CAUSAL:
        tiny(name).save_pretrained(root / name)
        Letters.save(root / name)
    (root / "words").mkdir()
    for seed, split in enumerate(("train", "validation", "test")):
        write(root / "words", split, seed)
    return root


@pytest.fixture
def words(saved, tmp_path):
    return [
        "task=prune_llm", "model=hf", "quiet=true", "method=wanda", "sparsity=0.5",
        f"calibration.dataset={saved / 'words'}", "calibration.samples=6", "calibration.length=24",
        f"eval.dataset={saved / 'words'}", "eval.lengths=[32]", "eval.max_segments=7",
        "trainer.accelerator=cpu", "save_model=true",
    ]  # fmt: skip


DISK = ("model.weights=disk", "calibration.activations=disk")


def prune(words, *more):
    cfg = compose([*words, *more])
    result = run(cfg)
    assert result["status"] == "finished", result.get("error")
    return result, run_folder(cfg)


def figures(result):
    skipped = ("seconds/", "memory/")
    return {k: v for k, v in result["metrics"].items() if not k.startswith(skipped)}


def state_of(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model")
    return model.state_dict()


@pytest.mark.parametrize("name", CAUSAL)
def test_a_skeleton_has_no_blocks_and_measures_as_the_whole_model(saved, tmp_path, name):
    whole = transformers.AutoModelForCausalLM.from_pretrained(saved / name).eval()
    model, disk = skeleton(str(saved / name), None)
    blocks = find_blocks(model, disk)
    inside = tuple(f"{block.name}." for block in blocks)
    for key, parameter in model.named_parameters():
        assert parameter.is_meta == key.startswith(inside)
    ids = torch.cat(tokens(5, 12))
    expected = perplexity(whole, ids, 12).value
    for folder in (None, tmp_path):
        assert perplexity(Likelihood(model, blocks, 24, folder), ids, 12).value == expected
    assert all(p.is_meta for block in blocks for p in block.module.parameters())
    state = whole.state_dict()
    with blocks[1].loaded():
        assert all(torch.equal(one.module.weight, state[one.name]) for one in blocks[1].linears)


@pytest.mark.parametrize(
    "name, more",
    [
        ("Llama", ["method=magnitude", "method.ratios=global"]),
        ("Llama", ["method=owl", "eval.errors=true"]),
        ("Llama", ["method=sparsegpt"]),
        ("Llama", ["method=dsnot", "structure=nm_2_4"]),
        ("Gemma2", ["method=sparsegpt"]),
        ("GPT2", ["method=sparsegpt", "method.propagate=false"]),
        ("GPTNeoX", ["method=wanda"]),
        ("Llama", ["method=wanda", "model.args.dtype=bfloat16"]),
        ("Llama", ["method=cospadi", "method.group=2", "method.iterations=2", "sparsity=0.9"]),
    ],
)
def test_a_run_on_disk_is_that_in_memory(saved, tmp_path, words, name, more):
    more = [f"model.path={saved / name}", *more]
    results = [
        prune(words, *more, f"runs={tmp_path / 'memory'}"),
        prune(words, *more, f"runs={tmp_path / 'disk'}", *DISK),
    ]
    (memory, first), (disk, second) = results
    assert first.name == second.name  # one result, however it is reached
    assert figures(memory) == figures(disk)
    assert memory["layers"] == disk["layers"]
    states = state_of(first), state_of(second)
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    beside = [*first.glob("model/masks.safetensors"), *first.glob("model/factors/*.safetensors")]
    assert beside
    for path in beside:
        memory, disk = load_file(path), load_file(second / path.relative_to(first))
        assert memory.keys() == disk.keys()
        assert all(torch.equal(memory[key], disk[key]) for key in memory)
    assert sorted(p.name for p in second.iterdir()) == sorted(p.name for p in first.iterdir())


@pytest.mark.parametrize("more", [["method=sparsegpt"], ["method=wanda", "method.propagate=false"]])
@pytest.mark.parametrize("where", [[], DISK])
def test_a_killed_run_goes_on_at_its_block(saved, tmp_path, words, monkeypatch, more, where):
    more = [f"model.path={saved / 'Llama'}", *more, *where]
    whole, first = prune(words, *more, f"runs={tmp_path / 'whole'}")
    write_block, seen = Kept.write, []

    def mortal(self, number, done):
        write_block(self, number, done)
        seen.append(number)
        if seen == [0, 1]:
            raise KeyboardInterrupt

    monkeypatch.setattr(Kept, "write", mortal)
    with pytest.raises(KeyboardInterrupt):
        prune(words, *more, f"runs={tmp_path / 'killed'}")
    again, second = prune(words, *more, f"runs={tmp_path / 'killed'}")
    assert seen == [0, 1, 2]
    assert figures(again) == figures(whole)
    assert again["layers"] == whole["layers"]
    states = state_of(first), state_of(second)
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not (second / "blocks").exists()


def test_activations_on_file_are_those_in_memory(tmp_path):
    model, samples = tiny("Llama"), tokens(3, 12)
    blocks = find_blocks(model)
    memory, disk = (
        Activations(model, blocks, samples),
        Activations(model, blocks, samples, tmp_path),
    )
    for _ in blocks:
        found = [acts.measure({"gram"}) for acts in (memory, disk)]
        assert all(torch.equal(found[0][key].gram, found[1][key].gram) for key in found[0])
        memory.carry()
        disk.carry()
        assert all(torch.equal(a, b) for a, b in zip(memory.hidden, disk.hidden, strict=True))
    assert list(tmp_path.iterdir()) == []  # a file without a name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_on_file_come_back_and_can_be_changed(tmp_path, dtype):
    held = OnFile(tmp_path)
    tensors = [torch.randn(1, 3, 5).to(dtype) for _ in range(4)]
    for tensor in tensors:
        held.append(tensor)
    held[2] = tensors[0].transpose(1, 2).contiguous().transpose(1, 2)
    assert len(held) == 4
    for found, expected in zip(held, [*tensors[:2], tensors[0], tensors[3]], strict=True):
        assert found.dtype == dtype
        assert torch.equal(found, expected)


# --- refusals ---------------------------------------------------------------------------------


def damaged(saved, tmp_path, change):
    """A folder of a model whose tensors were changed."""
    folder = tmp_path / "damaged"
    tiny("Llama").save_pretrained(folder)
    Letters.save(folder)
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    "change, said",
    [
        (
            lambda state: state.pop("model.layers.1.mlp.up_proj.weight"),
            "has no tensor 'model.layers.1",
        ),
        (lambda state: state.pop("model.norm.weight"), r"has no tensor 'model\.norm\.weight'"),
        (
            lambda state: state.update({"model.norm.weight": torch.ones(3)}),
            r"\(3,\), and the model",
        ),
    ],
)
def test_files_of_another_model_are_refused(saved, tmp_path, words, change, said):
    folder = damaged(saved, tmp_path, change)
    with pytest.raises(UserError, match=said):
        prune(words, f"model.path={folder}", f"runs={tmp_path / 'runs'}", *DISK)
    assert not (tmp_path / "runs").exists()


def test_what_has_no_files_can_not_stay_in_them(saved, tmp_path, words):
    with pytest.raises(UserError, match=r"model\.weights=disk: 'tiny_llama' is not read from"):
        prune(words, "model=tiny_llama", f"runs={tmp_path / 'runs'}", *DISK)
    folder = damaged(saved, tmp_path, lambda state: None)
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"model\.safetensors can't be read"):
        prune(words, f"model.path={folder}", f"runs={tmp_path / 'runs'}", *DISK)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="has no safetensors files"):
        prune(words, f"model.path={folder}", f"runs={tmp_path / 'runs'}", *DISK)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "more",
    [
        ["structure=channel"],
        ["recovery=finetune"],
    ],
)
def test_what_needs_all_blocks_at_once_is_refused(saved, tmp_path, words, more):
    with pytest.raises(UserError, match=r"model\.weights=disk: \S+ needs all blocks in memory"):
        prune(words, f"model.path={saved / 'Llama'}", *more, f"runs={tmp_path / 'runs'}", *DISK)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("more", [(), DISK, ("calibration.activations=disk",)])
def test_a_full_disk_is_one_line_and_no_half_written_model(saved, tmp_path, words, more, capsys):
    room = 20_000  # bytes a file may have: less than the model's or a sequence's activations
    words = [*words, *more, f"model.path={saved / 'Llama'}", f"runs={tmp_path / 'runs'}"]
    most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, most[1]))
    try:
        with pytest.raises(SystemExit) as stopped:
            main(words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, most)
    said = capsys.readouterr().err
    assert stopped.value.code == 2, said
    assert len(said.strip().splitlines()) == 1, said
    assert "can't be written" in said
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not list(tmp_path.rglob("result.json"))
