"""`space: core`: mergekit's element-wise methods in the joint core of adapters, against the same done by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from end_to_end import (
    assert_close,
    assert_same_bytes,
    checked,
    checkpoint,
    command,
    experts,
    merge,
    merge_in_memory,
    plugin,
    refused,
    tensors,
    with_method,
    written,
)
from peft_adapters import Factors, factors, plus, written_adapter
from random_deltas import make_factors

from mergekit_mm.methods.declarations import ELEMENTWISE
from mergekit_mm.numerics.core_space import core_space

LAYER = "language_model.model.layers.0"
IN_MEMORY = "model.language_model.layers.0"
BOTH, ALONE = "self_attn.q_proj", "mlp.up_proj"  # adapted by both, and by the first only


def two(base: Path) -> tuple[list[Path], list[Factors]]:
    found = [
        factors({f"{IN_MEMORY}.{BOTH}": (64, 64), f"{IN_MEMORY}.{ALONE}": (128, 64)}, seed=1),
        factors({f"{IN_MEMORY}.{BOTH}": (64, 64)}, rank=4, seed=2),
    ]
    return [plus(base, written_adapter(base, each)) for each in found], found


def config(method: str, base: Path, adapters: list[Path], **parameters: Any) -> dict[str, Any]:
    recipe = with_method(method, base, adapters)
    for entry in recipe["models"]:
        entry["parameters"] = {"weight": 0.5, "density": 0.4}
    return {**recipe, "parameters": {"space": "core", **parameters}}


def by_hand(found: list[Factors], module: str, method: str, density: float = 0.4) -> torch.Tensor:
    """The same with numpy's decompositions; the scaling of these adapters is 2."""
    pairs = [tuple(2**i * part.double().numpy() for i, part in ((1, b), (0, a))) for b, a in (f[module] for f in found)]
    u = np.linalg.svd(np.concatenate([b for b, _ in pairs], axis=1), full_matrices=False)[0]
    v = np.linalg.svd(np.concatenate([a for _, a in pairs]), full_matrices=False)[2]
    cores = [torch.from_numpy((u.T @ b) @ (a @ v.T)) for b, a in pairs]
    given = {"weight": [0.5] * len(cores), "density": [density] * len(cores)}
    merged = merge_in_memory([*cores, torch.zeros_like(cores[0])], method, given, "x")
    return torch.from_numpy(u) @ merged @ torch.from_numpy(v)


def test_the_core_holds_every_adapter_whole() -> None:
    task_vectors = make_factors((30, 50), [3, 5, 0, 2])
    task_vectors[1].left[:, 3:] = 0
    joint = core_space(task_vectors)
    assert joint.left.shape == (30, 8)
    assert joint.right.shape == (10, 50)
    for task_vector, core in zip(task_vectors, joint.cores, strict=True):
        expected, got = task_vector.dense(torch.float64), joint.expand(core).dense(torch.float64)
        assert float((got - expected).norm()) <= 1e-6 * float(expected.norm())
    assert torch.allclose(joint.left.T @ joint.left, torch.eye(8).double(), atol=1e-12)


@pytest.mark.slow
def test_ties_in_the_core_is_ties_of_the_coordinates() -> None:
    base = checkpoint("llava")
    adapters, found = two(base)
    got, before = merge(config("ties", base, adapters)).tensors, tensors(base)
    expected = by_hand(found, f"{IN_MEMORY}.{BOTH}", "ties")
    name = f"{LAYER}.{BOTH}.weight"
    torch.testing.assert_close(got[name].double() - before[name].double(), expected, rtol=0, atol=1e-6)
    in_weights = merge(config("ties", base, adapters, space="weights")).tensors
    assert not torch.allclose(got[name], in_weights[name], atol=1e-3), "this test could not fail"
    changed = {n for n in got if not torch.equal(got[n], before[n])}
    assert changed == {name, f"{LAYER}.{ALONE}.weight"}


@pytest.mark.slow
def test_the_adapter_is_the_model_and_needs_no_rank() -> None:
    base = checkpoint("llava")
    recipe = config("ties", base, two(base)[0])
    out, result = command("lora", recipe)
    assert result.exit_code == 0, result.output
    put_on = with_method("task_arithmetic", base, [plus(base, out)])
    put_on["models"][0]["parameters"] = {"weight": 1.0}
    assert_close(merge(put_on).tensors, merge(recipe).tensors, 1e-6)


def test_sums_are_the_same_there() -> None:
    """DARE that drops nothing is a sum of deltas, which does not depend on a basis."""
    base = checkpoint("llava")
    recipe = config("dare_linear", base, two(base)[0])
    for entry in recipe["models"]:
        entry["parameters"]["density"] = 1.0
    in_weights = merge({**recipe, "parameters": {"space": "weights"}}).tensors
    assert_close(merge(recipe).tensors, in_weights, 1e-6)
    name = f"{LAYER}.{BOTH}.weight"
    assert not torch.equal(in_weights[name], tensors(base)[name])


def test_what_is_drawn_depends_on_the_seed_alone() -> None:
    base = checkpoint("llava")
    recipe = config("dare_ties", base, two(base)[0])
    first, again, other = (merge(recipe, "--random-seed", seed).tensors for seed in ("3", "3", "4"))
    assert_same_bytes(first, again)
    assert not torch.equal(first[f"{LAYER}.{BOTH}.weight"], other[f"{LAYER}.{BOTH}.weight"])


def test_a_plan_says_it() -> None:
    base = checkpoint("llava")
    adapters, _ = two(base)
    assert "does not read" not in checked(config("ties", base, adapters))
    told = plugin("check", written(config("ties", base, adapters)), "--tensor", f"{LAYER}.{BOTH}.weight")
    assert "merged by ties in the joint core of the adapters" in told.output


@pytest.mark.parametrize("method", ELEMENTWISE)
def test_models_have_no_core(method: str) -> None:
    refused({**config(method, checkpoint("llava"), experts("llava")), "dtype": "float32"}, "space", "adapters of")


@pytest.mark.parametrize(
    ("method", "space", "told"), [("ties", "cores", "weights | core"), ("tsv", "core", "single entries")]
)
def test_values_that_will_not_do(method: str, space: str, told: str) -> None:
    base = checkpoint("llava")
    refused({**with_method(method, base, two(base)[0]), "parameters": {"space": space}}, "space", told)
