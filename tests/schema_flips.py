"""For each key of the schema another value, and what must follow from it (test_schema_keys)."""

from dataclasses import dataclass

STATIC = ("method=static", "method.every=100it")
GMP = ("method=gmp",)
SNIP = ("method=static", "method.every=100it", "method.initial=saliency")
WRN = ("task=profile", "model=wrn_10_1", "data=cifar10", "data.subset=null")
OWN = ("data._target_=flipdata.grey", "allow=[flipdata]")
COLOUR = ("data._target_=flipdata.colour", "data.input_shape=[3,8,8]", "allow=[flipdata]")
FILES = (
    "data=hf", "data.path={tmp}/pictures", "data.subset=null", "data.image_column=image",
    "data.label_column=label",
)  # fmt: skip
SPLIT = ("task=continual", "stream=split", "data.subset=null", "model=tiny_mlp")
TURNED = ("task=continual", "stream=rotated", "stream.tasks=2", "data.subset=null")
ER = (*SPLIT, "replay=er")
EWC = (*SPLIT, "regulariser=ewc", "regulariser.strength=1")
WANDB = ("logger=wandb",)


@dataclass(frozen=True)
class Flip:
    """Another value for a key, what else must be set for it to mean something, what follows.

    Attributes:
        value: the override's right-hand side, or all of it if it begins with a plus.
        context: overrides of both runs.
        expect: ``changes``, ``refused``, ``same``, or ``speed``: sums may be made in another
            order, so that the last bits of weights may differ or not, but no count does.
        look: where a change shows: ``result``, ``files``, ``screen`` or ``wandb``.
        why: the reason for which the result is the same.
    """

    value: str
    context: tuple[str, ...] = ()
    expect: str = "changes"
    look: str = "result"
    why: str = ""


def changes(value, *context, look="result"):
    return Flip(value, context, look=look)


def refused(value, *context):
    return Flip(value, context, "refused")


def same(value, *context, why):
    return Flip(value, context, "same", why=why)


def speed(value, *context):
    return Flip(value, context, "speed")


LABEL = "a label: part of the run's name, as several configs may share all else"
FLIPS = {
    "task.name": changes("profile", "data.subset=null"),
    "task.options": changes("+task.options.dead_neurons=true"),
    "model.name": same("other", why=LABEL + "; timm and torchvision look the model up by it"),
    "model._target_": changes("sparsebench.models.tiny.tiny_conv"),
    "model.width": changes("0.5"),
    "model.num_classes": refused("7"),
    "model.pretrained": refused("true"),
    "model.path": refused("x"),
    "model.checkpoint": changes("{tmp}/weights.pt"),
    "model.hidden": changes("[20]", "model=mlp"),
    "model.depth": changes("16", *WRN),
    "model.widen": changes("2", *WRN),
    "model.stem": changes("imagenet", "task=profile", "model=resnet18", "data=cifar10"),
    "model.dropout": changes("0.3", "model=mlp", "model.hidden=[20]"),
    "model.ift": changes("wide"),
    "model.args": changes("+model.args.mlp_ratio=1.0", "task=profile", "model=vit", "data=cifar10"),
    "data.name": same("other", why=LABEL),
    "data._target_": changes("flipdata.grey", "allow=[flipdata]"),
    "data.root": same("{tmp}/elsewhere", why="where the data lie"),
    "data.num_classes": refused("7"),
    "data.input_shape": refused("[1,9,9]"),
    "data.train_size": refused("1000"),
    "data.augment": changes("none", *COLOUR),
    "data.validation": changes("0.2"),
    "data.subset": changes("176"),
    "data.split_seed": changes("1"),
    "data.workers": same("1", why="processes that decode"),
    "data.path": changes("{tmp}/others", *FILES),
    "data.image_column": changes("second", *FILES),
    "data.label_column": changes("coarse", *FILES),
    "data.train_split": changes("more", *FILES),
    "data.test_split": changes("exam", *FILES),
    "data.cache": same("false", *FILES, why="a copy of the decoded data"),
    "data.download": same("true", *FILES, why="where the data come from, if they are not here"),
    "stream.name": same("other", *SPLIT, why=LABEL),
    "stream.kind": changes("permuted", *SPLIT),
    "stream.tasks": changes("2", *SPLIT),
    "stream.scenario": changes("task_il", *SPLIT),
    "stream.classes": changes("[9,8,7,6,5,4,3,2,1,0]", *SPLIT),
    "stream.class_order_seed": changes("1", *SPLIT),
    "stream.shuffle": changes("tasks", *SPLIT, "stream.class_order_seed=1"),
    "stream.seed": changes("1", *TURNED),
    "stream.degrees": changes("30", *TURNED),
    "replay.name": changes("er", *SPLIT),
    "replay.size": changes("17", *ER),
    "replay.batch": changes("5", *ER),
    "replay.when": changes("every_batch", *ER),
    "replay.er": changes("apart", *ER),
    "replay.alpha": changes("0.7", *SPLIT, "replay=der"),
    "replay.beta": changes("0.7", *SPLIT, "replay=derpp"),
    "regulariser.name": changes("lwf", *SPLIT),
    "regulariser.strength": changes("3", *EWC),
    "regulariser.decay": changes("0.5", *EWC),
    "regulariser.fisher": changes("batch", *EWC),
    "regulariser.samples": changes("50", *EWC),
    "regulariser.temperature": changes("3", *SPLIT, "regulariser=lwf"),
    "data.args": changes("+data.args.shift=3", *OWN),
    "method.engine": refused("composer"),
    "method.options": refused("{{power: 2}}"),
    "method.initial_scope": changes("global", "method=static", "method.initial=magnitude"),
    "method.initial_rounds": changes("3", *SNIP),
    "method.initial_batches": changes("2", *SNIP),
    "method.initial_regrow": changes("true", *SNIP, "method.initial_rounds=3"),
    "method.initial_shuffle": changes("true", "method=static", "method.initial=magnitude"),
    "method.reuse": changes("initial", *SPLIT, "method=cl_dst", "method.every=4it"),
    "method.also": changes("random", *GMP),
    "method.also_share": changes("0.5", *GMP, "method.also=random"),
    "method.absent_decay": changes("0.1", *GMP, "method.storage=shadow"),
    "method.name": same("other", why=LABEL),
    "method.sparse": changes("false", *STATIC),
    "method.shrink": changes("true", *STATIC),
    "method.initial": changes("magnitude"),
    "method.sparsity_schedule": changes("linear", *GMP),
    "method.initial_sparsity": changes("0.5", *GMP),
    "method.sparsity_end": changes("50%", *GMP),
    "method.begin": changes("30%"),
    "method.end": changes("50%"),
    "method.every": changes("3it"),
    "method.prune": changes("random", *GMP),
    "method.scope": changes("global", *GMP),
    "method.drop": changes("random"),
    "method.grow": changes("random"),
    "method.drop_fraction": changes("0.5"),
    "method.drop_schedule": changes("constant"),
    "method.drop_floor": changes("0.2"),
    "method.drop_rounding": changes("ceil"),
    "method.drop_scope": changes("global"),
    "method.grow_scope": changes("global"),
    "method.redistribute": changes("survivors", "method.drop_scope=global"),
    "method.grown": changes("normal"),
    "method.grown_scale": changes("2", "method.grown=uniform"),
    "method.regrow": changes("never", "method=set"),
    "method.momentum": changes("0.5", "method=snfs"),
    "method.when": changes("replace"),
    "method.storage": changes("shadow"),
    "method.collapse": refused("refuse", "method=magnitude_init", "sparsity=0.97"),
    "method.rewind": changes("weights", *GMP),
    "method.ticket": changes("reinit", *GMP, "method.rewind=weights"),
    "distribution.name": changes("balanced"),
    "distribution.power": changes("0.5"),
    "distribution.first_dense": changes("true"),
    "distribution.last_dense": changes("true"),
    "distribution.fc_density": changes("0.5", "distribution=erk_plus"),
    "distribution.compat": changes("turboprune", "distribution=balanced"),
    "distribution.fixed": changes("++distribution.fixed={{fc2.weight: 0.5}}"),
    "structure.name": refused("blocks"),
    "structure.n": refused("2"),
    "structure.m": refused("4"),
    "structure.block": changes("[8,8]", "structure=block"),
    "structure.misfit": changes("skip", "structure=block"),
    "selector.name": same("other", why=LABEL),
    "selector.kinds": changes("[linear]", "model=tiny_conv"),
    "selector.include": changes("[fc1*]"),
    "selector.exclude": changes("[fc1*]"),
    "selector.first": changes("false"),
    "selector.last": changes("false"),
    "optimizer.name": changes("adam"),
    "optimizer.lr": changes("0.01"),
    "optimizer.weight_decay": changes("0.01"),
    "optimizer.momentum": changes("0.5"),
    "optimizer.nesterov": changes("false"),
    "optimizer.beta1": changes("0.5", "optimizer=adam"),
    "optimizer.beta2": changes("0.5", "optimizer=adam"),
    "optimizer.eps": changes("0.01", "optimizer=adam"),
    "optimizer.decay_norms": changes("false"),
    "schedule.name": changes("linear"),
    "schedule.warmup": changes("3it"),
    "schedule.milestones": changes("[1ep]", "schedule=step"),
    "schedule.gamma": changes("0.5", "schedule=step"),
    "schedule.final": changes("0.5"),
    "trainer.accelerator": speed("auto"),
    "trainer.devices": refused("1000"),  # two are tried by trainer=ddp_cpu
    "trainer.precision": changes("64"),
    "trainer.accumulate": changes("2"),
    "trainer.clip": changes("0.1"),
    "trainer.ema": changes("0.9"),
    "trainer.compile": speed("true"),
    "trainer.channels_last": speed("false", "model=tiny_conv"),
    "trainer.patience": changes("1", "optimizer.lr=1e-9", "epochs=4", "method.end=1ep"),
    "trainer.label_smoothing": changes("0.1"),
    "trainer.mixup": changes("0.5"),
    "trainer.cutmix": changes("0.5"),
    "trainer.checkpoint_every": same("0", why="what an interruption costs"),
    "trainer.threads": speed("2"),
    "logger.name": changes("tensorboard", look="files"),
    "logger.project": changes("other", *WANDB, look="wandb"),
    "logger.entity": changes("us", *WANDB, look="wandb"),
    "logger.mode": changes("disabled", *WANDB, look="wandb"),
    "logger.group": changes("other", *WANDB, look="wandb"),
    "logger.tags": changes("[other]", *WANDB, look="wandb"),
    "calibration.name": same("other", why=LABEL),
    "calibration.dataset": refused("c4"),  # changes a pruned language model: test_llm_run
    "calibration.split": refused("train"),
    "calibration.samples": refused("4"),
    "calibration.length": refused("64"),
    "calibration.order": refused("random"),
    "calibration.activations": refused("disk"),
    "eval.name": same("other", why=LABEL),
    "eval.dataset": refused("c4"),
    "eval.split": refused("train"),
    "eval.lengths": refused("[64]"),
    "eval.max_segments": refused("4"),
    "eval.dense": refused("false"),
    "eval.measures": refused("[cloze]"),
    "eval.errors": refused("true"),
    "eval.questions": refused("20"),
    "eval.context": refused("16"),
    "eval.continuation": refused("4"),
    "eval.tasks": refused("[rte]"),
    "eval.limit": refused("10"),
    "model.weights": refused("disk"),
    "recovery.name": refused("lora"),  # changes a recovered language model: test_llm_recovery_run
    "recovery.tokens": refused("2048"),
    "recovery.batch": refused("4"),
    "recovery.length": refused("64"),
    "recovery.dataset": refused("c4"),
    "recovery.split": refused("train"),
    "recovery.train": refused("linears"),
    "recovery.absent": refused("decay"),
    "recovery.every": refused("5"),
    "recovery.score": refused("wanda"),
    "recovery.decay": refused("0.1"),
    "recovery.ramp": refused("10%"),
    "recovery.decay_in": refused("decoupled"),
    "recovery.distill": refused("0.5"),
    "recovery.temperature": refused("2.0"),
    "recovery.rank": refused("8"),
    "recovery.alpha": refused("8.0"),
    "recovery.dropout": refused("0.1"),
    "recovery.targets": refused("[q]"),
    "recovery.merge": refused("masked"),
    "recovery.slorb": refused("16"),
    "recovery.slorb_projection": refused("true"),
    "recovery.scale": refused("64"),
    "save_masks": same("true", why="a file more, of a pruned language model"),
    "save_model": same("true", why="a folder more, of a pruned language model"),
    "table": same("+table=quick", why="read by the sweep that starts the run"),
    "sparsity": changes("0.5"),
    "seed": changes("1"),
    "training_flops": changes("2.0"),
    "epochs": changes("3"),
    "batch_size": changes("32"),
    "runs": same("{tmp}/other", why="where results are kept"),
    "force": same("true", why="does it again"),
    "quiet": changes("false", look="screen"),
    "plots": changes("true", look="files"),
    "allow": same("[flipdata]", why="allows, and asks for nothing"),
}
