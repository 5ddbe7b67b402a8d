"""What a model gives to the tokens of an answer: where they begin in a text, and their logits in a batch."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from mergekit_mm.omni.templates import special_tokens


class Scored(NamedTuple):
    """A prompt with its continuation, its token ids with media not expanded, and how many ids the continuation has."""

    text: str
    ids: tuple[int, ...]
    length: int


def continued(tokenizer: Any, prompt: str, continuation: str, after_template: bool) -> Scored:
    """Where the continuation's tokens begin. ValueError: it has none.

    Blanks at the prompt's end that are one token with what follows belong to the continuation. `after_template`: a chat
    template was applied that lm-eval does not know of; where that ends with a blank or a special token, the answer
    begins without one, as lm-eval has it when it applies the template itself.
    """
    if after_template and (prompt[-1:].isspace() or any(prompt.endswith(each) for each in special_tokens(tokenizer))):
        continuation = continuation.lstrip(" ")
    text = prompt + continuation
    own_start = {"add_special_tokens": False} if tokenizer.bos_token and text.startswith(tokenizer.bos_token) else {}

    def ids_of(part: str) -> tuple[int, ...]:
        return tuple(tokenizer(part, **own_start)["input_ids"])

    ids, start = ids_of(text), ids_of(prompt)
    if ids[: len(start)] != start:
        start = ids_of(prompt.rstrip())
    if len(ids) <= len(start):
        raise ValueError(f"the answer {continuation!r} has no tokens of its own after {prompt[-40:]!r}")
    return Scored(text, ids, len(ids) - len(start))


def logits_of_ends(model: Any, inputs: Any, ends: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """For each row, padded on the right, the logits (tokens, vocabulary) that predict its last ids, which are `ends`.

    ValueError: a row ends with other ids, as when a processor writes something after the prompt.
    """
    stops = inputs["attention_mask"].sum(-1).tolist()
    starts = [stop - len(end) for stop, end in zip(stops, ends, strict=True)]
    for row, start, stop, end in zip(inputs["input_ids"].tolist(), starts, stops, ends, strict=True):
        if row[start:stop] != list(end):
            raise ValueError(f"the processor writes tokens {row[start:stop]} where the answer's are {list(end)}")
    total = inputs["input_ids"].shape[1]
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model  # within a PEFT model
    few = "logits_to_keep" in inspect.signature(plain.forward).parameters
    options = {"logits_to_keep": total - min(starts) + 1} if few else {}
    logits = model(**inputs, **options).logits
    skipped = total - logits.shape[1]
    return [
        row[start - 1 - skipped : stop - 1 - skipped] for row, start, stop in zip(logits, starts, stops, strict=True)
    ]
