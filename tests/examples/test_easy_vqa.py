"""The trained models that travel with the example: what is claimed of them holds, and the script still makes such."""

# ruff: noqa: E402 (the example's modules can be imported only after the path is set)

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForImageTextToText

EXAMPLE = Path(__file__).parents[2] / "examples" / "easy_vqa"
sys.path.append(str(EXAMPLE))  # last, so that nothing there hides an installed package

import vqa_data
import vqa_score
from vqa_commands import mergekit_yaml
from vqa_data import Question, base_share, by_type, drawer, questions, subset
from vqa_score import Score, score, tally

from mergekit_mm.evaluation.tasks import demo_documents

MODELS = EXAMPLE / "models"
FULL = ("base", "expert_color", "expert_shape", "expert_yesno")
ADAPTERS = ("lora_color", "lora_shape", "lora_yesno")
RESULTS = json.loads((EXAMPLE / "results" / "results.json").read_text())["models"]
LIMIT = 600  # of the test questions


def run(script: str, *arguments: str | Path) -> str:
    command = [sys.executable, str(EXAMPLE / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def scores() -> dict[str, dict[str, Score]]:
    """All seven committed models on the same small part of the test questions."""
    return {name: score(MODELS / name, limit=LIMIT) for name in (*FULL, *ADAPTERS)}


# ------------------------------------------------------------ committed models


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_full_models_load_completely_and_are_bfloat16(name: str) -> None:
    with safe_open(MODELS / name / "model.safetensors", "pt") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"BF16"}
    model, info = AutoModelForImageTextToText.from_pretrained(MODELS / name, output_loading_info=True)
    assert model.dtype == torch.bfloat16
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_models_stay_within_eight_megabytes() -> None:
    assert sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file()) <= 8_000_000


def test_experts_differ_from_the_base_in_the_decoder_only() -> None:
    with safe_open(MODELS / "base" / "model.safetensors", "pt") as base:
        for name in FULL[1:]:
            with safe_open(MODELS / name / "model.safetensors", "pt") as expert:
                assert set(expert.keys()) == set(base.keys())
                changed = {key for key in base.keys() if not torch.equal(base.get_tensor(key), expert.get_tensor(key))}
            assert changed
            assert not [key for key in changed if "vision_tower" in key or "projector" in key]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FULL, *ADAPTERS])
def test_published_scores_hold(name: str, scores: dict[str, dict[str, Score]]) -> None:
    """The published accuracy on all test questions lies in a 99.99 % interval of that on the subset."""
    for kind, found in scores[name].items():
        claimed = RESULTS[name.replace("_", " ")][kind]["accuracy"]
        spread = 3.9 * math.sqrt(max(claimed * (1 - claimed), 0.01) / found.total)
        assert abs(found.accuracy - claimed) < spread, (kind, found, claimed)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FULL[1:], *ADAPTERS])
def test_experts_beat_the_base_on_their_own_questions(name: str, scores: dict[str, dict[str, Score]]) -> None:
    kind = name.split("_")[1]
    assert scores[name][kind].wilson[0] > scores["base"][kind].wilson[1] + 0.05


# ------------------------------------------------------------ the data


def test_counts_of_the_test_questions() -> None:
    assert {kind: len(rows) for kind, rows in by_type(questions("test")).items()} == {
        "color": 1280,
        "shape": 1257,
        "yesno": 7136,
    }


@pytest.mark.slow
@pytest.mark.parametrize("split", ["test", "validation"])
def test_lm_eval_asks_the_questions_of_the_example(split: str) -> None:
    """And with --limit the same sample of them."""
    for kind, rows in by_type(subset(questions(split), LIMIT)).items():
        asked = demo_documents.easy_vqa(kind=kind, **vqa_score.SPLITS[split])["test"].to_list()
        found = [(doc["prompt"], doc["answer"], int(Path(doc["image"]["path"]).stem)) for doc in asked]
        assert found[: LIMIT // 3] == [(f"<image>{row.text}", row.answer, row.image) for row in rows]
        assert len(found) == len(by_type(questions(split))[kind])


def test_training_sees_no_validation_image_and_the_base_nothing_withheld() -> None:
    train, validation = questions("train"), questions("validation")
    assert len(train) + len(validation) == 38575
    assert not {row.image for row in train} & {row.image for row in validation}
    share = base_share(train, 0.2, 0)
    assert all(row in set(train) for rows in share.values() for row in rows)
    assert not {row.answer for rows in share.values() for row in rows} & {"brown", "green", "teal", "triangle"}
    assert {row.text.rsplit(" a ", 1)[0] for row in share["yesno"] if row.negated} == {vqa_data.BASE_NEGATION}


def test_yes_and_no_are_drawn_equally_often() -> None:
    rng, draw = random.Random(0), drawer("yesno", by_type(questions("train"))["yesno"])
    drawn = [draw(rng) for _ in range(4000)]
    for negated in (False, True):
        told = [row.answer == "yes" for row in drawn if row.negated is negated]
        assert abs(sum(told) / len(told) - 0.5) < 0.05  # as they come: 0.18 and 0.82


@pytest.mark.parametrize(("right", "total"), [(0, 20), (7, 20), (20, 20), (1250, 1280)])
def test_wilson_interval_solves_its_equation(right: int, total: int) -> None:
    """Its ends are the accuracies that lie exactly 1.96 of their own standard errors from what was seen."""
    seen = right / total
    for end in Score(right, total).wilson:
        assert abs(seen - end) == pytest.approx(1.959964 * math.sqrt(max(end * (1 - end), 0) / total), abs=1e-9)


def test_tally_counts_by_type() -> None:
    rows = [Question("q", "red", 0), Question("q", "blue", 0), Question("q", "circle", 1), Question("q", "yes", 2)]
    assert tally(rows, ["red", "red", "circle", "no"]) == {
        "color": Score(1, 2),
        "shape": Score(1, 1),
        "yesno": Score(0, 1),
    }
    assert vqa_score.percentages(tally(rows, ["red", "red", "circle", "no"]))["mean"][0] == pytest.approx(50.0)


# ------------------------------------------------------------ the whole story


@pytest.mark.slow
def test_the_demo_merges_with_the_stock_command_and_the_merge_is_better_than_the_base(tmp_path: Path) -> None:
    told = run("run.py", "--recipes", "optmerge", "--limit", "450", "--no-experts", "--out", tmp_path)
    found = json.loads((tmp_path / "results.json").read_text())["models"]
    assert list(found) == ["without looking", "base", "merge optmerge"]
    mean = {name: sum(cells["accuracy"] for cells in types.values()) / 3 for name, types in found.items()}
    assert mean["merge optmerge"] > max(value for name, value in mean.items() if name != "merge optmerge")
    for name, types in found.items():
        line = next(line for line in told.splitlines() if line.startswith(name))
        assert f"{100 * types['color']['accuracy']:.1f} ±" in line


def test_the_lora_experts_merge_from_their_factors_to_a_model_and_to_an_adapter(tmp_path: Path) -> None:
    """By the stock command and by `mergekit-mm lora`: two forms of one merge, better than the base it is on."""
    recipe = Path("merge_yamls/easy_vqa_lora.yaml")
    mergekit_yaml(recipe, tmp_path / "model")
    command = [sys.executable, "-m", "mergekit_mm", "lora", str(recipe), str(tmp_path / "adapter"), "--quiet"]
    subprocess.run(command, cwd=EXAMPLE.parents[1], check=True, capture_output=True)
    (tmp_path / "base").symlink_to(MODELS / "base")
    model, adapter, base = (score(p, limit=LIMIT) for p in (tmp_path / "model", tmp_path / "adapter", MODELS / "base"))
    mean = [sum(kind.accuracy for kind in found.values()) / 3 for found in (model, adapter, base)]
    assert mean[0] > mean[2]
    assert abs(mean[0] - mean[1]) < 0.02  # the model is rounded to bfloat16, the adapter is not


@pytest.mark.slow
def test_an_expert_trained_again_is_as_good(tmp_path: Path) -> None:
    """The real settings, from the committed base."""
    shutil.copytree(MODELS / "base", tmp_path / "base")
    run("train.py", "--out", tmp_path, "--only", "expert_shape", "--limit", "30")
    again = score(tmp_path / "expert_shape", limit=LIMIT)["shape"]
    assert again.wilson[1] > RESULTS["expert shape"]["shape"]["accuracy"] - 0.02


@pytest.mark.slow
def test_the_quick_training_from_scratch_makes_experts(tmp_path: Path) -> None:
    run("train.py", "--out", tmp_path, "--quick", "--only", "expert_color", "lora_color", "--limit", "30")
    color = {name: score(tmp_path / name, limit=LIMIT)["color"] for name in ("base", "expert_color", "lora_color")}
    assert color["base"].accuracy > 0.3  # without looking it would be 0.11
    assert min(color["expert_color"].accuracy, color["lora_color"].accuracy) > color["base"].accuracy + 0.1
