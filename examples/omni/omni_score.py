"""Load any checkpoint of this example and score it: accuracy per combination of media, with 95 % Wilson intervals."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from omni_facts import MODALITIES, NAMES, PAIRS, Question, ask, told
from omni_media import RATE, payload, pools
from omni_model import ARGUMENT, prompt
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM, AutoProcessor, AutoTokenizer
from vqa_score import Score  # beside omni_media, which puts its directory on the path

from mergekit_mm.omni import register

BATCH = 100
COLUMNS: dict[str, tuple[str, ...]] = {
    **{NAMES[m]: (m,) for m in MODALITIES},
    **{" + ".join(NAMES[m] for m in pair): pair for pair in PAIRS},
}
ONE, TWO = tuple(COLUMNS)[:3], tuple(COLUMNS)[3:]
MEANS = {"mean of one": ONE, "mean of two": TWO}


@lru_cache
def questions(split: str, count: int) -> dict[str, list[Question]]:
    """`count` questions for each column, the same for everyone."""
    made = {}
    for column, modalities in COLUMNS.items():
        rng = random.Random(f"questions {split} {column}")
        made[column] = [ask(rng, pools(split), modalities) for _ in range(count)]
    return made


def load(path: Path | str, adapter: Path | str | None = None) -> tuple[Any, Any]:
    """A multimodal model in float32, with an adapter if one is given, and its processor."""
    register()
    model = AutoModelForMultimodalLM.from_pretrained(path, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    return model.eval(), AutoProcessor.from_pretrained(path)


def load_llm(path: Path | str) -> tuple[Any, Any]:
    """The text LLM in float32 and its tokenizer."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(path)


def takes(processor: Any) -> tuple[str, ...]:
    """The modalities that are shown to the model of this processor: of a donor, only those it is the donor of."""
    if hasattr(processor, "modalities"):
        return tuple(processor.modalities)
    return {"LlavaProcessor": ("image",), "Qwen2AudioProcessor": ("audio",), "VideoLlavaProcessor": ("video",)}[
        type(processor).__name__
    ]


@torch.inference_mode()
def right(model: Any, processor: Any, split: str, rows: Sequence[Question], words: bool = False) -> list[bool]:
    """Whether each answer is what greedy `generate()` would say: every word the most likely one after those before it.

    The model is shown those media of a question that it takes; `words`: a text LLM is told them. Without `words`, a
    text LLM gets the question alone.
    """
    text_only = not hasattr(processor, "tokenizer")
    shown = () if text_only else takes(processor)
    rng = random.Random("told")

    def key(n: int) -> tuple[int, list[str]]:
        return len(rows[n].answer.split()), sorted(m.modality for m in rows[n].media if m.modality in shown)

    found = [False] * len(rows)
    for (length, modalities), group in groupby(sorted(range(len(rows)), key=key), key):
        members = list(group)
        for start in range(0, len(members), BATCH):
            batch = [rows[n] for n in members[start : start + BATCH]]
            if text_only:
                content = [told(row, rng) if words else row.text for row in batch]
                chats = [[{"role": "user", "content": text}] for text in content]
                texts = processor.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
            else:
                texts = [prompt(processor, row, shown) for row in batch]
            texts = [text + row.answer for text, row in zip(texts, batch, strict=True)]
            inputs = processor(text=texts, padding=True, return_tensors="pt", **media_of(batch, modalities, split))
            logits = model(**inputs).logits[:, -length - 1 : -1]
            same = (logits.argmax(-1) == inputs["input_ids"][:, -length:]).all(-1)
            for n, value in zip(members[start : start + BATCH], same.tolist(), strict=True):
                found[n] = value
    return found


def media_of(batch: Sequence[Question], modalities: Sequence[str], split: str) -> dict[str, Any]:
    """The processor's arguments with the media of these modalities, one of each per question."""
    given: dict[str, Any] = {}
    for modality in modalities:
        media = [medium for row in batch for medium in row.media if medium.modality == modality]
        given[ARGUMENT[modality]] = [payload(medium, split) for medium in media]
        if modality == "audio":
            given["sampling_rate"] = RATE
    return given


def score(model: Any, processor: Any, split: str, count: int, words: bool = False) -> dict[str, Score]:
    """The score of each column, over `count` questions each."""
    result = {}
    for column, rows in questions(split, count).items():
        found = right(model, processor, split, rows, words)
        result[column] = Score(sum(found), len(found))
    return result


def percentages(scores: Mapping[str, Score]) -> dict[str, tuple[float, float]]:
    """Accuracy and half the width of its 95 % interval, in percent, of the columns and of their two means."""
    cells = {column: (100 * s.accuracy, 50 * (s.wilson[1] - s.wilson[0])) for column, s in scores.items()}
    for mean, columns in MEANS.items():
        parts = [cells[column] for column in columns]
        cells[mean] = (sum(p[0] for p in parts) / len(parts), sum(p[1] ** 2 for p in parts) ** 0.5 / len(parts))
    return cells


def table(results: Mapping[str, Mapping[str, Score]]) -> str:
    """One line of Markdown per model, a column per combination of media, and the means."""
    columns = [*ONE, "mean of one", *TWO, "mean of two"]
    lines = [["model", *columns]]
    for name, scores in results.items():
        cells = percentages(scores)
        lines.append([name, *(f"{cells[c][0]:.1f} ± {cells[c][1]:.1f}" for c in columns)])
    widths = [max(len(line[n]) for line in lines) for n in range(len(lines[0]))]
    texts = [f"| {' | '.join(cell.ljust(w) for cell, w in zip(line, widths, strict=True))} |" for line in lines]
    rule = "|".join(["", "-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:]), ""])
    return "\n".join([texts[0], rule, *texts[1:]])
