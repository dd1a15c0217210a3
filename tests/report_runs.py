"""Made-up runs with configs, curves and layers: what the tests of the HTML report read."""

import json
import os
from html.parser import HTMLParser

from sparsebench.files import write_text
from sparsebench.result import NAME, write_result
from sparsebench.sweep.cells import Cells, Run
from sparsebench.sweep.grid import Grid, Line
from sparsebench.sweep.results import collect
from sparsebench.sweep.spec import Axis, Claim, Metric, Picture, Published, TableSpec, Term

ROWS = ("dense", "set", "rigl")
COLUMNS = (0.8, 0.9)
SEEDS = (0, 1, 2)
LAYERS = {"fc1.weight": ([300, 64], 19_200), "fc2.weight": ([10, 300], 3_000)}
NOON = 1_700_049_600  # 15 Nov 2023, 12:00 UTC
METRICS = [
    Metric("test/accuracy", "Accuracy (%)", ".2f", 100.0, "max"),
    Metric("nonzeros", "Non-zeros", ",.0f", summary="range"),
]
SPEC = TableSpec(
    name="mine",
    title="Mine & yours",
    scale="quick",
    setup="an MLP on few images",
    about="Made up.",
    differences=["20 epochs instead of 100"],
    rows=Axis("method", "Method"),
    columns=Axis("sparsity", "Sparsity"),
    metric=METRICS,
    picture=Picture("sparsity", "test/accuracy", "method"),
    published=[
        Published({"set": [93.1, 0.2], "rigl": 94.5}, "A paper, arXiv 0000.00000, Table 1", 0.8,
                  "test/accuracy", 3, True)
    ],
    claims=[
        Claim("better", "RigL beats SET at 90 %", "A paper, Fig. 2", "rigl", "", "above", 0.0,
              [Term("rigl", 0.9, 1.0), Term("set", 0.9, -1.0)])
    ],
)  # fmt: skip


def accuracy(row, column, seed):
    """What a run ends with."""
    base = {0: 0.95, 1: 0.90, 2: 0.92}.get(row, 0.9)
    return base - (0.05 * column if row else 0) + 0.01 * seed


def curve(row, column, seed, epoch):
    """Validation accuracy after an epoch."""
    return round(accuracy(row, column, seed) * (1 - 0.5**epoch), 6)


def config(row, column, seed):
    """A config that has a common part."""
    return {
        "model": {"name": "mlp", "hidden": [300, 100], "args": {}},
        "method": {"name": row, "every": "5it"},
        "sparsity": column,
        "seed": seed,
    }


def finish(folder, i, j, seed, names, epochs):
    """Write the folder of a run as one that has finished leaves it."""
    row, column = names
    density = 1.0 if i == 0 else round(1 - float(column), 3) if isinstance(column, float) else 0.1
    folder.mkdir(parents=True)
    lines = [
        f"{e},{10 * e},0.1,{1 / e},{curve(i, j, seed, e)},{1 - density}"
        for e in range(1, epochs + 1)
    ]
    head = "epoch,step,lr,train/loss,validation/accuracy,sparsity"
    write_text(folder / "metrics.csv", "\n".join([head, *lines, ""]))
    lines = [f"{e},{density},{min(1.0, 2 * density)}" for e in range(1, epochs + 1)]
    write_text(folder / "density.csv", "\n".join([f"epoch,{','.join(LAYERS)}", *lines, ""]))
    layers = {
        name: {"order": k, "shape": shape, "weights": n, "nonzeros": round(n * density)}
        for k, (name, (shape, n)) in enumerate(LAYERS.items())
    }
    metrics = {
        "test/accuracy": accuracy(i, j, seed),
        "nonzeros": round(22_200 * density),
        "flops/training_relative": density + 0.01 * i,
        "flops/inference_relative": density,
        "seconds/fit": 30.5,
        "weights_sha256": "ab" * 32,
    }
    environment = {"versions": {"torch": "2.9.0"}, "python": "3.11.7", "machine": "x86_64"}
    write_result(
        folder,
        identity=folder.name,
        status="finished",
        config=config(row, column, seed),
        environment=environment | {"cores": 2, "threads": 1, "command": f"seed={seed} runs=/a/b"},
        metrics=metrics,
        layers=layers,
        notes=[f"a note of seed {seed}"] if seed == 1 else [],
    )
    os.utime(folder / NAME, (NOON, NOON))


def fail(folder, names, seed, error, log):
    """Write the folder of a run that has failed."""
    folder.mkdir(parents=True)
    (folder / "error.txt").write_text(log)
    write_result(
        folder, identity=folder.name, status="failed", config=config(*names, seed),
        environment={}, metrics={}, error=error,
    )  # fmt: skip


def build(runs, rows=ROWS, columns=COLUMNS, seeds=SEEDS, spec=SPEC, epochs=20, failed=None):
    """Results of made-up runs; the first row is dense, the same in all columns.

    ``failed`` has (error, log) by (row number, column number, seed); None is a missing run.
    """
    cells = Cells()
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            for seed in seeds:
                name = f"mlp-{i}-{j if i else 0}-{seed}"
                cells.of[i, j, seed] = name
                if name in cells.runs:
                    continue
                overrides = ("model=mlp", f"method={row}", f"sparsity={column}", f"seed={seed}")
                label = f"{row}, Sparsity {column}, seed {seed}"
                cells.runs[name] = Run(name, runs / name, overrides, label, epochs, i > 0)
                at = (i, j, seed)
                if failed and at in failed:
                    if failed[at]:
                        fail(runs / name, (row, column), seed, *failed[at])
                else:
                    finish(runs / name, i, j, seed, (row, column), epochs)
    lines = [tuple(Line(str(name), name, ()) for name in names) for names in (rows, columns)]
    grid = Grid(spec, *lines, common=("model=mlp",), last=(), seeds=tuple(seeds), changed=False)
    return collect(grid, cells, {})


class Page(HTMLParser):
    """A page as a browser's parser sees it: elements, texts by element, and the data."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.scripts, self.texts, self.cells = [], [], [], {}
        self._link = None
        self.feed(text)
        self.data = next(json.loads(s) for kind, s in self.scripts if kind == "application/json")

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.elements.append((tag, found))
        if tag == "script":
            self.scripts.append((found.get("type"), ""))
        if tag == "a" and found.get("href", "").startswith("#cell/"):
            self._link = found["href"].removeprefix("#cell/")

    def handle_endtag(self, tag):
        if tag == "a":
            self._link = None

    def handle_data(self, text):
        if self.elements and self.elements[-1][0] == "script" and self.cdata_elem == "script":
            kind, said = self.scripts[-1]
            self.scripts[-1] = (kind, said + text)
            return
        self.texts.append(text)
        if self._link:
            self.cells.setdefault(self._link, []).append(text)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())
