"""Policies per role (`vision_tower: base`, `norms: merge`, ...), for every merge method."""

from __future__ import annotations

import re

import pytest
import torch
import zoo
from end_to_end import (
    WEIGHT,
    assert_close,
    checkpoint,
    experts,
    load,
    mean,
    merge,
    refused,
    sum_of_deltas,
    task_arithmetic,
    tensors,
)
from roles_on_disk import (
    METHODS,
    OUTSIDE,
    POLICIES,
    ROLES,
    by_modules,
    check,
    entries_of,
    expected,
    recipe,
    role_of,
)

pytestmark = pytest.mark.long


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
    "florence2": "model.language_model",  # an encoder-decoder, and it gives the decoder alone
}


@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_optmerge_moves_the_matrices_of_the_decoder_and_nothing_else(family: str) -> None:
    layout = "memory" if "memory" in zoo.FAMILIES[family].layouts else "plain"
    outcome = merge(recipe("optmerge", family, layout, parameters={"iterations": 1}))
    model = load(checkpoint(family, layout), zoo.FAMILIES[family].cls)
    found = getattr(model, "thinker", model).get_decoder() if family not in DECODERS else None
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


@pytest.mark.parametrize("method", ["task_arithmetic", "optmerge"])
def test_an_unknown_policy(method: str) -> None:
    error = refused(recipe(method, "llava", "hub", parameters={"vision_tower": "keep"})).error
    assert all(word in error for word in ("vision_tower", "keep", *POLICIES))


def test_an_unknown_policy_behind_a_filter() -> None:
    chosen = {"vision_tower": [{"filter": "mlp", "value": "frozen"}, {"value": "base"}]}
    error = refused(recipe("task_arithmetic", "llava", "hub", parameters=chosen)).error
    assert all(word in error for word in ("vision_tower", "frozen", *POLICIES))


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("vison_tower", "vision_tower"), ("projectors", "projector"), ("norm", "norms"), ("wieght", "weight")],
)
def test_a_misspelled_parameter(wrong: str, right: str) -> None:
    error = refused(recipe("task_arithmetic", "llava", "hub", parameters={wrong: "base"})).error
    assert wrong in error
    assert f"{right!r}" in error


def test_a_misspelled_parameter_of_one_model() -> None:
    config = recipe("task_arithmetic", "llava", "hub")
    config["models"][1]["parameters"]["wegiht"] = 0.5
    error = refused(config).error
    assert "wegiht" in error
    assert "'weight'" in error


def test_a_misspelled_parameter_of_a_module() -> None:
    modules = {"language_model": {"models": entries_of("llava", "hub"), "parameters": {"nroms": "base"}}}
    error = refused(by_modules("llava", "hub", modules)).error
    assert "nroms" in error
    assert "'norms'" in error


def test_a_misspelled_module() -> None:
    error = refused(by_modules("llava", "hub", {"langage_model": {"models": entries_of("llava", "hub")}})).error
    assert "langage_model" in error
    assert "'language_model'" in error


def test_a_policy_for_one_input_alone_is_refused() -> None:
    """A tensor has one policy, not one per input; ignoring the line would be worse than refusing it."""
    config = recipe("task_arithmetic", "llava", "hub")
    config["models"][1]["parameters"]["vision_tower"] = "base"
    assert "vision_tower" in refused(config).error
