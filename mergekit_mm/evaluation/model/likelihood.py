"""Likelihoods of answers: where the tokens of an answer begin in a text, and their logits in a batch."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from mergekit_mm.omni.templates import special_tokens


class TokenizedAnswer(NamedTuple):
    """A prompt with an answer after it, and the token ids of both, in which placeholder tokens are not expanded.

    length: how many of the ids, at the end, are the answer's.
    """

    text: str
    ids: tuple[int, ...]
    length: int


def tokenize_answer(tokenizer: Any, prompt: str, answer: str, after_template: bool) -> TokenizedAnswer:
    """The tokens of `answer` after `prompt`. ValueError: the answer has no tokens of its own.

    Blanks at the prompt's end that are one token with what follows belong to the answer. after_template: the prompt was
    rendered by a chat template of which lm-eval does not know. Where such a prompt ends with a blank or a special
    token, the answer begins without a blank, as it does where lm-eval applies the template itself.
    """
    if after_template and (prompt[-1:].isspace() or any(prompt.endswith(each) for each in special_tokens(tokenizer))):
        answer = answer.lstrip(" ")
    text = prompt + answer
    own_start = {"add_special_tokens": False} if tokenizer.bos_token and text.startswith(tokenizer.bos_token) else {}

    def ids_of(part: str) -> tuple[int, ...]:
        return tuple(tokenizer(part, **own_start)["input_ids"])

    ids, start = ids_of(text), ids_of(prompt)
    if ids[: len(start)] != start:
        start = ids_of(prompt.rstrip())
    if len(ids) <= len(start):
        raise ValueError(f"the answer {answer!r} has no tokens of its own after {prompt[-40:]!r}")
    return TokenizedAnswer(text, ids, len(ids) - len(start))


def logits_of_answers(model: Any, inputs: Any, answers: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """For each row of a batch, padded on the right, the logits (tokens, vocabulary) that predict its answer.

    answers: the token ids of each row's answer, with which the row ends. ValueError: a row ends with other ids, as when
    a processor writes something after the prompt.
    """
    stops = inputs["attention_mask"].sum(-1).tolist()
    starts = [stop - len(ids) for stop, ids in zip(stops, answers, strict=True)]
    for row, start, stop, ids in zip(inputs["input_ids"].tolist(), starts, stops, answers, strict=True):
        if row[start:stop] != list(ids):
            raise ValueError(f"the processor writes tokens {row[start:stop]} where the answer's are {list(ids)}")
    total = inputs["input_ids"].shape[1]
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT hides the signature
    can_keep_few = "logits_to_keep" in inspect.signature(inner.forward).parameters
    options = {"logits_to_keep": total - min(starts) + 1} if can_keep_few else {}
    logits = model(**inputs, **options).logits
    skipped = total - logits.shape[1]
    return [
        row[start - 1 - skipped : stop - 1 - skipped] for row, start, stop in zip(logits, starts, stops, strict=True)
    ]
