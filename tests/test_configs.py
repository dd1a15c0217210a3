"""Every file in configs/: it composes, it is checked, and what it stands for runs."""

import importlib
import sys
from dataclasses import fields

import pytest
import torch
from expectations import EXPECTATIONS

from sparsebench.config.check import check
from sparsebench.config.compose import compose
from sparsebench.config.paths import config_files, config_folder, methods
from sparsebench.errors import UserError
from sparsebench.run import run
from sparsebench.sparsity import registry
from sparsebench.sparsity.masks import unpack
from sparsebench.sparsity.spec import DistributionSpec, MethodSpec, StructureSpec
from sparsebench.tasks.build import network

FILES = sorted(path.relative_to(config_folder()) for path in config_folder().rglob("*.yaml"))
#: What an option cannot do without.
NEEDS = {
    "model/timm": ["model.name=resnet10t"],
    "model/torchvision": ["model.name=squeezenet1_0"],
    "model/custom": ["model._target_=sparsebench.models.tiny.tiny_mlp"],
    "structure/nm": ["structure.n=2", "structure.m=4"],
    "structure/channel": ["method=set"],  # absent channels have no gradient to grow by
}
#: Options of tasks other than classification, tested with these.
OF_TASKS = (
    "autoencoder", "matrix_factorisation", "embeddings", "forecaster", "sensors", "relu_dynamics",
    "blocks",
)  # fmt: skip
QUICK = [
    "data=digits", "model=tiny_mlp", "epochs=1", "data.subset=160", "batch_size=16",
    "plots=false", "quiet=true", "trainer.accelerator=cpu", "method.every=2it",
]  # fmt: skip
STEPS = 9  # 160 images, 16 of them held out, in batches of 16
WEIGHTS = 64 * 32 + 32 * 16 + 16 * 10


def options(group):
    return config_files(group)


def of_language_models(group, option):
    """Whether an option is for pruning language models, and means nothing in training."""
    if group == "model":
        text = (config_folder() / group / f"{option}.yaml").read_text()
        return "_target_: sparsebench.llm." in text
    of_method = group == "method" and option in methods("pruner") + methods("factoriser")
    return group in ("calibration", "eval", "recovery") or of_method


def chosen(path):
    """The overrides that choose a file of a group."""
    group, option = path.parent.as_posix(), path.stem
    plus = "+" if group in ("experiment", "table") else ""
    task = ["task=prune_llm"] if of_language_models(group, option) else []
    task += ["task=continual"] if group in ("stream", "replay", "regulariser") else []
    return [*task, f"{plus}{group}={option}", *NEEDS.get(f"{group}/{option}", [])]


def train(tmp_path, *overrides):
    result = run(compose([*QUICK, f"runs={tmp_path}", *overrides]))
    assert result["status"] == "finished", result.get("error")
    return result["metrics"]


# --- files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.with_suffix("").as_posix())
def test_a_file_says_what_it_is_and_composes(path):
    first = (config_folder() / path).read_text().splitlines()[0]
    assert first.startswith("# ")
    assert len(first) > 10
    group = path.parent.as_posix()
    own_size = group in (".", "data", "experiment", "table")
    size = [] if own_size else ["data=cifar10", "epochs=100"]  # room for rare updates
    cfg = compose([*size, *([] if group == "." else chosen(path))])
    check(cfg)
    named = "/" not in group and "name" in cfg.get(group, {})
    if named and f"{group}/{path.stem}" not in NEEDS:
        pattern = path.stem.startswith("nm_")  # of one structure, with other numbers
        assert cfg[group].name == ("nm" if pattern else path.stem)


def test_an_unknown_option_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'rigl'"):
        compose(["method=rigll"])


@pytest.mark.parametrize("name", options("method"))
def test_a_method_is_at_most_fifteen_lines(name):
    assert len((config_folder() / "method" / f"{name}.yaml").read_text().splitlines()) <= 15


# --- methods ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", methods())
def test_a_method_trains_and_meets_the_sparsity_exactly(tmp_path, name):
    pattern = compose([f"method={name}"]).structure.name == "nm"  # it says the sparsity
    density = "structure=nm_1_4" if pattern else "sparsity=0.75"
    needed = {
        "group_channels": ["model=tiny_conv"],  # it prunes channels
        "spacenet": ["method.options.selected=1.0"],  # room for a quarter of all weights
        **dict.fromkeys(("packnet", "wsn"), ["selector=weights"]),  # the head too
    }
    metrics = train(tmp_path, f"method={name}", density, *needed.get(name, []))
    assert metrics["steps"] == STEPS
    kept = torch.load(next(tmp_path.glob("*/last.ckpt")), weights_only=True)
    packed = kept["callbacks"]["Sparsify"]["masks"]["packed"]
    weights = {name: kept["state_dict"][f"model.{name}"] for name in packed}
    masks = {name: unpack(bits, weights[name].shape) for name, bits in packed.items()}
    assert sum(int(mask.sum()) for mask in masks.values()) == metrics["nonzeros"]
    assert all(not weights[name][~mask].any() for name, mask in masks.items())
    if name == "dense":
        assert metrics["nonzeros"] == metrics["weights"] == WEIGHTS
    elif name == "small_dense":
        assert metrics["nonzeros"] == metrics["weights"] <= WEIGHTS / 4
    elif name == "group_channels":  # whole channels, next to what was asked for
        assert metrics["nonzeros"] == pytest.approx(metrics["weights"] / 4, rel=0.1)
    elif name == "nispa":  # what leads to the outputs has no plastic unit to go to
        assert WEIGHTS / 4 - 160 < metrics["nonzeros"] <= WEIGHTS / 4
    elif name == "srigl":  # each row the same number, rounded down
        assert WEIGHTS / 4 - 58 < metrics["nonzeros"] <= WEIGHTS / 4
    elif name in ("str", "movement_soft"):  # how sparse they get is found, not set
        assert metrics["nonzeros"] <= metrics["weights"] == WEIGHTS
        return
    else:
        assert metrics["weights"] == WEIGHTS
        assert metrics["nonzeros"] == WEIGHTS / 4
    moves = name not in ("dense", "small_dense", "static", "g2g_static")
    moves = EXPECTATIONS[name].changes if name in EXPECTATIONS else moves
    changed = metrics["distance"] > 0
    assert (metrics["survived"] < 1) == changed
    assert moves is None or moves == changed


# --- models -----------------------------------------------------------------------------------


def shape_for(name):
    """The data that a model is for."""
    if name.startswith("mnist1d"):
        return (40,), 10
    if name.startswith("tiny"):
        return (1, 8, 8), 10
    if name.startswith("lenet") or name == "mlp":
        return (1, 28, 28), 10
    if name in ("resnet50", "mobilenet_v1", "mobilenet_v2", "timm", "torchvision"):
        return (3, 224, 224), 1000
    return (3, 32, 32), 10


@pytest.mark.parametrize(
    "name",
    [n for n in options("model") if n not in OF_TASKS and not of_language_models("model", n)],
)
def test_a_model_builds_and_maps_its_data_to_classes(name):
    cfg = compose([f"model={name}", *NEEDS.get(f"model/{name}", [])])
    shape, classes = shape_for(name)
    with torch.device("meta"):
        model, dense_forward = network(cfg, shape, classes)
        logits = model(torch.empty(2, *shape))
    assert logits.shape == (2, classes)
    assert dense_forward is None
    assert all(parameter.is_meta for parameter in model.parameters())


# --- the other groups -------------------------------------------------------------------------


@pytest.mark.parametrize("name", options("optimizer"))
def test_an_optimizer_trains(tmp_path, name):
    assert train(tmp_path, f"optimizer={name}")["steps"] == STEPS


@pytest.mark.parametrize("name", options("schedule"))
def test_a_schedule_trains(tmp_path, name):
    assert train(tmp_path, f"schedule={name}")["steps"] == STEPS


@pytest.mark.parametrize("name", options("trainer"))
def test_a_trainer_trains(tmp_path, name):
    assert train(tmp_path, f"trainer={name}")["steps"] == STEPS


@pytest.mark.parametrize("name", options("distribution"))
def test_a_distribution_trains_at_its_count(tmp_path, name):
    metrics = train(tmp_path, f"distribution={name}", "sparsity=0.8")
    assert metrics["nonzeros"] == round(WEIGHTS * 0.2)  # there is no convolution to stay dense


@pytest.mark.parametrize("name", [name for name in options("selector") if name not in OF_TASKS])
def test_a_selector_leaves_out_what_it_says(tmp_path, name):
    left_out = {"weights": 0, "not_first": 64 * 32, "not_last": 160, "hidden": 64 * 32 + 160}
    metrics = train(tmp_path, f"selector={name}", "sparsity=0.5")
    assert metrics["weights"] == WEIGHTS - left_out[name]
    assert metrics["nonzeros"] == metrics["weights"] / 2


@pytest.mark.parametrize("name", options("structure"))
def test_a_structure_trains(tmp_path, name):
    numbers = NEEDS.get(f"structure/{name}", [])
    assert train(tmp_path, f"structure={name}", *numbers)["steps"] == STEPS


@pytest.mark.parametrize("name", options("logger"))
def test_a_logger_gets_each_epoch(tmp_path, name):
    train(tmp_path, f"logger={name}", "epochs=2")
    folder = next(path for path in tmp_path.iterdir() if path.is_dir())
    assert len((folder / "metrics.csv").read_text().splitlines()) == 3
    assert (folder / "tensorboard").is_dir() == (name in ("tensorboard", "all"))
    assert (folder / "wandb").is_dir() == (name in ("wandb", "all"))


def test_a_task_for_each_file():
    for name in options("task"):
        module = importlib.import_module(f"sparsebench.tasks.{name}")
        assert callable(module.prepare)
        assert callable(module.run)


# --- the registry of parts --------------------------------------------------------------------

TABLES = {
    name: value
    for name, value in vars(registry).items()
    if name.isupper() and not name.startswith("_")
}


@pytest.mark.parametrize("table", sorted(TABLES))
def test_every_part_of_the_registry_exists(table):
    for name in TABLES[table]:
        if TABLES[table][name]:  # "dense" stands for no score at all
            part = registry.find(name, TABLES[table], "key")
            assert callable(part)
            assert part.__doc__


def test_the_schema_offers_just_what_the_registry_has():
    offered = {
        f"{kind.__name__}.{field.name}": field.metadata["names"]
        for kind in (MethodSpec, DistributionSpec, StructureSpec)
        for field in fields(kind)
        if "names" in field.metadata
    }
    assert offered == {
        "MethodSpec.initial": tuple(registry.INITIAL),
        "MethodSpec.sparsity_schedule": tuple(registry.SPARSITY_SCHEDULES),
        "MethodSpec.prune": tuple(registry.SCORES),
        "MethodSpec.engine": tuple(registry.ENGINES),
        "MethodSpec.also": tuple(registry.SCORES),
        "MethodSpec.drop": tuple(registry.SCORES),
        "MethodSpec.grow": tuple(registry.GROWERS),
        "MethodSpec.grown": tuple(registry.GROWN),
        "MethodSpec.drop_schedule": tuple(registry.DROP_SCHEDULES),
        "MethodSpec.redistribute": tuple(registry.SHARES),
        "DistributionSpec.name": tuple(registry.DISTRIBUTIONS),
        "StructureSpec.name": tuple(registry.STRUCTURES),
    }


OWN_PARTS = """
from sparsebench.sparsity.structure import Unstructured


def magnitude(layer):
    return layer.weight * layer.weight.sign()


def steepest(layer):
    return layer["gradient"].square()


steepest.needs = frozenset({"gradient"})


def survivors(layers, *units):  # what was active before the drop, and what is left
    return {name: int(units[-1][name].count_nonzero()) for name in layers}


def cubic(progress):
    return 3 * progress - 3 * progress**2 + progress**3


def falling(progress):
    return 1 - progress


def evenly(layers, density):
    return {name: density for name in layers.shapes}


class Anything(Unstructured):
    pass
"""


@pytest.mark.parametrize(
    ("key", "name", "own", "context"),
    [
        ("method.initial", "magnitude", "magnitude", "method=static"),
        ("method.prune", "magnitude", "magnitude", "method=gmp"),
        ("method.drop", "magnitude", "magnitude", "method=set"),
        ("method.grow", "gradient", "steepest", "method=rigl"),
        ("method.redistribute", "survivors", "survivors", "method.drop_scope=global"),
        ("method.sparsity_schedule", "cubic", "cubic", "method=gmp"),
        ("method.drop_schedule", "linear", "falling", "method=rigl"),
        ("distribution.name", "strict_uniform", "evenly", "method=rigl"),
        ("structure.name", "unstructured", "Anything", "method=rigl"),
    ],
)
def test_a_part_of_ones_own_is_used_like_a_built_in_one(
    tmp_path, monkeypatch, key, name, own, context
):
    (tmp_path / "own_parts.py").write_text(OWN_PARTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_parts", raising=False)
    theirs = train(tmp_path / "runs", context, f"{key}={name}")
    ours = train(tmp_path / "own", context, f"{key}=own_parts.{own}", "allow=[own_parts]")
    assert ours["weights_sha256"] == theirs["weights_sha256"]
    with pytest.raises(UserError, match=rf"{key}=own_parts\.{own}: package 'own_parts'"):
        train(tmp_path / "not", context, f"{key}=own_parts.{own}")


def test_every_distribution_and_structure_has_its_file():
    assert set(options("distribution")) == set(registry.DISTRIBUTIONS)
    named = {name for name in options("structure") if not name.startswith("nm_")}
    assert named == set(registry.STRUCTURES)
