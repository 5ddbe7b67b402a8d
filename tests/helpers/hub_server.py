"""A server on this machine that speaks the paths of the Hugging Face hub, with folders as its repositories.

Weights can be cut off on their way, repositories can be gated, and what was asked for is written down.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from local_hub import Handler, running


@dataclass(frozen=True)
class Request:
    """A request for the content of a file."""

    repo: str
    file: str
    whole: bool  # and not a range of it
    nbytes: int  # that were to be sent


@dataclass
class Hub:
    """What the server has."""

    repos: dict[str, dict[str, Path]]  # repository -> revision -> folder
    gated: frozenset[str] = frozenset()
    broken: dict[str, int] = field(default_factory=dict)  # repository -> bytes of a weight file that ever arrive
    flaky: set[str] = field(default_factory=set)  # repositories whose first download of weights breaks off
    requests: list[Request] = field(default_factory=list)
    url: str = ""

    def of_weights(self) -> list[Request]:
        """The requests for content of the weight files of models."""
        return [request for request in self.requests if is_of_model(request.file)]


FOLDER = "2_Dense/"  # whose weights are small and belong to the model beside its own


def is_weights(file: str) -> bool:
    return file.endswith((".safetensors", ".bin"))


def is_of_model(file: str) -> bool:
    """Whether a file holds weights of a whole model."""
    return is_weights(file) and not file.startswith(("adapter_", FOLDER))


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The server, at `hub.url`, while the block runs."""
    with running(hub, _Handler):
        yield hub


class _Refused(Exception):
    """An answer of the hub that is no content: status and error code."""


class _Handler(Handler):
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        try:
            if parts[:2] == ["api", "models"]:
                self._send_listing("/".join(parts[2:4]), *parts[4:])
            elif parts[2:3] != ["resolve"]:
                raise _Refused(404, "EntryNotFound")
            else:
                owner, name, _resolve, revision, *file = parts
                self._send_file(f"{owner}/{name}", revision, "/".join(file))
        except _Refused as refused:
            status, code = refused.args
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _folder(self, repo: str, revision: str) -> tuple[Path, str]:
        """The folder of a revision, and its commit."""
        if repo not in self.hub.repos:
            raise _Refused(404, "RepoNotFound")
        for name, folder in self.hub.repos[repo].items():
            commit = hashlib.sha1(f"{repo}@{name}".encode()).hexdigest()
            if revision in (name, commit):
                return folder, commit
        raise _Refused(404, "RevisionNotFound")

    def _send_listing(self, repo: str, kind: str = "revision", revision: str = "main") -> None:
        folder, commit = self._folder(repo, revision)
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        files = [_described(path, path.relative_to(folder).as_posix(), kind == "tree") for path in paths]
        listing = files if kind == "tree" else {"id": repo, "sha": commit, "siblings": files}
        content = json.dumps(listing).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def _send_file(self, repo: str, revision: str, file: str) -> None:
        folder, commit = self._folder(repo, revision)
        if repo in self.hub.gated:
            raise _Refused(403, "GatedRepo")
        path = folder / file
        if not path.is_file():
            raise _Refused(404, "EntryNotFound")
        content = path.read_bytes()
        start, stop = 0, len(content)
        asked = self.headers.get("Range")
        if asked:
            first, last = asked.removeprefix("bytes=").split("-")
            start, stop = int(first), min(int(last) + 1, stop) if last else stop
        self.send_response(206 if asked else 200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{_hash(path)}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(stop - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        self.hub.requests.append(Request(repo, file, not asked, stop - start))
        end = stop if asked and not start else self._cut(repo, file, start, stop)
        self.wfile.write(content[start:end])
        if end < stop:
            self.close_connection = True

    def _cut(self, repo: str, file: str, start: int, stop: int) -> int:
        """Before which byte of a file the connection breaks."""
        if is_of_model(file) and repo in self.hub.broken:
            return min(stop, max(start, self.hub.broken[repo]))
        if is_of_model(file) and repo in self.hub.flaky:
            self.hub.flaky.discard(repo)
            return (start + stop) // 2
        return stop


def _described(path: Path, name: str, in_tree: bool) -> dict[str, Any]:
    """What a listing says of a file; that of a tree has other keys than that of a model."""
    size, digest = path.stat().st_size, _hash(path)
    named = (
        {"type": "file", "path": name, "oid": digest[:40]} if in_tree else {"rfilename": name, "blobId": digest[:40]}
    )
    lfs = {"size": size, "pointerSize": 1, "oid" if in_tree else "sha256": digest}
    return {**named, "size": size, **({"lfs": lfs} if is_weights(name) else {})}


@functools.cache
def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
