"""Merges of the benchmark in miniature: their recipes, the choice of a strength, and test questions asked once."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_minibench import make_models

from examples.common import forked
from examples.common.commands import GRID, lm_eval, run
from examples.minibench.material import CAPABILITIES
from examples.minibench.merging import Merge, best_strength, examine, try_strengths
from examples.minibench.methods import ALONE, BY_NAME, CUMULATIVE, METHODS
from examples.minibench.plan import FULL, WAYS, Products
from examples.minibench.results import Result, read_results
from examples.minibench.scores import GROUP, TASK_FOLDER, ask

pytestmark = pytest.mark.long

ASKED = 3


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with material, a base, and for each way of training two experts."""
    folder = tmp_path_factory.mktemp("minibench")
    make_models(folder, ASKED, experts=2)
    return folder


def merge(models: Path, method: str, way: str = "full") -> Merge:
    return Merge(BY_NAME[method], models / "base", [models / f"{way}_{n}" for n in range(2)], 0, way, seed=0)


@pytest.mark.slow
def test_a_forked_command_does_what_the_console_script_does(models: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    merge(models, "dare_linear").write(0.3, recipe, tmp_path / "forked" / "model")
    run(["mergekit-yaml", str(recipe), str(tmp_path / "script" / "model"), "--quiet", "--random-seed", "0"])
    files = [
        sorted(file.relative_to(tmp_path / each) for file in (tmp_path / each).rglob("*"))
        for each in ("forked", "script")
    ]
    assert files[0] == files[1]
    for file in (each for each in files[0] if (tmp_path / "forked" / each).is_file()):
        assert (tmp_path / "forked" / file).read_bytes() == (tmp_path / "script" / file).read_bytes()
    asked: dict[str, Any] = {
        "limit": ASKED,
        "metadata": {
            "split": "validation",
            "sources": {f"{GROUP}/{name}": str(models / "material" / name) for name in CAPABILITIES},
        },
    }
    model = {"pretrained": str(tmp_path / "script" / "model"), "dtype": "float32"}
    results, samples = lm_eval(model, GROUP, TASK_FOLDER, tmp_path / "of_script", **asked)
    same, as_well = lm_eval(model, GROUP, TASK_FOLDER, tmp_path / "of_forked", **asked, start=forked.run)
    assert results["results"] == same["results"]
    assert {task: without_pictures(each) for task, each in samples.items()} == as_well


def without_pictures(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Samples of the script as a forked command writes them, which does not hash pictures."""
    told = [re.sub(r'"[0-9a-f]{64}"', '"not hashed"', json.dumps(each["arguments"])) for each in samples]
    return [{**each, "arguments": json.loads(words)} for each, words in zip(samples, told, strict=True)]


@pytest.mark.slow
def test_a_forked_command_that_fails_is_shown(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"(?s)nowhere.yaml.*failed with exit code 1"):
        forked.run(["mergekit-yaml", str(tmp_path / "nowhere.yaml"), str(tmp_path / "out")])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "way"),
    [
        ("task_arithmetic", "full"),
        ("dare_ties", "lora"),
        ("optmerge", "lora"),
        ("optmerge_svc", "full"),
        ("actmat", "full"),
        ("dc_merge", "lora"),
        ("robust_merge", "lora"),
        ("ties_core", "lora"),
    ],
)
def test_a_sweep_is_the_merge_at_each_strength(models: Path, tmp_path: Path, method: str, way: str) -> None:
    from safetensors.torch import load_file

    made = merge(models, method, way)
    swept = dict(made.sweep(GRID, tmp_path / "recipe.yaml", tmp_path / "swept"))
    made.write(0.3, tmp_path / "one.yaml", tmp_path / "one")
    assert tuple(swept) == GRID
    one, same = (load_file(each / "model.safetensors") for each in (tmp_path / "one", swept[0.3]))
    for name, value in one.items():
        torch.testing.assert_close(same[name], value, rtol=1e-6, atol=1e-8)
    base = load_file(models / "base" / "model.safetensors")
    assert any(not torch.equal(value, base[name].float()) for name, value in one.items())


@pytest.mark.slow
def test_task_arithmetic_with_calibration_is_that_of_the_sum(models: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    merge(models, "task_arithmetic_svc").write(1.0, tmp_path / "recipe.yaml", tmp_path / "merge")
    folders = (models / "base", models / "full_0", models / "full_1", tmp_path / "merge")
    stored = [load_file(folder / "model.safetensors") for folder in folders]
    (name,) = (each for each in stored[0] if each.endswith("mlp.up_proj.weight"))
    base, one, other, merged = (each[name].double() for each in stored)
    u, s, v = torch.linalg.svd(one + other - 2 * base, full_matrices=False)
    gamma = torch.zeros_like(s)
    for row in range(len(s)):
        summed = s[row] * v[row]
        own = [u[:, row] @ (each - base) for each in (one, other)]
        gamma[row] = 2 / sum(max(0.5, float(summed @ each / (each @ each))) for each in own)
    torch.testing.assert_close(merged - base, u @ torch.diag(gamma * s) @ v, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_the_strength_is_chosen_on_validation_and_tested_once(models: Path, tmp_path: Path) -> None:
    made, material = merge(models, "tsv", "lora"), models / "material"
    choice, tested = tmp_path / "choice", tmp_path / "test"
    choice.mkdir()
    tested.mkdir()
    try_strengths(made, GRID, material, ASKED, choice)
    tried = read_results(choice)
    assert [(each.split, each.setting, each.strength) for each in tried] == [
        ("validation", "grid", strength) for strength in GRID
    ]
    assert all(len(column) == ASKED for each in tried for column in each.scores.values())
    examine(made, choice, material, ASKED, tested)
    published, chosen = read_results(tested)
    assert (published.setting, published.strength) == ("published", 0.3)
    assert (chosen.setting, chosen.strength) == ("chosen", best_strength(tried))
    assert published.facts == chosen.facts == {"tried": len(GRID)}
    assert all(each.split == "test" and each.seconds for each in (published, chosen))
    assert sorted(file.name for file in choice.iterdir()) == ["recipe.yaml", "results.json"]
    assert sorted(file.name for file in tested.iterdir()) == ["chosen.yaml", "published.yaml", "results.json"]
    recipe = yaml.safe_load((tested / "published.yaml").read_text())
    assert (recipe["merge_method"], recipe["parameters"]["scaling"]) == ("tsv", 0.3)
    assert recipe["models"][0]["model"] == f"{models / 'base'}+{models / 'lora_0'}"


@pytest.mark.slow
def test_without_a_strength_one_merge_is_both_settings(models: Path, tmp_path: Path) -> None:
    examine(merge(models, "linear"), None, models / "material", ASKED, tmp_path)
    published, chosen = read_results(tmp_path)
    assert (published.setting, chosen.setting) == ("published", "chosen")
    assert published.strength is chosen.strength is None
    assert (published.scores, published.seconds) == (chosen.scores, chosen.seconds)
    assert chosen.facts == {"tried": 1}


def grid(*means: float) -> Iterator[Result]:
    for strength, value in zip(GRID, means, strict=False):
        yield Result("merge", "tsv", "validation", {"vqa": [value], "ocr": [1 - value, value]}, strength=strength)


def test_of_equally_good_strengths_the_smallest_is_chosen() -> None:
    assert best_strength(list(grid(0.2, 0.6, 0.4, 0.6))) == 0.3


@pytest.mark.slow
def test_dropped_questions_are_told(models: Path) -> None:
    with pytest.raises(SystemExit, match=f"lm-eval scored {ASKED} test questions of vqa, not {ASKED + 1}"):
        ask(models / "material", models / "base", None, "test", ASKED + 1)


def test_each_method_has_its_products_once(tmp_path: Path) -> None:
    products = Products(FULL, tmp_path)
    sets, mixtures = len(products.sets()), len(products.sets())
    merges = [way for method in METHODS for way in method.settings if way in WAYS]
    tests = products.stage("test")
    assert len({each.name for each in tests}) == len(tests)
    assert len(tests) == 1 + FULL.bases + 5 * sets + mixtures + sets // 2 * len(merges)
    assert len(products.stage("choice")) == sets // 2 * (len(merges) - 2)  # the weight average has no strength
    names = {name for way in ("full", "lora") for name in (*CUMULATIVE[way], *ALONE[way].values())}
    assert {each.name for each in METHODS if each.group == "ablation"} <= names <= set(BY_NAME)


def test_earlier_looks_at_the_test_questions_are_counted(tmp_path: Path) -> None:
    products = Products(FULL, tmp_path)
    own = products.stage("test")[0].folder(tmp_path)
    for folder in (own, tmp_path / "test-base-0.0123456789ab", tmp_path / "test-base-0.0123456789ac.unfinished"):
        folder.mkdir()
        (folder / "results.json").write_text("[]\n")
    assert products.earlier_looks() == [tmp_path / "test-base-0.0123456789ab"]
    assert products.results() == []
