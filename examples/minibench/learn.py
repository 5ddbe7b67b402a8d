"""The loss of answering, and the batches that a base, a mixture or an expert learns from."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from examples.minibench.turns import IGNORED, Conversation, Encoder, batch


@dataclass(frozen=True)
class Lessons:
    """What is learned of a capability.

    seen: what `frozen_features` makes of its pictures. most: turns of a conversation that are learned from in one step,
    which bounds its length.
    """

    seen: torch.Tensor
    conversations: Sequence[Conversation]
    most: int = 4


def pixel_values(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures (n, 3, side, side) in uint8 as the image processor of the model prepares them: from -1 to 1."""
    return pictures.float() / 127.5 - 1


@torch.no_grad()
def frozen_features(model: Any, pictures: torch.Tensor) -> torch.Tensor:
    """What the projector gets of pictures (n, 3, side, side) in uint8, from a tower that does not learn any more.

    Returns (n, image tokens, width) in float16, where the width is that of the tower's features of all the patches that
    become one token.
    """
    inner, parts = model.model, []
    for part in pictures.split(128):
        patches = inner.vision_tower(pixel_values=pixel_values(part.to(model.device))).last_hidden_state[:, 1:]
        across = round(patches.shape[1] ** 0.5)
        square = patches.reshape(len(part), across, across, -1)
        parts.append(inner.pixel_shuffle(square, scale_factor=model.config.downsample_ratio).flatten(1, 2).half().cpu())
    return torch.cat(parts)


def answering_loss(
    model: Any, encoder: Encoder, lessons: Lessons, conversations: Sequence[Conversation], rng: random.Random
) -> torch.Tensor:
    """The cross entropy of the replies to some of the conversations of a capability: the mean over tokens."""
    ids, mask, labels = (each.to(model.device) for each in batch(encoder, conversations, lessons.most, rng))
    seen = lessons.seen[[conversation.picture for conversation in conversations]].to(model.device)
    shown = model.model.multi_modal_projector(seen.float())
    embedded = model.get_input_embeddings()(ids)
    places = (ids == encoder.placeholder)[..., None].expand_as(embedded)
    hidden = model.model.language_model(
        inputs_embeds=embedded.masked_scatter(places, shown.to(embedded.dtype)), attention_mask=mask
    ).last_hidden_state
    said = labels[:, 1:] != IGNORED
    return cross_entropy(model.lm_head(hidden[:, :-1][said]).float(), labels[:, 1:][said])


def mixed_loss(
    model: Any, encoder: Encoder, lessons: Mapping[str, Lessons], size: int, rng: random.Random
) -> Callable[[], torch.Tensor]:
    """The loss of a new batch at each call: the mean of the capabilities, with equal parts of `size` conversations.

    Each capability is a batch of its own, as the lengths of its conversations are alike.
    """

    def loss() -> torch.Tensor:
        parts = []
        for lesson in lessons.values():
            drawn = rng.choices(lesson.conversations, k=size // len(lessons))
            parts.append(answering_loss(model, encoder, lesson, drawn, rng))
        return torch.stack(parts).mean()

    return loss


def rehearsing_loss(
    model: Any,
    encoder: Encoder,
    own: Lessons,
    known: Sequence[Lessons],
    share: float,
    size: int,
    rng: random.Random,
) -> Callable[[], torch.Tensor]:
    """The loss of a new batch of `size` conversations at each call, of what is new and of what the base knows.

    own: what an expert learns. known: what its base has learned of each other capability. share: of the conversations
    that are about one of these, a new one at each call. The parts count by their sizes.
    """
    old = round(share * size)

    def loss() -> torch.Tensor:
        drawn = rng.choices(own.conversations, k=size - old)
        found = (size - old) / size * answering_loss(model, encoder, own, drawn, rng)
        if old:
            other = rng.choice(known)
            drawn = rng.choices(other.conversations, k=old)
            found = found + old / size * answering_loss(model, encoder, other, drawn, rng)
        return found

    return loss
