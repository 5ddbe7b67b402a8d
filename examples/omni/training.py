"""The training of this example: the text LLM on words, towers on labels, donors on questions about one medium."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from examples.common.training import Stage, optimise
from examples.omni.facts import (
    ATTRIBUTES,
    MODALITIES,
    PAIRS,
    PLACES,
    Medium,
    Question,
    about_one,
    ask,
    told,
    with_distractors,
)
from examples.omni.media import payload, pools, third
from examples.omni.model import ARGUMENT, prompt

# ------------------------------------------------------------------------------------------------------- text LLM


def train_llm(llm: Any, tokenizer: Any, stages: Sequence[Stage], seed: int) -> None:
    """Train on questions about media in words: first about one medium, then about one or two, at times beside a third.

    Yes and no take by far the longest to learn, and are learned from single media, so most questions of the first stage
    are yes/no questions.
    """
    rng, media = random.Random(f"{seed} llm"), pools("train")

    def single() -> Question:
        return about_one(rng, rng.choice(media[rng.choice(MODALITIES)]), 0.7)

    def every() -> Question:
        kinds = [*[(m,) for m in MODALITIES], *PAIRS, *PAIRS]
        return with_distractors(rng, ask(rng, media, rng.choice(kinds)), media, 0.2)

    for stage, draw in zip(stages, (single, every), strict=True):

        def loss(stage: Stage = stage, draw: Callable[[], Question] = draw) -> torch.Tensor:
            rows = [draw() for _ in range(stage.batch)]
            messages = [[{"role": "user", "content": told(row, rng)}] for row in rows]
            prompts = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            return answer_loss(llm, tokenizer, prompts, rows)

        optimise(list(llm.parameters()), stage, f"text LLM, {draw.__name__} questions", loss)


def answer_loss(
    model: Any, tokenizer: Any, prompts: Sequence[str], rows: Sequence[Question], embed: Any = None
) -> torch.Tensor:
    """Cross entropy of the answers and the end token. embed: turns token ids into embeddings; default: the model."""
    texts = [f"{text}{row.answer}</s>" for text, row in zip(prompts, rows, strict=True)]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    given = {"input_ids": ids} if embed is None else {"inputs_embeds": embed(ids)}
    lengths = torch.tensor([[len(row.answer.split()) + 1] for row in rows])
    longest = int(lengths.max())
    logits = model(**given, attention_mask=mask).logits[:, -longest - 1 : -1]
    targets = ids[:, -longest:]
    targets = targets.where(torch.arange(longest, 0, -1) <= lengths, -100)
    return cross_entropy(logits.flatten(0, 1), targets.flatten())


# ---------------------------------------------------------------------------------------------------------- towers


def inputs_of(media: Sequence[Medium], processor: Any, split: str) -> torch.Tensor:
    """The inputs of the donor's tower for each medium, from the donor's processor."""
    made = [payload(medium, split) for medium in media]
    modality = media[0].modality
    if modality == "audio":
        rate = processor.feature_extractor.sampling_rate
        return processor.feature_extractor(made, sampling_rate=rate, return_tensors="pt")["input_features"]
    part = processor.image_processor if modality == "image" else processor.video_processor
    key = "pixel_values" if modality == "image" else "pixel_values_videos"
    return torch.cat([part(**_call(modality, made[n : n + 500]))[key] for n in range(0, len(made), 500)])


def _call(modality: str, made: list[Any]) -> dict[str, Any]:
    return {ARGUMENT[modality]: made, "return_tensors": "pt"}


def see(donor: Any, modality: str, inputs: torch.Tensor) -> torch.Tensor:
    """The inputs of the donor's projector: (batch, tokens, width)."""
    inner = donor.model
    if modality == "image":
        return inner.vision_tower(pixel_values=inputs).last_hidden_state[:, 1:]
    if modality == "audio":
        return inner.audio_tower(inputs).last_hidden_state
    flat = inner.video_tower(pixel_values=inputs.flatten(0, 1), output_hidden_states=True).hidden_states[-1]
    return flat.unflatten(0, inputs.shape[:2]).flatten(1, 2)


def labels_of(medium: Medium) -> list[int]:
    """The labels of a sound are its three facts; those of a video its colour, and the shape's third in each frame."""
    names = [name for name in ATTRIBUTES[medium.modality] if name != "direction"]
    found = [ATTRIBUTES[medium.modality][name].index(medium.facts[name]) for name in names]
    if medium.modality == "video":
        found += [PLACES[axis].index(third(axis, point[axis])) for point in medium.source[1] for axis in (0, 1)]
    return found


def train_tower(donor: Any, modality: str, inputs: torch.Tensor, stage: Stage, seed: int) -> None:
    """Train the tower to name the facts of a sound or a frame, through a linear head that is thrown away later."""
    media = pools("train")[modality]
    labels = torch.tensor([labels_of(medium) for medium in media])
    sizes = [int(column.max()) + 1 for column in labels.T]
    tower = donor.model.audio_tower if modality == "audio" else donor.model.video_tower
    heads = sizes if modality == "audio" else [sizes[0], 3, 3]  # a sound as a whole, or each frame
    head = torch.nn.Linear(tower.config.hidden_size, sum(heads))
    generator = torch.Generator().manual_seed(seed)

    def loss() -> torch.Tensor:
        picked = torch.randint(len(media), (stage.batch,), generator=generator)
        seen = see(donor, modality, inputs[picked])
        if modality == "audio":
            told, wanted = head(seen.mean(1)), labels[picked]
        else:
            shown = inputs.shape[1]
            told = head(seen.unflatten(1, (shown, -1)).mean(2)).flatten(0, 1)
            wanted = torch.cat(
                [labels[picked, :1].expand(-1, shown)[..., None], labels[picked, 1:].unflatten(1, (shown, 2))], -1
            )
            wanted = wanted.flatten(0, 1)
        parts = zip(told.split(heads, -1), wanted.T, strict=True)
        return torch.stack([cross_entropy(scores, column) for scores, column in parts]).sum()

    optimise([*tower.parameters(), *head.parameters()], stage, f"{modality} tower", loss)


# ---------------------------------------------------------------------------------------------------------- donors


@torch.no_grad()
def features(donor: Any, modality: str, inputs: torch.Tensor) -> torch.Tensor:
    """The frozen tower's features of each medium, computed once as the tower no longer changes."""
    return torch.cat([see(donor, modality, part) for part in inputs.split(250)])


def train_donor(donor: Any, processor: Any, modality: str, seen: torch.Tensor, stage: Stage, seed: str) -> None:
    """Train the parameters that require gradients to answer questions about the donor's one modality.

    Half of the questions are also about a second medium, which is described in words: the donor never gets the media of
    another modality.
    """
    rng, media = random.Random(seed), pools("train")
    place = {id(medium): index for index, medium in enumerate(media[modality])}
    kinds = [(modality,), (modality,), *[pair for pair in PAIRS if modality in pair]]
    token = processor.tokenizer.convert_tokens_to_ids(f"<{modality}>")

    def loss() -> torch.Tensor:
        rows = [with_distractors(rng, ask(rng, media, rng.choice(kinds)), media, 0.2) for _ in range(stage.batch)]
        prompts = [prompt(processor, row, (modality,), rng) for row in rows]
        written = [text.replace(f"<{modality}>", f"<{modality}>" * seen.shape[1]) for text in prompts]
        shown = donor.model.multi_modal_projector(
            seen[[place[id(m)] for row in rows for m in row.media if m.modality == modality]]
        )

        def embed(ids: torch.Tensor) -> torch.Tensor:
            embedded = donor.get_input_embeddings()(ids)
            return embedded.masked_scatter((ids == token)[..., None].expand_as(embedded), shown)

        return answer_loss(donor, processor.tokenizer, written, rows, embed)

    optimise(list(donor.parameters()), stage, seed.split(maxsplit=1)[1], loss)
