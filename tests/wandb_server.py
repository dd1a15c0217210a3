"""A W&B server of a few lines for the real client, and a reader of the records it leaves."""

import contextlib
import gzip
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from wandb.proto.wandb_internal_pb2 import Record

KEY = "a" * 40


class Handler(BaseHTTPRequestHandler):
    """Answers the queries of a run: is it known, make it, take its files and its history."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *words):
        """Nothing on the screen."""

    def do_POST(self):
        body = self.body()
        content = json.loads(body) if self.path.endswith(("/graphql", "/file_stream")) else {}
        if self.path == "/graphql":
            asked = content.get("variables", {})
            name = re.search(r"(?:query|mutation)\s+(\w+)|$", content["query"])[1]
            with self.server.lock:
                self.server.asked.append(name)
                answer = getattr(self, str(name), lambda asked: {})(asked)
            self.say({"data": answer})
        elif self.path.endswith("/file_stream"):
            while self.server.stalled.is_set():
                time.sleep(0.01)
            with self.server.lock:
                self.stream(self.server.runs[self.path.split("/")[-2]], content)
            self.say({})
        else:
            self.say({})

    def do_PUT(self):
        self.body()
        self.say({})

    def body(self):
        content = self.rfile.read(int(self.headers.get("content-length") or 0))
        packed = self.headers.get("content-encoding") == "gzip"
        return gzip.decompress(content) if packed else content

    def say(self, answer):
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def stream(self, run, content):
        for name, part in content.get("files", {}).items():
            lines = run["files"].setdefault(name, [])
            lines[part["offset"] :] = part["content"]
        if content.get("complete"):
            run["exit"] = content["exitcode"]

    def Viewer(self, asked):
        return {"viewer": {"id": "v", "entity": "us", "username": "us", "flags": "{}"}}

    def UpsertView2(self, asked):
        if self.server.views is None:
            return {}
        self.server.views.append(asked)
        return {"upsertView": {"view": {"id": "w", "name": asked["name"]}, "inserted": True}}

    def RunResumeStatus(self, asked):
        run = self.server.runs.get(asked["name"])
        project = project_of(asked)
        if run is None:
            return {"model": {**project, "bucket": None}}
        history = run["files"].get("wandb-history.jsonl", [])
        summary = run["files"].get("wandb-summary.json", ["{}"])[-1]
        return {"model": {**project, "bucket": {
            "id": asked["name"], "name": asked["name"], "displayName": run["displayName"],
            "summaryMetrics": summary, "logLineCount": 0, "eventsLineCount": 0,
            "historyLineCount": len(history), "historyTail": json.dumps(history[-1:]),
            "eventsTail": "[]", "config": run["config"], "tags": run["tags"], "notes": None,
            "wandbConfig": json.dumps({"t": 1}),
        }}}  # fmt: skip

    def UpsertBucket(self, asked):
        new = asked["name"] not in self.server.runs
        run = self.server.runs.setdefault(asked["name"], {"files": {}})
        run.update({k: v for k, v in asked.items() if v is not None or k not in run})
        bucket = {"id": asked["name"], "name": asked["name"], "displayName": run["displayName"],
                  "description": "", "config": run["config"], "sweepName": None,
                  "project": project_of(asked), "historyLineCount": len(sent(run))}  # fmt: skip
        return {"upsertBucket": {"bucket": bucket, "inserted": new}}

    def CreateRunFiles(self, asked):
        url = f"{self.server.url}/upload"
        files = [{"name": name, "uploadUrl": url} for name in asked["files"]]
        return {"createRunFiles": {"runID": asked["run"], "uploadHeaders": [], "files": files}}


def project_of(asked):
    return {"id": "p", "name": asked["project"], "entity": {"id": "e", "name": "us"}}


class Server(ThreadingHTTPServer):
    """The client drops connections at its end; that is no error."""

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def server():
    """Serve; ``runs`` has what each run sent, ``asked`` the names of all queries; ``stalled``
    keeps rows waiting.
    """
    with Server(("127.0.0.1", 0), Handler) as serving:
        serving.url = f"http://127.0.0.1:{serving.server_port}"
        serving.lock, serving.runs, serving.asked = threading.Lock(), {}, []
        serving.views, serving.stalled = [], threading.Event()
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield serving
        serving.shutdown()


@contextlib.contextmanager
def silent_server():
    """Take connections and never answer; gives the address and the list of connections."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        held = []

        def accept():
            with contextlib.suppress(OSError):
                while True:
                    held.append(listening.accept())

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", held


def online(url, **more):
    """Environment of a process that has an account at a server."""
    return {"WANDB_MODE": "online", "WANDB_API_KEY": KEY, "WANDB_BASE_URL": url,
            "WANDB_INIT_TIMEOUT": "20", "WANDB_FINISH_TIMEOUT": "20", **more}  # fmt: skip


def sent(run):
    """Rows of history that a server has of a run, without W&B's own columns."""
    return [plain(json.loads(line)) for line in run["files"].get("wandb-history.jsonl", [])]


def plain(values):
    return {name: value for name, value in values.items() if not name.startswith("_")}


def records(path):
    """Records of a ``.wandb`` file: LevelDB's log, in blocks of 32 KiB, after 7 bytes."""
    content, at, part = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack("<IHB", content[at : at + 7])
        part += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last of several parts
            yield Record.FromString(part)
            part = b""


def read_back(path):
    """What a record says: the run, its config, its rows, its summary, its exit code."""
    found = {"config": {}, "rows": [], "summary": {}, "exit": None}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found["run"] = record.run
            found["config"] |= _values(record.run.config.update)
        elif kind == "history":
            found["rows"].append(plain(_values(record.history.item)))
        elif kind == "summary":
            found["summary"] |= plain(_values(record.summary.update))
        elif kind == "exit":
            found["exit"] = record.exit.exit_code
    del found["config"]["_wandb"]
    return found


def _values(items):
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def offline_records(run):
    """The records in a run's folder, from the oldest."""
    return sorted(run.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)


def call(*words, cwd, **env):
    """The command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "sparsebench", *map(str, words)], cwd=cwd, text=True,
        capture_output=True, timeout=120, env={**os.environ, **env},
    )  # fmt: skip
