"""Policies per role (`vision_tower: base`, `norms: merge`, ...), modules, slices and gradients, for every merge method.

The roles are written down here per family, by names on disk; the merged values come from mergekit's in-memory API,
tensor by tensor, so a policy is checked on every tensor of a model and not on samples.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import zoo
from checkpoints import (
    WEIGHT,
    Outcome,
    Tensors,
    assert_close,
    assert_nothing_left,
    assert_same_bytes,
    checkpoint,
    command,
    experts,
    linear,
    load,
    mean,
    merge,
    run,
    save_model,
    sum_of_deltas,
    task_arithmetic,
    tensors,
    with_method,
)

POLICIES = ("base", "average", "merge")
METHODS = ("linear", "task_arithmetic", "ties", "optmerge")
ROLES = ("vision_tower", "audio_tower", "video_tower", "projector", "embeddings", "lm_head", "norms", "biases")

# What is outside the language model, by name on disk; the first match counts.
OUTSIDE: dict[tuple[str, str], dict[str, str]] = {
    ("llava", "hub"): {"vision_tower": r"vision_tower\.", "projector": r"multi_modal_projector\."},
    ("llava_qwen2", "memory"): {
        "vision_tower": r"model\.vision_tower\.",
        "projector": r"model\.multi_modal_projector\.",
    },
    ("llava_next", "plain"): {"vision_tower": r"vision_tower\.", "projector": r"multi_modal_projector\.|image_newline"},
    ("qwen2_vl", "plain"): {"projector": r"visual\.merger\.", "vision_tower": r"visual\."},
    ("qwen3_vl", "plain"): {
        "projector": r"model\.visual\.(merger|deepstack_merger_list)\.",
        "vision_tower": r"model\.visual\.",
    },
    ("video_llava", "plain"): {
        "vision_tower": r"image_tower\.",
        "video_tower": r"video_tower\.",
        "projector": r"multi_modal_projector\.",
    },
    ("qwen2_audio", "plain"): {"audio_tower": r"audio_tower\.", "projector": r"multi_modal_projector\."},
    ("qwen2_5_omni_thinker", "hub"): {
        "projector": r"thinker\.(visual\.merger|audio_tower\.proj)\.",
        "vision_tower": r"thinker\.visual\.",
        "audio_tower": r"thinker\.audio_tower\.",
    },
    ("gemma4", "plain"): {
        "vision_tower": r"model\.vision_tower\.",
        "audio_tower": r"model\.audio_tower\.",
        "projector": r"model\.embed_(vision|audio)\.",
    },
    ("phi4_multimodal", "plain"): {
        "projector": r".*(img_projection|up_proj_for|down_proj_for|global_img_feature|sub_img_feature)",
        "vision_tower": r"model\.embed_tokens_extend\.image_embed\.",
        "audio_tower": r"model\.embed_tokens_extend\.audio_embed\.",
    },
}
INSIDE = {
    "embeddings": r".*embed_tokens(_per_layer)?\.weight$",
    "lm_head": r".*lm_head\.",
    "norms": r".*norm\.weight$",
    "biases": r".*bias$",
}


def role_of(name: str, family: str, layout: str) -> str:
    roles = {**OUTSIDE[family, layout], **INSIDE}
    return next((role for role, pattern in roles.items() if re.match(pattern, name)), "language_model")


def merged_by(method: str, base: Tensors, others: list[Tensors]) -> Tensors:
    """What a merge method makes of each tensor, by mergekit's in-memory API."""
    command()  # the plugin's methods are registered with it
    from mergekit.merge_methods import merge_tensors

    parameters = {"linear": {"weight": 1.0}, "task_arithmetic": {"weight": WEIGHT}}
    parameters["ties"] = {"weight": WEIGHT, "density": 0.6}
    made = {}
    for name, value in base.items():
        if value.is_floating_point():
            inputs = [*(other[name] for other in others), value]  # mergekit adds the base last
            if method == "optmerge" and re.search(r"conv\d?\.weight$", name):
                inputs = [t.flatten() for t in inputs]  # the kernel of a convolution is no stack of matrices
            given = parameters.get(method, {})
            result = merge_tensors(inputs, method, base_index=len(others), parameters=given, name=name)
            made[name] = result.reshape(value.shape)
        else:
            made[name] = value
    return made


def expected(base: Tensors, others: list[Tensors], merged: Tensors, policy: Mapping[str, str]) -> Tensors:
    """Base, mean or merged, as `policy` (tensor name -> policy) says."""
    average = mean([{n: v for n, v in o.items() if v.is_floating_point()} for o in others])
    choice = {"base": base, "merge": merged, "average": {**base, **average}}
    return {name: choice[policy[name]][name] for name in base}


def check(outcome: Outcome, method: str, family: str, layout: str, policy_of_role: Mapping[str, str]) -> None:
    base = tensors(checkpoint(family, layout))
    others = [tensors(path) for path in experts(family, layout)]
    policy = {name: policy_of_role[role_of(name, family, layout)] for name in base}
    assert_close(outcome.tensors, expected(base, others, merged_by(method, base, others), policy), tolerance=2e-6)
    kept = [name for name, chosen in policy.items() if chosen == "base"]
    assert_same_bytes({n: outcome.tensors[n] for n in kept}, {n: base[n] for n in kept})


def recipe(method: str, family: str, layout: str, **more: Any) -> dict[str, Any]:
    return with_method(method, checkpoint(family, layout), experts(family, layout), **more)


@pytest.mark.parametrize(("family", "layout"), OUTSIDE)
def test_the_table_of_this_file_is_complete(family: str, layout: str) -> None:
    """Every role it names is there, and no tower hides in the language model."""
    names = tensors(checkpoint(family, layout))
    roles = {name: role_of(name, family, layout) for name in names}
    assert set(OUTSIDE[family, layout]) <= set(roles.values())
    inside = [name for name, role in roles.items() if role == "language_model"]
    assert not [n for n in inside if re.search("visual|vision|audio|image|video|projector", n)]
    assert all(names[n].ndim >= 2 for n in inside if "layer_scalar" not in n), [n for n in inside if names[n].ndim < 2]


@pytest.mark.parametrize("turn", [0, 1, 2])
@pytest.mark.parametrize(("family", "layout"), OUTSIDE)
def test_every_role_obeys(family: str, layout: str, turn: int) -> None:
    """Each role gets each policy in one of three merges, its neighbours another one."""
    chosen = {role: POLICIES[(i + turn) % 3] for i, role in enumerate(ROLES)}
    method = ("task_arithmetic", "optmerge", "ties")[turn]
    outcome = merge(recipe(method, family, layout, parameters=chosen))
    check(outcome, method, family, layout, {**chosen, "language_model": "merge"})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("family", "layout"), [("llava", "hub"), ("qwen2_5_omni_thinker", "hub"), ("gemma4", "plain")])
def test_defaults(method: str, family: str, layout: str) -> None:
    """Stock methods merge everything; the plugin's merge the matrices of the language model and nothing else."""
    rest = "base" if method == "optmerge" else "merge"
    outcome = merge(recipe(method, family, layout))
    check(outcome, method, family, layout, {**dict.fromkeys(ROLES, rest), "language_model": "merge"})


@pytest.mark.parametrize("method", METHODS)
def test_policies_for_every_method(method: str) -> None:
    chosen = {
        "vision_tower": "base",
        "projector": "average",
        "norms": "merge",
        "embeddings": "average",
        "lm_head": "base",
    }
    default = "base" if method == "optmerge" else "merge"
    outcome = merge(recipe(method, "llava_qwen2", "memory", parameters=chosen))
    policies = {**dict.fromkeys(ROLES, default), **chosen, "language_model": "merge"}
    check(outcome, method, "llava_qwen2", "memory", policies)


# Where the decoder is, for models that transformers' get_decoder() is wrong about.
DECODERS = {
    "phi4_multimodal": "model.layers",
    "qwen2_5_omni": "thinker.model.language_model",
    "qwen3_omni_moe": "thinker.model.language_model",
    "florence2": "model.language_model",  # an encoder-decoder, and it gives the decoder alone
}


@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_optmerge_moves_the_matrices_of_the_decoder_and_nothing_else(family: str) -> None:
    layout = "memory" if "memory" in zoo.FAMILIES[family].layouts else "plain"
    outcome = merge(recipe("optmerge", family, layout, parameters={"iterations": 1}))
    model = load(checkpoint(family, layout), zoo.FAMILIES[family].cls)
    found = model.get_decoder() if family not in DECODERS else None
    path = DECODERS.get(family) or next(name for name, module in model.named_modules() if module is found)
    before, after = tensors(checkpoint(family, layout)), outcome.tensors
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    wanted = set()
    for name, tensor in before.items():
        owner, _, leaf = name.rpartition(".")
        kind = type(model.get_submodule(owner)).__name__
        inside = name.startswith(f"{path}.") and not re.search("lm_head|bias|Embedding|Norm", f"{leaf} {kind} {owner}")
        if inside and tensor.ndim >= 2 and tensor.is_floating_point():
            wanted.add(name)
    assert {name for name in moved if before[name].ndim >= 2} == wanted
    assert all(name.startswith(f"{path}.") for name in moved)


def test_speech_output_stays_at_the_base_by_default() -> None:
    """OptMerge on the full Qwen2.5-Omni: talker and vocoder are no part of the language model."""
    before = tensors(checkpoint("qwen2_5_omni"))
    after = merge(recipe("optmerge", "qwen2_5_omni", "plain")).tensors
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {n for n, v in before.items() if re.match(r"thinker\.model\.layers\.", n) and v.ndim == 2}


def test_the_mean_leaves_the_base_out() -> None:
    outcome = merge(task_arithmetic(checkpoint("llava"), experts("llava"), parameters={"projector": "average"}))
    name = "multi_modal_projector.linear_1.weight"
    others = [tensors(path)[name].double() for path in experts("llava")]
    assert torch.allclose(outcome.tensors[name].double(), torch.stack(others).mean(0), atol=1e-6)


def test_the_mean_without_a_base_is_of_all_inputs() -> None:
    entries = [
        {"model": str(path), "parameters": {"weight": w}}
        for path, w in zip(experts("llava"), (1.0, 2.0, 5.0), strict=True)
    ]
    config = {
        "merge_method": "linear",
        "models": entries,
        "dtype": "float32",
        "parameters": {"vision_tower": "average"},
    }
    got = merge(config).tensors
    found = [tensors(path) for path in experts("llava")]
    weighted = {n: (found[0][n] + 2 * found[1][n] + 5 * found[2][n]) / 8 for n in found[0]}
    average = mean(found)
    assert_close(got, {n: average[n] if n.startswith("vision_tower.") else weighted[n] for n in weighted})


def test_the_mean_ignores_weights_and_rounds_once() -> None:
    """In bfloat16 inputs the mean is taken in the merge's dtype, here float32."""
    config = recipe("task_arithmetic", "llava", "hub", parameters={"vision_tower": "average"}, out_dtype="bfloat16")
    got = merge(config).tensors
    average = mean([tensors(path) for path in experts("llava", "hub")])
    for name in (n for n in average if n.startswith("vision_tower.")):
        assert torch.equal(got[name], average[name].float().bfloat16()), name


def test_filters() -> None:
    """mergekit's filters pick tensors by parts of their names."""
    chosen = {
        "vision_tower": [
            {"filter": "mlp", "value": "base"},
            {"filter": "layers.1.", "value": "average"},
            {"value": "merge"},
        ],
        "norms": [{"filter": "post_attention", "value": "base"}],
    }
    outcome = merge(recipe("task_arithmetic", "llava", "hub", parameters=chosen))
    base = tensors(checkpoint("llava", "hub"))
    others = [tensors(path) for path in experts("llava", "hub")]

    def policy(name: str) -> str:
        if name.startswith("vision_tower."):
            return "base" if ".mlp." in name else "average" if ".layers.1." in name else "merge"
        return "base" if "post_attention" in name else "merge"

    assert_close(outcome.tensors, expected(base, others, sum_of_deltas(base, others), {n: policy(n) for n in base}))


def test_filters_without_a_match_leave_the_methods_default() -> None:
    chosen = {"norms": [{"filter": "post_attention", "value": "merge"}]}
    before = tensors(checkpoint("llava", "hub"))
    after = merge(recipe("optmerge", "llava", "hub", parameters=chosen)).tensors
    norms = {n for n in before if re.match(r"language_model.*norm\.weight", n)}
    moved = {n for n in norms if not torch.equal(before[n], after[n])}
    assert moved == {n for n in norms if "post_attention" in n}


def test_method_parameters_still_take_filters() -> None:
    """`weight` by filter, as mergekit has it, beside a policy."""
    entries = [
        {"model": str(path), "parameters": {"weight": [{"filter": "self_attn", "value": 0.0}, {"value": WEIGHT}]}}
        for path in experts("llava", "hub")
    ]
    config = {**recipe("task_arithmetic", "llava", "hub", parameters={"vision_tower": "base"}), "models": entries}
    got = merge(config).tensors
    base = tensors(checkpoint("llava", "hub"))
    full = sum_of_deltas(base, [tensors(path) for path in experts("llava", "hub")])
    assert_close(got, {n: v if "self_attn" in n or n.startswith("vision_tower.") else full[n] for n, v in base.items()})


# ------------------------------------------------------------------------------------------------- mistakes


def error_of(config: dict[str, Any]) -> str:
    outcome = run(config)
    assert_nothing_left(outcome)
    return outcome.error


@pytest.mark.parametrize("method", ["task_arithmetic", "optmerge"])
def test_an_unknown_policy(method: str) -> None:
    error = error_of(recipe(method, "llava", "hub", parameters={"vision_tower": "keep"}))
    assert all(word in error for word in ("vision_tower", "keep", *POLICIES))


def test_an_unknown_policy_behind_a_filter() -> None:
    chosen = {"vision_tower": [{"filter": "mlp", "value": "frozen"}, {"value": "base"}]}
    error = error_of(recipe("task_arithmetic", "llava", "hub", parameters=chosen))
    assert all(word in error for word in ("vision_tower", "frozen", *POLICIES))


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("vison_tower", "vision_tower"), ("projectors", "projector"), ("norm", "norms"), ("wieght", "weight")],
)
def test_a_misspelled_parameter(wrong: str, right: str) -> None:
    error = error_of(recipe("task_arithmetic", "llava", "hub", parameters={wrong: "base"}))
    assert wrong in error
    assert f"{right!r}" in error


def test_a_misspelled_parameter_of_one_model() -> None:
    config = recipe("task_arithmetic", "llava", "hub")
    config["models"][1]["parameters"]["wegiht"] = 0.5
    error = error_of(config)
    assert "wegiht" in error
    assert "'weight'" in error


def test_a_misspelled_parameter_of_a_module() -> None:
    modules = {"language_model": {"models": entries_of("llava", "hub"), "parameters": {"nroms": "base"}}}
    error = error_of(by_modules("llava", "hub", modules))
    assert "nroms" in error
    assert "'norms'" in error


def test_a_misspelled_module() -> None:
    error = error_of(by_modules("llava", "hub", {"langage_model": {"models": entries_of("llava", "hub")}}))
    assert "langage_model" in error
    assert "'language_model'" in error


def test_a_policy_for_one_input_alone_is_refused() -> None:
    """A tensor has one policy, not one per input; ignoring the line would be worse than refusing it."""
    config = recipe("task_arithmetic", "llava", "hub")
    config["models"][1]["parameters"]["vision_tower"] = "base"
    assert "vision_tower" in error_of(config)


# -------------------------------------------------------------------------------------------------- modules


def entries_of(family: str, layout: str, weight: float = WEIGHT) -> list[dict[str, Any]]:
    return [{"model": str(path), "parameters": {"weight": weight}} for path in experts(family, layout)]


def by_modules(family: str, layout: str, modules: dict[str, Any], **more: Any) -> dict[str, Any]:
    base = str(checkpoint(family, layout))
    return {"merge_method": "task_arithmetic", "base_model": base, "modules": modules, "dtype": "float32", **more}


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
    error = error_of(config)
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
