"""Create the dashboard of sparsebench's runs in a project of W&B.

python scripts/wandb_dashboard.py --entity ME --project sparsebench [--table cifar] [--dry-run]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from importlib.util import find_spec
from typing import Any

from sparsebench.dashboard.client import first_line, has_account
from sparsebench.dashboard.layout import spec, workspace


def main() -> int:
    """Exit code 0 saved, 1 W&B refused it, 2 it can't be tried."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entity", required=True, help="user or team")
    parser.add_argument("--project", default="sparsebench")
    parser.add_argument("--table", help="only the runs of this table")
    parser.add_argument("--dry-run", action="store_true", help="print its spec, send nothing")
    asked = parser.parse_args()
    if find_spec("wandb_workspaces") is None:
        return say("wandb-workspaces is needed: pip install 'sparsebench[wandb]'", 2)
    if not asked.dry_run and not has_account():
        return say("no W&B account is known: 'wandb login', or --dry-run", 2)
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    dashboard: Any = workspace(asked.entity, asked.project, asked.table)
    if asked.dry_run:
        print(json.dumps(spec(dashboard), indent=2))
        return 0
    try:
        dashboard.save()
        print(dashboard.url)
    except Exception as error:  # W&B and its transports raise many kinds
        return say(f"W&B did not take it: {type(error).__name__}: {first_line(error)}", 1)
    return 0


def say(text: str, code: int) -> int:
    """One line on stderr."""
    print(f"wandb_dashboard: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
