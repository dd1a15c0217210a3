"""Who has a run: claim files, so that no two processes train it, on one node or on many.

A claim is a file ``.owner-<n>`` in the run's folder. It says which process made it, and is touched
every :data:`BEAT` seconds. The one with the highest number counts: the run is free if there is
none, if it is empty (released), or if its owner is dead. Then number n + 1 may be made, by a hard
link, which the file system grants to one process only, on NFS too. Locks of the operating system
would free themselves, but many network file systems keep them to one node.

Why two never have a run. Numbers only rise: a claim is removed only by the owner of a higher one,
or, of a run that is refused, together with its folder by its living owner. So whoever acts on what
it saw a while ago either finds its number taken, or, where that file is gone already, sees a
higher one when it looks again after the link, and withdraws.

Dead is, on the same node, a process that has ended, which is seen at once; on another node, one
whose last beat is older than :data:`LIMIT` by the clock of the file system. A process that was
only asleep for that long finds at its next beat that the run is someone else's, and stops.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import re
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

#: Seconds between two beats of an owner.
BEAT = 10.0
#: Seconds without a beat after which an owner on another node counts as dead. File attributes
#: on NFS may be a minute old.
LIMIT = 120.0
#: Seconds between two looks at a run that one waits for.
PERIOD = 0.5

_NAME = re.compile(r"\.owner-(\d+)")
#: What file systems without hard links answer.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class Claimed(Exception):
    """Another process has the run, and it was not to be waited for."""


class Lost(Exception):
    """Another process has taken the run over, since this one had not been heard of."""


class _Stop(BaseException):
    """Ends a run from its beat; not an ``Exception``, so that nobody takes it for a fault."""


@dataclass(frozen=True)
class Owner:
    """A process that has claimed a run.

    Attributes:
        host: its node's name.
        place: the node, since when it is up, and its process ids' name space.
        pid: its process id.
        started: when it started (ticks), which tells it from a later one with its id.
        token: of this claim.
    """

    host: str
    place: str
    pid: int
    started: str
    token: str

    def __str__(self) -> str:
        """As it is told."""
        return f"process {self.pid} on {self.host}"


@dataclass(frozen=True)
class _Claim:
    """A claim file that was read: its number, its owner (None: free), its beat."""

    number: int
    owner: Owner | None
    beat: float


def owner_of(folder: Path) -> Owner | None:
    """Who has claimed a run and not released it; a dead process counts too."""
    claim = _read(folder)
    return claim.owner if claim else None


def living_owner(folder: Path) -> Owner | None:
    """Who has a run at present."""
    claim = _read(folder)
    return claim.owner if claim and claim.owner and _alive(folder, claim) else None


@contextmanager
def hold(folder: Path, *, wait: bool = True) -> Iterator[Path]:
    """Have a run to oneself; its folder is made.

    Args:
        folder: the run's folder.
        wait: for another process that has it, which is named on stderr.

    Yields:
        The claim file; whoever removes it gives up the run and must remove the folder next.

    Raises:
        Claimed: another process has it, and ``wait`` is false.
        Lost: another process took it meanwhile.
        OSError: the folder can't be written to.
    """
    number, me = _take(folder, wait=wait)
    path = _path(folder, number)
    ended = threading.Event()
    beat = threading.Thread(
        target=_beat, args=(folder, number, me, ended, threading.get_ident()), daemon=True
    )
    beat.start()
    try:
        try:
            yield path
        finally:
            ended.set()
            beat.join()  # from here on it stops nobody
    except _Stop:
        raise Lost(f"{folder} was taken over by {owner_of(folder) or 'someone'}") from None
    finally:
        with contextlib.suppress(OSError):
            if _mine(folder, number, me):
                os.truncate(path, 0)  # unlike a new file it needs no room on the disk


def _take(folder: Path, *, wait: bool) -> tuple[int, Owner]:
    told: Owner | None = None
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        claim = _read(folder)
        if claim is None or claim.owner is None or not _alive(folder, claim):
            number = claim.number + 1 if claim else 1
            if me := _make(folder, number):
                return number, me
            continue
        if not wait:
            raise Claimed(f"{folder} is already running ({claim.owner})")
        if told != claim.owner:
            told = claim.owner
            print(f"sparsebench: {folder} is already running ({told}); waiting", file=sys.stderr)
        time.sleep(PERIOD)


def _make(folder: Path, number: int) -> Owner | None:
    """Make a claim of some number; None if another process was quicker."""
    me = Owner(socket.gethostname(), _place(), os.getpid(), _started(os.getpid()), uuid.uuid4().hex)
    new, path = folder / f".owner.{me.token}.tmp", _path(folder, number)
    try:
        new.write_text(json.dumps(asdict(me)))
        if not _link(new, path):
            return None
        others = [n for n in _numbers(folder) if n != number]
        if max(others, default=0) > number:  # what we had seen is long past
            path.unlink(missing_ok=True)
            return None
        for other in others:
            _path(folder, other).unlink(missing_ok=True)
    except FileNotFoundError:  # the folder of a run that was refused has gone
        return None
    finally:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
    return me


def _link(new: Path, path: Path) -> bool:
    try:
        os.link(new, path)
    except FileExistsError:  # perhaps by ourselves: NFS asks again if an answer got lost
        with contextlib.suppress(FileNotFoundError):
            return new.samefile(path)
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        try:  # the best there is: a rival between these two lines is found by the first beat
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        new.replace(path)
    return True


def _path(folder: Path, number: int) -> Path:
    return folder / f".owner-{number}"


def _numbers(folder: Path) -> list[int]:
    return [int(found[1]) for name in os.listdir(folder) if (found := _NAME.fullmatch(name))]


def _read(folder: Path) -> _Claim | None:
    """The claim that counts."""
    while True:
        try:
            number = max(_numbers(folder), default=0)
            if not number:
                return None
            with _path(folder, number).open() as file:  # NFS asks the server when a file is opened
                text, beat = file.read(), os.fstat(file.fileno()).st_mtime
            return _Claim(number, _parse(text), beat)
        except FileNotFoundError:
            if not folder.exists():
                return None
            time.sleep(0.01)  # it was removed by the owner of a higher one


def _parse(text: str) -> Owner | None:
    if not text:
        return None
    try:
        return Owner(**json.loads(text))
    except (ValueError, TypeError):  # of another version; only its beat tells
        return Owner("?", "", 0, "", "")


def _mine(folder: Path, number: int, me: Owner) -> bool:
    claim = _read(folder)
    return claim is not None and claim.number == number and claim.owner == me


def _beat(folder: Path, number: int, me: Owner, ended: threading.Event, thread: int) -> None:
    """Touch the claim, and stop the thread that holds it once it is someone else's."""
    pause = BEAT
    while not ended.wait(pause):
        with contextlib.suppress(OSError):  # a file system that is away may come back
            claim = _read(folder)
            if claim is None:
                continue  # the folder was removed, and nobody else has the run
            if claim.number == number and claim.owner == me:
                os.utime(_path(folder, number))
                continue
            _raise_in(thread)
            pause = min(BEAT, 1.0)  # and again, should the exception get lost in a callback


def _raise_in(thread: int) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_Stop))


# --- who is alive ------------------------------------------------------------------------------


def _alive(folder: Path, claim: _Claim) -> bool:
    owner = claim.owner
    assert owner is not None
    if owner.place == _place():
        return _running(owner.pid, owner.started)
    return _now(folder) - claim.beat <= LIMIT


def _now(folder: Path) -> float:
    """Seconds by the clock of the file system, which may be another machine's."""
    probe = folder / f".now.{uuid.uuid4().hex}.tmp"
    try:
        probe.touch()
        os.utime(probe)
        return probe.stat().st_mtime
    except FileNotFoundError:  # removed as a leftover: look again
        return 0.0
    finally:
        probe.unlink(missing_ok=True)


@cache
def _place() -> str:
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # there is no /proc outside Linux
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _started(pid: int) -> str:
    """When a process started; empty if unknown, or if it has ended and is only not yet buried."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else fields[18]


def _running(pid: int, started: str) -> bool:
    if started:
        return _started(pid) == started
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
