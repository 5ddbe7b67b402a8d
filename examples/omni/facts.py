"""The facts of this example's media, the questions about them, and their description in words.

A medium has facts ({"color": "red", "shape": "circle"}). For the text LLM, which is trained on words alone, the facts
are also written out: "image: circle red red sound: low two soft is the image red and the sound high?". A question is
about one medium (`open`, `yes/no`) or about two (`both`, `and`, `same`).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

MODALITIES = ("image", "audio", "video")
NAMES = {"image": "image", "audio": "sound", "video": "video"}  # the words for the modalities in questions
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
ATTRIBUTES: dict[str, dict[str, tuple[str, ...]]] = {
    "image": {"color": COLORS, "shape": ("circle", "rectangle", "triangle")},
    "audio": {"pitch": ("low", "medium", "high"), "volume": ("soft", "loud"), "count": ("one", "two", "three")},
    "video": {"color": ("blue", "green", "red", "yellow"), "direction": ("left", "right", "up", "down")},
}
PLACES = (("west", "center", "east"), ("north", "halfway", "south"))  # thirds of a frame, across and down
PAIRS = (("image", "audio"), ("video", "audio"), ("image", "video"))
FILLER = "something"


class Medium(NamedTuple):
    """One image, sound or video.

    parts: its words by part; a video has one part per frame. source: the number of an image, or the parameters from
    which a sound or a video is synthesised.
    """

    modality: str
    facts: Mapping[str, str]
    parts: Sequence[Sequence[str]]
    source: Any


class Question(NamedTuple):
    """A question. media: in the order in which they are shown; kind: one of the five kinds of questions."""

    text: str
    answer: str
    media: tuple[Medium, ...]
    kind: str


Pools = Mapping[str, Sequence[Medium]]


def in_words(medium: Medium, rng: random.Random) -> str:
    """A medium in words: those of each part in random order, with repetitions and fillers, as features have."""
    told = []
    for part in medium.parts:
        words = [*part, *rng.choices([*part, FILLER], k=rng.randint(0, 3) // len(medium.parts))]
        rng.shuffle(words)
        told += words
    return " ".join(told)


def about_one(rng: random.Random, medium: Medium, share: float = 0.5) -> Question:
    """A question about one medium: yes/no with probability `share`, else open. Yes and no are equally likely."""
    name = NAMES[medium.modality]
    attribute, values = rng.choice(list(ATTRIBUTES[medium.modality].items()))
    true = medium.facts[attribute]
    if rng.random() >= share:
        return Question(f"what is the {attribute} of the {name}?", true, (medium,), "open")
    yes = rng.random() < 0.5
    claim = true if yes else rng.choice([value for value in values if value != true])
    return Question(f"is the {name} {claim}?", "yes" if yes else "no", (medium,), "yes/no")


def about_two(rng: random.Random, pools: Pools, modalities: Sequence[str]) -> Question:
    """A question about two media: for two values (`both`), about two claims (`and`), or about one colour (`same`).

    Yes and no are equally likely; in a wrong `and` question one of the two claims is false.
    """
    kinds = ("both", "and", "same") if set(modalities) == {"image", "video"} else ("both", "and")
    kind = rng.choice(kinds)
    media = tuple(rng.choice(pools[modality]) for modality in modalities)
    if kind == "same":
        return _same(rng, pools, modalities)
    attributes = [rng.choice(list(ATTRIBUTES[m.modality])) for m in media]
    values = [m.facts[a] for m, a in zip(media, attributes, strict=True)]
    names = [NAMES[m.modality] for m in media]
    if kind == "both":
        asked = " and the ".join(f"{a} of the {n}" for a, n in zip(attributes, names, strict=True))
        return Question(f"what are the {asked}?", " ".join(values), media, kind)
    wrong = rng.choice([None, None, 0, 1])
    if wrong is not None:
        choices = ATTRIBUTES[media[wrong].modality][attributes[wrong]]
        values[wrong] = rng.choice([value for value in choices if value != values[wrong]])
    text = f"is the {names[0]} {values[0]} and the {names[1]} {values[1]}?"
    return Question(text, "yes" if wrong is None else "no", media, kind)


def _same(rng: random.Random, pools: Pools, modalities: Sequence[str]) -> Question:
    yes = rng.random() < 0.5
    video = rng.choice(pools["video"])
    others = [m for m in pools["image"] if (m.facts["color"] == video.facts["color"]) == yes]
    others = [m for m in others if m.facts["color"] in ATTRIBUTES["video"]["color"]]
    found = {"video": video, "image": rng.choice(others)}
    text = "do the image and the video have the same color?"
    return Question(text, "yes" if yes else "no", tuple(found[m] for m in modalities), "same")


def ask(rng: random.Random, pools: Pools, modalities: Sequence[str]) -> Question:
    """A question about one medium or two, of these modalities; two media are shown and named in random order."""
    if len(modalities) == 1:
        return about_one(rng, rng.choice(pools[modalities[0]]))
    return about_two(rng, pools, rng.sample(modalities, 2))


def with_distractors(rng: random.Random, question: Question, pools: Pools, chance: float) -> Question:
    """The question with further media that it does not ask about, each of them with probability `chance`."""
    media = list(question.media)
    shown = {medium.modality for medium in media}
    media += [rng.choice(pools[m]) for m in MODALITIES if m not in shown and rng.random() < chance]
    rng.shuffle(media)
    return question._replace(media=tuple(media))


def told(question: Question, rng: random.Random) -> str:
    """The user's message to the text LLM: the question, after its media in words."""
    media = [f"{NAMES[medium.modality]}: {in_words(medium, rng)}" for medium in question.media]
    return " ".join([*media, question.text])


def words() -> list[str]:
    """Every word that occurs in a question, an answer or the description of a medium."""
    sentences = "what is are do have the same of and : ? yes no"
    found = {*sentences.split(), *NAMES.values(), FILLER, *PLACES[0], *PLACES[1]}
    for attributes in ATTRIBUTES.values():
        found |= {*attributes, *(value for values in attributes.values() for value in values)}
    return sorted(found)
