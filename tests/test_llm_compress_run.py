"""Products and removed units in whole runs of task=prune_llm, on a tiny LLaMA that reads bytes."""

import random

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs the extra llm")

from safetensors.torch import load_file  # noqa: E402 - after the skip

from sparsebench.config.compose import compose  # noqa: E402
from sparsebench.config.identity import identity, run_folder  # noqa: E402
from sparsebench.errors import UserError  # noqa: E402
from sparsebench.llm.factors import multiply  # noqa: E402
from sparsebench.llm.kept import Kept  # noqa: E402
from sparsebench.llm.models import tiny_llama  # noqa: E402
from sparsebench.llm.perplexity import perplexity  # noqa: E402
from sparsebench.run import run  # noqa: E402

DENSE = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 128 * 64)
FAST = ["method=cospadi", "method.iterations=2", "method.step=8"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text") / "words"
    folder.mkdir()
    for seed, split in enumerate(("train", "validation", "test")):
        draw = random.Random(seed)
        words = ["".join(draw.choices("abcdefgh", k=5)) + str(seed) for _ in range(50)]
        rows = [" ".join(draw.choices(words, k=20)) for _ in range(60)]
        (folder / f"{split}.txt").write_text("\n".join(rows))
    return folder


@pytest.fixture
def words(text, tmp_path):
    return [
        "task=prune_llm", "model=tiny_llama", "quiet=true", f"runs={tmp_path / 'runs'}",
        f"calibration.dataset={text}", "calibration.samples=4", "calibration.length=32",
        f"eval.dataset={text}", "eval.lengths=[32]", "eval.max_segments=3",
        "trainer.accelerator=cpu",
    ]  # fmt: skip


def compress(words, *more):
    cfg = compose([*words, *more])
    result = run(cfg)
    assert result["status"] == "finished", result.get("error")
    return result, run_folder(cfg)


def perplexity_of(folder, text):
    """Of an exported model, as the run measured it, without this package's reading of it."""
    from sparsebench.llm.likelihood import Likelihood
    from sparsebench.llm.text import load_text

    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = list(load_text("eval", str(text), "test", {"root": None}).joined.encode())
    return model, perplexity(Likelihood(model), torch.tensor(ids), 32, 3).value


@pytest.mark.parametrize(
    "more",
    [["method=svd"], ["method=svd_data"], FAST, [*FAST, "method.group=2"],
     ["method=svd", "method.group=2"]],
)  # fmt: skip
def test_products_are_counted_and_exported(words, text, more):
    result, folder = compress(words, *more, "method.compression=0.3", "save_model=true")
    metrics = result["metrics"]
    assert metrics["storage/dense"] == 2 * DENSE
    parts = {"atoms", "values", "places"} if more[0] == "method=cospadi" else {"atoms", "codes"}
    sizes = {part: metrics[f"storage/{part}"] for part in parts}
    assert metrics["storage"] == sum(sizes.values())
    assert metrics["compression"] == 1 - metrics["storage"] / (2 * DENSE)
    assert 0.3 <= metrics["compression"] < 0.34  # within a rank of such small matrices
    assert not [key for key in metrics if key.startswith("bytes/")]
    model, found = perplexity_of(folder / "model", text)
    assert found == metrics[f"perplexity/{text}@32"]
    state, before = model.state_dict(), tiny_llama(None, 0).model.state_dict()
    factors = {}
    for path in sorted((folder / "model" / "factors").glob("*.safetensors")):
        for key, tensor in load_file(path).items():
            kind, _, name = key.partition("/")
            factors.setdefault(name, {})[kind] = tensor
    assert len(factors) == 14
    numbers = 0
    for name, kept in factors.items():
        shared = kept.get("atoms", factors[name.replace("layers.1", "layers.0")].get("atoms"))
        assert torch.allclose(multiply(kept, shared), state[name], atol=1e-6)
        assert not torch.equal(state[name], before[name])
        numbers += shared.numel() + kept.get("codes", kept.get("values")).numel()
    assert metrics["flops/token_dense"] - metrics["flops/token"] == 2 * (DENSE - numbers)
    for name in set(state) - set(factors):
        assert torch.equal(state[name], before[name])
    assert f"{metrics['compression']:.6g}" in (folder / "model" / "README.md").read_text()
    assert not (folder / "model" / "masks.safetensors").exists()


@pytest.mark.parametrize(
    "more",
    [FAST, [*FAST, "method.group=2"], ["method=svd_data", "method.propagate=false"],
     ["method=wanda", "structure=channel", "sparsity=0.5"]],
)  # fmt: skip
def test_a_killed_run_goes_on_at_its_block(words, tmp_path, monkeypatch, more):
    more = [*more, "+model.args.layers=4"]
    whole = compress(words, *more, f"runs={tmp_path / 'whole'}")[0]
    write, seen = Kept.write, []

    def mortal(self, number, *args):
        write(self, number, *args)
        seen.append(number)
        if number >= 1 and len(seen) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Kept, "write", mortal)
    with pytest.raises(KeyboardInterrupt):
        compress(words, *more)
    again = compress(words, *more)[0]
    assert seen == ([0, 2] if "method.group=2" in more else [0, 1, 2, 3])  # no block twice
    skipped = ("seconds/", "memory/")
    figures = [
        {k: v for k, v in result["metrics"].items() if not k.startswith(skipped)}
        for result in (again, whole)
    ]
    assert figures[0] == figures[1]


def test_a_smaller_model_is_exported_and_measures_the_same(words, text):
    result, folder = compress(
        words, "method=sparsegpt", "structure=channel", "sparsity=0.5", "save_model=true"
    )
    metrics = result["metrics"]
    assert result["kind"]["pattern"] == "heads and channels"
    assert metrics["sparsity"] == 0.5
    model, found = perplexity_of(folder / "model", text)
    assert found == metrics[f"perplexity/{text}@32"]
    assert (model.config.num_attention_heads, model.config.num_key_value_heads) == (2, 1)
    assert model.config.intermediate_size == 64
    left = sum(p.numel() for p in model.parameters())
    assert metrics["parameters_left"] == left == metrics["parameters"] - DENSE // 2
    assert "of each block stay 1 of 2 groups of heads and 64 of 128 channels" in result["notes"]


def test_the_compression_is_part_of_the_identity_and_the_sparsity_is_not(words):
    low, high = (
        identity(compose([*words, "method=svd", f"method.compression={c}"])) for c in (0.2, 0.4)
    )
    assert low != high
    assert "svd-0.4-0" in high


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["method=svd", "sparsity=0.5"], r"sparsity=0\.5: has no effect with method=svd"),
        (["method=svd", "structure=nm_2_4"], "sparsity=0.5: has no effect with method=svd"),
        (["method=svd", "structure=channel"], r"structure\.name=channel: has no effect on"),
        (["method=svd", "method.rho=3"], r"method\.rho=3.*without method\.form=dictionary"),
        (["method=svd", "method.damping=0.1"], r"method\.damping=0\.1: has no effect without"),
        (["method=svd", "method.compression=1.0"], r"method\.compression=1\.0"),
        (["method=svd", "method.compression=0.999"], "nothing would be left of"),
        (["method=svd", "save_masks=true"], "save_masks=true: method=svd leaves no masks"),
        (["method=svd", "recovery=lora"], "method=svd leaves none"),
        (["method=svd", "task=classification"], "needs task=prune_llm"),
        (["method=wanda", "method.tau=0.1"], r"method\.tau=0\.1: has no effect without"),
        (["method=wanda", "method.units=heads"], r"method\.units=heads: has no effect without"),
        (["method=owl", "structure=channel", "sparsity=0.5"], r"method\.ratios=owl: with struct"),
        (["method=dsnot", "structure=channel", "sparsity=0.5"], r"method\.swap=dsnot: with struct"),
        (["method=wanda", "structure=channel", "sparsity=0.5", "recovery=lora"], "recovery=lora: "),
        (["method=wanda", "structure=channel", "sparsity=0.2", "method.units=heads"],
         "not one would go"),
        (["method=wanda", "structure=block", "structure.block=[4,4]"], "structure=block"),
    ],
)  # fmt: skip
def test_what_can_not_work_is_refused(words, tmp_path, more, said):
    with pytest.raises(UserError, match=said):
        run(compose([*words, *more]))
    assert not list(tmp_path.glob("runs/*/result.json"))
    assert not list(tmp_path.glob("runs/*/model"))
