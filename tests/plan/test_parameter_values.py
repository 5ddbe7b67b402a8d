"""Values, scopes and devices that cannot be: refused in a sentence before any work, by `check` as by the merge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from end_to_end import (
    altered,
    checkpoint,
    command,
    experts,
    fresh,
    linear,
    merge,
    plugin,
    refused,
    run,
    tensors,
    with_method,
    written,
)

from mergekit_mm.methods import catalogue


def recipe(method: str, **parameters: Any) -> dict[str, Any]:
    return {**with_method(method, checkpoint("llava"), experts("llava")), "parameters": parameters}


def check(config: dict[str, Any] | str) -> Result:
    result = plugin("check", written(config))
    assert result.exception is None or isinstance(result.exception, SystemExit), "a traceback"
    return result


@pytest.mark.parametrize(
    ("method", "parameters", "told"),
    [
        ("optmerge", {"scaling": "much"}, ["scaling", "'much'", "number"]),
        ("optmerge", {"scaling": [1.0, float("inf")]}, ["scaling", "finite"]),
        ("optmerge", {"preset": "Lora"}, ["preset", "'lora', 'full' or 'modality'"]),
        ("optmerge", {"iterations": [{"filter": "mlp", "value": -1}, {"value": 300}]}, ["iterations", "-1"]),
        ("optmerge", {"preset": "full", "time": "relative"}, ["time", "adam"]),
        ("wudi", {"learning_rate": 0}, ["wudi", "learning_rate", "positive"]),
        ("swudi", {"rank_ratio": 1.1}, ["rank_ratio", "(0, 1]"]),
        ("aswudi", {"rank_rule": "cumvar_2"}, ["rank_rule", "entropy", "cumvar_2"]),
        ("tsv", {"rank_fraction": "1/3"}, ["rank_fraction", "1/3"]),
        ("task_arithmetic", {"weight": "a lot"}, ["weight", "a lot"]),
        ("ties", {"weight": float("nan"), "density": 0.5}, ["weight", "nan", "finite"]),
    ],
)
def test_values_that_a_parameter_cannot_have(method: str, parameters: dict[str, Any], told: list[str]) -> None:
    config = recipe(method, **parameters)
    checked, outcome = check(config), refused(config, *told)
    assert checked.exit_code == 1
    for part in told:
        assert part in checked.output
    assert "Executing" not in outcome.console


def test_a_base_model_that_is_an_input_without_a_weight() -> None:
    """To `linear` the base model is one input of several, which many write beside them."""
    config = {**linear(*experts("llava")), "base_model": str(checkpoint("llava"))}
    checked, outcome = check(config), run(config)
    assert checked.exit_code == 1
    for part in ("under `models:`", "weight", "leave out `base_model:`", str(checkpoint("llava"))):
        assert part in checked.output
        assert part in outcome.error
    merge({**config, "parameters": {"weight": 1.0}})  # a weight for all is the base's too


@pytest.mark.parametrize(("method", "name"), [("optmerge", "scaling"), ("task_arithmetic", "lambda")])
def test_a_value_for_all_inputs_cannot_be_one_inputs(method: str, name: str) -> None:
    """mergekit would read none of it: a strength that somebody believes to have set."""
    config = recipe(method)
    config["models"][1]["parameters"] = {"weight": 0.3, name: 0.5}
    error = run(config).error
    assert name in error
    assert str(experts("llava")[1]) in error


def test_parameters_of_other_methods_pass_with_a_note() -> None:
    """So that one line switches between methods, but `weight` is not taken for a parameter of this one."""
    said = check(recipe("tsv", weight=0.3, density=0.2, scaling=0.3))
    assert said.exit_code == 0
    assert "tsv does not read the parameters density, weight" in said.output


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"merge_method": "OptMerg"}, "'optmerge'"),
        ({"dtype": "half"}, "float16"),
        ({"out_dtype": "int8"}, "bfloat16"),
    ],
)
def test_other_values_of_a_config(change: dict[str, Any], told: str) -> None:
    result = check({**recipe("optmerge"), **change})
    assert result.exit_code == 1
    assert told in result.output


def test_models_that_are_not_there_are_not_taken_for_text_only() -> None:
    result = check({**with_method("optmerge", fresh("no_base"), [fresh("no_expert")])})
    assert result.exit_code == 1
    assert "no_base" in result.output
    assert "no_expert" in result.output


def test_the_reference_has_every_parameter() -> None:
    text = (Path(__file__).parents[2] / "merge_yamls" / "README.md").read_text()
    section = text[text.index("## Methods") : text.index("## Roles")]
    names = {f"`{p.name}" for method in catalogue() for p in method.host.spec.parameters}
    assert not [name for name in sorted(names) if name not in section]


def test_an_input_that_is_listed_twice() -> None:
    expert = experts("llava")[0]
    assert f"{expert} is listed twice" in run(with_method("optmerge", checkpoint("llava"), [expert, expert])).error


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no merge config"),
        ("models: [", "line 1"),
        ("merge_method: tsv\nmodels:\n- path", "models.0"),
        ("merge_method: tsv\nmodels: [{model: a}]\nparameters: {scaling: }", "parameters.scaling: None"),
        ("merge_method: tsv\nmodels: [{model: a+b+c}]", "a+b+c"),
    ],
)
def test_files_that_are_no_config(text: str, told: str) -> None:
    result = check(text)
    assert result.exit_code == 1
    assert told in result.output


@pytest.mark.parametrize(
    "flags", [("--device", "nonesuch"), *([] if torch.cuda.is_available() else [("--multi-gpu",)])]
)
def test_a_device_that_is_not_there(flags: tuple[str, ...]) -> None:
    refused(recipe("optmerge"), flags[-1], flags=flags)


@pytest.mark.slow
def test_strengths_that_look_alike_and_a_seed() -> None:
    config = recipe("dare_linear", weight=0.3, density=0.5)
    out, result = command("sweep", config, "--scaling", "0.1234567,0.1234568,1", "--random-seed", "7", "--quiet")
    assert result.exit_code == 0, result.output
    assert len(list(out.iterdir())) == 3
    seeded = merge(config, "--random-seed", "7").tensors
    assert all(torch.equal(value, seeded[name]) for name, value in tensors(out / "scaling_1").items())
    _, result = command("sweep", config, "--scaling", "1", "--out-shard-size", "big")
    assert "'big'" in result.output


@pytest.mark.parametrize("method", ["task_arithmetic", "linear"])
def test_a_merge_that_makes_nan_or_infinity_of_finite_inputs(method: str) -> None:
    """Weights that add up to zero, or a product beyond the dtype's range."""
    expert, weight = experts("llava")[0], 0.0 if method == "linear" else 1e38
    config = {**with_method(method, checkpoint("llava"), [expert]), "parameters": {"lambda": 1e38}}
    config["models"] = [{"model": str(expert), "parameters": {"weight": weight}}]
    if method == "linear":
        del config["base_model"]
        config["models"].append({"model": str(experts("llava")[1]), "parameters": {"weight": weight}})
    refused(config, "gives NaN or Inf")


def test_a_value_beyond_float16() -> None:
    """bfloat16 checkpoints have such values; infinity in their place would be found when the model speaks nonsense."""
    base = altered(checkpoint("llava"), lambda t: {n: v * (1e7 if "q_proj" in n else 1) for n, v in t.items()})
    refused({**with_method("optmerge", base, [altered(base)]), "dtype": "float16"}, "q_proj", "bfloat16")


def test_a_parameter_that_the_method_needs() -> None:
    config = {**recipe("task_arithmetic"), "models": [{"model": str(path)} for path in experts("llava")]}
    told = check(config).output
    assert "parameter weight for" in told
    assert "task_arithmetic needs it: write it under `parameters:`" in told


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"paramters": {"scaling": 0.3}}, "'paramters' in the merge config. Did you mean 'parameters'"),
        ({"models": [{"model": "a", "weight": 0.3}]}, "'weight' of input a"),
        ({"models": [{"model": "a", "layer_range": [0, 1]}]}, "'layer_range' of input a"),
        (
            {"models": None, "slices": [{"sources": [{"model": "a", "layer_range": [0, 1]}], "scaling": 0.3}]},
            "'scaling' of slices.0",
        ),
        (
            {"models": None, "modules": {"projector": {"models": [{"model": "a"}], "paramters": {}}}},
            "'paramters' of modules.projector in the merge config. Did you mean 'parameters'",
        ),
    ],
)
def test_keys_that_mergekit_would_drop(change: dict[str, Any], told: str) -> None:
    config = {**recipe("optmerge"), **change}
    refused(config, told)
    assert told in check(config).output


def test_keys_of_a_config_that_are_nobodys() -> None:
    assert check({**recipe("optmerge"), "name": "mine", "common": {"scaling": 0.3}}).exit_code == 0


@pytest.mark.parametrize("method", ["optmerge", "linear"])
def test_paths_that_lead_nowhere(method: str) -> None:
    outcome = run(with_method(method, Path("no/such/base"), [Path("no/such/expert")]))
    assert "no/such/expert is neither a local directory" in outcome.error
    assert f"Relative paths start in {Path.cwd()}" in outcome.error


def test_directories_without_a_config_and_what_is_in_them() -> None:
    adapter = fresh("adapter")
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    folder = checkpoint("llava").parent
    assert f"BASE+{adapter}" in check(with_method("optmerge", checkpoint("llava"), [adapter])).output
    told = check(with_method("optmerge", checkpoint("llava"), [folder])).output
    assert "Name one of the models in it: base, expert_0" in told
