"""Score the models of this example: accuracy per combination of media, with 95 % Wilson intervals."""

from __future__ import annotations

import io
import json
import random
import tempfile
import wave
from collections.abc import Mapping
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch
from PIL import Image
from pyarrow import parquet
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.common.commands import lm_eval_here
from examples.common.scores import Cell, Score, aligned, from_results, mean_of
from examples.omni.facts import MODALITIES, NAMES, PAIRS, Question, ask, told
from examples.omni.media import RATE, payload, pools

GROUP = "mllm_demo_omni"
TASK_FOLDER = Path(__file__).parent / "tasks"
COLUMNS: dict[str, tuple[str, ...]] = {
    **{NAMES[m]: (m,) for m in MODALITIES},
    **{" + ".join(NAMES[m] for m in pair): pair for pair in PAIRS},
}
ONE, TWO = tuple(COLUMNS)[:3], tuple(COLUMNS)[3:]
TASKS = {column: f"{GROUP}_{'_'.join(modalities)}" for column, modalities in COLUMNS.items()}
MEANS = {"mean of one": ONE, "mean of two": TWO}


@lru_cache
def questions(split: str, count: int) -> dict[str, list[Question]]:
    """`count` questions for each column, the same for every model."""
    made = {}
    for column, modalities in COLUMNS.items():
        rng = random.Random(f"questions {split} {column}")
        made[column] = [ask(rng, pools(split), modalities) for _ in range(count)]
    return made


def write_questions(split: str, count: int, folder: Path) -> None:
    """Write the questions and their media where this example's tasks read them if MLLM_EVAL_DATA names `folder`.

    Images and frames are PNG, sounds are WAV of 32 bits: both without loss.
    """
    folder = folder / "mllm_demo_omni"
    folder.mkdir(parents=True, exist_ok=True)
    store = {"image": _png, "audio": _wav, "video": lambda frames: [_png(Image.fromarray(f)) for f in frames]}
    for column, rows in questions(split, count).items():
        found = []
        for row in rows:
            media = {medium.modality: store[medium.modality](payload(medium, split)) for medium in row.media}
            found.append(
                {"question": row.text, "answer": row.answer, "media": list(media), **dict.fromkeys(MODALITIES), **media}
            )
        parquet.write_table(pyarrow.Table.from_pylist(found), folder / f"{'+'.join(COLUMNS[column])}.parquet")


def _png(image: Image.Image) -> dict[str, Any]:
    data = io.BytesIO()
    image.save(data, "PNG")
    return {"bytes": data.getvalue(), "path": None}


def _wav(samples: np.ndarray[Any, Any]) -> dict[str, Any]:
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setparams((1, 4, RATE, 0, "NONE", ""))
        file.writeframes(np.round(samples.astype(np.float64) * 2**31).astype("<i4").tobytes())
    return {"bytes": data.getvalue(), "path": None}


def load_llm(path: Path | str) -> tuple[Any, Any]:
    """The text LLM in float32 and its tokenizer."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(path)


@torch.inference_mode()
def score_llm(model: Any, tokenizer: Any, split: str, count: int, words: bool = False) -> dict[str, Score]:
    """The text LLM's score. An answer is right if each of its words is the most likely one after the words before it.

    words: the media of a question are described in words before it; otherwise the LLM gets the question alone.
    """
    result = {}
    for column, rows in questions(split, count).items():
        rng, found = random.Random("told"), 0
        for length, group in groupby(sorted(rows, key=_length), key=_length):
            batch = list(group)
            chats = [[{"role": "user", "content": told(row, rng) if words else row.text}] for row in batch]
            texts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
            texts = [text + row.answer for text, row in zip(texts, batch, strict=True)]
            inputs = tokenizer(text=texts, padding=True, return_tensors="pt")
            logits = model(**inputs).logits[:, -length - 1 : -1]
            found += int((logits.argmax(-1) == inputs["input_ids"][:, -length:]).all(-1).sum())
        result[column] = Score(found, len(rows))
    return result


def _length(question: Question) -> int:
    return len(question.answer.split())


def asked(path: Path) -> dict[str, Any]:
    """lm-eval's `--metadata`: a donor is shown only media of the modality that it is the donor of."""
    donor_of = {"llava": "image", "qwen2_audio": "audio", "video_llava": "video"}
    modality = donor_of.get(json.loads((path / "config.json").read_text())["model_type"])
    return {"shown": [modality]} if modality else {}


def score(path: Path, split: str, count: int) -> dict[str, Score]:
    """A multimodal model's score, by lm-eval in this process."""
    with tempfile.TemporaryDirectory() as folder:
        write_questions(split, count, Path(folder))
        metadata = {**asked(path), "sources": {"mllm_demo_omni": f"{folder}/mllm_demo_omni"}}
        model = {"pretrained": str(path), "dtype": "float32"}
        return from_results(lm_eval_here(model, GROUP, TASK_FOLDER, metadata=metadata), TASKS)


def percentages(scores: Mapping[str, Score]) -> dict[str, Cell]:
    """Accuracy and half the width of its 95 % interval, in percent, of the columns and of their two means."""
    cells = {column: score.cell for column, score in scores.items()}
    return {**cells, **{mean: mean_of(cells[column] for column in columns) for mean, columns in MEANS.items()}}


def table(results: Mapping[str, Mapping[str, Score]]) -> str:
    """One line of Markdown per model, a column per combination of media, and the means."""
    columns = [*ONE, "mean of one", *TWO, "mean of two"]
    rows = [["model", *columns]]
    for name, scores in results.items():
        cells = percentages(scores)
        rows.append([name, *(f"{cells[column][0]:.1f} ± {cells[column][1]:.1f}" for column in columns)])
    return aligned(rows, markdown=True)
