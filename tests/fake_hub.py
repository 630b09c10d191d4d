"""A Hub on this machine, as far as huggingface_hub needs one to push an adapter and to load it again."""

import base64
import hashlib
import json
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_ofTheFakeHubAlone"
Answer = tuple[int, Any]


class FakeHub:
    """What was pushed, by repository, branch and file; every request is answered in `threading` daemons."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.commits: list[tuple[str, str, str]] = []
        """Repository, branch and title."""
        self.role, self.orgs = "write", ["an-org"]
        self.fails: dict[str, int] = {}
        """Status by what a request's path holds."""
        self.refused: dict[str, tuple[int, str]] = {}
        """Status and error code of the Hub's, by what a request's path holds."""
        self.asked: dict[str, int] = defaultdict(int)
        self.hold = threading.Event()
        """Commits wait for it."""
        self.hold.set()
        self.large: dict[str, bytes] = {}
        self.url = ""

    def answer(self, method: str, path: str, token: str, body: bytes) -> Answer:
        self.asked[f"{method} {path}"] += 1
        for part, status in [*self.fails.items(), *((part, status) for part, (status, _) in self.refused.items())]:
            if part in path:
                return status, {"error": f"{part} fails"}
        if method == "PUT":
            self.large[path.rpartition("/")[2]] = body
            return 200, {}
        if method != "GET" and method != "HEAD" and token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid credentials"}
        for pattern, does in self._routes().items():
            if found := re.fullmatch(pattern, f"{method} {path}"):
                return does(*found.groups(), token=token, body=body)
        return 404, {"error": f"nothing at {method} {path}"}

    def _routes(self) -> dict[str, Callable[..., Answer]]:
        name = "([^/]+/[^/]+)"
        return {
            "GET /api/whoami-v2": self._whoami,
            "POST /api/repos/create": self._create,
            "POST /api/validate-yaml": self._validate,
            f"POST /api/models/{name}/branch/(.+)": self._branch,
            f"POST /api/models/{name}/preupload/(.+)": self._preupload,
            f"POST /{name}[.]git/info/lfs/objects/batch": self._batch,
            f"POST /api/models/{name}/commit/(.+)": self._commit,
            f"GET /api/models/{name}(?:/revision/(.+))?": self._info,
            f"GET /api/models/{name}/tree/([^/]+)(?:/.*)?": self._tree,
            f"(?:GET|HEAD) /(?:datasets/)?{name}/resolve/([^/]+)/(.+)": self._file,
        }

    def _whoami(self, token: str, body: bytes) -> Answer:
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid credentials"}
        orgs = [{"name": name} for name in self.orgs]
        return 200, {"name": "someone", "orgs": orgs, "auth": {"accessToken": {"displayName": "t", "role": self.role}}}

    def _create(self, token: str, body: bytes) -> Answer:
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'someone'}/{asked['name']}"
        there = name in self.files
        if not there:
            self.files[name] = {"main": {}}
            self.private[name] = asked.get("visibility") == "private"
        return 409 if there else 200, {"url": f"{self.url}/{name}", "id": name, "name": name}

    def _validate(self, token: str, body: bytes) -> Answer:
        card = json.loads(body)["content"]
        data = yaml.safe_load(card.split("---")[1]) if card.startswith("---") else {}
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", data.get("base_model") or "a/b"):
            return 400, {"errors": [{"message": f'"base_model" with value "{data["base_model"]}" is not valid.'}]}
        return 200, {"errors": [], "warnings": []}

    def _branch(self, name: str, branch: str, token: str, body: bytes) -> Answer:
        there = branch in self.files[name]
        self.files[name].setdefault(branch, {})
        return 409 if there else 200, {}

    def _preupload(self, name: str, branch: str, token: str, body: bytes) -> Answer:
        if branch not in self.files.get(name, {}):
            return 404, {"error": "no such branch"}
        asked = json.loads(body)["files"]
        modes = [
            {"path": one["path"], "uploadMode": "lfs" if one["path"].endswith((".safetensors", ".pt")) else "regular"}
            for one in asked
        ]
        return 200, {"files": [{"shouldIgnore": False, "oid": None, **one} for one in modes]}

    def _batch(self, name: str, token: str, body: bytes) -> Answer:
        objects = json.loads(body)["objects"]
        return 200, {
            "transfer": "basic",
            "objects": [{**one, "actions": {"upload": {"href": f"{self.url}/lfs/{one['oid']}"}}} for one in objects],
        }

    def _commit(self, name: str, branch: str, token: str, body: bytes) -> Answer:
        self.hold.wait()
        title = ""
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                title = value["summary"]
            elif line["key"] == "file":
                self.files[name][branch][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[name][branch][value["path"]] = self.large[value["oid"]]
        self.commits.append((name, branch, title))
        return 200, {"success": True, "commitOid": self._oid(), "commitUrl": f"{self.url}/{name}/commit/{self._oid()}"}

    def _oid(self) -> str:
        return f"{len(self.commits):040d}"

    def _info(self, name: str, branch: str | None, token: str, body: bytes) -> Answer:
        if name not in self.files:
            return 404, {"error": "no such repository"}
        files = [{"rfilename": path} for path in self.files[name]["main"]]
        return 200, {"id": name, "sha": self._oid(), "siblings": files, "private": False, "tags": []}

    def _tree(self, name: str, branch: str, token: str, body: bytes) -> Answer:
        files = self.files.get(name, {}).get("main", {})
        found = [
            {"type": "file", "path": path, "size": len(held), "oid": hashlib.sha1(held).hexdigest()}
            for path, held in files.items()
        ]
        return 200, found

    def _file(self, name: str, branch: str, path: str, token: str, body: bytes) -> Answer:
        held = self.files.get(name, {}).get("main", {}).get(path)
        return (404, {"error": "Entry not found"}) if held is None else (200, held)


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0]
            status, told = hub.answer(self.command, path, self.headers.get("Authorization", ""), body)
            held = told if isinstance(told, bytes) else json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(held)))
            self.send_header("Content-Type", "application/json")
            if "/resolve/" in path:
                self.send_header("X-Repo-Commit", hub._oid())
                self.send_header("ETag", f'"{hashlib.sha256(held).hexdigest()}"')
                if status == 404 and not any(part in path for part in hub.refused):
                    self.send_header("X-Error-Code", "EntryNotFound")
            elif status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            for code in (code for part, (_, code) in hub.refused.items() if part in path):
                self.send_header("X-Error-Code", code)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(held)

        do_POST = do_PUT = do_HEAD = do_GET

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield hub
    finally:
        hub.hold.set()
        server.shutdown()
        server.server_close()
