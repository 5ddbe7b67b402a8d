"""The material as a model is trained on it: each picture with its questions, as the turns of one conversation."""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyarrow import parquet

from examples.common.models import LONGEST
from examples.minibench.material import image_column
from examples.minibench.rows import Region
from mergekit_mm.evaluation.tasks import documents
from mergekit_mm.evaluation.tasks.media import open_image

PLACEHOLDER = "<image>"
IGNORED = -100  # the label of tokens that a model does not learn to say
_DOCUMENTS = {
    "vqa": documents.vqa,
    "chart": documents.chartqa,
    "ocr": documents.vqa,
    "geometry": documents.mathvista,
    "grounding": documents.refcoco,
}


@dataclass
class Conversation:
    """Prompts about one picture with the replies to them. picture: its place among those of the split."""

    picture: int
    turns: list[tuple[str, str]] = field(default_factory=list)


def asked(folder: Path, capability: str, split: str) -> list[tuple[str, str]]:
    """A split's prompts, without the placeholder of the image, and the replies to learn, in the order of the rows.

    The prompts are those that lm-eval asks, by the functions of the tasks.
    """
    file = folder / capability / f"{split}.parquet"
    prompts = _DOCUMENTS[capability](source=str(file), split=split)["test"].with_format(None)["prompt"]
    replies = parquet.read_table(file, columns=["reply"])["reply"].to_pylist()
    return [(prompt.removeprefix(PLACEHOLDER), reply) for prompt, reply in zip(prompts, replies, strict=True)]


def read_pictures(folder: Path, capability: str, split: str) -> torch.Tensor:
    """A split's pictures (n, 3, side, side) in uint8, in the order of the rows."""
    stored = _pictures_of_rows(folder, capability, split)
    new = [image for at, image in enumerate(stored) if at == 0 or image != stored[at - 1]]
    pixels = [np.asarray(open_image(image).convert("RGB")).transpose(2, 0, 1) for image in new]
    return torch.from_numpy(np.stack(pixels))


def read_conversations(
    folder: Path, capability: str, split: str, kinds: Collection[str] | None = None, rare: float = 0.0
) -> list[Conversation]:
    """A split's conversations, in the order of their pictures.

    kinds: the kinds of question to read; None stands for all. rare: the share of the pictures, the first ones, of which
    questions of all kinds are read nevertheless. Conversations without a question are left out.
    """
    stored = _pictures_of_rows(folder, capability, split)
    found = parquet.read_table(folder / capability / f"{split}.parquet", columns=["kind"])["kind"].to_pylist()
    conversations: list[Conversation] = []
    kinds_of: list[list[str]] = []  # the questions of each conversation
    for at, (turn, image, kind) in enumerate(zip(asked(folder, capability, split), stored, found, strict=True)):
        if at == 0 or image != stored[at - 1]:
            conversations.append(Conversation(len(conversations)))
            kinds_of.append([])
        conversations[-1].turns.append(turn)
        kinds_of[-1].append(kind)
    whole = round(rare * len(conversations))
    for each, those in zip(conversations[whole:], kinds_of[whole:], strict=True):
        each.turns = [turn for turn, kind in zip(each.turns, those, strict=True) if kinds is None or kind in kinds]
    return [each for each in conversations if each.turns]


def _pictures_of_rows(folder: Path, capability: str, split: str) -> list[Any]:
    """The stored picture of each row; rows about one picture follow each other."""
    column = image_column(capability)
    stored: list[Any] = parquet.read_table(folder / capability / f"{split}.parquet", columns=[column])[
        column
    ].to_pylist()
    return stored


def read_regions(folder: Path, capability: str, split: str) -> list[list[Region]]:
    """The regions of each picture that `read_pictures` returns."""
    file = folder / capability / f"{split}.parquet"
    columns = parquet.read_table(file, columns=[image_column(capability), "regions"])
    stored, drawn = (column.to_pylist() for column in columns.columns)
    new = [at for at in range(len(stored)) if at == 0 or stored[at] != stored[at - 1]]
    return [
        [Region(label, tuple(box), tuple(map(tuple, points))) for label, box, points in json.loads(drawn[at])]
        for at in new
    ]


class Encoder:
    """Conversations as token ids, in the format of the chat template."""

    def __init__(self, processor: Any) -> None:
        self.tokenizer = processor.tokenizer
        self.placeholder = processor.image_token_id
        image = [self.placeholder] * processor.image_seq_length
        self.image = [processor.start_image_token_id, *image, processor.end_image_token_id]
        ids = self.tokenizer.convert_tokens_to_ids
        self.start, self.user, self.assistant, self.end = map(ids, ("<s>", "<user>", "<assistant>", "</s>"))
        self.known: dict[str, list[int]] = {}

    def words(self, text: str) -> list[int]:
        """The ids of a prompt or a reply."""
        if text not in self.known:
            self.known[text] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self.known[text]

    def __call__(self, conversation: Conversation, most: int, rng: random.Random) -> tuple[list[int], list[int]]:
        """Ids and labels of at most `most` turns, in random order, without those that would exceed `LONGEST` tokens.

        Labels are the ids of the replies, and `IGNORED` at any other place.
        """
        ids, labels = [self.start], [IGNORED]
        for prompt, reply in rng.sample(conversation.turns, min(most, len(conversation.turns))):
            image = self.image if len(ids) == 1 else []
            given = [self.user, *image, *self.words(prompt), self.assistant]
            told = [*self.words(reply), self.end]
            if len(ids) + len(given) + len(told) <= LONGEST:
                ids += given + told
                labels += [IGNORED] * len(given) + told
        return ids, labels


def batch(
    encoder: Encoder, conversations: Sequence[Conversation], most: int, rng: random.Random
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, attention mask and labels (conversations, longest), padded on the right."""
    encoded = [encoder(each, most, rng) for each in conversations]
    longest = max(len(ids) for ids, _ in encoded)
    pad = encoder.tokenizer.pad_token_id
    ids = torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in encoded])
    labels = torch.tensor([labels + [IGNORED] * (longest - len(labels)) for _, labels in encoded])
    return ids, (ids != pad).long(), labels
