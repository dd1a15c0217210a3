"""Recovery training of a pruned model, from its masks to its figures."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import torch
from lightning.pytorch import Callback
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from sparsebench.data.loader import TrainLoader
from sparsebench.llm.building import on_device
from sparsebench.llm.recovery.extras import Extra, Lora, Scales, Slorb, attach, detach
from sparsebench.llm.recovery.learner import Recoverer
from sparsebench.llm.recovery.method import Recovery
from sparsebench.llm.recovery.outcome import Recovered
from sparsebench.llm.recovery.plan import Plan, targeted
from sparsebench.llm.recovery.pruned import Pruned
from sparsebench.llm.recovery.spec import RecoverySpec
from sparsebench.sparsity.flops import LayerFlops, layer_flops
from sparsebench.sparsity.masks import pack
from sparsebench.sparsity.spec import SelectorSpec
from sparsebench.sparsity.time import Duration
from sparsebench.training.checkpoint import Checkpoint, find_checkpoint
from sparsebench.training.optimizers import build_optimizer, build_schedule
from sparsebench.training.progress import Progress
from sparsebench.training.sparsify import Sparsify
from sparsebench.training.trainer import build_trainer, quiet_lightning


def recover(cfg: DictConfig, folder: Path, plan: Plan, pruned: Pruned) -> Recovered:
    """Train a pruned model in place, from a checkpoint if there is one.

    Args:
        cfg: the whole config.
        folder: of the run; checkpoints go there.
        plan: dials and data.
        pruned: the model.

    Raises:
        Diverged: the loss is not finite.
        Interrupted: a signal came; the checkpoint is written.
    """
    spec, model = plan.spec, pruned.language.model
    cfg = _one_epoch(cfg, spec)
    flops = layer_flops(model, (spec.length,), names=list(pruned.layers), dtype=torch.long)
    choose = pruned.chooser(spec.looks_at_text)
    extras = _extras(cfg, spec, pruned)
    if spec.chooses:
        pruned.take_latent()
    _freeze(spec, model, pruned.layers)
    decay = pull(cfg, spec, model, pruned) if spec.decay is None else spec.decay
    masks = {name: pack(pruned.mask(name)) for name in pruned.layers}
    method = Recovery(spec, masks, choose, decay)
    learner = Recoverer(model, cfg, spec, pruned.teacher if spec.distill else None)
    begin = time.perf_counter()
    sparsify = _sparsify(method, pruned) if spec.rank is None else None
    loss = fit(cfg, folder, plan, learner, sparsify)
    seconds = time.perf_counter() - begin
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    on_device(cfg, pruned.language).model.eval()
    session = sparsify.session if sparsify else None
    settled = pruned.settle(session.masks if session else None)
    added = sum(
        p.numel()
        for extra in extras.values()
        if not isinstance(extra, Scales)  # these multiply weights, not tokens
        for p in extra.parameters()
        if p.requires_grad
    )
    apart = _fold(extras, pruned)
    metrics = {
        "recovery/tokens": spec.tokens,
        "recovery/steps": spec.steps,
        "recovery/loss": loss,
        "recovery/parameters": learning,
        "recovery/adapter_parameters": added if apart else 0,
        "recovery/flips": method.flips,
        "recovery/decay": decay,
        "flops/recovery": training_flops(spec, flops, pruned.outcome.sparsities, added),
        "seconds/recovery": seconds,
    }
    notes = [*plan.notes, *_said(spec, added if apart else 0)]
    layers = {_layer(name): layer for name, layer in pruned.layers.items()}
    turned = list(pruned.turned.values())
    if not apart:  # measured as it will be loaded
        while turned:
            turned.pop().back()
    return Recovered(metrics | settled, notes, apart, layers, turned)


def _layer(weight: str) -> str:
    return weight.removesuffix(".weight")


def _said(spec: RecoverySpec, apart: int) -> list[str]:
    """That a model is more than its sparse weights."""
    if not apart:
        return []
    kind = "LoRA" if spec.rank else "SLoRB"
    return [
        f"{kind} is apart from the sparse weights and not merged, which would fill their zeros: "
        f"figures of the recovered model are with its {apart} parameters (folder adapter)"
    ]


def _one_epoch(cfg: DictConfig, spec: RecoverySpec) -> DictConfig:
    """The config of a training whose one epoch has all steps."""
    found = OmegaConf.create(cfg)
    assert isinstance(found, DictConfig)
    with open_dict(found):
        found.epochs, found.batch_size = 1, spec.batch
    return found


def _sparsify(method: Recovery, pruned: Pruned) -> Sparsify:
    return Sparsify(
        method, selector=SelectorSpec(include=list(pruned.layers)), seed=0, module="model"
    )


def _extras(cfg: DictConfig, spec: RecoverySpec, pruned: Pruned) -> dict[str, Extra]:
    """Give layers what they get beside their weights; by the names of the weights."""
    found: dict[str, Extra] = {}
    for name, layer in pruned.layers.items():
        if spec.rank is not None and targeted(spec, _layer(name)):
            found[name] = Lora(layer, spec, pruned.mask(name), cfg.seed, name)
        elif spec.slorb is not None:
            found[name] = Slorb(layer, spec, pruned.dense(name) * ~pruned.mask(name))
        elif spec.scale is not None:
            found[name] = Scales(layer, spec)
    for name, extra in found.items():
        attach(pruned.layers[name], extra)
    return found


def _fold(extras: Mapping[str, Extra], pruned: Pruned) -> dict[str, Extra]:
    """Put extras into the weights; those that stay apart, by the names of their layers."""
    for name, extra in extras.items():
        if not extra.stays:
            detach(pruned.layers[name], pruned.mask(name))
    return {_layer(name): extra for name, extra in extras.items() if extra.stays}


def _freeze(spec: RecoverySpec, model: nn.Module, layers: Mapping[str, nn.Linear]) -> None:
    """Let only those parameters learn that are to; extras always do."""
    extra = {id(p): p.requires_grad for m in model.modules() if isinstance(m, Extra)
             for p in m.parameters()}  # fmt: skip
    weights = {id(p) for layer in layers.values() for p in layer.parameters(recurse=False)}
    for parameter in model.parameters():
        key = id(parameter)
        free = spec.rank is None and (spec.train == "all" or key in weights)
        parameter.requires_grad_(extra.get(key, free))


def pull(cfg: DictConfig, spec: RecoverySpec, model: nn.Module, pruned: Pruned) -> float:
    """The L1 pull that brings the largest weight outside the masks to 0 over training.

    max |w| over the sum of learning rate x ramp of all steps: no gradient working against it.
    """
    largest = max(
        float(layer.weight.detach().masked_fill(pruned.mask(name), 0.0).abs().max())
        for name, layer in pruned.layers.items()
    )
    optimizer = build_optimizer(model, cfg.optimizer, tuple(cfg.allow), fused=False)
    (factor,) = build_schedule(optimizer, cfg.schedule, spec.steps, spec.steps).lr_lambdas
    ramp = Duration.parse(spec.ramp, "recovery.ramp").steps(spec.steps, spec.steps)
    rises = (min(step / ramp, 1.0) if ramp else 1.0 for step in range(spec.steps))
    way = sum(float(cfg.optimizer.lr) * factor(s) * share for s, share in enumerate(rises))
    return largest / way if way else 0.0


def fit(
    cfg: DictConfig, folder: Path, plan: Plan, learner: Recoverer, sparsify: Sparsify | None
) -> float:
    """Train to the end, from the newest checkpoint if there is one; the mean loss.

    Raises:
        Diverged: the loss is not finite.
        Interrupted: a signal came; the checkpoint is written.
    """
    quiet_lightning()
    learner.model.train()
    checkpoint = Checkpoint(folder, folder.name, cfg.trainer.checkpoint_every)
    callbacks: list[Callback] = [sparsify] if sparsify else []
    if Progress.wanted(cfg):
        callbacks.append(Progress(cfg))
    trainer = build_trainer(cfg, [*callbacks, checkpoint])
    batch, multiple = cfg.batch_size // cfg.trainer.accumulate, cfg.trainer.accumulate
    loader = TrainLoader(plan.data, batch, cfg.seed, multiple=multiple)
    learner.steps_per_epoch = plan.spec.steps
    resume = find_checkpoint(folder, folder.name)
    trainer.fit(learner, train_dataloaders=loader, ckpt_path=resume, weights_only=True)
    if sparsify and sparsify.session is None:  # the checkpoint was that of the end
        sparsify.on_train_start(trainer, learner)
        sparsify.on_train_end(trainer, learner)
    return learner.take_train_loss()


def training_flops(
    spec: RecoverySpec, flops: LayerFlops, sparsities: Mapping[str, float], added: int
) -> float:
    """FLOPs of all steps: forward pass, gradients of activations and of weights, and the teacher.

    A pass over sparse weights costs their share. Weights outside the masks that learn need a dense
    gradient, those that take part a dense pass as well. LoRA has a weight gradient of its own only.
    What is frozen beside that is counted as if it learned.

    Args:
        spec: the dials.
        flops: dense FLOPs of a sequence.
        sparsities: of the layers.
        added: parameters of extras; 6 FLOPs each a token.
    """
    sparse = flops.forward({name: 1.0 - share for name, share in sparsities.items()})
    dense = float(flops.total)
    each = {"zero": 3 * sparse, "shadow": 2 * sparse + dense, "decay": 3 * dense}[spec.absent]
    if spec.rank is not None:
        each = 2 * sparse
    each += dense if spec.distill else 0.0
    sequences = spec.steps * spec.batch
    return sequences * each + 6.0 * added * spec.tokens
