"""Merges of the benchmark in miniature that learn from unlabelled samples: start, samples, choice, test, products."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny_minibench import make_models

from examples.common.commands import GRID
from examples.minibench.aligned import FULL as ALIGNED
from examples.minibench.aligned import QUICK as QUICK_ALIGNED
from examples.minibench.aligned import Case, Row
from examples.minibench.aligned_results import Alignment, align_and_ask, best_options, choose_start
from examples.minibench.calibration import KINDS, SPLIT, write_elsewhere, write_usual
from examples.minibench.material import CAPABILITIES, rows
from examples.minibench.merging import Merge
from examples.minibench.methods import BY_NAME, METHODS
from examples.minibench.plan import FULL, STAGES, Plan, Products
from examples.minibench.results import Result, read_results, write_results
from examples.minibench.scores import GROUP, TASK_FOLDER

ASKED = 4
SHORT = ("--steps", "2", "--answer-tokens", "2", "--batch-size", "8")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with material, a base, for each way of training five experts, and their samples."""
    folder = tmp_path_factory.mktemp("aligned")
    make_models(folder, ASKED, len(CAPABILITIES))
    write_usual(folder / "material", folder / "samples")
    return folder


def merge(models: Path, method: str, way: str = "full") -> Merge:
    folders = [models / f"{way}_{at}" for at in range(len(CAPABILITIES))]
    return Merge(BY_NAME[method], models / "base", folders, 0, way, seed=0)


def started(models: Path, folder: Path, way: str = "full") -> Path:
    """A start whose method and strength were chosen by made-up scores."""
    candidates = []
    for method, best in (("tsv", 0.5), ("optmerge", 0.7)):
        choice, test = (folder / f"{method}-{stage}" for stage in ("choice", "test"))
        for each in (choice, test):
            each.mkdir(parents=True)
        values = {strength: best - abs(strength - 0.5) for strength in GRID}
        tried = [Result("merge", method, "validation", {"vqa": [v]}, strength=s) for s, v in values.items()]
        write_results(tried, choice)
        tested = Result("merge", method, "test", {"vqa": [0.25]}, way=way, seed=0, strength=0.5)
        write_results([replace(tested, setting=each) for each in ("published", "chosen")], test)
        candidates.append((merge(models, method, way), choice, test))
    start = folder / "start"
    start.mkdir()
    choose_start(candidates, start)
    return start


def alignment(models: Path, start: Path, row: Row, case: Case, way: str = "full") -> Alignment:
    names = {capability: f"{way}_{at}" for at, capability in enumerate(CAPABILITIES)}
    about = {"base": 0, "way": way, "seed": 0}
    counts = {"validation": ASKED, "test": ASKED}
    return Alignment(start, models / "samples", names, row, case, about, models / "material", counts)


@pytest.mark.slow
def test_the_start_is_the_merge_that_is_best_on_validation_questions(models: Path, tmp_path: Path) -> None:
    start = started(models, tmp_path)
    recipe, of_base = (yaml.safe_load((start / name).read_text()) for name in ("recipe.yaml", "base.yaml"))
    assert (recipe["merge_method"], recipe["parameters"]["scaling"]) == ("optmerge", 0.5)
    assert of_base == {**recipe, "parameters": {**recipe["parameters"], "scaling": 0.0}}
    (found,) = read_results(start)
    assert (found.kind, found.name, found.setting, found.scores) == ("aligned", "start", "", {"vqa": [0.25]})
    assert found.facts == {"method": "optmerge", "tried": 2 * len(GRID)}


@pytest.mark.slow
def test_samples_are_what_lm_eval_asks_without_the_answers(models: Path) -> None:
    from lm_eval.tasks import TaskManager

    sources = {f"{GROUP}/{name}": str(models / "material" / name) for name in CAPABILITIES}
    metadata = {"split": SPLIT, "sources": sources}
    manager = TaskManager(include_path=str(TASK_FOLDER), include_defaults=False, metadata=metadata)
    tasks = manager.load([GROUP])["tasks"]
    for capability in CAPABILITIES:
        lines = map(json.loads, (models / "samples" / f"{capability}.jsonl").read_text().splitlines())
        for line, doc in zip(lines, tasks[f"{GROUP}_{capability}"].eval_docs, strict=True):
            assert set(line) == {"prompt", "image"}
            assert line["prompt"] == doc["prompt"]
            with Image.open(models / "samples" / line["image"]) as image:
                assert image.size == (128, 128)


@pytest.mark.slow
def test_samples_from_elsewhere_are_of_one_kind_and_look_otherwise(tmp_path: Path) -> None:
    write_elsewhere(2, tmp_path)
    for capability, kind in KINDS.items():
        lines = [json.loads(line) for line in (tmp_path / f"{capability}.jsonl").read_text().splitlines()]
        asked = [row for row in rows(capability, SPLIT, 200, 1) if row.kind == kind][:2]
        assert all(row.question in line["prompt"] for line, row in zip(lines, asked, strict=True))
        for line, row in zip(lines, asked, strict=True):
            with Image.open(tmp_path / line["image"]) as image:
                shown = np.asarray(image, dtype=float)
            assert shown.shape == (128, 128, 3)
            assert abs(shown - np.asarray(row.picture.convert("RGB"), dtype=float)).mean() > 20


@pytest.mark.slow
@pytest.mark.parametrize(("way", "row", "on_base"), [("full", "adapter", True), ("lora", "coefficients", False)])
def test_a_start_is_aligned_once_for_each_draw_and_asked(
    models: Path, tmp_path: Path, way: str, row: str, on_base: bool
) -> None:
    start, folder = started(models, tmp_path, way), tmp_path / "aligned"
    case = Case(ASKED, draws=2, without="ocr")
    made = alignment(models, start, Row(row, ("--way", row, *SHORT), (case,), on_base=on_base), case, way)
    (folder / "0-0").mkdir(parents=True)
    kept = Result("aligned", row, "test", {"vqa": [1.0]}, way=way, seed=0, setting=case.name)
    write_results([kept], folder / "0-0")  # what an interrupted run has left behind
    align_and_ask(made, [("--rate", "0.01")], range(2), "test", folder)
    first, found = read_results(folder)
    assert first == kept
    assert (found.kind, found.name, found.split, found.setting) == ("aligned", row, "test", f"{ASKED} without ocr")
    assert (found.base, found.way, found.seed) == (0, way, 0)
    assert {name: len(scores) for name, scores in found.scores.items()} == dict.fromkeys(CAPABILITIES, ASKED)
    assert found.seconds
    assert found.facts["draw"] == 1
    assert found.facts["tokens"] == 2  # random models do not stop by themselves
    assert (found.facts["after"] < found.facts["before"]) == (found.facts["best"] > 0)
    assert [file.name for file in folder.iterdir()] == ["results.json"]


def tried(options: tuple[str, ...], *scores: float) -> list[Result]:
    return [
        Result("aligned", "adapter", "validation", {"vqa": [score]}, facts={"options": list(options), "draw": draw})
        for draw, score in enumerate(scores)
    ]


def test_of_several_settings_that_with_the_best_mean_is_taken() -> None:
    low, middle, high = (("--rate", rate) for rate in ("0.1", "0.2", "0.3"))
    found = [*tried(low, 0.9, 0.1), *tried(middle, 0.5, 0.7), *tried(high, 0.6, 0.6)]
    assert best_options(found) == middle


def test_every_case_has_its_product_once_and_test_questions_are_counted(tmp_path: Path) -> None:
    products = Products(FULL, tmp_path)
    stage = products.stage("aligned")
    sets, cases = products.sets(), [case for row in ALIGNED.rows for case in row.cases]
    assert len({each.name for each in stage}) == len(stage)
    asking = [each for each in stage if each.name.startswith("aligned-test-")]
    assert len(asking) == len(sets) * len(cases)
    assert len(stage) == len(asking) + len(sets) + 2 * len(ALIGNED.rows) + 2
    known = {each.folder(tmp_path) for name in STAGES for each in products.stage(name)}
    assert all(need.folder(tmp_path) in known for each in stage for need in each.needs)
    assert set(ALIGNED.starts["lora"]) <= set(FULL.methods)
    earlier = tmp_path / f"{asking[0].name}.0123456789ab"
    for folder in (asking[0].folder(tmp_path), earlier):
        folder.mkdir()
        (folder / "results.json").write_text("[]\n")
    assert products.earlier_looks() == [earlier]


def test_other_methods_and_samples_make_no_product_anew(tmp_path: Path) -> None:
    """Rows can be added to a run that exists already."""
    paper = tuple(method.name for method in METHODS if "svc" not in method.name)
    fewer = replace(FULL, methods=paper, aligned=QUICK_ALIGNED)

    def folders(plan: Plan) -> set[str]:
        products = Products(plan, tmp_path)
        return {each.folder(tmp_path).name for name in STAGES if name != "aligned" for each in products.stage(name)}

    assert folders(fewer) < folders(FULL)
    wider = replace(ALIGNED, rows=ALIGNED.rows[:1])
    some, every = (
        {each.folder(tmp_path).name for each in Products(replace(FULL, aligned=settings), tmp_path).stage("aligned")}
        for settings in (wider, ALIGNED)
    )
    assert some < every
