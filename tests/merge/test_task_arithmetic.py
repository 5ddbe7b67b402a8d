"""Task arithmetic of three experts is base + sum(weight x delta) for every floating tensor.

Within each layout, and with every input in a layout of its own: a checkpoint from the hub, a fine-tune saved by
transformers 5, and one saved under the names in memory are the same model. The expected values come from the files
alone, so neither the plugin nor mergekit has a part in them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from end_to_end import (
    WEIGHT,
    Outcome,
    altered,
    assert_close,
    checkpoint,
    every_layout,
    experts,
    load,
    merge,
    merge_in_memory,
    sum_of_deltas,
    task_arithmetic,
    tensors,
)

pytestmark = pytest.mark.long


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


@pytest.mark.slow
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


# -------------------------------------------------------------------------------------------- every merge method

# method -> (number of experts, parameters of the merge, parameters of each expert)
METHODS: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "linear": (3, {"weight": 1.0}, {}),
    "slerp": (1, {"t": 0.3}, {}),
    "nuslerp": (2, {}, {"weight": 0.5}),
    "multislerp": (3, {}, {"weight": 0.3}),
    "karcher": (3, {}, {}),
    "ties": (3, {}, {"weight": 0.5, "density": 0.6}),
    "breadcrumbs": (3, {}, {"weight": 0.5, "density": 0.9, "gamma": 0.05}),
    "model_stock": (3, {}, {}),
    "sce": (3, {"select_topk": 0.5}, {}),
    "ram": (3, {}, {}),
    "arcee_fusion": (1, {}, {}),
    "nearswap": (1, {"t": 0.01}, {}),
    "optmerge": (3, {}, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize(("family", "layout"), [("llava", "hub"), ("qwen2_vl", "plain")])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_what_it_gives_in_memory(method: str, family: str, layout: str) -> None:
    """Each tensor is what mergekit's own in-memory API makes of that tensor of each input."""
    count, shared, each = METHODS[method]
    base, others = checkpoint(family, layout), experts(family, layout)[:count]
    entries = [{"model": str(path), "parameters": each} for path in others]
    if method in ("linear", "karcher"):
        entries.append({"model": str(base)})
    # the plugin's methods leave everything but matrices of the language model at the base unless told otherwise
    policies = dict.fromkeys(["vision_tower", "projector", "embeddings", "lm_head", "norms", "biases"], "merge")
    config = {
        "merge_method": method,
        "base_model": str(base),
        "models": entries,
        "dtype": "float32",
        "parameters": {**shared, **(policies if method == "optmerge" else {})},
    }
    got = merge(config).tensors
    inputs = [*(tensors(path) for path in others), tensors(base)]
    for name, value in inputs[-1].items():
        flat = [t[name].flatten() if t[name].ndim > 3 and method == "optmerge" else t[name] for t in inputs]
        made = merge_in_memory(flat, method, {**shared, **each}, name)
        assert torch.allclose(got[name], made.reshape(value.shape), atol=2e-6), name


def test_the_base_may_be_listed_among_the_models() -> None:
    base = checkpoint("llava", "hub")
    config = task_arithmetic(base, experts("llava", "hub"))
    config["models"].insert(1, {"model": str(base)})
    assert_correct(merge(config), "llava", "hub")


def test_one_expert_twice() -> None:
    base, expert = checkpoint("llava", "hub"), experts("llava", "hub")[0]
    twin = altered(expert)
    got = merge(task_arithmetic(base, [expert, twin])).tensors
    assert_close(got, sum_of_deltas(tensors(base), [tensors(expert)], 2 * WEIGHT))


# -------------------------------------------------------------------------------------------- configs as published


def flat_qwen2_vl(path: Path) -> Path:
    """Qwen2-VL configs on the hub have the decoder's settings at the top level, and no text_config."""
    flat = altered(path)
    config = json.loads((flat / "config.json").read_text())
    text = config.pop("text_config")
    kept = {k: v for k, v in text.items() if k not in ("model_type", "dtype", "rope_parameters")}
    rope = {"type": "mrope", "mrope_section": text["rope_parameters"]["mrope_section"]}
    config = {**kept, **config, "rope_scaling": rope, "rope_theta": text["rope_parameters"]["rope_theta"]}
    config["torch_dtype"] = config.pop("dtype", "float32")
    (flat / "config.json").write_text(json.dumps(config, indent=2))
    return flat


def test_a_flat_config() -> None:
    base = flat_qwen2_vl(checkpoint("qwen2_vl"))
    others = [flat_qwen2_vl(experts("qwen2_vl")[0]), *experts("qwen2_vl")[1:]]
    outcome = merge(task_arithmetic(base, others, out_dtype="bfloat16"))
    expected = sum_of_deltas(tensors(base), [tensors(path) for path in experts("qwen2_vl")])
    assert_close(outcome.tensors, expected, tolerance=0.02)
    before, after = (json.loads((path / "config.json").read_text()) for path in (base, outcome.out))
    assert after == {**before, "torch_dtype": "bfloat16"}
    model = load(outcome.out, "Qwen2VLForConditionalGeneration")
    assert torch.isfinite(model(**zoo.qwen_image()).logits).all()


def test_the_depth_of_a_flat_config() -> None:
    base = flat_qwen2_vl(checkpoint("qwen2_vl"))
    part = {"sources": [{"model": str(base), "layer_range": [0, 2]}]}
    config = {
        "merge_method": "passthrough",
        "base_model": str(base),
        "modules": {"language_model": {"slices": [part] * 2}},
    }
    model = load(merge(config).out, "Qwen2VLForConditionalGeneration")
    assert len(model.get_decoder().layers) == 4


def test_a_config_that_names_no_architecture() -> None:
    base = altered(checkpoint("internvl"))
    config = json.loads((base / "config.json").read_text())
    del config["architectures"]
    (base / "config.json").write_text(json.dumps(config))
    assert_correct(merge(task_arithmetic(base, experts("internvl"))), "internvl", "plain")


def test_relative_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkpoint("llava", "hub").parent)
    others = [Path(f"expert_{i}") for i in range(zoo.N_EXPERTS)]
    assert_correct(merge(task_arithmetic(Path("base"), others)), "llava", "hub")


def test_a_config_with_an_infinite_number() -> None:
    """JSON has no infinity, so transformers writes {"__float__": "Infinity"}; Mamba hybrids have some."""
    base = altered(checkpoint("llava"))
    config = json.loads((base / "config.json").read_text())
    config["text_config"]["rms_norm_eps"] = {"__float__": "Infinity"}
    (base / "config.json").write_text(json.dumps(config))
    outcome = merge(task_arithmetic(base, experts("llava")))
    assert_correct(outcome, "llava", "plain")
    assert json.loads((outcome.out / "config.json").read_text()) == config
    load(outcome.out, "LlavaForConditionalGeneration")
