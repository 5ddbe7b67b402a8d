"""The easy-VQA questions, sorted into three types, with the split and the subsets that training and scoring use.

Source: the PyPI package `easy-vqa` 1.0 (MIT, Victor Zhou): 4000 training and 1000 test images of one coloured shape
each, and about 48 000 questions. Nothing of the test split is read by training or by any choice of a setting.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import easy_vqa
from PIL import Image

TYPES = ("color", "shape", "yesno")
SHAPES = ("circle", "rectangle", "triangle")
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
# Training images from here on are never trained on: learning rates and merge weights are chosen on their questions.
FIRST_VALIDATION_IMAGE = 3600
# Answers that the base never sees in training, so that each expert has something of its own to add.
WITHHELD_COLORS = ("brown", "green", "teal")
WITHHELD_SHAPES = ("triangle",)
BASE_NEGATION = "does the image not contain"  # the only one of four negations that the base sees


class Question(NamedTuple):
    """One question about one image; `image` is the number of the image in its own split (train or test)."""

    text: str
    answer: str
    image: int

    @property
    def type(self) -> str:
        if self.answer in COLORS:
            return "color"
        return "shape" if self.answer in SHAPES else "yesno"

    @property
    def negated(self) -> bool:
        return bool({"not", "no"} & set(self.text.split()))


Draw = Callable[[random.Random], Question]


@lru_cache
def questions(split: str) -> tuple[Question, ...]:
    """All questions of a split: `test`, `validation` (a tenth of the training images) or `train` (the other nine)."""
    read = easy_vqa.get_test_questions if split == "test" else easy_vqa.get_train_questions
    rows = [Question(*row) for row in zip(*read(), strict=True)]
    if split == "test":
        return tuple(rows)
    held_out = {"train": False, "validation": True}[split]
    return tuple(row for row in rows if (row.image >= FIRST_VALIDATION_IMAGE) == held_out)


@lru_cache
def _paths(split: str) -> dict[int, str]:
    return easy_vqa.get_test_image_paths() if split == "test" else easy_vqa.get_train_image_paths()


def image(split: str, number: int) -> Image.Image:
    """The image as RGB; `validation` images live in the package's training folder under the same numbers."""
    with Image.open(_paths(split)[number]) as picture:
        return picture.convert("RGB")


def by_type(rows: Sequence[Question]) -> dict[str, list[Question]]:
    """The rows of each type, in their order."""
    return {kind: [row for row in rows if row.type == kind] for kind in TYPES}


def subset(rows: Sequence[Question], limit: int | None, seed: int = 0) -> list[Question]:
    """At most `limit` questions, a third of them of each type (all of a type that has fewer): the same for one seed."""
    if limit is None:
        return list(rows)
    picked: list[Question] = []
    for kind, members in by_type(rows).items():
        random.Random(f"{seed} {kind}").shuffle(members)
        picked += members[: -(-limit // len(TYPES))]
    return picked


def base_share(rows: Sequence[Question], share: float, seed: int) -> dict[str, list[Question]]:
    """The base's training questions by type: a `share` of all, without those that are withheld for the experts."""
    chosen = random.Random(f"{seed} base").sample(list(rows), int(share * len(rows)))
    withheld = (*WITHHELD_COLORS, *WITHHELD_SHAPES)
    seen = [row for row in chosen if not row.negated or row.text.startswith(BASE_NEGATION)]
    return by_type([row for row in seen if row.answer not in withheld])


def drawer(kind: str, rows: Sequence[Question]) -> Draw:
    """A function that draws one question of a type.

    Yes/no questions are drawn with both answers equally often for each wording: as they come, seven of eight that name
    a colour have the same answer whatever the image, and a model learns that instead of looking.
    """
    if kind != "yesno":
        return lambda rng: rng.choice(rows)
    answers: dict[str, dict[str, list[Question]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        answers[row.text][row.answer].append(row)
    texts = sorted(answers)

    def draw(rng: random.Random) -> Question:
        choices = answers[rng.choice(texts)]
        return rng.choice(choices[rng.choice(sorted(choices))])

    return draw


def blind_answers(rows: Sequence[Question]) -> dict[str, str]:
    """The most frequent training answer to each wording, which is the best answer without looking at the image."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        counts[row.text][row.answer] += 1
    return {text: sorted(count, key=lambda answer: (-count[answer], answer))[0] for text, count in counts.items()}
