"""Pictures, sounds and frames of questions, within a number of bytes.

lm-eval's sample files hold hashes in the place of media. They are found again in files that the model `mllm` wrote
beside the samples when it was asked to (`thumbnails_<task>.jsonl`), else in the data of the task, by the number of the
document. A document counts as the same if its target and all its texts and numbers, but for the prompt, which settings
change, are those of the sample.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_mm.evaluation.report.results import ReportError
from mergekit_mm.evaluation.report.samples import Question

if TYPE_CHECKING:
    from mergekit_mm.evaluation.model.thumbnails import Thumbnail

_EMBEDDED = re.compile(r"data:(image/(webp|jpeg|png)|audio/(mpeg|wav|ogg));base64,[A-Za-z0-9+/]+=*")
_KINDS = ("image", "video", "audio")
_SIDES = ((24_000, 448), (12_000, 320), (6_000, 224), (0, 160))  # bytes that there are for a picture -> pixels


@dataclass(frozen=True)
class Sources:
    """Where media are looked for. folders: with files of `mllm`. include, metadata: as lm_eval was given them.

    limit: bytes of all media in the page; with 0 none are looked for.
    """

    folders: Sequence[Path] = ()
    include: Sequence[Path] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    limit: int = 4_000_000


def find_media(questions: Sequence[Question], sources: Sources) -> tuple[dict[int, list[Thumbnail]], list[str]]:
    """Media by the number of a question in `questions`, and notes on what there is none of.

    Questions on which models differ come first, then the others, those of all tasks in turn, until the limit.

    ReportError: a file of thumbnails is damaged.
    """
    if not sources.limit or not questions:
        return {}, []
    stored = _stored(sources.folders)
    order = sorted(range(len(questions)), key=lambda at: (not _differ(questions[at]), questions[at].document, at))
    finder = _Finder(sources, [questions[at] for at in order if not _known(questions[at], stored)], len(questions))
    found: dict[int, list[Thumbnail]] = {}
    counted: set[tuple[str, ...]] = set()
    size, full = 0, False
    for at in order:
        known = _known(questions[at], stored)
        media = known if known is not None else finder.media(questions[at])
        new = [each for each in media if each.parts not in counted]
        if size + sum(each.size for each in new) > sources.limit:
            full = True
            break
        size += sum(each.size for each in new)
        counted |= {each.parts for each in new}
        if media:
            found[at] = media
    notes = [*finder.notes(), *_told_unreadable(questions, found)]
    if full:
        notes.append(
            f"Media of {len(found)} of {len(questions)} questions are in the page, those on which models differ first "
            f"(--media-mb {sources.limit / 1e6:g} is their limit)."
        )
    return found, notes


def _differ(question: Question) -> bool:
    return len({answer.value for answer in question.answers if answer}) > 1


def _known(question: Question, stored: Mapping[str, list[Thumbnail]]) -> list[Thumbnail] | None:
    return next((stored[each] for each in question.hashes if each in stored), None)


class _Finder:
    """Media from the data of tasks, of questions for which there is no file."""

    def __init__(self, sources: Sources, questions: Sequence[Question], total: int) -> None:
        self._problems: dict[str, str] = {}
        self._unlike: Counter[str] = Counter()
        self._headers = {each.column.task: each.column.header for each in questions}
        share = sources.limit / max(total, 1)
        self._side = next(side for least, side in _SIDES if share >= least)
        if self._headers:
            from mergekit_mm.evaluation.model.shown import Shown  # local: it imports torch and transformers

            self._shown = Shown(list(self._headers), sources.include, sources.metadata)
            self._problems = self._shown.problems

    def media(self, question: Question) -> list[Thumbnail]:
        """The media of a question; none if its task or its document is not there, or is another one."""
        task = question.column.task
        if task not in self._headers or task not in self._shown:
            return []
        document = self._shown.document(task, question.document)
        if document is None or not _same(question, *document):
            self._unlike[task] += 1
            return []
        return self._shown.thumbnails(task, document[0], self._side)

    def notes(self) -> Iterator[str]:
        for reason in dict.fromkeys(self._problems.values()):
            headers = [self._headers[task] for task, each in self._problems.items() if each == reason]
            yield f"No media of {', '.join(headers)}: {reason} Tasks of your own need --include-path, as for lm_eval."
        for task, count in self._unlike.items():
            yield (
                f"{self._headers[task]}: {count} documents are not those that the data have here, so that they are "
                "shown without media. Give --metadata and --include-path as for lm_eval."
            )


def _same(question: Question, document: Mapping[str, Any], target: str) -> bool:
    if question.fields and any(document.get(key) != value for key, value in question.fields.items() if key != "prompt"):
        return False
    return target == question.target


def _told_unreadable(questions: Sequence[Question], found: Mapping[int, list[Thumbnail]]) -> Iterator[str]:
    lost = [(questions[at], each) for at, media in found.items() for each in media if not each.parts]
    if lost:
        question, first = lost[0]
        where = f"{question.column.header}, document {question.document}"
        yield f"{len(lost)} media are not shown, for instance {where}: {first.kind} {first.note}."


def _stored(folders: Iterable[Path]) -> dict[str, list[Thumbnail]]:
    """What files of `mllm` hold, by the hash of the document. ReportError: a line is damaged."""
    found: dict[str, list[Thumbnail]] = {}
    for path in sorted({path for folder in folders for path in folder.rglob("thumbnails_*.jsonl")}):
        with path.open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    data = json.loads(line)
                    found[str(data["doc_hash"])] = [_thumbnail(each) for each in data["media"]]
                except (ValueError, KeyError, TypeError) as error:
                    raise ReportError(
                        f"{path}, line {number}: no thumbnails as `mllm` writes them ({error})"
                    ) from error
    return found


def _thumbnail(given: Mapping[str, Any]) -> Thumbnail:
    from mergekit_mm.evaluation.model.thumbnails import Thumbnail

    kind, parts = given["kind"], tuple(given["parts"])
    if kind not in _KINDS or not all(isinstance(part, str) and _EMBEDDED.fullmatch(part) for part in parts):
        raise ValueError("neither a picture nor a sound")
    return Thumbnail(kind, parts, str(given.get("note", "")))
