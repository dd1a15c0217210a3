"""results/PAPERS.md: what became of each paper's claims.

    python scripts/papers.py

Each paper has one table of claims; the page is drawn from the tables' claims.json alone.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from sparsebench.files import write_text

RESULTS = Path(__file__).parents[1] / "results"
#: Table, paper, arXiv id.
PAPERS = (
    ("g2gnet", "Group-to-group topologies with Hebbian growth (G2GNet)", "2508.14140"),
    ("dsl", "Dynamic sparse learning for recommendation (DSL)", "2402.02855"),
    ("dynst", "Dynamic sparse training of input locations (DynST)", "2403.02914"),
    ("ten_lessons", "Ten lessons we have learned in the new sparseland", "2302.02596"),
    ("sparse_ift", "Sparse iso-FLOP transformations (Sparse-IFT)", "2303.11525"),
    ("ftwt", "Fire together wire together (FTWT)", "2110.08232"),
    ("soups", "Sparse model soups", "2306.16788"),
    ("bdwp", "Bidirectional weight pruning (BDWP)", "2309.13015"),
    ("group_channels", "Group channel pruning", "2306.01526"),
    ("random_pruning", "The unreasonable effectiveness of random pruning", "2202.02643"),
    ("pgf", "Progressive gradient flow for N:M sparsity", "2402.04744"),
    ("gmp", "To prune, or not to prune (GMP)", "1710.01878"),
    ("gmp_lstm", "To prune, or not to prune (GMP), a character LSTM", "1710.01878"),
    ("ap", "Activating while pruning (AP)", "2212.06145"),
    ("quickselection", "Quick and robust feature selection (QuickSelection)", "2012.00560"),
    ("random_search", "Random search as a baseline for sparse architectures", "2403.08265"),
    ("dynamics", "Model-based control with sparse neural dynamics", "2312.12791"),
    ("tiny_transformer", "Tiny time-series transformers", "2303.08951"),
)


def page(results: Path) -> str:
    """The page as Markdown.

    Args:
        results: folder with ``<table>/<scale>/claims.json``.
    """
    lines = ["# What became of each paper's claims", ""]
    lines += [
        "Verdicts are those of the tables at the scale named (`make papers`, `make <table>`): a "
        "small scale tells about itself, and refutes or supports nothing at the paper's own.",
        "",
        "| Paper | Table | Supported | Refuted | Inconclusive |",
        "| :-- | :-- | --: | --: | --: |",
    ]
    details: list[str] = []
    for table, title, arxiv in PAPERS:
        found = sorted((results / table).glob("*/claims.json"))
        if not found:
            lines.append(f"| {title} ({arxiv}) | not run yet | | | |")
        for path in found:
            claims = json.loads(path.read_text())
            count = Counter(claim["verdict"] for claim in claims)
            scale = path.parent.name
            numbers = (count["supported"], count["refuted"], len(claims))
            others = numbers[2] - numbers[0] - numbers[1]
            link = f"[{table}, {scale}]({table}/{scale}/table.md)"
            lines.append(f"| {title} ({arxiv}) | {link} | {numbers[0]} | {numbers[1]} | {others} |")
            details += ["", f"## {title} (arXiv {arxiv}), {scale} scale", ""]
            details += [f"- **{c['verdict']}**: {c['claim']} ({c['source']})" for c in claims]
    return "\n".join([*lines, *details]) + "\n"


if __name__ == "__main__":
    write_text(RESULTS / "PAPERS.md", page(RESULTS))
    print(RESULTS / "PAPERS.md")
