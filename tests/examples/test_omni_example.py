"""The omni example's questions reach lm-eval as they are, and its published scores hold."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import eval_mirror
import numpy as np
import pyarrow
import pytest
from lm_eval.tasks import TaskManager
from pyarrow import parquet

from examples.common.commands import ROOT
from examples.omni import scores
from examples.omni.media import RATE, payload
from mergekit_mm.evaluation.model import decoding
from mergekit_mm.evaluation.tasks import media

EXAMPLE = ROOT / "examples" / "omni"
RESULTS = json.loads((EXAMPLE / "results" / "results.json").read_text())["models"]


def test_written_questions_are_those_of_the_example(tmp_path: Path) -> None:
    scores.write_questions("test", 4, tmp_path)
    metadata = {"sources": {scores.GROUP: str(tmp_path / scores.GROUP)}}
    manager = TaskManager(include_path=str(scores.TASK_FOLDER), include_defaults=False, metadata=metadata)
    tasks = manager.load([scores.GROUP])["tasks"]
    for column, rows in scores.questions("test", 4).items():
        modalities = scores.COLUMNS[column]
        for doc, row in zip(tasks[scores.TASKS[column]].eval_docs, rows, strict=True):
            assert doc["answer"] == row.answer
            assert doc["prompt"].endswith(row.text)
            shown = {medium.modality: payload(medium, "test") for medium in row.media}
            assert set(shown) == set(modalities)
            for visual in media.visuals(doc):
                if isinstance(visual, dict):
                    np.testing.assert_array_equal(decoding.video(visual).frames, shown["video"])
                else:
                    np.testing.assert_array_equal(decoding.picture(visual), shown["image"])
            for sound in media.sounds(doc):
                np.testing.assert_allclose(decoding.sound(sound, RATE), shown["audio"], rtol=0, atol=2**-31)


def load(name: str, **metadata: Any) -> Any:
    manager = TaskManager(include_path=str(scores.TASK_FOLDER), include_defaults=False, metadata=metadata)
    return manager.load([name])["tasks"][name]


def test_questions_are_asked_with_the_media_that_a_model_takes(tmp_path: Path) -> None:
    png, sound = eval_mirror.picture("red"), {"bytes": b"RIFF", "path": None}
    row = {"question": "what?", "answer": "red high", "media": ["audio", "image"], "image": png, "audio": sound}
    parquet.write_table(pyarrow.Table.from_pylist([{**row, "video": None}]), tmp_path / "image+audio.parquet")
    sources = {scores.GROUP: str(tmp_path)}
    task = load("mllm_demo_omni_image_audio", sources=sources)
    (doc,) = task.eval_docs
    assert task.doc_to_text(doc) == "sound:<audio>image:<image>what?"
    assert (len(task.doc_to_image(doc)), task.doc_to_audio(doc)) == (1, [{"bytes": b"RIFF"}])
    for reply, score in (("red high", 1), ("red high yes", 1), ("red", 0), ("high red", 0)):
        assert task.process_results(doc, [reply])["score"] == score
    one = load("mllm_demo_omni_image_audio", sources=sources, shown=["image"])
    (doc,) = one.eval_docs
    assert one.doc_to_text(doc) == "image:<image>what?"
    assert one.doc_to_audio(doc) == []
    told = r"video\.parquet does not exist. `python -m examples.omni.run` writes it"
    with pytest.raises(FileNotFoundError, match=told):
        load("mllm_demo_omni_video", sources=sources)


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["image", "audio", "video"])
def test_published_scores_hold(modality: str) -> None:
    """On a part of the questions, within a 99.99 % interval; a donor is shown its own medium only."""
    found = scores.score(EXAMPLE / "models" / modality, "test", 60)
    for column, score in found.items():
        claimed = RESULTS[f"donor {modality}"][column]["accuracy"]
        spread = 3.9 * math.sqrt(max(claimed * (1 - claimed), 0.01) / score.total)
        assert abs(score.accuracy - claimed) < spread, (column, score, claimed)
