"""The stage that reports: from finished products, with what is missing, and without making any."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_minibench import Maker

from examples.minibench.material import CAPABILITIES
from examples.minibench.plan import MIXTURE, QUICK, WAYS, Products
from examples.minibench.products import Product
from examples.minibench.reporting import make_report, media_of_questions
from examples.minibench.results import Result, write_results

ASKED = 30
SMALL = replace(QUICK, methods=("linear", "task_arithmetic", "optmerge"), grid=(0.3, 1.0))
COMMAND = "python -m examples.minibench --quick"


def finish(product: Product, results: Sequence[Result], out: Path) -> None:
    """Let a product write these results instead of asking questions."""
    replace(product, make=lambda folder: write_results(list(results), folder)).build(out)


def finish_asking(products: Products) -> None:
    """Answers of all models that merges are compared with, and of the merges, on both splits."""
    make, asking, out = Maker(CAPABILITIES, ASKED, 0), products.asking(), products.out
    for split in ("validation", "test"):
        finish(asking.blind(split), [Result("blind", "blind", split, make.scores(split, 0.2))], out)
        finish(asking.scores(split, products.base(0)), [Result("base", "base", split, make.scores(split, 0.4))], out)
        for way in WAYS:
            for name in (*CAPABILITIES, MIXTURE):
                kind = "mixture" if name == MIXTURE else "expert"
                found = Result(kind, name, split, make.scores(split, 0.5), way=way, seed=0)
                finish(asking.scores(split, products.expert(0, name, way, 0)), [found], out)
    for experts, method in products.merges():

        def merged(split: str, setting: str, strength: float | None, name: str, way: str) -> Result:
            made = {"setting": setting, "strength": strength, "seconds": 3.0}
            return Result("merge", name, split, make.scores(split, 0.5), way=way, seed=0, **made)

        own = (method.name, experts.way)
        published = method.settings[experts.way].strength
        if published is not None:
            tried = [merged("validation", "grid", strength, *own) for strength in products.plan.grid]
            finish(asking.choice(experts, method), tried, out)
        both = [merged("test", setting, published, *own) for setting in ("published", "chosen")]
        finish(asking.test(experts, method), both, out)


def test_a_report_tells_what_is_missing_and_what_was_done(tmp_path: Path) -> None:
    products = Products(SMALL, tmp_path / "out")
    with pytest.raises(SystemExit, match="no answers of experts or merges to test questions to report"):
        make_report(products, tmp_path / "report", COMMAND)
    finish_asking(products)
    earlier = products.out / "test-base-0.0123456789ab"
    earlier.mkdir()
    (earlier / "results.json").write_text("[]\n")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "of_an_older_report.png").write_text("")
    text = make_report(products, tmp_path / "report", COMMAND).read_text()
    missing = text.split("## What to do")[0]
    assert "12 of 12 products of the stage `experts`" in missing
    assert f"{(count := len(products.stage('modalities')))} of {count} products of the stage `modalities`" in missing
    assert "`test`" not in missing
    assert f"`{COMMAND}`" in text
    assert "asked the test questions up to 2 times, before with other settings" in text
    assert "2 strengths were tried for each method" in text
    assert not (tmp_path / "report" / "of_an_older_report.png").exists()
    about = json.loads((tmp_path / "report" / "results.json").read_text())["about"]
    assert set(about["seconds"]) == {"validation", "choice", "test"}
    assert about["settings"]["methods"] == list(SMALL.methods)
    assert {each.name for each in tmp_path.iterdir()} == {"out", "report"}


def test_questions_about_one_image_are_a_group() -> None:
    groups = media_of_questions(40)
    assert all(len(numbers) == 40 for numbers in groups.values())
    assert len(set(groups["image"])) < 40  # 298 images: some serve two of 40 questions
    assert set(groups["image"]) & set(groups["image + video"])  # one number in all sorts
    assert not set(groups["image"]) & set(groups["sound"])
