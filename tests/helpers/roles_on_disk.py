"""The role of every tensor of some families, written down by hand, and what a merge by policies should make of it.

The merged values come from mergekit's in-memory API, tensor by tensor, so a policy is checked on every tensor of a
model and not on samples.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from end_to_end import (
    WEIGHT,
    Outcome,
    Tensors,
    assert_close,
    assert_same_bytes,
    checkpoint,
    experts,
    mean,
    mergekit_yaml,
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
    mergekit_yaml()  # the plugin's methods are registered with it
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


def entries_of(family: str, layout: str, weight: float = WEIGHT) -> list[dict[str, Any]]:
    return [{"model": str(path), "parameters": {"weight": weight}} for path in experts(family, layout)]


def by_modules(family: str, layout: str, modules: dict[str, Any], **more: Any) -> dict[str, Any]:
    base = str(checkpoint(family, layout))
    return {"merge_method": "task_arithmetic", "base_model": base, "modules": modules, "dtype": "float32", **more}
