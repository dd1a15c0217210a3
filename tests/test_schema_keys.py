"""Each key of the schema, flipped once: it changes the run, or is refused, or there is a reason.

A key that changes nothing would make two names for one result; one that changes the result
without changing the name would give a run the result of another.
"""

import re
import sys
import types
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from schema_flips import FLIPS

from sparsebench.config.compose import compose
from sparsebench.config.identity import identity, run_folder
from sparsebench.config.schema import IGNORED, Config
from sparsebench.errors import UserError
from sparsebench.models.tiny import tiny_mlp
from sparsebench.reporting import run_and_report
from sparsebench.run import run
from sparsebench.sparsity.spec import MethodSpec
from sparsebench.training.loggers import SINKS, Wandb

BASE = [
    "data=digits", "model=tiny_mlp", "epochs=2", "data.subset=160", "batch_size=16",
    "plots=false", "quiet=true", "trainer.accelerator=cpu", "method.every=2it", "sparsity=0.75",
]  # fmt: skip
#: Dials without a meaning where they are set, each refused by its own name.
IDLE = [
    ("optimizer.momentum=0.5", "optimizer=adam"),
    ("optimizer.nesterov=false", "optimizer=adamw"),
    ("optimizer.beta1=0.5", "optimizer=sgd"),
    ("optimizer.eps=0.1", "optimizer.name=torch.optim.RMSprop"),
    ("model.hidden=[20]", "model=resnet20"),
    ("model.depth=4", "model=tiny_mlp"),
    ("model.dropout=0.5", "model=tiny_conv"),
    ("+model.args.x=1", "model=tiny_mlp"),
    ("schedule.gamma=0.5", "schedule=cosine"),
    ("schedule.milestones=[1ep]", "schedule=linear"),
    ("schedule.final=0.5", "schedule=step"),
    ("schedule.final=0.5", "schedule=one_cycle"),
    ("distribution.power=2", "distribution=uniform"),
    ("distribution.fc_density=0.5", "distribution=erk"),
    ("distribution.compat=liu", "distribution=erk"),
    ("structure.n=2", "structure=unstructured"),
    ("trainer.patience=1", "data.validation=0"),
    ("trainer.label_smoothing=0.1", "task=feature_selection"),
    ("+task.options.k=3", "task=profile"),
    ("stream.tasks=2", "task=classification"),
    ("stream.shuffle=tasks", "task=continual"),
    ("stream.degrees=20", "task=continual"),
    ("stream.seed=2", "task=continual"),
    ("method.reuse=never", "method=set"),
    ("replay.name=er", "task=classification"),
    ("replay.size=300", "task=continual"),
    ("replay.alpha=0.3", "task=continual"),
    ("replay.er=apart", "task=continual"),
    ("regulariser.name=ewc", "task=classification"),
    ("regulariser.strength=3", "task=continual"),
    ("regulariser.fisher=batch", "task=continual"),
    ("regulariser.temperature=3", "task=continual"),
    ("replay.beta=0.3", "task=continual"),
    ("data.path=x", "data=digits"),
    ("data.label_column=x", "data=mnist1d"),
    ("+data.args.x=1", "data=digits"),
    ("method.initial_sparsity=0.5", "method=set"),
    ("method.scope=global", "method=rigl"),
    ("method.prune=random", "method=static"),
    ("method.initial=magnitude", "method=gmp"),
    ("method.momentum=0.5", "method=rigl"),
    ("method.drop_fraction=0.5", "method=gmp"),
    ("method.drop_rounding=ceil", "method=static"),
    ("method.regrow=never", "method=one_shot"),
    ("method.when=replace", "method=static"),
    ("method.grown=normal", "method=gmp"),
    ("method.grown_scale=2", "method=rigl"),
    ("method.grow=random", "method=static"),
    ("method.drop=random", "method=small_dense"),
    ("method.grow_scope=global", "method=snfs"),
    ("method.ticket=reinit", "method=gmp"),
    ("method.rewind=weights", "method=small_dense"),
    ("structure.name=block", "method=small_dense"),
    ("distribution.name=uniform", "method=movement_soft"),
    ("distribution.power=0.5", "method=str"),
]


BEFORE = {}  # what was seen of a context, which many flips share


def leaves(kind=Config, prefix=""):
    for field in fields(kind):
        default = field.default_factory() if callable(field.default_factory) else None
        if kind is Config and field.name == "method":  # untyped, for classes of one's own
            default = MethodSpec()
        if is_dataclass(default):
            yield from leaves(type(default), f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Data, a builder and weights that overrides may name."""
    tmp = tmp_path_factory.mktemp("flips")
    (tmp / "flipdata.py").write_text(
        "import torch\n\n"
        "def _set(channels, shift):\n"
        "    g = torch.Generator().manual_seed(shift)\n"
        "    y = torch.arange(1797) % 10\n"
        "    x = torch.randint(0, 99, (1797, channels, 8, 8), generator=g)\n"
        "    x = (x + 15 * y.view(-1, 1, 1, 1)).to(torch.uint8)\n"
        "    return (x[:1437], y[:1437]), (x[1437:], y[1437:])\n\n"
        "def grey(config):\n    return _set(1, config['args'].get('shift', 0))\n\n"
        "def colour(config):\n    return _set(3, 0)\n"
    )
    for number, folder in enumerate(("pictures", "others")):
        pictures(tmp / folder, number)
    torch.manual_seed(5)
    torch.save(tiny_mlp((1, 8, 8), 10).state_dict(), tmp / "weights.pt")
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(tmp))
    patch.setenv("SPARSEBENCH_CACHE", str(tmp / "cache"))
    yield tmp
    patch.undo()
    sys.modules.pop("flipdata", None)


def pictures(folder, seed):
    """Parquet files of two training and two test splits, with two columns of each kind."""
    from datasets import ClassLabel, Dataset, Features, Image

    features = Features(
        {"image": Image(), "second": Image(), "label": ClassLabel(10), "coarse": ClassLabel(10)}
    )
    folder.mkdir()
    for number, split in enumerate(("train", "more", "test", "exam")):
        generator = torch.Generator().manual_seed(100 * seed + number)
        pixels = torch.randint(0, 256, (2, 40, 8, 8), generator=generator, dtype=torch.uint8)
        rows = {"label": [i % 10 for i in range(40)], "coarse": [9 - i % 10 for i in range(40)]}
        rows |= {"image": list(pixels[0].numpy()), "second": list(pixels[1].numpy())}
        table = Dataset.from_dict(rows, features=features)
        table.to_parquet(folder / f"{split}-00000-of-00001.parquet")


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for W&B that keeps what it was opened with."""
    asked = {}

    class Run(types.SimpleNamespace):
        dir, summary = "nowhere/files", {}

        def __getattr__(self, name):
            return lambda *a, **k: None

    module = types.ModuleType("wandb")
    module.init = lambda **given: asked.update(given) or Run()
    monkeypatch.setitem(sys.modules, "wandb", module)
    assert SINKS["wandb"] == (Wandb,)
    return asked


@pytest.fixture
def observe(world, tmp_path, wandb, capsys, monkeypatch):
    """Run overrides in a folder of their own: what can be seen of it."""
    compiled = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda m: compiled(m, backend="eager"))
    threads = torch.get_num_threads()

    def observed(name, overrides):
        given = [text.format(tmp=world) for text in overrides]
        cfg = compose([*BASE, f"runs={tmp_path / name}", *given])
        capsys.readouterr()
        code, _ = run_and_report(cfg)
        assert code == 0
        result = run(cfg)
        return cfg, {
            "result": {
                "layers": result["layers"],
                **{k: v for k, v in result["metrics"].items()
                   if not k.startswith(("seconds/", "memory/"))},
            },
            "files": sorted({p.name.split(".")[0] for p in run_folder(cfg).iterdir()}),
            "screen": re.sub(r"/\S+", "", capsys.readouterr().out),
            "wandb": {k: str(v) for k, v in wandb.items() if k not in ("config", "dir")},
        }  # fmt: skip

    yield observed
    torch.set_num_threads(threads)


def counts(result):
    return {name: value for name, value in result.items() if not isinstance(value, float | str)}


def test_every_key_has_its_flip():
    assert sorted(FLIPS) == sorted(leaves())
    for ignored in IGNORED:
        assert any(key == ignored or key.startswith(f"{ignored}.") for key in FLIPS)


@pytest.mark.parametrize("key", FLIPS)
def test_a_flip_shows_in_name_and_result(key, world, observe):
    flip = FLIPS[key]
    assert flip.expect != "same" or flip.why
    if key == "trainer.accelerator" and torch.cuda.is_available():
        pytest.skip("another place to compute gives other last bits")
    override = flip.value if flip.value.startswith("+") else f"{key}={flip.value}"
    if flip.expect == "refused":
        with pytest.raises(UserError, match=re.escape(key.partition(".name")[0])):
            observe("flipped", [*flip.context, override])
        return
    if flip.context not in BEFORE:
        BEFORE[flip.context] = observe("base", flip.context)
    before, first = BEFORE[flip.context]
    after, second = observe("flipped", [*flip.context, override])
    assert OmegaConf.select(before, key) != OmegaConf.select(after, key)
    ignored = any(key == name or key.startswith(f"{name}.") for name in IGNORED)
    assert (identity(before) == identity(after)) == ignored
    if flip.expect == "speed":
        assert counts(first["result"]) == counts(second["result"])
    elif flip.look == "result":
        assert (first["result"] != second["result"]) == (flip.expect == "changes")
    else:
        assert first["result"] == second["result"]
        assert first[flip.look] != second[flip.look]


@pytest.mark.parametrize(("override", "context"), IDLE)
def test_a_dial_without_meaning_is_refused_before_anything_is_written(
    world, tmp_path, override, context
):
    base = [text for text in BASE if not text.startswith("method.every")]
    every = [] if "dense" in context or "static" in context else ["method.every=2it"]
    cfg = compose([*base, *every, "data.subset=null", f"runs={tmp_path}", context, override])
    key = re.match(r"\+?(\w+\.\w+)", override)[1]
    with pytest.raises(UserError, match=re.escape(key)):
        run(cfg)
    assert not list(Path(tmp_path).iterdir())


def test_the_weights_of_a_checkpoint_are_those_trained_on(world, observe):
    """With a rate too small to move a weight, the file's are the last ones, bit for bit."""
    still = ["optimizer.lr=1e-30", "method=dense"]
    _, ours = observe("ours", [*still, "model.checkpoint={tmp}/weights.pt"])
    _, first = observe("base", still)
    _, fifth = observe("seed", [*still, "seed=5"])  # the seed that the file was made with
    digests = [found["result"]["weights_sha256"] for found in (first, fifth, ours)]
    assert digests[0] != digests[1] == digests[2]
