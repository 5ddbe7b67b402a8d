"""`modules:` and `slices:` of a config, and gradients over layers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import zoo
from end_to_end import (
    assert_close,
    assert_same_bytes,
    checkpoint,
    experts,
    linear,
    load,
    mean,
    merge,
    refused,
    save_model,
    sum_of_deltas,
    task_arithmetic,
    tensors,
)
from roles_on_disk import (
    OUTSIDE,
    by_modules,
    check,
    entries_of,
    role_of,
)

LANGUAGE = {"language_model", "embeddings", "lm_head", "norms", "biases"}


@pytest.mark.parametrize(("family", "layout"), OUTSIDE)
def test_a_module_that_is_not_listed_stays_at_the_base(family: str, layout: str) -> None:
    outcome = merge(by_modules(family, layout, {"language_model": {"models": entries_of(family, layout)}}))
    base = tensors(checkpoint(family, layout))
    full = sum_of_deltas(base, [tensors(path) for path in experts(family, layout)])
    inside = {name for name in base if role_of(name, family, layout) in LANGUAGE}
    assert_close(outcome.tensors, {n: full[n] if n in inside else v for n, v in base.items()})
    for module in OUTSIDE[family, layout]:
        assert module in outcome.said, f"{module} is not reported"


@pytest.mark.parametrize(("family", "layout"), OUTSIDE)
def test_modules_with_weights_of_their_own(family: str, layout: str) -> None:
    weights = {"language_model": 0.5, "projector": 0.4, "vision_tower": 0.3, "audio_tower": 0.2, "video_tower": 0.1}
    present = {"language_model", *OUTSIDE[family, layout]}
    modules = {
        name: {"models": entries_of(family, layout, weight)} for name, weight in weights.items() if name in present
    }
    got = merge(by_modules(family, layout, modules)).tensors
    base = tensors(checkpoint(family, layout))
    others = [tensors(path) for path in experts(family, layout)]
    made = {name: sum_of_deltas(base, others, weight) for name, weight in weights.items()}
    module = {n: "language_model" if (r := role_of(n, family, layout)) in LANGUAGE else r for n in base}
    assert_close(got, {n: made[module[n]][n] for n in base})


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        ("qwen2_vl", "plain"),
        ("qwen2_5_vl", "plain"),
        ("qwen3_vl", "plain"),
        ("qwen3_vl_moe", "plain"),
        ("gemma3", "hub"),
        ("mistral3", "plain"),
        ("llama4", "plain"),
    ],
)
def test_mergekits_own_module_names(family: str, layout: str) -> None:
    """The names of mergekit's definitions, for the families it has definitions of."""
    tower = "vision_model" if family == "llama4" else "vision_tower"
    names = ("text_decoder", "multi_modal_projector", tower)
    outcome = merge(by_modules(family, layout, {name: {"models": entries_of(family, layout)} for name in names}))
    base = tensors(checkpoint(family, layout))
    assert_close(outcome.tensors, sum_of_deltas(base, [tensors(path) for path in experts(family, layout)]))
    alone = merge(by_modules(family, layout, {"text_decoder": {"models": entries_of(family, layout)}})).tensors
    kept = {n for n in base if torch.equal(base[n], alone[n])}
    assert {n for n in base if re.search("visual|vision|projector", n)} == kept


def test_policies_of_a_module() -> None:
    """Under a module they count for that module, and before the top level."""
    modules = {
        "language_model": {
            "models": entries_of("llava_qwen2", "memory"),
            "parameters": {"norms": "base", "biases": "average"},
        },
        "vision_tower": {"models": entries_of("llava_qwen2", "memory"), "parameters": {"vision_tower": "average"}},
        "projector": {"models": entries_of("llava_qwen2", "memory")},
    }
    top = {"norms": "merge", "vision_tower": "base", "embeddings": "base", "projector": "merge"}
    outcome = merge(by_modules("llava_qwen2", "memory", modules, parameters=top))
    policies = {**top, "norms": "base", "biases": "average", "vision_tower": "average", "lm_head": "merge"}
    check(outcome, "task_arithmetic", "llava_qwen2", "memory", {**policies, "language_model": "merge"})


# ------------------------------------------------------------------------------------- slices and gradients


def layer(name: str) -> int | None:
    found = re.match(r"language_model\.model\.layers\.(\d+)\.", name)
    return int(found[1]) if found else None


def slices(*ranges: tuple[int, int], models: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A language model made of layer ranges, the first of each taken from `models` in turn."""
    parts = [{"sources": [{"model": str(m), "layer_range": list(r)}]} for m, r in zip(models, ranges, strict=True)]
    return {"language_model": {"slices": parts}}


def test_slices_take_layers_from_two_models() -> None:
    first, second = experts("llava", "hub")[:2]
    config = {
        "merge_method": "passthrough",
        "base_model": str(checkpoint("llava", "hub")),
        "modules": slices((0, 1), (1, 2), models=(first, second)),
    }
    got = merge(config).tensors
    base, one, two = tensors(checkpoint("llava", "hub")), tensors(first), tensors(second)
    for name, tensor in got.items():
        if (index := layer(name)) is not None:
            assert torch.equal(tensor, (one, two)[index][name]), name
        elif not name.startswith("language_model."):
            assert torch.equal(tensor, base[name]), name
    assert got.keys() == base.keys()


@pytest.mark.slow
@pytest.mark.parametrize(("family", "layout"), [("llava", "hub"), ("qwen2_vl", "plain"), ("llava_qwen2", "memory")])
@pytest.mark.parametrize("ranges", [((0, 2), (1, 2)), ((1, 2),), ((0, 2), (0, 2))])
def test_slices_that_change_the_depth(family: str, layout: str, ranges: tuple[tuple[int, int], ...]) -> None:
    """A frankenmerge: layers repeated or left out; the config follows, and the model loads and runs."""
    base = checkpoint(family, layout)
    config = {
        "merge_method": "passthrough",
        "base_model": str(base),
        "modules": slices(*ranges, models=(base,) * len(ranges)),
    }
    outcome = merge(config)
    order = [i for low, high in ranges for i in range(low, high)]
    model = load(outcome.out, zoo.FAMILIES[family].cls)
    assert model.config.get_text_config().num_hidden_layers == len(order)
    before = load(base, zoo.FAMILIES[family].cls).get_decoder().layers
    for new, old in enumerate(order):
        made = model.get_decoder().layers[new].state_dict()
        assert_same_bytes(made, before[old].state_dict())
    media = zoo.FAMILIES[family].media
    assert media is not None
    assert torch.isfinite(model(**media()).logits).all()


def test_slices_of_layers_that_have_settings_of_their_own() -> None:
    """Gemma 4's heads are wider in every layer of full attention, which its config lists by layer."""
    config = zoo.FAMILIES["gemma4"].config()
    config.text_config.hidden_size_per_layer_input = config.text_config.num_kv_shared_layers = 0
    base = save_model(transformers.Gemma4ForConditionalGeneration(config))
    part = slices((0, 2), (0, 4), models=(base, base))
    out = merge({"merge_method": "passthrough", "base_model": str(base), "modules": part}).out
    model = load(out, "Gemma4ForConditionalGeneration")
    before = load(base, "Gemma4ForConditionalGeneration").get_decoder().layers
    for new, old in enumerate([0, 1, 0, 1, 2, 3]):
        assert_same_bytes(model.get_decoder().layers[new].state_dict(), before[old].state_dict())


def test_slices_merge_layers_with_each_other() -> None:
    """Two sources in one slice, from different layers of different models."""
    base, expert = checkpoint("llava", "hub"), experts("llava", "hub")[0]
    part = {"sources": [{"model": str(base), "layer_range": [0, 1]}, {"model": str(expert), "layer_range": [1, 2]}]}
    whole = {"sources": [{"model": str(m), "layer_range": [1, 2]} for m in (base, expert)]}
    config = {
        "merge_method": "linear",
        "dtype": "float32",
        "modules": {"language_model": {"slices": [part, whole]}},
        "parameters": {"weight": 0.5},
    }
    got = merge(config).tensors
    a, b = tensors(base), tensors(expert)
    name = "language_model.model.layers.{}.mlp.up_proj.weight"
    assert torch.allclose(got[name.format(0)], (a[name.format(0)] + b[name.format(1)]) / 2, atol=1e-6)
    assert torch.allclose(got[name.format(1)], (a[name.format(1)] + b[name.format(1)]) / 2, atol=1e-6)


def test_a_layer_range_beyond_the_model() -> None:
    base = checkpoint("llava", "hub")
    config = {"merge_method": "passthrough", "base_model": str(base), "modules": slices((0, 3), models=(base,))}
    error = refused(config).error
    assert "layer_range" in error
    assert "2" in error


@pytest.mark.parametrize(("family", "layout"), [("llava", "hub"), ("gemma4", "plain")])
def test_gradients_run_over_the_layers(family: str, layout: str) -> None:
    """`weight: [0, 1]` is 0 in the first layer and 1 in the last, of the decoder and of the tower alike."""
    expert = experts(family, layout)[0]
    config = task_arithmetic(checkpoint(family, layout), [expert])
    config["models"][0]["parameters"]["weight"] = [0.0, 1.0]
    got, a, b = merge(config).tensors, tensors(checkpoint(family, layout)), tensors(expert)
    decoder = "language_model.model" if family == "llava" else "model.language_model"
    tower = "vision_tower.vision_model.encoder" if family == "llava" else "model.vision_tower.encoder"
    for stack in (decoder, tower):
        indices = {int(m[1]) for n in a if (m := re.match(re.escape(stack) + r"\.layers\.(\d+)\.", n))}
        for index in indices:
            t = index / max(indices)
            names = [n for n in a if n.startswith(f"{stack}.layers.{index}.")]
            assert names
            assert_close({n: got[n] for n in names}, {n: a[n].double() + t * (b[n].double() - a[n]) for n in names})


def test_top_level_slices_mean_the_language_model() -> None:
    """mergekit asks for `modules:` where a model has several; the plugin takes the language model, and says so."""
    base = checkpoint("llava", "hub")
    config = {
        "merge_method": "passthrough",
        "base_model": str(base),
        "slices": [{"sources": [{"model": str(base), "layer_range": [0, 2]}]}],
    }
    outcome = merge(config)
    assert_same_bytes(outcome.tensors, tensors(base))
    assert "vision_tower" in outcome.said


def test_a_linear_merge_under_modules_needs_no_base() -> None:
    modules = {"language_model": {"models": linear(*experts("llava", "hub"))["models"]}}
    got = merge({"merge_method": "linear", "modules": modules, "dtype": "float32"}).tensors
    found = [tensors(path) for path in experts("llava", "hub")]
    average = mean(found)
    assert_close(got, {n: average[n] if n.startswith("language_model.") else v for n, v in found[0].items()})
