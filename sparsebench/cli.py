"""The command line: Hydra's own, with one-line errors; nothing heavy is imported here."""

from __future__ import annotations

import os
import signal
import sys
from io import TextIOWrapper
from typing import Any, NoReturn

from sparsebench.errors import Interrupted, UserError
from sparsebench.signals import handling, requeue, stop_at_once

USAGE = """sparsebench: experiments in sparse training

  sparsebench model=resnet20 data=cifar10 method=rigl sparsity=0.95 seed=1    one run
  sparsebench -m method=set,rigl sparsity=0.8,0.9 'seed=range(0,3)'           a sweep
  sparsebench task=profile model=resnet50 data=imagenet method=rigl           accounting only
  sparsebench list methods|models|data|tables [PATTERN]                       names
  sparsebench where OVERRIDES                                                 a run's folder
  sparsebench -m +table=cifar table.plan=true                                 what is left to do
  sparsebench compare OLD NEW [--json] [--html FILE]                          two tables' folders
  sparsebench push RUN_FOLDER... [--project P] [--entity E]                   runs into W&B
  sparsebench --cfg job OVERRIDES                                             the whole config
  sparsebench --info | --hydra-help                                           Hydra's own
"""


def main(argv: list[str] | None = None) -> None:
    """Entry point: exit code 0 done, 1 failed, 2 a mistake in what was asked, 128+n signal."""
    argv = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):  # a terminal without Unicode is no reason to stop
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        with handling(stop_at_once):
            code = _dispatch(argv)
        sys.stdout.flush()
        sys.exit(code)
    except UserError as error:
        _say(str(error))
        sys.exit(2)
    except Interrupted as error:
        _say(f"{error}; {requeue(error.signum)}")
        sys.exit(128 + error.signum)
    except KeyboardInterrupt as error:
        _say("interrupted; the same command goes on")
        sys.exit(128 + getattr(error, "signum", signal.SIGINT))
    except BrokenPipeError:  # stdout was a pipe that closed, such as head's
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def _dispatch(argv: list[str]) -> int:
    if argv[:1] in (["-h"], ["--help"], ["help"]):
        from sparsebench.commands import show_groups

        print(USAGE)  # Hydra's own help reads and copies each config, which takes seconds
        return show_groups()
    if argv[:1] == ["list"]:
        from sparsebench.commands import list_names

        return list_names(argv[1:])
    if argv[:1] == ["where"]:
        from sparsebench.commands import where

        return where(argv[1:])
    if argv[:1] == ["compare"]:
        from sparsebench.sweep.compare import compare_command

        return compare_command(argv[1:])
    if argv[:1] == ["push"]:
        from sparsebench.dashboard.push import push

        return push(argv[1:])
    return _hydra(argv)


def _hydra(argv: list[str]) -> int:
    """Compose by Hydra and run; its errors come back as exceptions and become one line."""
    import hydra

    from sparsebench.config.paths import config_folder
    from sparsebench.config.refusal import refusal
    from sparsebench.config.schema import register
    from sparsebench.config.words import spelled
    from sparsebench.sweep import sweeper

    _check_flags(argv)
    register()
    sweeper.register()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise instead of printing and exiting
    codes: list[int] = []
    stopped: list[BaseException] = []

    @hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")
    def job(cfg: Any) -> float | None:
        from sparsebench.reporting import run_and_report

        if cfg.table is not None:
            stopped.append(UserError("table: a table is made of many runs; add -m"))
            return None
        try:
            code, value = run_and_report(cfg)
        except (UserError, Interrupted, KeyboardInterrupt) as error:
            stopped.append(error)  # raised outside, where Hydra does not comment on it
            return None
        codes.append(code)
        return value

    before = sys.argv
    sys.argv = [before[0], *(_about_table(spelled(word)) for word in argv)]
    try:
        job()
    except UserError:
        raise
    except sweeper.CellsFailed:  # it has said which
        return 1
    except Exception as error:
        told = refusal(error, argv)
        if told is None:
            raise
        raise told from None
    finally:
        sys.argv = before
    if stopped:
        raise stopped[0]
    return max(codes, default=0)


def _about_table(word: str) -> str:
    """``table=NAME`` and ``table.FIELD=VALUE`` as Hydra wants them; a filter is text to it."""
    key, equals, value = word.partition("=")
    key = key.lstrip("+")
    if key == "table" and equals:
        return f"+{key}={value}"
    if not key.startswith("table.") or not equals:
        return word
    if key == "table.where" and value[:1] not in ("'", '"'):
        value = "'" + value.replace("\\", r"\\").replace("'", r"\'") + "'"
    return f"++{key}={value}"


def _check_flags(argv: list[str]) -> None:
    """Have Hydra's own parser find what is wrong with the flags, in one line."""
    from hydra._internal.utils import get_args_parser

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}; overrides stand together, before or after the flags (--help)")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]  # else it prints its usage
    parser.parse_args(argv)


def _say(text: str) -> None:
    print(f"sparsebench: {text}", file=sys.stderr, flush=True)
