"""The trained models that travel with the example: what is claimed of them holds, and the script still makes such."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import sys
from pathlib import Path

import pytest
import torch
from eval_mirror import Answering
from forks import program
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from safetensors import safe_open
from transformers import AutoModelForImageTextToText

from examples.common import forked
from examples.common.commands import ROOT, lm_eval_here
from examples.common.scores import Score, from_results
from examples.easy_vqa import data, scores
from examples.easy_vqa.data import Question, base_share, by_type, drawer, questions, subset
from examples.easy_vqa.scores import TASKS, model_arguments, score, tally

pytestmark = pytest.mark.long

EXAMPLE = ROOT / "examples" / "easy_vqa"
MODELS = EXAMPLE / "models"
FULL = ("base", "expert_color", "expert_shape", "expert_yesno")
ADAPTERS = ("lora_color", "lora_shape", "lora_yesno")
RESULTS = json.loads((EXAMPLE / "results" / "results.json").read_text())["models"]
LIMIT = 600  # of the test questions


def run(script: str, *arguments: str | Path) -> str:
    command = [sys.executable, "-m", f"examples.easy_vqa.{script}", *map(str, arguments)]
    done = program(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def scored() -> dict[str, dict[str, Score]]:
    """All seven committed models on the same small part of the test questions."""
    return {name: score(MODELS / name, limit=LIMIT) for name in (*FULL, *ADAPTERS)}


def score_of(kind: str, model: Path) -> Score:
    """A model's score on the questions of one type that `scored` has."""
    found = lm_eval_here(model_arguments(model), TASKS[kind], scores.TASK_FOLDER, LIMIT // 3)
    return from_results(found, {kind: TASKS[kind]})[kind]


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
def test_published_scores_hold(name: str, scored: dict[str, dict[str, Score]]) -> None:
    """The published accuracy on all test questions lies in a 99.99 % interval of that on the subset."""
    for kind, found in scored[name].items():
        claimed = RESULTS[name.replace("_", " ")][kind]["accuracy"]
        spread = 3.9 * math.sqrt(max(claimed * (1 - claimed), 0.01) / found.total)
        assert abs(found.accuracy - claimed) < spread, (kind, found, claimed)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FULL[1:], *ADAPTERS])
def test_experts_beat_the_base_on_their_own_questions(name: str, scored: dict[str, dict[str, Score]]) -> None:
    kind = name.split("_")[1]
    assert scored[name][kind].wilson[0] > scored["base"][kind].wilson[1] + 0.05


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
    folder = str(scores.TASK_FOLDER)
    manager = TaskManager(include_path=folder, include_defaults=False, metadata=scores.SPLITS[split])
    tasks = manager.load([scores.GROUP])["tasks"]
    for kind, rows in by_type(subset(questions(split), LIMIT)).items():
        asked = tasks[scores.TASKS[kind]].eval_docs.to_list()
        found = [(doc["prompt"], doc["answer"], int(Path(doc["image"]["path"]).stem)) for doc in asked]
        assert found[: LIMIT // 3] == [(f"<image>{row.text}", row.answer, row.image) for row in rows]
        assert len(found) == len(by_type(questions(split))[kind])


@pytest.mark.slow
def test_training_sees_no_validation_image_and_the_base_nothing_withheld() -> None:
    train, validation = questions("train"), questions("validation")
    assert len(train) + len(validation) == 38575
    assert not {row.image for row in train} & {row.image for row in validation}
    share = base_share(train, 0.2, 0)
    assert set(train).issuperset(row for rows in share.values() for row in rows)
    assert not {row.answer for rows in share.values() for row in rows} & {"brown", "green", "teal", "triangle"}
    assert {row.text.rsplit(" a ", 1)[0] for row in share["yesno"] if row.negated} == {data.BASE_NEGATION}


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
    assert scores.percentages(tally(rows, ["red", "red", "circle", "no"]))["mean"][0] == pytest.approx(50.0)


def test_lm_eval_counts_the_first_words() -> None:
    """A reply is right that begins with the answer; the group's score is the mean of the three columns."""
    replies = {"yes": "yes, it is", "no": "yes"}
    model = Answering(lambda doc: replies.get(doc["answer"], f" {doc['answer']} I think"))
    manager = TaskManager(include_path=str(scores.TASK_FOLDER), include_defaults=False)
    results = simple_evaluate(model, tasks=[scores.GROUP], task_manager=manager, limit=20, log_samples=True)
    found = {kind: results["results"][task]["score,none"] for kind, task in scores.TASKS.items()}
    assert found == {"color": 1, "shape": 1, "yesno": 0}  # "yes," is not "yes"
    asked = [sample["doc"]["answer"] for sample in results["samples"][scores.TASKS["yesno"]]]
    assert {"yes", "no"} == set(asked)
    assert results["results"][scores.GROUP]["score,none"] == pytest.approx(2 / 3)


# ------------------------------------------------------------ the whole story


@pytest.mark.slow
def test_the_demo_merges_with_the_stock_command_and_the_merge_is_better_than_the_base(tmp_path: Path) -> None:
    forked.preload()  # here, where other tests of this process find it done
    told = run("run", "--recipes", "optmerge", "--limit", "450", "--no-experts", "--out", tmp_path)
    found = json.loads((tmp_path / "results.json").read_text())["models"]
    assert list(found) == ["without looking", "base", "merge optmerge"]
    mean = {name: sum(cells["accuracy"] for cells in types.values()) / 3 for name, types in found.items()}
    assert mean["merge optmerge"] > max(value for name, value in mean.items() if name != "merge optmerge")
    for name, types in found.items():
        line = next(line for line in told.splitlines() if line.startswith(name))
        assert f"{100 * types['color']['accuracy']:.1f} ±" in line


@pytest.mark.slow
def test_the_lora_experts_merge_from_their_factors_to_a_model_and_to_an_adapter(
    tmp_path: Path, scored: dict[str, dict[str, Score]]
) -> None:
    """By the stock command and by `mergekit-mm lora`: two forms of one merge, better than the base it is on."""
    recipe = "merge_yamls/easy_vqa_lora.yaml"
    forked.run(["mergekit-yaml", recipe, str(tmp_path / "model"), "--quiet"])
    forked.run(["mergekit-mm", "lora", recipe, str(tmp_path / "adapter"), "--quiet"])
    (tmp_path / "base").symlink_to(MODELS / "base")
    model, adapter = (score(tmp_path / name, limit=LIMIT) for name in ("model", "adapter"))
    mean = [sum(kind.accuracy for kind in found.values()) / 3 for found in (model, adapter, scored["base"])]
    assert mean[0] > mean[2]
    assert abs(mean[0] - mean[1]) < 0.02  # the model is rounded to bfloat16, the adapter is not


@pytest.mark.slow
def test_an_expert_trained_again_is_as_good(tmp_path: Path) -> None:
    """The real settings, from the committed base."""
    shutil.copytree(MODELS / "base", tmp_path / "base")
    run("train", "--out", tmp_path, "--only", "expert_shape", "--limit", "30")
    again = score_of("shape", tmp_path / "expert_shape")
    assert again.wilson[1] > RESULTS["expert shape"]["shape"]["accuracy"] - 0.02


@pytest.mark.slow
def test_the_quick_training_from_scratch_makes_experts(tmp_path: Path) -> None:
    run("train", "--out", tmp_path, "--quick", "--only", "expert_color", "lora_color", "--limit", "30")
    color = {name: score_of("color", tmp_path / name) for name in ("base", "expert_color", "lora_color")}
    assert color["base"].accuracy > 0.3  # without looking it would be 0.11
    assert min(color["expert_color"].accuracy, color["lora_color"].accuracy) > color["base"].accuracy + 0.1
