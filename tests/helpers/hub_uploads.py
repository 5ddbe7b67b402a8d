"""A server on this machine that speaks the paths by which the hub takes uploads: accounts, repositories, commits.

Large files go by git-lfs, as from a machine without `hf_xet`. Connections can be cut, and what arrives is written down.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any
from urllib.parse import unquote, urlsplit

from local_hub import Handler, running

Files = dict[str, bytes]  # path -> content
ATTRIBUTES = {".gitattributes": b"*.safetensors filter=lfs\n"}


@dataclass(frozen=True)
class Account:
    """A user, as one token shows them."""

    name: str
    role: str = "write"  # of the token: `read`, `write` or `fineGrained`
    namespaces: frozenset[str] = frozenset()  # where the token may write
    is_cut_off: bool = False  # whether no answer ever reaches this account


@dataclass
class Repository:
    private: bool
    commits: list[Files]  # of all branches, the oldest first
    branches: dict[str, Files]


@dataclass
class UploadHub:
    """What the server has."""

    accounts: dict[str, Account]  # token -> account
    repos: dict[str, Repository] = field(default_factory=dict)
    large: dict[tuple[str, str], bytes] = field(default_factory=dict)  # (repository, SHA-256) -> content
    sent: list[tuple[str, str]] = field(default_factory=list)  # (repository, SHA-256) of large files that arrived
    cuts: dict[str, int] = field(default_factory=dict)  # repository -> large files that break off on their way
    unavailable: set[str] = field(default_factory=set)  # repositories whose next commit is not taken
    lock: Lock = field(default_factory=Lock)
    url: str = ""

    def hold(self, name: str, files: Files, private: bool = True) -> None:
        """Make a repository with these files."""
        main = {**ATTRIBUTES, **files}
        self.repos[name] = Repository(private, [ATTRIBUTES, main], {"main": main})

    def files(self, name: str, branch: str = "main") -> Files:
        """The files of a branch."""
        return {path: content for path, content in self.repos[name].branches[branch].items() if path not in ATTRIBUTES}


@contextmanager
def taking_uploads(hub: UploadHub) -> Iterator[UploadHub]:
    """The server, at `hub.url`, while the block runs."""
    with running(hub, _Handler):
        yield hub


def is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".bin", ".png"))


def oid(path: str, content: bytes) -> str:
    """The hash by which the hub knows a file: that of its content, or for a small file that of git."""
    if is_large(path):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Refused(Exception):
    """An answer of the hub that is no content: status, error code, message, and what else it tells."""


class _CutError(Exception):
    """No answer at all."""


class _Handler(Handler):
    hub: UploadHub

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        try:
            with self.hub.lock:
                content = json.dumps(self._content(urlsplit(self.path).path.strip("/"))).encode()
        except _CutError:
            self.close_connection = True
            return
        except _Refused as refused:
            status, code, message = refused.args[:3]
            content = json.dumps({"error": message, **dict(refused.args[3:])}).encode()
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", message)
        else:
            self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _content(self, path: str) -> Any:
        """What is answered to a request."""
        if path.startswith("lfs/"):
            return self._take_large(*path.split("/")[1:])
        account = self._account()
        if path == "api/whoami-v2":
            self._body()
            token = {"displayName": f"token of {account.name}", "role": account.role}
            return {"type": "user", "name": account.name, "orgs": [], "auth": {"accessToken": token}}
        if path == "api/repos/create":
            return self._create(account, json.loads(self._body()))
        if path == "api/validate-yaml":
            content = json.loads(self._body())["content"]
            return {"warnings": [], "errors": [] if content.startswith("---\n") else [{"message": "no metadata"}]}
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._large_wanted(path.partition(".git")[0], json.loads(self._body())["objects"])
        _api, _models, owner, name, *what = map(unquote, path.split("/"))
        body = self._body()
        repo = f"{owner}/{name}"
        held = self.hub.repos.get(repo)
        if held is None:
            raise _Refused(404, "RepoNotFound", "Repository not found")
        match what:
            case ["auth-check", "write"]:
                self._require_write(account, owner)
                return {}
            case [] | ["revision", _]:
                return self._listing(repo, held, what[1] if what else "main")
            case ["commits", _]:
                return [
                    {"id": str(at), "title": "", "message": "", "authors": [], "date": "2026-01-01T00:00:00.000Z"}
                    for at in reversed(range(len(held.commits)))
                ]
            case ["branch", branch]:
                held.branches[branch] = held.commits[int(json.loads(body)["startingPoint"])]
                return {}
            case ["preupload", branch]:
                self._require_write(account, owner)
                return {
                    "files": [_described_upload(held.branches[branch], **each) for each in json.loads(body)["files"]]
                }
            case ["commit", branch]:
                self._require_write(account, owner)
                return self._commit(repo, held, branch, body)
        raise _Refused(404, "EntryNotFound", path)

    def _account(self) -> Account:
        account = self.hub.accounts.get(self.headers.get("Authorization", "").removeprefix("Bearer "))
        if account is None:
            self._body()
            raise _Refused(401, "Unauthorized", "Invalid username or password.")
        if account.is_cut_off:
            raise _CutError
        return account

    def _require_write(self, account: Account, namespace: str) -> None:
        if namespace not in account.namespaces or account.role == "read":
            raise _Refused(403, "Forbidden", f"You don't have the rights to write under the namespace {namespace}")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while length := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(length))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _create(self, account: Account, asked: dict[str, Any]) -> dict[str, str]:
        namespace = asked.get("organization") or account.name
        repo = f"{namespace}/{asked['name']}"
        self._require_write(account, namespace)
        if repo in self.hub.repos:
            raise _Refused(409, "Conflict", "You already created this model repo", ("url", f"{self.hub.url}/{repo}"))
        private = asked["visibility"] == "private" if "visibility" in asked else bool(asked.get("private"))
        self.hub.repos[repo] = Repository(private, [ATTRIBUTES], {"main": ATTRIBUTES})
        return {"url": f"{self.hub.url}/{repo}"}

    def _listing(self, repo: str, held: Repository, branch: str) -> dict[str, Any]:
        if branch not in held.branches:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {branch}")
        siblings: list[dict[str, Any]] = []
        for path, content in held.branches[branch].items():
            found: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": oid("", content)}
            if is_large(path):
                found["lfs"] = {"size": len(content), "sha256": oid(path, content), "pointerSize": 1}
            siblings.append(found)
        return {"id": repo, "private": held.private, "sha": "0" * 40, "siblings": siblings}

    def _large_wanted(self, repo: str, objects: list[dict[str, Any]]) -> dict[str, Any]:
        wanted = []
        for each in objects:
            known = (repo, each["oid"]) in self.hub.large
            upload = {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{repo}/{each['oid']}"}}}
            wanted.append({**each, **({} if known else upload)})
        return {"transfer": "basic", "objects": wanted}

    def _take_large(self, owner: str, name: str, digest: str) -> dict[str, Any]:
        repo = f"{owner}/{name}"
        if self.hub.cuts.get(repo, 0):
            self.hub.cuts[repo] -= 1
            raise _CutError
        content = self._body()
        assert hashlib.sha256(content).hexdigest() == digest
        self.hub.large[repo, digest] = content
        self.hub.sent.append((repo, digest))
        return {}

    def _commit(self, repo: str, held: Repository, branch: str, body: bytes) -> dict[str, Any]:
        if repo in self.hub.unavailable:
            self.hub.unavailable.discard(repo)
            raise _Refused(503, "Unavailable", "The hub is down for maintenance")
        files = dict(held.branches[branch])
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            match operation["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.large[repo, value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        held.branches[branch] = files
        held.commits.append(files)
        return {"success": True, "commitOid": "1" * 40, "commitUrl": f"{self.hub.url}/{repo}/commit/{'1' * 40}"}


def _described_upload(files: Files, path: str, **_other: Any) -> dict[str, Any]:
    """How a file is to be sent, and the hash of what is there."""
    known = {"oid": oid(path, files[path])} if path in files else {}
    return {"path": path, "uploadMode": "lfs" if is_large(path) else "regular", "shouldIgnore": False, **known}
