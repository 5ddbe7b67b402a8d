"""Full checkpoints that were saved with PEFT still around the model: `base_layer`, `lora_A`, `lora_B` in the weights.

The right values are those of the model into which PEFT itself merges the adapter.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
import zoo
from end_to_end import (
    Tensors,
    altered,
    assert_close,
    assert_names,
    checkpoint,
    edit_json,
    fresh,
    linear,
    load,
    merge,
    plugin,
    refused,
    side_files,
    sum_of_deltas,
    task_arithmetic,
    tensors,
    with_method,
    written,
)
from peft_adapters import randomise, wide
from remote_code import remote_code_checkpoint
from safetensors.torch import save_file

TARGETS = r".*(language_model|layers).*(q|up)_proj"


def unmerged(family: str, seed: int, pickled: bool = False, **config: Any) -> tuple[Path, Path]:
    """A checkpoint with an adapter inside, as a trainer saves `model.state_dict()`, and what PEFT merges it into."""
    base = checkpoint(family)
    cls = getattr(transformers, zoo.FAMILIES[family].cls)
    settings = peft.LoraConfig(**{"r": 4, "lora_alpha": 12, "target_modules": TARGETS, **config})
    model = peft.get_peft_model(cls.from_pretrained(base, dtype=torch.float32), settings)
    randomise(model, seed)
    path, whole = fresh(f"unmerged_{seed}"), fresh(f"merged_by_peft_{seed}")
    path.mkdir()
    shutil.copy(base / "config.json", path)
    settings.save_pretrained(path)
    state = {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}
    if pickled:
        torch.save(state, path / "pytorch_model.bin")
    else:
        save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    model.merge_and_unload().save_pretrained(whole)
    for name, content in side_files(base).items():
        (whole / name).write_bytes(content)
    return path, whole


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank-stabilised, with patterns": {
        "use_rslora": True,
        "rank_pattern": {"up_proj": 6},
        "alpha_pattern": {"q_proj": 3},
    },
    "DoRA": {"use_dora": True},
    "embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
    "convolution": {"target_modules": ["patch_embedding", "q_proj"]},
    "biases": {"target_modules": r".*vision_tower.*(q_proj|fc1)", "bias": "lora_only", "lora_bias": True},
    "whole modules": {"modules_to_save": ["lm_head", "multi_modal_projector"]},
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_factors_are_folded_as_peft_merges_them(variant: str) -> None:
    path, whole = unmerged("llava", 1, **VARIANTS[variant])
    base, expected = checkpoint("llava"), tensors(whole)
    got = merge(task_arithmetic(base, [path], weight=1.0)).tensors
    assert_close(got, wide(expected))
    assert any(not torch.allclose(got[name], value, atol=1e-3) for name, value in tensors(base).items())


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("qwen3_vl_moe", ["experts.gate_up_proj", "experts.down_proj"]),
        ("qwen3_vl_moe", ["experts.down_proj"]),
        ("aria", ["experts.gate_up_proj", "experts.down_proj"]),  # whose first stack has square matrices
        ("llama4", ["experts.gate_up_proj", "experts.down_proj"]),
    ],
)
def test_factors_of_stacks_of_experts_are_folded_as_peft_merges_them(family: str, targets: list[str]) -> None:
    """PEFT's `target_parameters`: such factors have the name of the module around the stack, once for each stack."""
    last = targets[-1].rpartition(".")[2]
    patterns = {"rank_pattern": {last: 2}, "alpha_pattern": {last: 3}}
    path, whole = unmerged(family, 1, target_modules=["q_proj"], target_parameters=targets, **patterns)
    base, expected = checkpoint(family), tensors(whole)
    got = merge(task_arithmetic(base, [path], weight=1.0)).tensors
    assert_close(got, wide(expected))
    changed = [n for n, value in tensors(base).items() if not torch.allclose(got[n], value, atol=1e-3)]
    assert {"experts" in name for name in changed} == {True, False}


def test_factors_of_stacks_without_their_stack_or_their_config_are_refused() -> None:
    targets = ["experts.gate_up_proj", "experts.down_proj"]
    path, _ = unmerged("qwen3_vl_moe", 1, target_modules=[], target_parameters=targets)
    base = checkpoint("qwen3_vl_moe")

    def without_stack(found: Tensors) -> Tensors:
        lost = next(name for name in found if name.endswith("base_layer.base_layer.down_proj"))
        return {name: tensor for name, tensor in found.items() if name != lost}

    refused(task_arithmetic(base, [altered(path, without_stack)]), "experts.down_proj", "but not the tensor itself")
    unknown = altered(path)
    (unknown / "adapter_config.json").unlink()
    refused(task_arithmetic(base, [unknown]), str(unknown), "not the weight that they are added to")


@pytest.mark.parametrize("family", ["qwen2_vl", "internvl"])
def test_such_experts_merge_like_any_other(family: str) -> None:
    base = checkpoint(family)
    (first, first_whole), (second, second_whole) = unmerged(family, 1), unmerged(family, 2, pickled=True, r=2)
    for method in ("linear", "task_arithmetic", "optmerge"):
        got = merge(with_method(method, base, [first, second])).tensors
        expected = merge(with_method(method, base, [first_whole, second_whole])).tensors
        assert_close(got, wide(expected), 2e-5)


@pytest.mark.slow
def test_such_a_base_gives_a_model_with_plain_names() -> None:
    (base, whole), (expert, expert_whole) = unmerged("llava", 1), unmerged("llava", 2)
    outcome = merge(task_arithmetic(base, [expert]))
    got = load(outcome.out, zoo.FAMILIES["llava"].cls).state_dict()
    expected = load(merge(task_arithmetic(whole, [expert_whole])).out, zoo.FAMILIES["llava"].cls).state_dict()
    assert_close(got, expected)
    assert not any("lora" in name or "base_layer" in name for name in outcome.tensors)
    assert not (outcome.out / "adapter_config.json").exists()


@pytest.mark.slow
def test_a_delta_is_not_rounded_to_the_stored_dtype_before_it_is_merged() -> None:
    path, _ = unmerged("qwen2_vl", 3)
    half = altered(path, lambda found: {n: t.bfloat16() if t.is_floating_point() else t for n, t in found.items()})
    edit_json(half / "adapter_config.json", lora_alpha=0.04)
    edit_json(half / "config.json", dtype="bfloat16")
    stored = tensors(half)
    outcome = merge({**linear(half), "dtype": "float32"})
    base = "base_model.model.model.language_model.layers.0.mlp.up_proj"
    a, b = (stored[f"{base}.lora_{part}.default.weight"].float() for part in "AB")
    change = outcome.tensors["model.language_model.layers.0.mlp.up_proj.weight"] - stored[f"{base}.base_layer.weight"]
    assert torch.allclose(change, b @ a * 0.01, atol=1e-7)
    assert change.any()
    without_dtype = merge(linear(half)).tensors
    assert {tensor.dtype for tensor in without_dtype.values() if tensor.is_floating_point()} == {torch.bfloat16}


def test_the_scaling_has_to_be_known() -> None:
    path, _ = unmerged("qwen2_vl", 4)
    (path / "adapter_config.json").unlink()
    refused(linear(path), "unmerged LoRA factors", "adapter_config.json")
    assert "unmerged LoRA factors" in plugin("inspect", path).output


@pytest.mark.slow
@pytest.mark.parametrize("where", ["config", "nested config", "metadata", "tensors"])
def test_the_scaling_may_be_told_elsewhere(where: str) -> None:
    path, whole = unmerged("qwen2_vl", 5)
    (path / "adapter_config.json").unlink()
    found = tensors(path)
    metadata = {"format": "pt"}
    if where == "config":
        edit_json(path / "config.json", lora_r=4, lora_alpha=12)
    elif where == "nested config":
        edit_json(path / "config.json", lora_config={"default": {"r": 4, "lora_alpha": 12}})
    elif where == "metadata":
        metadata["lora_alpha"] = "12"
    else:
        layers = [name.removesuffix(".lora_A.default.weight") for name in found if "lora_A" in name]
        found |= {f"{layer}.alpha": torch.tensor(12.0) for layer in layers}
    save_file(found, path / "model.safetensors", metadata=metadata)
    got = merge(task_arithmetic(checkpoint("qwen2_vl"), [path], weight=1.0)).tensors
    assert_close(got, wide(tensors(whole)))


def test_a_prefix_alone_is_taken_off() -> None:
    base = checkpoint("llava")
    prefixed = altered(
        checkpoint("llava", tag="expert_0"), lambda f: {f"base_model.model.{n}": t for n, t in f.items()}
    )
    got = merge(task_arithmetic(base, [prefixed])).tensors
    assert_close(got, sum_of_deltas(tensors(base), [tensors(checkpoint("llava", tag="expert_0"))]))


WRAPPERS: dict[str, Callable[[str], str]] = {
    "gradient checkpointing": lambda n: re.sub(r"(layers\.\d+)\.", r"\1._checkpoint_wrapped_module.", n),
    "FSDP": lambda n: "_fsdp_wrapped_module." + re.sub(r"(layers\.\d+)\.", r"\1._fsdp_wrapped_module.", n),
    "compiled layers": lambda n: re.sub(r"(layers\.\d+)\.", r"\1._orig_mod.", n),
    "a compiled DistributedDataParallel": lambda n: f"_orig_mod.module.{n}",
    "Lightning": lambda n: f"_forward_module.{n}",
}


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", list(WRAPPERS))
def test_the_wrappers_of_trainers_are_taken_off(wrapper: str) -> None:
    base, expert = checkpoint("llava"), checkpoint("llava", tag="expert_0")
    rename = WRAPPERS[wrapper]
    path = altered(expert, lambda found: {rename(name): tensor for name, tensor in found.items()})
    outcome = merge(task_arithmetic(base, [path]))
    assert_close(outcome.tensors, sum_of_deltas(tensors(base), [tensors(expert)]))
    assert f"{path} was saved with a trainer's wrapper around the model" in outcome.said


def half_a_pair(found: Tensors) -> Tensors:
    return {n: t for n, t in found.items() if n != next(n for n in found if "lora_B" in n)}


def of_another_kind(found: Tensors) -> Tensors:
    layer = next(n for n in found if "lora_A" in n).partition(".lora_A")[0]
    return {**found, f"{layer}.ia3_l.default": torch.ones(1, 64)}


def two_adapters(found: Tensors) -> Tensors:
    return {**found, **{n.replace("default", "other"): t for n, t in found.items() if "lora_" in n}}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (half_a_pair, ["incomplete", "lora"]),
        (of_another_kind, ["ia3_l"]),
        (two_adapters, ["several adapters", "other"]),
    ],
)
def test_what_is_no_plain_sum_is_refused(change: Callable[[Tensors], Tensors], told: list[str]) -> None:
    path, _ = unmerged("qwen2_vl", 6)
    refused(task_arithmetic(checkpoint("qwen2_vl"), [altered(path, change)]), *told)


def test_factors_of_a_tied_tensor_are_refused() -> None:
    path, _ = unmerged("gemma3", 7, target_modules=["embed_tokens"])
    refused(linear(path), "embed_tokens", "ties")


# --------------------------------------------------------------------------------------------------------- remote code


def wrapped_internvl(tag: str, seed: int, rank: int = 4) -> tuple[Path, Tensors]:
    """An InternVL as its own LoRA training saves it, and the values that its own code computes with."""
    path = remote_code_checkpoint(tag)
    generator = torch.Generator().manual_seed(seed)
    stored: Tensors = {}
    meant: Tensors = {}
    for name, tensor in tensors(path).items():
        wrapped = name.replace("language_model.", "language_model.base_model.model.")
        if name.startswith("language_model.") and name.endswith(("q_proj.weight", "down_proj.weight")):
            layer = wrapped.removesuffix(".weight")
            a = torch.randn(rank, tensor.shape[1], generator=generator) * 0.1
            b = torch.randn(tensor.shape[0], rank, generator=generator) * 0.1
            stored |= {f"{layer}.base_layer.weight": tensor, f"{layer}.lora_A.default.weight": a}
            stored[f"{layer}.lora_B.default.weight"] = b
            meant[name] = tensor + 2 * b @ a
        else:
            stored[wrapped] = meant[name] = tensor
    save_file({n: t.clone().contiguous() for n, t in stored.items()}, path / "model.safetensors")
    edit_json(path / "config.json", use_llm_lora=rank, use_backbone_lora=0)
    return path, meant


@pytest.mark.slow
def test_internvl_as_its_own_lora_training_saves_it() -> None:
    """Its code wraps the language model by a rank in its config, with an alpha of twice that."""
    base = remote_code_checkpoint("base")
    (first, first_meant), (second, second_meant) = wrapped_internvl("expert_0", 0), wrapped_internvl("expert_1", 1)
    got = merge(task_arithmetic(base, [first, second])).tensors
    assert_close(got, sum_of_deltas(tensors(base), [first_meant, second_meant]))
    outcome = merge(linear(first, second))
    assert_close(outcome.tensors, {n: (first_meant[n].double() + second_meant[n].double()) / 2 for n in first_meant})
    config = json.loads((outcome.out / "config.json").read_text())
    assert config["use_llm_lora"] == 0  # or its code would wrap the plain model once more
    assert str(first) in outcome.said
    assert "LoRA factors" in outcome.said


def test_remote_code_without_a_scaling_is_refused_too() -> None:
    path, _ = wrapped_internvl("expert_0", 0)
    edit_json(path / "config.json", use_llm_lora=0)
    refused(linear(path, remote_code_checkpoint("expert_1")), "unmerged LoRA factors")


def switched(tag: str, seed: int) -> Path:
    """A model of remote code with an adapter for each medium, as Phi-4-multimodal is published."""
    path, _ = wrapped_internvl(tag, seed)
    speech = altered(
        path,
        lambda f: {
            **{n.replace("default", "vision"): t for n, t in f.items()},
            **{n.replace("default", "speech"): 2 * t for n, t in f.items() if "lora_" in n},
        },
    )
    edit_json(speech / "config.json", vision_lora={"r": 4, "lora_alpha": 8}, speech_lora={"r": 4, "lora_alpha": 4})
    return speech


def test_adapters_that_the_models_code_switches_are_carried_along_or_refused() -> None:
    base, expert = switched("base", 0), switched("expert_0", 0)
    outcome = merge(task_arithmetic(base, [expert]))
    before = tensors(base)
    assert_names(outcome.tensors, before)
    assert_close(outcome.tensors, sum_of_deltas(before, [tensors(expert)]))
    assert all(torch.equal(outcome.tensors[name], before[name]) for name in before if "lora_" in name)
    refused(task_arithmetic(base, [switched("expert_0", 1)]), "lora_A", "differ between the inputs")


def test_check_and_inspect_tell_of_folded_factors() -> None:
    path, _ = unmerged("qwen2_vl", 8)
    told = "the LoRA factors of 4 layers are added to their weights (scaling 3, by adapter_config.json)"
    assert told in plugin("inspect", path).output
    assert told in plugin("check", written(task_arithmetic(checkpoint("qwen2_vl"), [path]))).output
