"""The answers of all models side by side, as a section of a page: its elements, its data, its script and style.

The page has the answers as data, and lays out a few questions at a time, so that ten thousand of them open at once.
Each text is there once, however many questions share it; all texts together have a limit, above which long ones lose
their middle.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from mergekit_mm.evaluation.report.samples import Question
from mergekit_mm.evaluation.report.table import Table
from mergekit_mm.pages import json_block, tag

if TYPE_CHECKING:
    from mergekit_mm.evaluation.model.thumbnails import Thumbnail

TEXT_LIMIT = 6_000_000  # characters of all texts
RIGHT = 0.5  # An answer is right if its metric, from 0 to 1, is at least this.
_SHORTEST = 160  # characters that a text keeps in any case
_FILTERS = (
    ("all", "All"),
    ("lost", "Lost by the merge"),
    ("won", "Won by the merge"),
    ("wrong", "All wrong"),
    ("right", "All right"),
    ("differ", "Answers differ"),
)


def script() -> str:
    """The script of the section."""
    return Path(__file__).with_name("answers.js").read_text(encoding="utf-8")


def style() -> str:
    """The style sheet of the section."""
    return Path(__file__).with_name("answers.css").read_text(encoding="utf-8")


def elements(questions: Sequence[Question]) -> list[str]:
    """What the section shows before the script fills it."""
    buttons = [
        tag(
            "button", [name, " ", tag("span", class_="number-of")], type="button", data_filter=key, aria_pressed="false"
        )
        for key, name in _FILTERS
    ]
    chosen = [
        _labelled("Merge", tag("select", id="answers-merge")),
        _labelled("compared with", tag("select", id="answers-other")),
        _labelled("Task", tag("select", id="answers-task")),
        _labelled("Search", tag("input", type="search", id="answers-search", autocomplete="off", placeholder="words")),
    ]
    for_script = [
        tag("div", chosen, class_="tools"),
        tag("div", buttons, class_="tools", role="group", aria_label="Which questions"),
        tag("p", "", id="answers-count", role="status", class_="note"),
        tag("div", "", id="answers-list"),
        tag("button", "Show more", type="button", id="answers-more", hidden=True),
    ]
    return [
        f"{len(questions)} questions. One is lost by the merge if what it is compared with is right and the merge is "
        f"wrong, and won if it is the other way round. Right is a value of the task's metric of at least {RIGHT}; "
        "other values than 0 and 1 stand beside the mark.",
        tag("noscript", tag("p", "The answers are laid out by a script, which this browser does not run.")),
        tag("div", for_script, class_="needs-script", id="answers-all"),
    ]


def _labelled(name: str, control: Markup) -> Markup:
    return tag("label", [name, " ", control])


def data(
    table: Table, questions: Sequence[Question], media: Mapping[int, Sequence[Thumbnail]]
) -> tuple[Markup, list[str]]:
    """The answers as JSON for the script, and a note if texts were shortened."""
    longest, notes = _longest(questions)
    texts = _Numbered()
    shown = _Numbered()
    asked = []
    for at, question in enumerate(questions):
        answers = [
            None if each is None else [texts[_cut(each.text, longest)], texts[_cut(each.read_as, longest)], each.value]
            for each in question.answers
        ]
        pictures = [shown[each] for each in media.get(at, ())]
        task = table.columns.index(question.column)
        text, reference = texts[_cut(question.text, longest)], texts[_cut(question.reference, longest)]
        asked.append([task, question.document, text, reference, answers, pictures])
    found: dict[str, Any] = {
        "right": RIGHT,
        "models": [{"name": row.participant.label, "role": row.participant.role.value} for row in table.rows],
        "merge": _first_merge(table),
        "tasks": [{"name": each.header, "judged": each.percent} for each in table.columns],
        "texts": list(texts),
        "media": [{"kind": each.kind, "note": each.note, "parts": each.parts} for each in shown],
        "questions": asked,
    }
    return json_block("answers-data", found), notes


class _Numbered(dict[Any, int]):
    """The number of each value that was asked for, from 0 on; in the order of the numbers."""

    def __missing__(self, value: Any) -> int:
        self[value] = len(self)
        return self[value]


def _first_merge(table: Table) -> int:
    """The merge that is looked at first: the one with the best mean; the last model where there are no roles."""
    merges = [at for at, row in enumerate(table.rows) if row.participant.role.value == "merge"]
    scored = [(mean.value, -at) for at in merges if (mean := table.rows[at].mean)]
    return -max(scored)[1] if scored else (merges or [len(table.rows) - 1])[0]


def _longest(questions: Sequence[Question]) -> tuple[int, list[str]]:
    """How many characters a text may have so that all together stay within the limit, and a note if one has more."""
    texts = {text for question in questions for text in _texts(question)}
    lengths = sorted(map(len, texts))
    sums = [0, *accumulate(lengths)]

    def total(most: int) -> int:
        within = bisect_right(lengths, most)
        return sums[within] + most * (len(lengths) - within)

    if not lengths or total(lengths[-1]) <= TEXT_LIMIT:
        return lengths[-1] if lengths else 0, []
    low, high = _SHORTEST, lengths[-1]
    while low < high - 1:
        middle = (low + high) // 2
        low, high = (middle, high) if total(middle) <= TEXT_LIMIT else (low, middle)
    count = len(lengths) - bisect_right(lengths, low)
    return low, [f"{count} texts of more than {low} characters are shown without their middle, to keep the page small."]


def _texts(question: Question) -> list[str]:
    answers = [text for each in question.answers if each for text in (each.text, each.read_as)]
    return [question.text, question.reference, *answers]


def _cut(text: str, most: int) -> str:
    """The text, or its beginning and end: an answer's end is what counts."""
    if len(text) <= most:
        return text
    end = most // 3
    return f"{text[: most - end]} [… {len(text) - most} characters …] {text[len(text) - end :]}"
