"""`mergekit-mm lora` where factors do not do: whole modules and biases, and a config that every reader understands."""

from __future__ import annotations

import json
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
    checkpoint,
    command,
    edit_json,
    experts,
    load,
    logits,
    merge,
    plugin,
    task_arithmetic,
    tensors,
)
from peft_adapters import adapted, plus
from safetensors.torch import load_file, save_file

# the fields of LoraConfig in PEFT 0.9, which refuses a config with any other
PEFT_0_9 = {
    *("peft_type", "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode"),
    *("r", "target_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias", "use_rslora"),
    *("modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern"),
    *("alpha_pattern", "megatron_config", "megatron_core", "loftq_config", "use_dora"),
}


def lora(config: dict[str, Any], *flags: str) -> tuple[Path, str]:
    out, result = command("lora", config, "--quiet", *flags)
    assert result.exit_code == 0, result.output
    return out, result.output


def config_of(adapter: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((adapter / "adapter_config.json").read_text())
    return config


def with_peft(family: str, base: Path, adapter: Path) -> Any:
    cls = getattr(transformers, zoo.FAMILIES[family].cls)
    return peft.PeftModel.from_pretrained(cls.from_pretrained(base), str(adapter)).eval()


def assert_is_the_merge(family: str, config: dict[str, Any], adapter: Path, tolerance: float = 1e-4) -> Tensors:
    """PEFT, and a merge that applies the adapter, make the merged model of its base; returns that model's tensors."""
    base = Path(config["base_model"])
    merged = merge(config)
    cls, media = zoo.FAMILIES[family].cls, zoo.FAMILIES[family].media
    assert media is not None
    expected = logits(load(merged.out, cls), media())
    assert not torch.allclose(logits(load(base, cls), media()), expected, atol=10 * tolerance), "the base would pass"
    assert torch.allclose(logits(with_peft(family, base, adapter), media()), expected, atol=tolerance)
    assert_close(merge(task_arithmetic(base, [plus(base, adapter)], weight=1.0)).tensors, merged.tensors, 1e-6)
    return merged.tensors


# ------------------------------------------------------------------------------------------------ adapter_config.json


@pytest.mark.slow
def test_the_config_says_all_that_readers_need_at_pefts_defaults_too() -> None:
    base = checkpoint("llava")
    both = [adapted("llava", seed, r=4)[0] for seed in (31, 32)]
    out, _ = lora(task_arithmetic(base, [plus(base, adapter) for adapter in both]))
    config = config_of(out)
    assert (config["r"], config["lora_alpha"]) == (8, 8)  # which are PEFT's defaults
    assert config["target_modules"]
    expected = {"bias": "none", "modules_to_save": None, "use_rslora": False, "use_dora": False, "lora_dropout": 0.0}
    assert {key: config[key] for key in expected} == expected
    assert {"peft_type", "task_type", "fan_in_fan_out", "inference_mode", "rank_pattern", "alpha_pattern"} <= {*config}
    assert config.keys() <= PEFT_0_9, "older versions of PEFT refuse it"
    again = merge(task_arithmetic(base, [plus(base, out)], weight=1.0)).tensors
    assert_close(again, merge(task_arithmetic(base, [plus(base, adapter) for adapter in both])).tensors, 1e-6)


@pytest.mark.slow
def test_rank_and_alpha_that_a_config_leaves_out_are_pefts_defaults() -> None:
    base = checkpoint("llava")
    adapter, whole = adapted("llava", 33, r=8, lora_alpha=8)
    config = {key: value for key, value in config_of(adapter).items() if key not in ("r", "lora_alpha")}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    assert_close(merge(task_arithmetic(base, [plus(base, adapter)], weight=1.0)).tensors, tensors(whole))
    edit_json(adapter / "adapter_config.json", lora_alpha=16)
    before, once, twice = (
        tensors(base),
        tensors(whole),
        merge(task_arithmetic(base, [plus(base, adapter)], 1.0)).tensors,
    )
    name = "language_model.model.layers.0.mlp.up_proj.weight"
    assert torch.allclose(twice[name] - before[name], 2 * (once[name] - before[name]), atol=1e-6)


# --------------------------------------------------------------------------------------------------------- modules


@pytest.mark.slow
@pytest.mark.parametrize("parameters", [{}, {"projector": "average"}, {"projector": "base"}])
def test_modules_that_adapters_hold_whole_stay_whole(parameters: dict[str, str]) -> None:
    """They are not cut by --rank, are bit for bit those of the merged model, and follow their role's policy."""
    base = checkpoint("qwen2_5_vl")
    both = [adapted("qwen2_5_vl", seed, modules_to_save=["merger"])[0] for seed in (1, 2)]
    config = {**task_arithmetic(base, [plus(base, adapter) for adapter in both]), "parameters": parameters}
    out, told = lora(config, "--rank", "8")
    merged = assert_is_the_merge("qwen2_5_vl", config, out)
    prefix = "base_model.model.model.visual.merger."
    held = {k.removeprefix(prefix): v for k, v in load_file(out / "adapter_model.safetensors").items() if prefix in k}
    if parameters.get("projector") == "base":
        assert not held
        assert config_of(out)["modules_to_save"] is None
        return
    assert "modules_to_save" in told
    assert len(held) == 5
    for name, value in held.items():
        assert torch.equal(value, merged[f"visual.merger.{name}"]), name
    shown = plugin("inspect", plus(base, out)).output
    assert "5 of whole" in shown


def test_adapters_that_hold_the_same_module_give_it_back() -> None:
    base = checkpoint("llava")
    first, _ = adapted("llava", 34, modules_to_save=["multi_modal_projector"])
    second, _ = adapted("llava", 35, modules_to_save=["multi_modal_projector"])
    key = "base_model.model.model.multi_modal_projector."
    own, theirs = (load_file(adapter / "adapter_model.safetensors") for adapter in (first, second))
    theirs |= {name: value for name, value in own.items() if name.startswith(key)}
    save_file(theirs, second / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {**task_arithmetic(base, [plus(base, first), plus(base, second)]), "parameters": {"projector": "average"}}
    out, _ = lora(config)
    held = load_file(out / "adapter_model.safetensors")
    for name, value in own.items():
        if name.startswith(key):
            assert torch.allclose(held[name], value, atol=1e-7), name


@pytest.mark.slow
def test_a_full_fine_tune_as_an_adapter() -> None:
    """Linear layers are cut to the rank (all of it, here), and norms, convolutions and biases are whole."""
    base = checkpoint("qwen2_vl")
    config = task_arithmetic(base, experts("qwen2_vl"))
    out, told = lora(config, "--rank", "512")
    assert_is_the_merge("qwen2_vl", config, out)
    read = config_of(out)
    assert read["bias"] == "all"
    assert "bias: all" in told
    assert {"input_layernorm", "norm1"} <= {*read["modules_to_save"]}
    held = load_file(out / "adapter_model.safetensors")
    assert "base_model.model.model.visual.patch_embed.proj.weight" in held
    assert "base_model.model.model.language_model.layers.0.self_attn.q_proj.base_layer.bias" in held
    _, refused = command("lora", config)
    assert refused.exit_code == 1
    assert "has no low rank: say with --rank" in refused.output


def test_where_only_whole_modules_change() -> None:
    """PEFT refuses an adapter that adapts no layer, so one layer is adapted by nothing."""
    base = checkpoint("llava")
    adapter, _ = adapted("llava", 36, modules_to_save=["multi_modal_projector"])
    config = task_arithmetic(base, [plus(base, adapter)])
    config["modules"] = {"projector": {"models": config.pop("models")}}
    out, told = lora(config)
    assert "rank" not in told
    assert_is_the_merge("llava", config, out)


def test_a_module_of_another_model() -> None:
    """A projector that the config takes from one expert is a change of the base as well."""
    base, expert = checkpoint("llava"), experts("llava")[0]
    config: dict[str, Any] = {"merge_method": "passthrough", "dtype": "float32"}
    config["modules"] = {
        "language_model": {"models": [{"model": str(base)}]},
        "vision_tower": {"models": [{"model": str(base)}]},
        "projector": {"models": [{"model": str(expert)}]},
    }
    out, _ = lora(config, "--rank", "512")
    held, theirs = load_file(out / "adapter_model.safetensors"), tensors(expert)
    name = "multi_modal_projector.linear_1"
    assert torch.equal(held[f"base_model.model.model.{name}.base_layer.bias"], theirs[f"{name}.bias"])
    change = theirs[f"{name}.weight"] - tensors(base)[f"{name}.weight"]
    a, b = (held[f"base_model.model.model.{name}.lora_{part}.weight"] for part in "AB")
    assert torch.allclose(b @ a, change, atol=1e-5)


@pytest.mark.slow
def test_whole_tensors_keep_their_own_dtype() -> None:
    """--dtype is that of the factors; whole modules are what the merge would write."""
    base = checkpoint("llava")
    adapter, _ = adapted("llava", 37, modules_to_save=["multi_modal_projector"])
    config = task_arithmetic(base, [plus(base, adapter)])
    out, _ = lora(config, "--dtype", "bfloat16")
    held, merged = load_file(out / "adapter_model.safetensors"), merge(config).tensors
    name = "multi_modal_projector.linear_1.weight"
    assert torch.equal(held[f"base_model.model.model.{name}"], merged[name])
    assert {v.dtype for k, v in held.items() if "lora_" in k} == {torch.bfloat16}


@pytest.mark.slow
def test_counters_of_a_module_that_is_saved() -> None:
    """PEFT saves a BatchNorm with its counter, an integer, which must come back as one, in models and adapters."""
    base = checkpoint("granite_speech")
    adapter, _ = adapted("granite_speech", 38, modules_to_save=["batch_norm"])
    config = task_arithmetic(base, [plus(base, adapter)])
    merged, before = merge(config).tensors, tensors(base)
    counters = [name for name, value in before.items() if not value.is_floating_point()]
    assert counters
    for name in counters:
        assert merged[name].dtype == before[name].dtype
        assert torch.equal(merged[name], before[name])
    out, _ = lora(config)
    kinds = {v.dtype for k, v in load_file(out / "adapter_model.safetensors").items() if "num_batches_tracked" in k}
    assert kinds == {torch.int64}
    assert_close(merge(task_arithmetic(base, [plus(base, out)], weight=1.0)).tensors, merged, 1e-6)


# --------------------------------------------------------------------------------------------------------- refused


def test_a_parameter_that_no_module_of_its_own_holds_is_named() -> None:
    """LLaVA-NeXT's `image_newline` belongs to the model in which everything else is."""
    base = checkpoint("llava_next")
    expert = altered(base, lambda found: {k: v + 0.1 if k.endswith("image_newline") else v for k, v in found.items()})
    out, result = command("lora", task_arithmetic(base, [expert]), "--rank", "4")
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert (
        "model.image_newline: the module that it belongs to, model, has all layers of the model in it" in result.output
    )
    assert not out.exists()


def test_embeddings_that_are_tied_are_named() -> None:
    base = checkpoint("paligemma")
    name = next(n for n in tensors(base) if n.endswith("embed_tokens.weight"))
    expert = altered(base, lambda found: {**found, name: found[name] + 0.1})
    _, result = command("lora", task_arithmetic(base, [expert]), "--rank", "4")
    assert result.exit_code == 1
    assert "is tied to" in result.output
    assert "embeddings: base" in result.output
