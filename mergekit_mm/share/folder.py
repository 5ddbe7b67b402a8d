"""The files of an output that are uploaded: all of them but hidden ones and what training leaves."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mergekit_mm.checkpoints.disk import read_headers
from mergekit_mm.checkpoints.file_patterns import LEFTOVER_FOLDERS, is_leftover, matches
from mergekit_mm.checkpoints.model_cards import CARD
from mergekit_mm.checkpoints.weight_files import holds_adapter
from mergekit_mm.errors import MergeError
from mergekit_mm.share.card import results_of, uploaded_card


@dataclass(frozen=True)
class Upload:
    """What is uploaded of one output."""

    files: Mapping[str, Path]  # path in the repository -> file
    notes: list[str]  # what the owner should know of the card

    @property
    def nbytes(self) -> int:
        """The size of all files, in bytes."""
        return sum(path.stat().st_size for path in self.files.values())


def require_finished(out: Path, report: Path | None = None) -> None:
    """MergeError unless a directory holds a whole model, or an adapter, and the folder of a report one."""
    if report:
        results_of(report, out)
    if not out.is_dir():
        raise MergeError(f"{out} is no directory: name the output of a merge.")
    if holds_adapter(out) and not (out / "config.json").is_file():
        return
    if not (out / "config.json").is_file():
        raise MergeError(f"{out} holds neither a model nor an adapter: name the output of a merge.")
    read_headers(out)


@contextmanager
def uploaded(out: Path, repo: str, report: Path | None) -> Iterator[tuple[Upload, Path]]:
    """What is uploaded of an output, and a folder of links to it that lasts as long as the block. `out` stays as it is.

    report: the folder of a report; by default one that `mergekit-mm report --out` wrote to the output itself.

    Raises:
        MergeError: `out` is no finished output, its card cannot be read, or `report` holds no report.
    """
    require_finished(out, report)
    if report is None:
        report = next((each for each in (out, out / "report") if (each / "report.md").is_file()), None)
    results, shown = results_of(report, out) if report else ("", {})
    text, notes = uploaded_card(out, repo, results)
    with tempfile.TemporaryDirectory(prefix="mergekit-mm-") as name:
        card = Path(name) / CARD
        card.write_text(text, encoding="utf-8")
        files = {**_files(out), **shown, CARD: card}
        folder = Path(name) / "upload"
        for path, file in files.items():
            link = folder / path
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())
        yield Upload(files, notes), folder


def _files(out: Path) -> dict[str, Path]:
    """The files of an output that belong to it, by their paths with forward slashes."""
    found = {}
    for file in sorted(out.rglob("*")):
        *folders, name = file.relative_to(out).parts
        hidden = name.startswith(".") or any(folder.startswith(".") for folder in folders)
        left = is_leftover(name) or (folders and matches(folders[0], LEFTOVER_FOLDERS))
        if file.is_file() and not hidden and not left:
            found["/".join([*folders, name])] = file
    return found
