"""Commands that train nothing, over a bare Hydra application.

python scripts/bench/command_line.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import alternate, report

BARE = """
import hydra
@hydra.main(version_base="1.3", config_path=None)
def app(cfg):
    print(cfg)
app()
"""


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "bare.py"
        script.write_text(BARE)

        def command(*words: str, **env: str) -> object:
            return subprocess.run(
                [sys.executable, *words], cwd=folder, capture_output=True, env={**os.environ, **env}
            )

        def bare() -> object:
            return command(str(script), "hydra.run.dir=.", "hydra.output_subdir=null")

        ours = ("-m", "sparsebench")
        cases = {
            "--help": lambda: command(*ours, "--help"),
            "--cfg job": lambda: command(*ours, "--cfg", "job"),
            "completion": lambda: command(
                *ours, "-sc", "query=bash", COMP_LINE="sparsebench method=", COMP_POINT="19"
            ),
            "a refused override": lambda: command(*ours, "sparsty=0.9"),
            "list methods": lambda: command(*ours, "list", "methods"),
        }
        report(
            "command_line",
            [
                alternate(f"sparsebench {n} / bare Hydra app", c, bare, target=2.5, warm_up=1)
                for n, c in cases.items()
            ],
        )


if __name__ == "__main__":
    main()
