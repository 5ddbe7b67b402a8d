"""`mergekit-mm inspect CONFIG`: what it tells, what it advises and why, and what it refuses."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from end_to_end import altered, checkpoint, experts, linear, plugin, task_arithmetic, with_method, written
from peft_adapters import adapted, pair, plus

from mergekit_mm import api
from mergekit_mm.analysis import cost
from mergekit_mm.analysis.advice import advise
from mergekit_mm.analysis.as_json import SCHEMA
from mergekit_mm.analysis.outliers import outliers

ROOT = Path(__file__).parents[2]
TAIL = "layers.0.mlp.up_proj.weight"
UP = f"model.language_model.{TAIL}"


def inspect(config: dict[str, Any], *options: object) -> Result:
    result = plugin("inspect", written(config), *options)
    assert isinstance(result.exception, SystemExit | None), repr(result.exception)
    return result


def recipe(*models: Path, method: str = "optmerge", **more: Any) -> dict[str, Any]:
    return with_method(method, checkpoint("llava"), models or experts("llava")[:2], **more)


def moved(seed: int, size: float = 0.01, *names: str) -> Path:
    """The base with noise on all floating tensors, or on some of them."""
    generator = torch.Generator().manual_seed(seed)

    def change(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {
            name: tensor + size * torch.randn(tensor.shape, generator=generator)
            if tensor.is_floating_point() and (not names or any(each in name for each in names))
            else tensor
            for name, tensor in found.items()
        }

    return altered(checkpoint("llava"), change)


def advice(*models: Path, method: str = "optmerge", **more: Any) -> dict[str, str]:
    """What is advised, by the beginning of its reason."""
    found = advise(api.inspect(recipe(*models, method=method, **more), quiet=True))
    assert all(each.text and each.reason and each.source for each in found)
    return {each.reason: each.text for each in found}


def reasons(found: dict[str, str], pattern: str) -> list[str]:
    return [reason for reason in found if re.search(pattern, reason)]


# ----------------------------------------------------------------------------------------------------------- the tables


@functools.cache
def shown() -> str:
    result = inspect(recipe())
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize(
    "line",
    [
        r"Drift by role",
        r"  language_model +14 +\d+\.\d % +\d+\.\d %  merged",
        r"  vision_tower +39 +\d+\.\d % +\d+\.\d %  as the base",
        r"Spectra of what is merged",
        r"  mlp.down_proj +2 +\d.* to .* %  +64",
        r"Drift by layer, of the matrices of model.language_model.layers",
        r"  A B +-?0\.0\d\d +\d+\.\d % +\d+\.\d % \(\d+\.\d %\)",
        r"  optmerge +\d+\.\d % ",
        r"  Chat template of .*expert_0",
        r"Advice",
    ],
)
def test_the_text_has(line: str) -> None:
    assert re.search(f"^{line}", shown(), re.MULTILINE), shown()


def test_json_has_what_its_document_describes() -> None:
    found = json.loads(inspect(recipe(), "--json").output)
    assert found["schema"] == SCHEMA
    document = (ROOT / "docs/inspect-json.md").read_text(encoding="utf-8")
    described = set(re.findall(r"`(\w+)`", document))

    def fields(value: Any, depth: int) -> set[str]:
        if isinstance(value, list):
            return set().union(*(fields(each, depth) for each in value[:1])) if depth else set()
        if not isinstance(value, dict):
            return set()
        return set(value).union(*(fields(each, depth - 1) for each in value.values())) if depth else set()

    keys = set(found)
    for name in ("experts", "looked_at", "merged", "tensors", "outliers", "advice"):
        keys |= fields(found[name], 1)
    keys |= fields(found["tensors"][0]["spectra"], 1) | fields(found["merged"]["losses"]["tsv"], 1)
    assert keys - {str(each) for each in range(9)} <= described | {"tsv", "linear", "optmerge", "task_arithmetic"}


def test_python_gives_what_the_command_prints() -> None:
    assert str(api.inspect(recipe(), quiet=True)).strip() == shown().strip()


def test_a_directory_is_described_as_before() -> None:
    result = plugin("inspect", checkpoint("llava"))
    assert result.exit_code == 0
    assert "layers of the language model: model.language_model.layers" in result.output


# ----------------------------------------------------------------------------------------------------------- the advice


def test_equal_experts_and_experts_that_are_the_base() -> None:
    one = moved(1)
    found = advice(one, moved(1, size=0.02), altered(checkpoint("llava")))
    (same,) = reasons(found, "task vector of B is that of A, 2 times as long")
    assert found[same] == "Leave A or B out."
    assert reasons(found, "C does not differ from the base")
    assert not reasons(found, "Nearly orthogonal")


def test_experts_of_another_base_than_the_one_that_is_named() -> None:
    other = moved(9)
    apart = [
        altered(other, lambda found, at=at: {k: v + at * k.endswith(TAIL) for k, v in found.items()}) for at in (1, 2)
    ]
    found = advice(*apart)
    (reason,) = reasons(found, r"In \d\d of 64 tensors all experts have the same values and the base has others")
    assert "base_model" in found[reason]
    assert not reasons(found, "near 1")
    assert not reasons(advice(moved(1), moved(2)), "the same values")


def test_experts_that_were_rounded_are_not_of_another_base() -> None:
    def rounded(found: dict[str, torch.Tensor], at: float) -> dict[str, torch.Tensor]:
        return {k: v.to(torch.bfloat16).to(v.dtype) + at * k.endswith(TAIL) for k, v in found.items()}

    experts_of = [altered(checkpoint("llava"), lambda found, at=at: rounded(found, at)) for at in (0.1, -0.2)]
    assert not reasons(advice(*experts_of), "the same values")


def noise(like: torch.Tensor) -> torch.Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(5))


def test_experts_that_are_nearly_one() -> None:
    near = altered(moved(1), lambda found: {k: v + 0.002 * noise(v) for k, v in found.items()})
    assert reasons(advice(moved(1), near, moved(2)), "near 1: A and B 0.98")


def test_an_expert_that_went_farther_than_the_others() -> None:
    found = advice(moved(1), moved(2), moved(3, size=0.05))
    (reason,) = reasons(found, "task vector of C is .* times as long")
    assert 4.9 < float(re.findall(r"is (\d\.\d+) times", reason)[0]) < 5.1
    assert not reasons(advice(moved(1), moved(2)), "times as long")


def test_what_is_orthogonal_and_what_is_opposed() -> None:
    assert reasons(advice(moved(1), moved(2)), "Nearly orthogonal")
    found = advice(moved(1), moved(1, size=-0.01), moved(2))
    assert reasons(found, "point away from each other: A and B -1.00")
    assert not reasons(found, "Nearly orthogonal")


def test_adapters_and_what_they_are_merged_into() -> None:
    base = checkpoint("llava")
    adapters = [plus(base, adapter) for adapter, _ in pair("llava")]
    found = advice(*adapters)
    assert "`preset: lora`" in found["All experts are adapters on the base."]
    found = advice(*(adapted("llava", seed, r=2)[1] for seed in (5, 6)))
    (reason,) = reasons(found, "Full checkpoints whose task vectors are of low rank")
    assert "`preset: lora`" in found[reason]
    assert not reasons(found, "full fine-tunes")


def test_full_fine_tunes_and_roles_that_are_kept() -> None:
    found = advice()
    assert "`preset: full`" in found["The experts are full fine-tunes."]
    (reason,) = reasons(found, "kept as in the base that experts changed")
    assert "vision_tower" in reason
    (reason,) = reasons(advice(parameters={"vision_tower": "average"}), "kept as in the base that experts changed")
    assert "vision_tower" not in reason
    assert not reasons(advice(moved(1, 0.01, TAIL), moved(2, 0.01, TAIL)), "kept as in the base")


def test_heavy_drift() -> None:
    assert reasons(advice(), "Experts went far from the base: A 35")
    assert not reasons(advice(moved(1, 0.001), moved(2, 0.001)), "far from the base")


def test_donors_of_modalities() -> None:
    models = ROOT / "examples/omni/models"
    config = with_method("tsv", models / "llm", [models / "image", models / "audio"])
    texts = [each.text for each in advise(api.inspect(config, quiet=True))]
    assert any("`preset: modality`" in text for text in texts)
    assert not any("`preset: full`" in text for text in texts)


def test_outliers_are_far_from_the_median_of_their_role() -> None:
    loud = altered(moved(1), lambda found: {**found, **{k: v + 0.2 for k, v in found.items() if k.endswith(TAIL)}})
    found = api.inspect(recipe(moved(2), loud), quiet=True)
    (one,) = [each for each in outliers(found.tensors, 2) if each.tensor.role.value == "language_model"]
    assert one.tensor.name == UP
    assert one.expert == 1
    assert one.factor > 5
    drifts = [tensor.drift(1) for tensor in found.tensors if tensor.role.value == "language_model"]
    assert one.median == pytest.approx(float(torch.tensor(drifts).log().quantile(0.5).exp()), rel=1e-5)


# ------------------------------------------------------------------------------------------------ cost, and refusals


def test_what_is_costly_is_left_out_and_its_cost_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from mergekit_mm.analysis import run

    monkeypatch.setattr(run, "UNASKED", 1.0)
    left_out = inspect(recipe()).output
    assert re.search(r"No spectra: about \de\+\d\d operations in float64. `--spectra`", left_out)
    assert "Spectra of what is merged" not in left_out
    assert "  optmerge " not in left_out
    assert "  optmerge " in inspect(recipe(), "--methods", "optmerge").output
    both = inspect(recipe(), "--spectra", "--losses").output
    assert "Spectra of what is merged" in both
    assert "  tsv " in both


def test_factors_cost_less_than_dense_deltas() -> None:
    base = checkpoint("llava")
    dense, factored = (
        api.inspect(recipe(*models), quiet=True).cost
        for models in ([whole for _, whole in pair("llava")], [plus(base, adapter) for adapter, _ in pair("llava")])
    )
    assert factored.spectra < dense.spectra
    assert factored.losses < dense.losses
    assert cost.in_words(3.14e14) == "about 3e+14 operations in float64"


def test_methods_with_parameters() -> None:
    named = "ties:density=0.5,swudi:scaling=0.5,task_arithmetic:lambda=0.3,optmerge:scaling=auto"
    found = api.inspect(recipe(), methods=named.split(","), quiet=True).merged.losses
    assert list(found) == named.split(",")
    sums = api.inspect(recipe(), methods=["task_arithmetic"], quiet=True).merged.losses["task_arithmetic"]
    assert found["task_arithmetic:lambda=0.3"].share_left(1.0) == pytest.approx(sums.share_left(0.3))


def robust() -> dict[str, Any]:
    return recipe(method="robust_merge")


@pytest.mark.parametrize(
    ("config", "options", "told"),
    [
        (lambda: linear(*experts("llava")[:2]), (), "add `base_model: <model>`"),
        (lambda: recipe(experts("qwen2_vl")[0]), (), "different multimodal architectures"),
        (lambda: recipe(Path("/nowhere")), (), "/nowhere"),
        (recipe, ("--methods", "nothing"), "nothing"),
        (recipe, ("--methods", "slerp"), "slerp draws random numbers, or is no function"),
        (recipe, ("--methods", "robust_merge"), "robust_merge merges the factors of adapters"),
        (recipe, ("--methods", "tsv:density=1"), "tsv has no parameter 'density' here"),
        (recipe, ("--methods", "tsv:rank_fraction=2"), "rank_fraction must be in (0, 1]"),
        (recipe, ("--methods", "ties:density=much"), "--methods: ties:density=much"),
    ],
)
def test_refusals_are_one_error(config: Any, options: tuple[str, ...], told: str) -> None:
    result = inspect(config(), *options)
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert told in result.output


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--layers", "0"), "0 is not in the range"),
        (("--methods", "tsv", "--no-losses"), "leave out --no-losses"),
        (("--adapter-base", "trust"), "--adapter-base is for a model"),
    ],
)
def test_options_that_do_not_go_together(options: tuple[str, ...], told: str) -> None:
    result = inspect(recipe(), *options)
    assert result.exit_code == 2
    assert told in result.output


def test_options_of_configs_are_refused_for_models() -> None:
    result = plugin("inspect", checkpoint("llava"), "--json")
    assert result.exit_code == 2
    assert "--json is for the file of a merge config" in result.output


def test_a_config_that_is_not_there() -> None:
    result = plugin("inspect", "nowhere.yaml")
    assert result.exit_code == 2
    assert "nowhere.yaml does not exist" in result.output


def test_values_that_are_no_numbers_are_refused() -> None:
    broken = altered(
        experts("llava")[0], lambda found: {k: v * float("nan") if k.endswith(TAIL) else v for k, v in found.items()}
    )
    result = inspect(recipe(broken, experts("llava")[1]))
    assert result.exit_code == 1
    assert "holds NaN or infinite values" in result.output


def test_a_text_only_model_is_looked_at_too() -> None:
    from end_to_end import llama

    base = llama(0)
    found = api.inspect(task_arithmetic(base, [llama(1, base), llama(2, base)]), quiet=True)
    assert {role.module for role in found.by_role} == {"language_model"}
