"""The omni example's questions reach lm-eval as they are, and its published scores hold."""

# ruff: noqa: E402 (the example's modules can be imported only after the path is set)

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "omni"
sys.path.append(str(EXAMPLE))  # last, so that nothing there hides an installed package

import omni_score
from omni_media import RATE, payload

from mergekit_mm.evaluation.model import decoding
from mergekit_mm.evaluation.tasks import demo_documents, media

RESULTS = json.loads((EXAMPLE / "results" / "results.json").read_text())["models"]


def test_written_questions_are_those_of_the_example(tmp_path: Path) -> None:
    omni_score.write_questions("test", 4, tmp_path)
    for column, rows in omni_score.questions("test", 4).items():
        modalities = omni_score.COLUMNS[column]
        given = {"source": str(tmp_path / "mllm_demo_omni"), "split": "+".join(modalities)}
        for doc, row in zip(demo_documents.omni(**given)["test"], rows, strict=True):
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


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["image", "audio", "video"])
def test_published_scores_hold(modality: str) -> None:
    """On a part of the questions, within a 99.99 % interval; a donor is shown its own medium only."""
    found = omni_score.score(EXAMPLE / "models" / modality, "test", 60)
    for column, score in found.items():
        claimed = RESULTS[f"donor {modality}"][column]["accuracy"]
        spread = 3.9 * math.sqrt(max(claimed * (1 - claimed), 0.01) / score.total)
        assert abs(score.accuracy - claimed) < spread, (column, score, claimed)
