"""Quantized or packed weights, wherever that is written or seen, and integers that no merge can compute with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from end_to_end import (
    Tensors,
    altered,
    assert_close,
    assert_same_bytes,
    checkpoint,
    edit_json,
    linear,
    merge,
    plugin,
    refused,
    sum_of_deltas,
    task_arithmetic,
    tensors,
    with_tensor,
    written,
)
from remote_code import remote_code_checkpoint

UP = "language_model.model.layers.0.mlp.up_proj"  # of LLaVA and of the InternVL with code of its own
MODELS: dict[str, Callable[[str], Path]] = {
    "a family of transformers": lambda tag: checkpoint("llava", tag=tag),
    "code of its own": remote_code_checkpoint,
}


def packed(found: Tensors, parts: dict[str, torch.Tensor]) -> Tensors:
    return {name: t for name, t in found.items() if name != f"{UP}.weight"} | {f"{UP}.{n}": t for n, t in parts.items()}


INT32 = torch.arange(64, dtype=torch.int32).reshape(8, 8)
FORMATS: dict[str, dict[str, torch.Tensor]] = {
    "gptq, awq": {"qweight": INT32, "qzeros": INT32[:1], "scales": torch.rand(1, 8).half(), "g_idx": INT32[0]},
    "compressed-tensors": {"weight_packed": INT32, "weight_scale": torch.rand(8, 1)},
    "bitsandbytes, 4 bits": {"weight": torch.ones(64, 1, dtype=torch.uint8), "weight.absmax": torch.rand(8)},
    "bitsandbytes, 8 bits": {"weight": torch.ones(128, 64, dtype=torch.int8), "SCB": torch.rand(128)},
    "fp8": {"weight": torch.ones(128, 64).to(torch.float8_e4m3fn), "weight_scale_inv": torch.rand(1, 1)},
    "fp8 without scales": {"weight": torch.ones(128, 64).to(torch.float8_e5m2)},
    "quanto": {"weight._data": torch.ones(128, 64, dtype=torch.int8), "weight._scale": torch.rand(128, 1)},
    "marlin": {"B": INT32, "s": torch.rand(1, 8).half(), "workspace": INT32[0]},
    "mlx": {
        "weight": torch.ones(128, 8, dtype=torch.uint32),
        "scales": torch.rand(128, 1),
        "biases": torch.rand(128, 1),
    },
    "mxfp4": {"weight_blocks": torch.ones(8, 8, dtype=torch.uint8), "weight_scales": torch.ones(8, dtype=torch.uint8)},
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", list(FORMATS))
@pytest.mark.parametrize("model", list(MODELS))
def test_tensors_tell_without_any_config(model: str, layout: str) -> None:
    first, second = (altered(MODELS[model](tag), lambda f: packed(f, FORMATS[layout])) for tag in ("base", "expert_0"))
    refused(linear(first, second), f"{first} is quantized", f"tensor {UP}.")
    assert f"{first} is quantized" in plugin("inspect", first).output


@pytest.mark.parametrize("part", ["weight_scale", "weight_scale_inv"])
@pytest.mark.parametrize("model", list(MODELS))
def test_scales_beside_plain_weights(model: str, part: str) -> None:
    """Whether such weights are dequantized or lack their scales cannot be seen, be they the base's or an expert's."""
    plain, odd = MODELS[model]("base"), with_tensor(MODELS[model]("expert_0"), f"{UP}.{part}", torch.rand(128, 1))
    for base, expert in ((plain, odd), (odd, plain)):
        config = task_arithmetic(base, [expert])
        refused(config, f"{odd} is quantized", f"tensor {UP}.{part}", "not merely cast", "remove them")


CONFIGS: dict[str, Callable[[Path], None]] = {
    "quantization_config in config.json": lambda path: edit_json(
        path / "config.json", quantization_config={"quant_method": "awq"}
    ),
    "compression_config in config.json": lambda path: edit_json(
        path / "config.json", compression_config={"quant_method": "awq"}
    ),
    "vision_config.inner.quantization_config in config.json": lambda path: edit_json(
        path / "config.json", vision_config={"inner": {"quantization_config": {"quant_method": "awq"}}}
    ),
    "quantize_config.json": lambda path: _write(path / "quantize_config.json", {"quant_method": "awq"}),
    "quant_config.json": lambda path: _write(path / "quant_config.json", {"quant_method": "awq"}),
    "hf_quant_config.json": lambda path: _write(path / "hf_quant_config.json", {"quantization": {"quant_algo": "AWQ"}}),
}


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("where", list(CONFIGS))
def test_configs_tell_at_any_depth(where: str) -> None:
    path = remote_code_checkpoint("expert_0")
    CONFIGS[where](path)
    config = task_arithmetic(remote_code_checkpoint("base"), [path])
    refused(config, f"{path} is quantized (awq, by {where})")
    checked = plugin("check", written(config))
    assert checked.exit_code == 1
    assert f"{path} is quantized (awq, by {where})" in checked.output


def test_a_sub_config_of_a_family_of_transformers() -> None:
    path = altered(checkpoint("llava", tag="expert_0"))
    text = json.loads((path / "config.json").read_text())["text_config"]
    edit_json(path / "config.json", text_config={**text, "quantization_config": {"quant_method": "gptq"}})
    refused(task_arithmetic(checkpoint("llava"), [path]), "quantized (gptq, by text_config.quantization_config")


@pytest.mark.parametrize("model", list(MODELS))
def test_plain_weights_with_a_config_that_transformers_applies_on_loading(model: str) -> None:
    """Dequantized, or to be quantized on the fly: the weights are merged, and the output is as plain as they are."""
    base, expert = (altered(MODELS[model](tag)) for tag in ("base", "expert_0"))
    for path in (base, expert):
        edit_json(path / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    outcome = merge(task_arithmetic(base, [expert]))
    assert_close(outcome.tensors, sum_of_deltas(tensors(base), [tensors(expert)]))
    assert "quantization_config" not in json.loads((outcome.out / "config.json").read_text())
    assert "its weights are plain" in outcome.said


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.int8])
def test_integers_of_unknown_meaning(dtype: torch.dtype) -> None:
    name, value = "language_model.model.layers.0.mlp.codes", torch.arange(6).to(dtype)
    base, same, other = (
        with_tensor(remote_code_checkpoint(tag), name, value + extra)
        for tag, extra in (("base", 0), ("expert_0", 0), ("expert_0", 1))
    )
    outcome = merge(task_arithmetic(base, [same]))
    assert_same_bytes({name: outcome.tensors[name]}, {name: value})
    assert name in outcome.said
    assert outcome.said.count("are equal in all inputs and kept") == 1
    config = linear(same, other)
    refused(config, name, "tensors of integers", "differ between the inputs")
    checked = plugin("check", written(config))
    assert checked.exit_code == 1
    assert name in checked.output


def test_positions_and_counts_are_no_weights() -> None:
    extra = {
        "vision_model.embeddings.position_ids": torch.arange(4),
        "vision_model.bn.num_batches_tracked": torch.tensor(7),
    }
    base, expert = (altered(remote_code_checkpoint(t), lambda f: {**f, **extra}) for t in ("base", "expert_0"))
    outcome = merge(task_arithmetic(base, [expert]))
    assert_same_bytes({name: outcome.tensors[name] for name in extra}, extra)
    assert "no merge can be made" not in outcome.said
