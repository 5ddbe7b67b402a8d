"""A repository of the hub to which an output is to go, checked before there is an output."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HFValidationError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public by the documentation

from mergekit_mm.checkpoints.listing import some
from mergekit_mm.errors import MergeError
from mergekit_mm.output.directory import OLD_FILES
from mergekit_mm.share.refusals import LOGIN, refused, tokens_page

_OF_THE_REPOSITORY = ".gitattributes"  # the hub makes it, and lists in it what is stored as large files


@dataclass(frozen=True)
class Destination:
    """A repository that exists and that the token may write to."""

    repo: str
    revision: str | None  # the branch; None for main
    held: Mapping[str, RepoSibling]  # path -> what the branch holds there
    overwrites: bool  # whether it may be replaced
    note: str = ""  # what may surprise

    @property
    def url(self) -> str:
        branch = f"/tree/{self.revision}" if self.revision else ""
        return f"{huggingface_hub.constants.ENDPOINT}/{self.repo}{branch}"

    def require_free(self, files: Mapping[str, Path] | None) -> None:
        """MergeError if the upload would overwrite what the branch holds, or mix with it, and must not.

        files: what is to be uploaded, by its path in the repository, of which the branch may hold the same, as an
            upload that broke off leaves it; None if there is no output yet.
        """
        if self.overwrites:
            return
        kept = self.held.keys() if files is None else [*_differing(self.held, files), *self.stale(files)]
        if kept:
            where = f"{self.repo}{f' at {self.revision}' if self.revision else ''}"
            raise MergeError(
                f"{where} on the hub already holds {some(kept)}: name another repository, or give --overwrite to "
                "replace what is there."
            )

    def stale(self, files: Mapping[str, Path]) -> list[str]:
        """The weights and configs of another model on the branch, which loaders would mix with the uploaded one."""
        return [
            name for name in self.held if name not in files and any(fnmatch(name, pattern) for pattern in OLD_FILES)
        ]


def _differing(held: Mapping[str, RepoSibling], files: Mapping[str, Path]) -> Iterator[str]:
    for name, file in files.items():
        if name in held and not _is_same(held[name], file):
            yield name


def _is_same(held: RepoSibling, file: Path) -> bool:
    """Whether the hub holds the content of a file, by size and hash: SHA-256, or that of git for small files."""
    size = file.stat().st_size
    if held.size != size:
        return False
    digest = hashlib.sha256() if held.lfs else hashlib.sha1(b"blob %d\0" % size)
    with file.open("rb") as content:
        while block := content.read(1 << 22):
            digest.update(block)
    return digest.hexdigest() == (held.lfs.sha256 if held.lfs else held.blob_id)


def prepare(repo: str, revision: str | None = None, public: bool = False, overwrite: bool = False) -> Destination:
    """The destination `repo`, made on the hub if it is not there: private, unless `public`.

    The token is what `huggingface_hub` finds: HF_TOKEN, or that of `hf auth login`.

    revision: the branch. One that is not there is made, beginning at the repository's first commit.

    Raises:
        MergeError: the name is none, there is no token or it may not write, the hub cannot be reached, or the
            repository is public and is not to be.
    """
    _require_name(repo)
    if huggingface_hub.is_offline_mode():
        raise MergeError(f"Nothing can be uploaded to {repo} while HF_HUB_OFFLINE is set: unset it.")
    if huggingface_hub.get_token() is None:
        raise MergeError(f"To write to {repo}, {LOGIN}: a token with write access, from {tokens_page()}")
    api = huggingface_hub.HfApi()
    with refused(repo, "The upload"):
        who = api.whoami()
    token = who.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        raise MergeError(
            f"The token {token.get('displayName', '')!r} of {who.get('name')} reads only. To write to {repo}, make one "
            f"with write access: {tokens_page()}"
        )
    note = ""
    with refused(repo, "The upload"):
        api.create_repo(repo, private=not public, exist_ok=True)
        api.auth_check(repo, write=True)
        found = api.model_info(repo)
    if not (public or found.private):
        raise MergeError(f"{repo} on the hub is public: give --public if everybody is to see this, or name another.")
    if public and found.private:
        note = f"{repo} is private and stays so: its settings on the hub make it public."
    with refused(repo, "The upload"):
        held = _held(api, repo, revision)
    return Destination(repo, revision, held, overwrite, note)


def _require_name(repo: str) -> None:
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise MergeError(f"{repo!r} is no name of a repository: {str(error).removesuffix('.')}.") from error
    if "/" not in repo:
        raise MergeError(f"{repo!r} is no name of a repository: write ORG/NAME, or USER/NAME with your own.")


def _held(api: huggingface_hub.HfApi, repo: str, revision: str | None) -> dict[str, RepoSibling]:
    """What the branch holds, by path; the branch is made if it is not there."""
    try:
        found = api.model_info(repo, revision=revision, files_metadata=True)
    except RevisionNotFoundError:
        if revision is None:
            raise
        first = api.list_repo_commits(repo)[-1].commit_id
        api.create_branch(repo, branch=revision, revision=first, exist_ok=True)
        found = api.model_info(repo, revision=revision, files_metadata=True)
    return {file.rfilename: file for file in found.siblings or () if file.rfilename != _OF_THE_REPOSITORY}
