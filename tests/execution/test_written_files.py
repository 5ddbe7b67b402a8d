"""The files of weights, which are laid out before any value is known: what they hold, and that loaders agree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from end_to_end import altered, checkpoint, experts, linear, merge, plugin, task_arithmetic, tensors, written
from safetensors import safe_open
from safetensors.torch import load_file, save

LIMIT = 60_000  # bytes of a file


def metadata(file: Path) -> dict[str, str]:
    with safe_open(str(file), framework="pt") as opened:
        found: dict[str, str] = opened.metadata()
        return found


@pytest.mark.parametrize("family", ["llava", "qwen2_5_omni", "qwen3_vl_moe"])
def test_files_are_those_of_safetensors_byte_for_byte(family: str) -> None:
    out = merge(linear(checkpoint(family)), "--out-shard-size", str(LIMIT)).out
    files = sorted(out.glob("*.safetensors"))
    assert len(files) > 3
    for file in files:
        assert save(load_file(file), metadata(file)) == file.read_bytes()


def test_files_are_divided_as_mergekit_divides_them() -> None:
    """By the names on disk, in their order; none is larger than asked for, unless it holds a single tensor."""
    out = merge(linear(checkpoint("llava")), "--out-shard-size", str(LIMIT)).out
    files = [load_file(file) for file in sorted(out.glob("*.safetensors"))]
    sizes = [sum(tensor.nbytes for tensor in held.values()) for held in files]
    assert all(size <= LIMIT or len(held) == 1 for size, held in zip(sizes, files, strict=True))
    assert all(size + after[min(after)].nbytes > LIMIT for size, after in zip(sizes, files[1:], strict=False))
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert list(index["weight_map"]) == sorted(index["weight_map"])
    assert index["metadata"]["total_size"] == sum(sizes)
    names = {name: f"model-{n:05d}-of-{len(files):05d}.safetensors" for n, held in enumerate(files, 1) for name in held}
    assert index["weight_map"] == names
    whole = merge(linear(checkpoint("llava")), "--out-shard-size", "0").out
    assert [file.name for file in whole.glob("*.safetensors")] == ["model.safetensors"]
    assert not (whole / "model.safetensors.index.json").exists()


@pytest.mark.slow
def test_pickles_hold_the_same_tensors_in_as_many_files() -> None:
    config = task_arithmetic(checkpoint("llava"), experts("llava"))
    expected = merge(config, "--out-shard-size", str(LIMIT)).out
    out = merge(config, "--out-shard-size", str(LIMIT), "--no-safe-serialization").out
    assert not list(out.glob("*.safetensors*"))
    weights = json.loads((out / "pytorch_model.bin.index.json").read_text())["weight_map"]
    for file in sorted(expected.glob("*.safetensors")):
        name = file.name.replace("model", "pytorch_model").replace(".safetensors", ".bin")
        found, held = torch.load(out / name, weights_only=True), load_file(file)
        assert found.keys() == held.keys() == {tensor for tensor, place in weights.items() if place == name}
        assert all(torch.equal(found[tensor], held[tensor]) for tensor in held)


@pytest.mark.parametrize("method", ["task_arithmetic", "optmerge"])
def test_inputs_of_several_dtypes_give_the_dtype_of_the_layout(method: str) -> None:
    """Without `dtype`: what the plan says is written, and not what a sum of the inputs happens to be in torch."""
    base = altered(checkpoint("llava"), lambda found: {n: t.bfloat16() for n, t in found.items()}, dtype="bfloat16")
    config = {
        "merge_method": method,
        "base_model": str(base),
        "models": [{"model": str(path), "parameters": {"weight": 1.0}} for path in experts("llava")[:2]],
    }
    plan = json.loads(plugin("check", written(config), "--json").output)
    found = tensors(merge(config).out)
    assert {o["name"]: o["dtype"] for o in plan["outputs"]} == {n: str(t.dtype)[6:] for n, t in found.items()}
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
