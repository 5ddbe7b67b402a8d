"""The part about modalities of the benchmark in miniature: media that were not asked before, and one seed of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from examples.common.training import Stage
from examples.easy_vqa import data
from examples.minibench.modalities import FULL, QUICK, ModalityProducts
from examples.minibench.modality_results import best
from examples.minibench.results import Result, read_results
from examples.omni.media import pools
from examples.omni.model import Size
from examples.omni.pixels import facts_in
from examples.omni.scores import COLUMNS, questions


def test_pixels_tell_what_the_questions_tell() -> None:
    for split in ("validation", "test"):
        for medium in pools(split)["image"]:
            assert facts_in(data.image(split, medium.source)) == medium.facts, (split, medium.source)


def test_unasked_media_are_no_test_media() -> None:
    test, unasked = pools("test"), pools("unasked")
    for modality, media in unasked.items():
        assert not {str(medium.source) for medium in media} & {str(medium.source) for medium in test[modality]}
    assert len(test["image"]) + len(unasked["image"]) == 1000  # the package's test split
    for row in data.questions("test"):  # which have one fact at most of each of these images
        found = {medium.source: medium.facts for medium in unasked["image"]}.get(row.image)
        if found and row.type != "yesno":
            assert found[row.type] == row.answer
    asked = {id(medium) for rows in questions("unasked", 20).values() for row in rows for medium in row.media}
    assert asked <= {id(medium) for media in unasked.values() for medium in media}


def tried(strength: float, *right: float) -> Result:
    return Result("merge", "ties", "validation", {"image": list(right)}, setting="grid", strength=strength)


def test_the_best_strength_is_the_smallest_of_equals() -> None:
    assert best([tried(1.0, 1, 1, 0), tried(0.3, 1, 0, 1), tried(0.1, 0, 0, 1)]) == 0.3
    assert best([]) is None


def test_every_product_comes_after_those_that_it_needs(tmp_path: Path) -> None:
    made: list[Path] = []
    for product in ModalityProducts(replace(QUICK, seeds=2, methods=FULL.methods), tmp_path).all():
        assert {each.folder(tmp_path) for each in product.needs} <= set(made)
        made.append(product.folder(tmp_path))
    assert len(set(made)) == len(made)


def test_more_validation_questions_choose_anew_but_train_nothing(tmp_path: Path) -> None:
    few = ModalityProducts(QUICK, tmp_path)
    many = ModalityProducts(replace(QUICK, counts={**QUICK.counts, "validation": 31}), tmp_path)
    changed = {each.name for each in few.all()} - {
        a.name for a, b in zip(few.all(), many.all(), strict=True) if a.folder(tmp_path) == b.folder(tmp_path)
    }
    assert "modality-choice-optmerge-0" in changed
    assert "modality-test-optmerge-0" in changed
    assert not {"modality-models-0", "modality-test-linear-0", "modality-test-unmerged-0"} & changed


TINY = replace(
    QUICK,
    training=replace(
        QUICK.training,
        llm=(Stage(2, 4, 1e-3), Stage(1, 4, 1e-3)),
        tower=Stage(1, 4, 1e-3),
        align=Stage(1, 4, 1e-3),
        donor=Stage(2, 4, 1e-3),
        size=Size(width=32, layers=1, mlp=32, tower_width=32, tower_layers=1),
    ),
    methods=("linear",),
    counts={"validation": 2, "test": 3},
)


@pytest.mark.slow
def test_a_seed_is_trained_merged_and_asked(tmp_path: Path) -> None:
    products = ModalityProducts(TINY, tmp_path)
    models = products.models(0)
    for product in (products.questions("test"), models, products.test("linear", 0)):
        product.build(tmp_path)
    made = {path.name for path in models.folder(tmp_path).iterdir() if path.is_dir()}
    assert made == {"llm", "image", "audio", "video"}
    (result,) = read_results(products.test("linear", 0).folder(tmp_path))
    assert (result.kind, result.name, result.way, result.seed) == ("merge", "linear", "modality", 0)
    assert (result.setting, result.strength, result.split) == ("published", None, "test")
    assert tuple(result.scores) == tuple(COLUMNS)
    assert all(len(each) == 3 and set(each) <= {0.0, 1.0} for each in result.scores.values())
    assert result.seconds is not None
    assert result.seconds > 0
