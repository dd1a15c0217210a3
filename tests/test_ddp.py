"""Two gloo processes on the CPU: the masks of one process, and a corrupted rank is noticed.

This file is also the program that the two processes run.
"""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sparsebench.library import method
from sparsebench.sparsity import Session
from sparsebench.sparsity.examples import Examples
from sparsebench.training.sparsify import Sparsify

METHODS = ("rigl", "set", "snfs", "gmp", "gmp_frozen", "dpf", "movement", "str")
BATCH, BATCHES, EPOCHS = 16, 4, 3


class Net(LightningModule):
    """A user's module, in double precision so that halves of a batch add up to the whole."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 4)).double()

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def forward(self, x):
        return self.net(x)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Notes(Callback):
    """Writes down the masks before each step, and may corrupt those of one rank."""

    def __init__(self, sparsify: Sparsify, corrupt: bool = False) -> None:
        self.sparsify, self.corrupt = sparsify, corrupt
        self.digests: list[str] = []

    def on_train_batch_start(self, trainer, module, batch, index):
        masks = self.sparsify.session.masks
        self.digests.append(masks.digest())
        if self.corrupt and trainer.global_step == 5 and trainer.global_rank == 1:
            mask = masks["net.0.weight"].view(-1)
            on, off = mask.nonzero()[0], (~mask).nonzero()[0]
            masks.move("net.0.weight", on, off, trainer.optimizers)


def batches(rank: int, ranks: int) -> DataLoader:
    """This rank's rows of every global batch."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(BATCH * BATCHES, 6, generator=generator, dtype=torch.float64)
    y = torch.randint(4, (len(x),), generator=generator)
    return DataLoader(TensorDataset(x[rank::ranks], y[rank::ranks]), batch_size=BATCH // ranks)


def train(name: str, folder: Path, ranks: int, corrupt: bool = False, **dials) -> dict:
    """Train, and say what came of it."""
    rank = int(os.environ.get("RANK", 0))
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    module = Net()
    torch.manual_seed(100 + rank)  # ranks need not agree; the first decides
    sparsify = Sparsify(method(name, sparsity=0.8, every="2it", **dials))
    notes = Notes(sparsify, corrupt)
    trainer = Trainer(
        accelerator="cpu", devices=ranks, strategy="ddp" if ranks > 1 else "auto", logger=False,
        max_epochs=EPOCHS, use_distributed_sampler=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=[sparsify, notes],
    )  # fmt: skip
    said = None
    try:
        trainer.fit(module, batches(rank, ranks))
    except RuntimeError as error:
        said = str(error)
    weights = [p.detach().flatten().tolist() for p in module.parameters()]
    return {"digests": notes.digests, "error": said, "weights": weights}


def main(folder: Path) -> None:
    """One of the two processes."""
    results = {name: train(name, folder, 2) for name in METHODS}
    results["snip"] = train("snip", folder, 2)
    results["hebbian"] = train("rigl", folder, 2, grow="hebbian")
    results["corrupted"] = train("set", folder, 2, corrupt=True)
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(results))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ddp")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, __file__, str(folder)], env=environment, capture_output=True, text=True,
        timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", METHODS)
def test_masks_of_two_ranks_are_those_of_one_process(name, ranks, tmp_path):
    alone = train(name, tmp_path, 1)
    assert len(alone["digests"]) == BATCHES * EPOCHS
    assert len(set(alone["digests"])) > 3
    for rank in ranks:
        assert rank[name]["error"] is None
        assert rank[name]["digests"] == alone["digests"]
        for ours, theirs in zip(alone["weights"], rank[name]["weights"], strict=True):
            assert ours == pytest.approx(theirs, abs=1e-12)
    assert ranks[0][name]["weights"] == ranks[1][name]["weights"]


@pytest.mark.parametrize("name", ["snip", "hebbian"])
def test_all_ranks_look_at_the_batches_of_the_first(name, ranks):
    for rank in ranks:  # each has samples of its own, whose masks would differ
        assert rank[name]["error"] is None
        assert len(rank[name]["digests"]) == BATCHES * EPOCHS
    assert ranks[0][name]["digests"] == ranks[1][name]["digests"]
    if name == "hebbian":
        assert len(set(ranks[0][name]["digests"])) > 3
        return
    found = []
    for rank in (0, 1):
        model = Net()
        session = Session(
            method("snip", sparsity=0.8), model, model.configure_optimizers(), total_steps=1,
            examples=Examples(lambda seed, rank=rank: iter(batches(rank, 2))),
        )  # fmt: skip
        found.append(session.masks.digest())
    assert ranks[0][name]["digests"][0] == found[0] != found[1]


def test_a_corrupted_rank_stops_the_run(ranks):
    for rank in ranks:
        assert rank["corrupted"]["error"] == "ranks hold different masks after step 6; stopped"
        assert len(rank["corrupted"]["digests"]) == 6  # the update after the sixth step saw it
    one, two = (rank["corrupted"]["digests"] for rank in ranks)
    assert one == two  # until then there was nothing to see


if __name__ == "__main__":
    main(Path(sys.argv[1]))
