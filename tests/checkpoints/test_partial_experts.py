"""Experts that hold less than the base, or more: only what a merge asks for has to be there on both sides."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from end_to_end import (
    Tensors,
    altered,
    assert_close,
    assert_same_bytes,
    checkpoint,
    command,
    edit_json,
    experts,
    linear,
    load,
    merge,
    plugin,
    refused,
    sum_of_deltas,
    task_arithmetic,
    tensors,
    with_method,
    with_tensor,
    written,
)
from peft_adapters import adapted, delta, factors, plus, wide, written_adapter
from safetensors.torch import load_file, save_file

SPEECH = "tts.model.layers.0.mlp.up_proj.weight"  # of a part that speaks, as exports of fine-tunes leave it out
TOWER = "vision_model."
FAMILY = "qwen2_5_vl"


def own_code(tag: str, drop: str | None = None, **more: torch.Tensor) -> Path:
    """A checkpoint with modelling code of its own, known by its names on disk alone."""

    def rename(found: Tensors) -> Tensors:
        named = {
            n.replace("vision_tower.", TOWER).replace("multi_modal_projector.", "mlp1."): t for n, t in found.items()
        }
        return {n: t for n, t in named.items() if drop is None or not n.startswith(drop)} | more

    path = altered(checkpoint("internvl", "plain", tag), rename)
    config = {"model_type": "internvl_chat", "architectures": ["InternVLChatModel"], "torch_dtype": "float32"}
    parts = {"llm_config": zoo.text("qwen2"), "vision_config": {"hidden_size": 32}}
    (path / "config.json").write_text(json.dumps({**config, **parts}))
    return path


def without_all(path: Path, prefix: str) -> Path:
    return altered(path, lambda found: {n: t for n, t in found.items() if not n.startswith(prefix)})


def language_modules(models: list[Path]) -> dict[str, Any]:
    return {"language_model": {"models": [{"model": str(m), "parameters": {"weight": 0.3}} for m in models]}}


# -------------------------------------------------------------------------------------- what only the base has


@pytest.mark.parametrize("how", ["policy", "modules"])
def test_what_is_kept_at_the_base_need_not_be_in_an_expert(how: str) -> None:
    base = own_code("base", **{SPEECH: torch.ones(4, 4)})
    others = [own_code("expert_0"), own_code("expert_1", drop="mlp1.")]
    config = with_method("optmerge", base, others)
    if how == "modules":
        config = {"merge_method": "task_arithmetic", "base_model": str(base), "modules": language_modules(others)}
    outcome = merge(config)
    start, found = tensors(base), [tensors(path) for path in others]
    kept = {n: t for n, t in start.items() if n == SPEECH or n.startswith(("mlp1.", TOWER))}
    assert_same_bytes({n: outcome.tensors[n] for n in kept}, kept)
    assert f"{others[0]} lacks {SPEECH}; the base's are kept" in outcome.said
    if how == "modules":
        language = {n: t for n, t in start.items() if n not in kept}
        assert_close({n: outcome.tensors[n] for n in language}, sum_of_deltas(language, found))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_tower_that_transformers_would_miss_in_the_expert(family: str) -> None:
    base, (first, second, _) = checkpoint(family), experts(family)
    prefix = "vision_tower." if family == "llava" else "visual.blocks."
    partial = without_all(first, prefix)
    kept = {"vision_tower": "base", "projector": "base"}
    outcome = merge(task_arithmetic(base, [partial, second], parameters=kept))
    whole = merge(task_arithmetic(base, [first, second], parameters=kept))
    assert_same_bytes(outcome.tensors, whole.tensors)
    refused(task_arithmetic(base, [partial, second]), str(partial), "lacks", "vision_tower: base")
    refused(task_arithmetic(base, [partial], parameters={"vision_tower": "average"}), str(partial), "lacks")
    refused(task_arithmetic(partial, [second], parameters=kept), str(partial), "lacks")  # the base has to be whole


def test_a_filter_decides_tensor_by_tensor() -> None:
    base, expert = checkpoint("llava"), experts("llava")[0]
    names = [n for n in tensors(base) if "layers.1.mlp.fc1" in n and n.startswith("vision_tower.")]
    partial = altered(expert, lambda found: {n: t for n, t in found.items() if n not in names})
    policy = [{"filter": "layers.1.mlp.fc1", "value": "base"}, {"value": "merge"}]
    got = merge(task_arithmetic(base, [partial], parameters={"vision_tower": policy})).tensors
    expected = sum_of_deltas(tensors(base), [{**tensors(base), **tensors(partial)}])
    assert_close(got, expected)
    other = [{"filter": "layers.1.mlp.fc1.weight", "value": "base"}, {"value": "merge"}]
    error = refused(task_arithmetic(base, [partial], parameters={"vision_tower": other}), "layers.1.mlp.fc1.bias").error
    assert "fc1.weight" not in error


def test_a_tower_of_another_shape_that_nobody_merges() -> None:
    base, expert = checkpoint("llava"), experts("llava")[0]
    name = next(n for n in tensors(base) if "position_embedding" in n and n.startswith("vision_tower."))
    wider = with_tensor(expert, name, torch.zeros(17, tensors(base)[name].shape[1]))  # of 4 x 4 patches, and a class
    config = json.loads((wider / "config.json").read_text())["vision_config"]
    edit_json(wider / "config.json", vision_config={**config, "image_size": 4 * config["patch_size"]})
    outcome = merge(with_method("optmerge", base, [wider]))
    assert_same_bytes(outcome.tensors, merge(with_method("optmerge", base, [expert])).tensors)
    assert f"{wider} has " in outcome.said
    assert name.rpartition("vision_tower.")[2] in outcome.said
    refused(task_arithmetic(base, [wider]), str(wider), "position_embedding", "vision_tower: base")


# ---------------------------------------------------------------------------------------- what only an expert has


@pytest.mark.slow
def test_a_base_whose_tower_is_loaded_from_elsewhere() -> None:
    base, others = own_code("base", drop=TOWER), [own_code(f"expert_{i}") for i in (0, 1)]
    outcome = merge(with_method("optmerge", base, others))
    assert outcome.tensors.keys() == tensors(base).keys()
    assert f"{others[0]}, {others[1]}: {TOWER}" in outcome.said
    assert f"vision_tower is kept as in {base}" in outcome.said
    refused(task_arithmetic(base, others), str(others[1]), TOWER, "ignore: [vision_model]")
    named = merge(task_arithmetic(base, others, parameters={"ignore": ["vision_model"]}))
    start = tensors(base)
    assert_close(named.tensors, sum_of_deltas(start, [tensors(path) for path in others]))


@pytest.mark.parametrize("head", ["v_head.summary.weight", "score.weight"])
@pytest.mark.parametrize("method", ["optmerge", "task_arithmetic"])
def test_heads_of_training_are_left_out(head: str, method: str) -> None:
    base, expert = checkpoint(FAMILY), experts(FAMILY)[0]
    outcome = merge(with_method(method, base, [with_tensor(expert, head, torch.ones(1, 64))]))
    assert_same_bytes(outcome.tensors, merge(with_method(method, base, [expert])).tensors)
    assert f"{head} (a head of training" in outcome.said.split("Not used:")[1]


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["mystery", "mystery_adapter.*", "model.mystery_adapter.weight", "*adapter.w?ight"])
def test_what_is_named_is_left_out(pattern: str) -> None:
    base, expert = checkpoint(FAMILY), experts(FAMILY)[0]
    extra = with_tensor(expert, "model.mystery_adapter.weight", torch.ones(3, 4))
    refused(task_arithmetic(base, [extra]), "model.mystery_adapter.weight", "ignore: [model.mystery_adapter]")
    config = task_arithmetic(base, [extra], parameters={"ignore": [pattern]})
    outcome = merge(config)
    assert_same_bytes(outcome.tensors, merge(task_arithmetic(base, [expert])).tensors)
    told = f"{extra}: model.mystery_adapter.weight (named by `ignore`)"
    assert told in outcome.said.split("Not used:")[1]
    assert told in plugin("check", written(config)).output.split("Not used:")[1]


@pytest.mark.parametrize(
    ("patterns", "told"),
    [
        (["mystery", "mistery_adapter"], ["'mistery_adapter' names no tensor", "Did you mean", "mystery_adapter"]),
        (["mystery", "embed_tokens"], ["embed_tokens.weight", "other inputs have beyond it", "policy `base`"]),
        (["*"], ["'*' will not do"]),
        ([3], ["3 will not do"]),
    ],
)
def test_patterns_that_name_nothing_to_leave_out(patterns: list[str], told: list[str]) -> None:
    extra = with_tensor(experts(FAMILY)[0], "model.mystery_adapter.weight", torch.ones(3, 4))
    refused(task_arithmetic(checkpoint(FAMILY), [extra], parameters={"ignore": patterns}), *told)


def adapter_with(base: Path, **more: torch.Tensor) -> tuple[Path, Path]:
    """An adapter whose file holds further tensors, and what PEFT merges it into without them."""
    adapter, whole = adapted(FAMILY, 4, path=base)
    file = adapter / "adapter_model.safetensors"
    save_file(load_file(file) | {f"base_model.model.{name}": tensor for name, tensor in more.items()}, file)
    return adapter, whole


@pytest.mark.slow
def test_heads_of_training_in_adapters_and_beside_them_are_left_out() -> None:
    base = checkpoint(FAMILY)
    adapter, whole = adapter_with(base, **{"score.weight": torch.ones(1, 64)})
    save_file({"v_head.summary.weight": torch.ones(1, 64)}, adapter / "value_head.safetensors")
    outcome = merge(task_arithmetic(base, [plus(base, adapter)], weight=1.0))
    assert_close(outcome.tensors, wide(tensors(whole)))
    told = f"{adapter}: score.weight, v_head.summary.weight (a head of training"
    assert told in outcome.said.split("Not used:")[1]
    assert "not used: score.weight, v_head.summary.weight" in plugin("inspect", plus(base, adapter)).output


@pytest.mark.slow
def test_what_is_named_is_left_out_of_adapters() -> None:
    base = checkpoint(FAMILY)
    extra = {"mystery.lora_A.weight": torch.ones(4, 64), "mystery.lora_B.weight": torch.ones(64, 4)}
    adapter, whole = adapter_with(base, **extra)
    refused(task_arithmetic(base, [plus(base, adapter)]), "mystery.weight: the model has no such tensor", "ignore:")
    config = task_arithmetic(base, [plus(base, adapter)], weight=1.0, parameters={"ignore": "mystery"})
    outcome = merge(config)
    assert_close(outcome.tensors, wide(tensors(whole)))
    assert f"{adapter}: mystery.weight (named by `ignore`)" in outcome.said.split("Not used:")[1]
    config["parameters"]["ignore"] = ["mystery", "layers.1"]
    refused(config, "'layers.1' names tensors that", "has")


def test_an_adapter_of_a_full_omni_model_on_its_thinker() -> None:
    base = checkpoint("qwen2_5_omni_thinker")
    layer = "model.layers.0.self_attn.q_proj"
    found = factors({f"thinker.{layer}": (64, 64), "talker.model.layers.0.self_attn.q_proj": (32, 32)})
    adapter = plus(base, written_adapter(base, found))
    refused(task_arithmetic(base, [adapter]), "talker.model.layers.0.self_attn.q_proj.weight")
    got = merge(task_arithmetic(base, [adapter], weight=1.0, parameters={"ignore": "talker"})).tensors
    expected = wide(tensors(base))
    expected[f"{layer}.weight"] = expected[f"{layer}.weight"] + delta(found, f"thinker.{layer}")
    assert_close(got, expected)


def test_ignore_is_for_the_whole_merge() -> None:
    config = task_arithmetic(checkpoint(FAMILY), experts(FAMILY)[:1])
    config["models"][0]["parameters"]["ignore"] = ["v_head"]
    refused(config, "ignore", "top level")
    refused(
        task_arithmetic(checkpoint(FAMILY), experts(FAMILY)[:1], parameters={"ignore": "v_head"}),
        "leave the pattern out",
    )


@pytest.mark.slow
def test_inputs_of_an_omni_model() -> None:
    """What a donor has beyond the host's language model is named as for any other merge."""
    host, guest = checkpoint("llava"), checkpoint("qwen2_audio_llama")
    extra = with_tensor(guest, "language_model.model.layers.0.mystery.weight", torch.ones(2))
    outcome = merge(linear(host, extra, parameters={"ignore": ["mystery"]}))
    assert_same_bytes(outcome.tensors, merge(linear(host, guest)).tensors)
    refused(linear(host, guest, parameters={"ignore": ["mystery"]}), "'mystery' names no tensor")


# ------------------------------------------------------------------------------------------------------ tied tensors


def with_ties(source: Path, ties: bool, head: str) -> Path:
    """The model with tied embeddings or not, by its config; and on disk a head that is `none`, `equal` or `own`."""

    def change(found: Tensors) -> Tensors:
        name = next(n for n in found if "lm_head" in n)
        embeddings = next(t for n, t in found.items() if n.endswith("embed_tokens.weight"))
        rest = {n: t for n, t in found.items() if n != name}
        return rest | ({} if head == "none" else {name: embeddings if head == "equal" else found[name]})

    path = altered(source, change)
    text = json.loads((path / "config.json").read_text())["text_config"]
    edit_json(path / "config.json", tie_word_embeddings=ties, text_config={**text, "tie_word_embeddings": ties})
    return path


@pytest.mark.slow
@pytest.mark.parametrize("ties", [True, False])
def test_a_head_that_equals_its_embeddings_is_tied(ties: bool) -> None:
    base, expert = with_ties(checkpoint("llava"), True, "none"), experts("llava")[0]
    outcome = merge(task_arithmetic(base, [with_ties(expert, ties, "equal")]))
    assert_same_bytes(outcome.tensors, merge(task_arithmetic(base, [with_ties(expert, True, "none")])).tensors)
    assert "lm_head.weight (equal to" in outcome.said.split("Not used:")[1]
    load(outcome.out, "LlavaForConditionalGeneration")


@pytest.mark.slow
@pytest.mark.parametrize("ties", [True, False])
def test_a_head_that_differs_from_the_embeddings_is_not(ties: bool) -> None:
    """transformers loads such a model untied, whatever its config says."""
    base, expert = with_ties(checkpoint("llava"), True, "none"), with_ties(experts("llava")[0], ties, "own")
    refused(task_arithmetic(base, [expert]), "lm_head.weight", "tie_word_embeddings", "ignore: [")
    named = merge(task_arithmetic(base, [expert], parameters={"ignore": ["lm_head"]}))
    tied = merge(task_arithmetic(base, [with_ties(experts("llava")[0], True, "none")]))
    assert_same_bytes(named.tensors, tied.tensors)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dare_linear", "task_arithmetic"])
@pytest.mark.parametrize("head", ["none", "equal"])
def test_both_of_a_tied_pair_on_disk_stay_equal(method: str, head: str) -> None:
    """Masks are drawn for each tensor; a pair is one tensor."""
    base, expert = with_ties(checkpoint("llava"), True, "equal"), with_ties(experts("llava")[0], True, head)
    config = task_arithmetic(base, [expert])
    config |= {"merge_method": method, "parameters": {"density": 0.5} if method == "dare_linear" else {}}
    got = merge(config).tensors
    name = next(n for n in got if "lm_head" in n)
    embeddings = next(t for n, t in got.items() if n.endswith("embed_tokens.weight"))
    assert torch.equal(got[name], embeddings)
    assert not torch.equal(embeddings, next(t for n, t in tensors(base).items() if n.endswith("embed_tokens.weight")))


def test_a_pair_that_an_expert_unties_is_two_tensors() -> None:
    base, expert = with_ties(checkpoint("llava"), True, "equal"), with_ties(experts("llava")[0], False, "own")
    assert_close(merge(task_arithmetic(base, [expert])).tensors, sum_of_deltas(tensors(base), [tensors(expert)]))


# ------------------------------------------------------------------------------- an adapter on another fine-tune


@functools.cache
def tuned() -> tuple[Path, Path]:
    """A fine-tune with an adapter of its own on it, and the checkpoint that PEFT makes of the two."""
    adapter, whole = adapted("llava", 5, path=experts("llava")[0])
    return plus(experts("llava")[0], adapter), whole


@pytest.mark.slow
@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "linear", "optmerge", "iso_c"])
def test_a_fine_tune_with_an_adapter_is_one_expert_over_the_common_base(method: str) -> None:
    base, other = checkpoint("llava"), experts("llava")[1]
    expert, whole = tuned()
    outcome = merge(with_method(method, base, [expert, other]))
    by_peft = merge(with_method(method, base, [whole, other]))
    assert_close(wide(outcome.tensors), wide(by_peft.tensors), 1e-6)
    assert "the two together are one expert" in outcome.said


@pytest.mark.slow
def test_adapters_on_two_fine_tunes_over_an_adapted_base() -> None:
    first, whole = tuned()
    adapter, other_whole = adapted("llava", 6, path=experts("llava")[1], r=2)
    base_adapter, base_whole = adapted("llava", 7)
    base = plus(checkpoint("llava"), base_adapter)
    got = merge(task_arithmetic(base, [first, plus(experts("llava")[1], adapter)])).tensors
    expected = merge(task_arithmetic(base_whole, [whole, other_whole])).tensors
    assert_close(wide(got), wide(expected), 1e-6)


@pytest.mark.slow
def test_the_adapter_that_is_written_holds_the_whole_delta() -> None:
    """What the fine-tune has beyond the base is part of it, at full rank here; an adapter cannot hold towers."""
    base, (expert, _) = checkpoint("llava"), tuned()
    kept = dict.fromkeys(("embeddings", "lm_head", "norms", "biases", "vision_tower", "projector"), "base")
    config = task_arithmetic(base, [expert], parameters=kept)
    out, result = command("lora", config, "--rank", "64")
    assert result.exit_code == 0, result.output
    merged = merge(config).tensors
    onto = merge(linear(plus(base, out), dtype="float32")).tensors
    assert_close(onto, merged, 1e-5)


def test_a_pattern_does_not_touch_what_only_the_base_has() -> None:
    """Tensors of the base that transformers has no place for stay where they are."""
    base, expert = with_tensor(checkpoint(FAMILY), "mtp.0.weight", torch.ones(2)), experts(FAMILY)[0]
    refused(
        task_arithmetic(base, [expert], parameters={"ignore": ["mtp"]}), "mtp.0.weight", "other inputs have beyond it"
    )
