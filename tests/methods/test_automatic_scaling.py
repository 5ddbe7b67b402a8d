"""`scaling: auto`: the merged delta gets the size of the experts', and the merge says what that came to."""

from __future__ import annotations

import math

import pytest
import torch
from end_to_end import assert_close, checkpoint, command, experts, merge, refused, tensors, with_method
from peft_adapters import pair, plus
from random_deltas import make_deltas, make_factors, merged_delta, randn, relative

from mergekit_mm.methods import catalogue, method_named
from mergekit_mm.methods.scaling import KAPPA, automatic_scaling
from mergekit_mm.numerics.task_vector import TaskVector

METHODS = [method.name for method in catalogue() if not method.needs_factors]  # those have a file of their own


def rms(deltas: list[torch.Tensor]) -> float:
    return math.sqrt(sum(float(d.double().square().sum()) for d in deltas) / len(deltas))


def test_every_method_has_its_constant() -> None:
    assert sorted(KAPPA) == sorted(method.name for method in catalogue())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(20, 30), (7,), (3, 6, 9)])
def test_the_merged_delta_has_the_size_of_an_experts(method: str, shape: tuple[int, ...]) -> None:
    deltas = [size * randn(*shape, seed=i).double() for i, size in enumerate((1.0, 0.3, 2.0))]
    merged = merged_delta(method, deltas, scaling="auto")
    assert float(merged.norm()) == pytest.approx(KAPPA[method] * rms(deltas), rel=1e-9)
    plain = merged_delta(method, deltas)
    assert relative(merged / merged.norm(), plain / plain.norm()) < 1e-9
    assert relative(plain, merged) > 1e-3, "this test could not fail"


@pytest.mark.parametrize("method", METHODS)
def test_factors_come_to_what_their_products_come_to(method: str) -> None:
    factors = make_factors((20, 30), [3, 2, 0])
    dense = [TaskVector.of(t.dense(torch.float64)) for t in factors]
    found = [automatic_scaling(method, method_named(method).solve(given), given) for given in (factors, dense)]
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_an_expert_that_left_the_tensor_alone_does_not_count() -> None:
    deltas = make_deltas((20, 30), 2, "flat")
    merged = merged_delta("tsv", [*deltas, torch.zeros(20, 30)], scaling="auto")
    assert float(merged.norm()) == pytest.approx(rms(deltas), rel=1e-5)
    assert not merged_delta("tsv", [torch.zeros(20, 30)] * 2, scaling="auto").any()


def test_a_merge_says_what_it_came_to() -> None:
    base = checkpoint("llava")
    outcome = merge({**with_method("tsv", base, experts("llava")), "parameters": {"scaling": "auto"}})
    before, name = tensors(base), "language_model.model.layers.1.mlp.up_proj.weight"
    deltas = [tensors(path)[name].double() - before[name].double() for path in experts("llava")]
    moved = float((outcome.tensors[name].double() - before[name].double()).norm())
    assert moved == pytest.approx(rms(deltas), rel=1e-4)
    plain = merge(with_method("tsv", base, experts("llava"))).tensors
    applied = {i: rms_over_plain(i, plain) for i in (0, 1)}
    told = next(line for line in outcome.console.splitlines() if "layers.*.mlp.up_proj.weight" in line)
    low, high = sorted(applied.values())
    assert told.split()[0] == f"{(low + high) / 2:.3g}"
    assert f"({low:.3g} to {high:.3g} in 2 tensors)" in told


def rms_over_plain(layer: int, plain: dict[str, torch.Tensor]) -> float:
    name, before = f"language_model.model.layers.{layer}.mlp.up_proj.weight", tensors(checkpoint("llava"))
    deltas = [tensors(path)[name].double() - before[name].double() for path in experts("llava")]
    return rms(deltas) / float((plain[name].double() - before[name].double()).norm())


@pytest.mark.slow
def test_an_adapter_of_it_is_the_model() -> None:
    base, both = checkpoint("llava"), pair("llava")
    config = {
        **with_method("swudi", base, [plus(base, adapter) for adapter, _ in both]),
        "parameters": {"scaling": "auto", "svc": True},
    }
    out, result = command("lora", config)
    assert result.exit_code == 0, result.output
    assert "scaling: auto came to" in result.output
    put_on = with_method("task_arithmetic", base, [plus(base, out)])
    put_on["models"][0]["parameters"] = {"weight": 1.0}
    assert_close(merge(put_on).tensors, merge(config).tensors, 1e-6)


@pytest.mark.slow
def test_a_sweep_multiplies_it() -> None:
    base = checkpoint("llava")
    config = {**with_method("tsv", base, experts("llava")), "parameters": {"scaling": "auto"}}
    out, result = command("sweep", config, "--scaling", "0.5,1", "--quiet")
    assert result.exit_code == 0, result.output
    before, whole = tensors(base), merge(config).tensors
    expected = {n: torch.lerp(before[n].double(), whole[n].double(), 0.5) for n in whole}
    assert_close(tensors(out / "scaling_0.5"), expected, 1e-6)


def test_other_words_are_refused() -> None:
    config = with_method("tsv", checkpoint("llava"), experts("llava"))
    refused({**config, "parameters": {"scaling": "automatic"}}, "scaling", "'automatic'", "number")
