"""The material as parquet files, each capability in the form of the data set whose task in `eval_tasks/` it follows.

`<capability>/<split>.parquet` has the columns of that data set, and four of its own: `reply` (what a model is trained
to say), `kind` (of question), `contents` (what the picture is made of that no other split has) and `regions` (what is
drawn where, as JSON).
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import datasets

from examples.minibench import chart, geometry, grounding, ocr, vqa
from examples.minibench.rows import SIDE, Box, Generator, Row, png

CAPABILITIES = ("vqa", "chart", "ocr", "geometry", "grounding")
STEP = 0.05  # between the coordinates that models are taught, as a part of the picture's side
_REFERENCES = 10  # answers to a question in VizWiz and TextVQA; here they agree
_TEXT, _TEXTS, _IMAGE = datasets.Value("string"), datasets.List(datasets.Value("string")), datasets.Image()
# MathVista begins its questions with these hints, one for each type of question.
_HINTS = {
    "multi_choice": "Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end.",
    "free_form": "Please answer the question requiring an integer answer and provide the final value, e.g., 1, 2, 3, "
    "at the end.",
}


def _vizwiz(row: Row) -> dict[str, Any]:
    return {"question": row.question, "answers": [row.answer] * _REFERENCES, "reply": row.answer}


def _textvqa(row: Row) -> dict[str, Any]:
    """As in VizWiz, with the reply in capitals, as it is written; the metric does not tell them from small letters."""
    return {**_vizwiz(row), "reply": row.answer.upper()}


def _chartqa(row: Row) -> dict[str, Any]:
    return {"type": "augmented_test", "question": row.question, "answer": row.answer, "reply": row.answer}


def _mathvista(row: Row) -> dict[str, Any]:
    kind = "multi_choice" if row.choices else "free_form"
    lines = [f"Hint: {_HINTS[kind]}", f"Question: {row.question}"]
    if row.choices:
        lines += [
            "Choices:",
            *(f"({letter}) {text}" for letter, text in zip(ascii_uppercase, row.choices, strict=False)),
        ]
    return {
        "pid": "",
        "query": "\n".join(lines),
        "choices": list(row.choices),
        "answer": row.answer,
        "question_type": kind,
        "answer_type": "text" if row.choices else "integer",
        "precision": None,
        "metadata": {"skills": ["geometry reasoning"], "task": "geometry problem solving"},
        "reply": ascii_uppercase[row.choices.index(row.answer)] if row.choices else row.answer,
    }


def _refcoco(row: Row) -> dict[str, Any]:
    left, top, right, bottom = row.box
    return {
        "answer": [row.question],
        "bbox": [left, top, right - left, bottom - top],
        "reply": box_text(row.box),
    }


def box_text(box: Box) -> str:
    """A box in pixels as models are taught to say it: four coordinates."""
    return f"[{', '.join(map(coordinate, box))}]"


def coordinate(pixels: int) -> str:
    """A place in pixels as a part of the picture's side, in steps of `STEP`."""
    return f"{STEP * round(pixels / SIDE / STEP):.2f}"


_SKILLS = {"skills": _TEXTS, "task": _TEXT}
_FORMS: dict[str, tuple[Generator, Callable[[Row], dict[str, Any]], str, dict[str, Any]]] = {
    "vqa": (vqa.generate, _vizwiz, "image", {"answers": _TEXTS}),
    "chart": (chart.generate, _chartqa, "image", {}),
    "ocr": (ocr.generate, _textvqa, "image", {"answers": _TEXTS}),
    "geometry": (
        geometry.generate,
        _mathvista,
        "decoded_image",
        {"choices": _TEXTS, "precision": datasets.Value("float64"), "metadata": _SKILLS},
    ),
    "grounding": (
        grounding.generate,
        _refcoco,
        "image",
        {"answer": _TEXTS, "bbox": datasets.List(datasets.Value("float64"))},
    ),
}


def image_column(capability: str) -> str:
    """The name of the column with the pictures."""
    return _FORMS[capability][2]


def rows(capability: str, split: str, pictures: int, seed: int) -> Iterator[Row]:
    """The rows about the first `pictures` pictures of a capability's split for a seed.

    They are all questions about a training picture, and one about any other, so that scores of questions are
    independent. For the one, a kind of question is drawn from those that the picture allows, each as likely, then a
    question of that kind.
    """
    rng = random.Random(f"{capability} {split} {seed} questions")
    every = _FORMS[capability][0](split, seed)
    for _, group in itertools.islice(itertools.groupby(every, key=lambda row: id(row.picture)), pictures):
        about = list(group)
        if split == "train":
            yield from about
        else:
            kind = rng.choice(sorted({row.kind for row in about}))
            yield rng.choice([row for row in about if row.kind == kind])


def table(capability: str, split: str, pictures: int, seed: int) -> datasets.Dataset:
    """The rows of `rows` in the form of the capability's data set."""
    return in_form(capability, rows(capability, split, pictures, seed))


def in_form(capability: str, found: Iterable[Row]) -> datasets.Dataset:
    """Rows in the form of the capability's data set."""
    _, form, column, features = _FORMS[capability]
    filled: list[dict[str, Any]] = []
    shown: tuple[Any, dict[str, Any]] = (None, {})  # the last picture and its file, for all questions about it
    for number, row in enumerate(found):
        if row.picture is not shown[0]:
            shown = row.picture, {"bytes": png(row.picture), "path": None}
        fields = form(row)
        if "pid" in fields:
            fields["pid"] = str(number)
        drawn = json.dumps([[each.label, each.box, each.points] for each in row.regions])
        filled.append({column: shown[1], **fields, "kind": row.kind, "contents": list(row.contents), "regions": drawn})
    declared = {name: features.get(name, _TEXT) for name in filled[0]}
    return datasets.Dataset.from_list(
        filled, features=datasets.Features({**declared, column: _IMAGE, "contents": _TEXTS})
    )


def write(folder: Path, counts: Mapping[str, int], seed: int, capabilities: Iterable[str] = CAPABILITIES) -> None:
    """Write the rows about `counts[split]` pictures of each split and capability; files that exist are kept."""
    for capability, split in itertools.product(capabilities, counts):
        file = folder / capability / f"{split}.parquet"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            unfinished = file.with_suffix(".unfinished")
            made = table(capability, split, counts[split], seed)
            made.to_parquet(str(unfinished))
            unfinished.rename(file)
            print(f"  {capability}/{split}: {counts[split]} pictures, {len(made)} questions", flush=True)
