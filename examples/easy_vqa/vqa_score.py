"""Load any checkpoint of this example and score it: accuracy per question type with 95 % Wilson intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftConfig, PeftModel
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor
from vqa_data import TYPES, Question, blind_answers, image, questions
from vqa_model import prompt_ids

BATCH = 256
COLUMNS = (*TYPES, "mean")


class Score(NamedTuple):
    """`right` of `total` questions answered correctly."""

    right: int
    total: int

    @property
    def accuracy(self) -> float:
        return self.right / self.total

    @property
    def wilson(self) -> tuple[float, float]:
        """The 95 % Wilson score interval of the accuracy."""
        z, n, p = 1.959964, self.total, self.accuracy
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return centre - half, centre + half


def load(directory: Path | str, base: Path | str | None = None) -> tuple[Any, Any]:
    """The model in float32 and its processor; a LoRA adapter is applied to `base` (default: its neighbour `base/`)."""
    directory = Path(directory)
    adapter = (directory / "adapter_config.json").exists()
    full = directory
    if adapter:
        full = Path(base or directory.parent / "base")
        full = full if full.exists() else Path(PeftConfig.from_pretrained(directory).base_model_name_or_path)
    model = AutoModelForImageTextToText.from_pretrained(full, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, directory)
    return model.eval(), AutoProcessor.from_pretrained(full)


@torch.inference_mode()
def answers(model: Any, processor: Any, split: str, rows: Sequence[Question], label: str = "") -> list[str]:
    """The model's answer to each question: the most likely next token, i.e. the first token greedy `generate()` gives.

    Each distinct image and each distinct wording is preprocessed once, by the checkpoint's own processor; every
    question then takes a full forward pass, in batches of equally long prompts, so that nothing is padded.
    """
    numbers = sorted({row.image for row in rows})
    images = [image(split, number) for number in numbers]
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    place = {number: index for index, number in enumerate(numbers)}
    prompts = prompt_ids(processor, sorted({row.text for row in rows}))
    order = sorted(range(len(rows)), key=lambda index: (len(prompts[rows[index].text]), index))
    told: list[str] = [""] * len(rows)
    with tqdm(total=len(rows), desc=label, unit="question", leave=False, disable=not label) as bar:
        for batch in _equal_lengths(order, [len(prompts[row.text]) for row in rows]):
            ids = torch.stack([prompts[rows[index].text] for index in batch])
            shown = pixels[[place[rows[index].image] for index in batch]]
            logits = model(input_ids=ids, pixel_values=shown, logits_to_keep=1).logits[:, -1]
            for index, token in zip(batch, logits.argmax(-1).tolist(), strict=True):
                told[index] = processor.tokenizer.convert_ids_to_tokens(token)
            bar.update(len(batch))
    return told


def _equal_lengths(order: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    batches: list[list[int]] = []
    for index in order:
        if not batches or len(batches[-1]) == BATCH or lengths[batches[-1][0]] != lengths[index]:
            batches.append([])
        batches[-1].append(index)
    return batches


def tally(rows: Sequence[Question], told: Sequence[str]) -> dict[str, Score]:
    """The score of each type that occurs in `rows`."""
    right: dict[str, list[bool]] = {}
    for row, answer in zip(rows, told, strict=True):
        right.setdefault(row.type, []).append(answer == row.answer)
    return {kind: Score(sum(right[kind]), len(right[kind])) for kind in TYPES if kind in right}


def score(
    directory: Path | str, split: str, rows: Sequence[Question], label: str = "", base: Path | None = None
) -> dict[str, Score]:
    """Load a checkpoint, or an adapter of `base`, and score its answers to `rows`."""
    model, processor = load(directory, base)
    return tally(rows, answers(model, processor, split, rows, label))


def blind_score(rows: Sequence[Question]) -> dict[str, Score]:
    """The score of the most frequent training answer to each wording, without looking at any image."""
    guess = blind_answers(questions("train"))
    return tally(rows, [guess[row.text] for row in rows])


def percentages(scores: Mapping[str, Score]) -> dict[str, tuple[float, float]]:
    """Per type and for their plain mean: the accuracy and half the width of its 95 % interval, in percent.

    The mean's interval treats the types as independent samples: the root of the summed squares of their half widths,
    over their number.
    """
    cells = {kind: (100 * s.accuracy, 50 * (s.wilson[1] - s.wilson[0])) for kind, s in scores.items()}
    mean = sum(value for value, _ in cells.values()) / len(cells)
    return {**cells, "mean": (mean, math.sqrt(sum(half**2 for _, half in cells.values())) / len(cells))}


def table(results: Mapping[str, Mapping[str, Score]], markdown: bool = False) -> str:
    """One line per model, one column per question type and their plain mean, aligned."""
    head = ["model", *(f"{column} %" for column in COLUMNS)]
    body = []
    for name, scores in results.items():
        cells = percentages(scores)
        body.append([name, *(f"{cells[c][0]:5.1f} ±{cells[c][1]:4.1f}" for c in COLUMNS)])
    rows = [head, *body]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    padded = [
        [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))] for row in rows
    ]
    if markdown:
        rule = "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])])
        lines = [f"| {' | '.join(row)} |" for row in padded]
        return "\n".join([lines[0], f"|{rule}|", *lines[1:]])
    lines = ["  ".join(row) for row in padded]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def as_json(results: Mapping[str, Mapping[str, Score]]) -> dict[str, dict[str, dict[str, float | int | list[float]]]]:
    """Per model and type: `right`, `total`, `accuracy` and its interval `wilson95`, as fractions."""
    return {
        name: {kind: {**s._asdict(), "accuracy": s.accuracy, "wilson95": list(s.wilson)} for kind, s in scores.items()}
        for name, scores in results.items()
    }
