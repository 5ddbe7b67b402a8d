"""Task arithmetic of three experts is base + sum(weight x delta) for every floating tensor.

Within each layout, and with every input in a layout of its own: a checkpoint from the hub, a fine-tune saved by
transformers 5, and one saved under the names in memory are the same model. The expected values come from the files
alone, so neither the plugin nor mergekit has a part in them.
"""

from __future__ import annotations

import pytest
import torch
import zoo
from checkpoints import (
    Outcome,
    assert_close,
    checkpoint,
    every_layout,
    experts,
    load,
    merge,
    sum_of_deltas,
    task_arithmetic,
    tensors,
)


def assert_correct(outcome: Outcome, family: str, layout: str) -> None:
    base = tensors(checkpoint(family, layout))
    others = [tensors(path) for path in experts(family, layout)]
    got = outcome.tensors
    assert_close(got, sum_of_deltas(base, others))
    unmoved = [n for n, v in base.items() if v.is_floating_point() and v.isfinite().all() and torch.equal(v, got[n])]
    assert not unmoved, f"nothing was merged into {unmoved[:8]}"
    changed = [n for n, v in base.items() if v.dtype != got[n].dtype]
    assert not changed, f"dtype changed in {changed[:8]}"


@pytest.mark.parametrize(("family", "layout"), every_layout())
def test_task_arithmetic(family: str, layout: str) -> None:
    outcome = merge(task_arithmetic(checkpoint(family, layout), experts(family, layout)))
    assert_correct(outcome, family, layout)


SEVERAL_LAYOUTS = [p for p in every_layout() if len(zoo.FAMILIES[str(p.values[0])].layouts) > 1]


@pytest.mark.parametrize(("family", "layout"), SEVERAL_LAYOUTS)
def test_layouts_merge_with_each_other(family: str, layout: str) -> None:
    """Base in one layout, the first expert in another, and so on round; the output has the base's names."""
    layouts = zoo.FAMILIES[family].layouts
    start = layouts.index(layout)
    others = [checkpoint(family, layouts[(start + i + 1) % len(layouts)], f"expert_{i}") for i in range(zoo.N_EXPERTS)]
    outcome = merge(task_arithmetic(checkpoint(family, layout), others))
    assert_correct(outcome, family, layout)


@pytest.mark.parametrize(
    ("family", "base", "other"),
    [
        ("llava", "hub", "memory"),
        ("llava", "plain", "memory"),
        ("llava", "memory", "hub"),
        ("qwen2_vl", "plain", "memory"),
        ("cohere2_vision", "hub", "plain"),
        ("gemma3", "hub", "memory"),
        ("qwen3_omni_moe_thinker", "hub", "memory"),
        ("kimi_k25", "memory", "plain"),
    ],
)
def test_merged_layouts_load(family: str, base: str, other: str) -> None:
    outcome = merge(task_arithmetic(checkpoint(family, base), experts(family, other)))
    assert_correct(outcome, family, base)
    load(outcome.out, zoo.FAMILIES[family].cls)


@pytest.mark.parametrize("family", ["qwen2_5_omni", "video_llava", "gemma3n"])
def test_a_linear_merge_without_a_base_is_the_mean(family: str) -> None:
    paths = experts(family)
    entries = [{"model": str(path), "parameters": {"weight": 1.0}} for path in paths]
    got = merge({"merge_method": "linear", "models": entries, "dtype": "float32"}).tensors
    found = [tensors(path) for path in paths]
    expected = {
        n: torch.stack([f[n].double() for f in found]).mean(0) if v.is_floating_point() else v
        for n, v in found[0].items()
    }
    assert_close(got, expected)
