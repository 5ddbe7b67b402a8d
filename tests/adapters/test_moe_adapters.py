"""Adapters on the experts of a mixture, which transformers keeps in two stacks: one by one, and as bare parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
import zoo
from end_to_end import (
    Tensors,
    assert_close,
    checkpoint,
    merge,
    plugin,
    refused,
    save_model,
    task_arithmetic,
    tensors,
    with_method,
)
from peft_adapters import Factors, adapted, delta, factors, in_memory, plus, wide, written_adapter

# stacks (experts, out, in) and (experts, in, out); names that transformers converts, and names that it never had
STACKED = ["glm4v_moe", "kimi_k25", "qwen3_5_moe", "qwen3_omni_moe_thinker", "qwen3_vl_moe"]
TURNED = ["aria", "llama4"]


def applied(base: Path, *adapters: Path) -> dict[str, Any]:
    """The sum of what adapters change, added to their base."""
    return task_arithmetic(base, [plus(base, adapter) for adapter in adapters], weight=1.0)


def stacks(family: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Path of each module of experts -> its two stacks in memory."""
    found = in_memory(checkpoint(family), family)
    paths = [name.removesuffix(".gate_up_proj") for name in found if name.endswith("experts.gate_up_proj")]
    return {path: (found[f"{path}.gate_up_proj"], found[f"{path}.down_proj"]) for path in paths}


def modules(family: str, parts: str = "gate up down", of: slice = slice(None)) -> dict[str, tuple[int, int]]:
    """The single experts of a family as linear layers, with their shapes (out, in)."""
    found = {}
    for path, (gate_up, down) in stacks(family).items():
        hidden, inner = (down.shape[2], down.shape[1]) if family in TURNED else (down.shape[1], down.shape[2])
        assert sorted(gate_up.shape[1:]) == sorted((2 * inner, hidden))
        for expert in range(gate_up.shape[0])[of]:
            for part in parts.split():
                shape = (hidden, inner) if part == "down" else (inner, hidden)
                found[f"{path}.{expert}.{part}_proj"] = shape
    return found


def expected(family: str, *adapters: Factors) -> Tensors:
    """The model in memory with every expert's delta added to its slice by hand."""
    result = in_memory(checkpoint(family), family)
    for found in adapters:
        for name in found:
            path, expert, part = name.rsplit(".", 2)
            stack = result[f"{path}.{'down_proj' if part == 'down_proj' else 'gate_up_proj'}"][int(expert)]
            matrix = stack.T if family in TURNED else stack
            half = matrix.shape[0] // 2
            rows = {"gate_proj": slice(half), "up_proj": slice(half, None), "down_proj": slice(None)}[part]
            matrix[rows] += delta(found, name)
    return result


@pytest.mark.parametrize("family", STACKED + TURNED)
def test_the_delta_of_one_expert_is_a_slice_of_the_stack(family: str) -> None:
    """All of some experts, in one adapter, and of another one the gates alone: with other ranks."""
    base = checkpoint(family)
    first, second = factors(modules(family, of=slice(1, None))), factors(modules(family, "gate", slice(1)), 2, seed=1)
    got = merge(applied(base, written_adapter(base, first), written_adapter(base, second)))
    assert_close(in_memory(got.out, family), expected(family, first, second))


def test_experts_that_see_text_and_experts_that_see_images_have_one_numbering_on_disk() -> None:
    family = "ernie4_5_vl_moe"
    base = checkpoint(family)
    text = "model.language_model.layers.1.mlp.text_moe.experts"
    shapes = in_memory(base, family)
    (count, twice, hidden), seen = shapes[f"{text}.gate_up_proj"].shape, text.replace("text_moe", "vision_moe")
    inner = shapes[f"{seen}.down_proj"].shape[2]
    path = text.replace("text_moe.", "")
    found = factors({f"{path}.1.up_proj": (twice // 2, hidden), f"{path}.{count + 2}.down_proj": (hidden, inner)})
    got = merge(applied(base, written_adapter(base, found)))
    shapes[f"{text}.gate_up_proj"][1, twice // 2 :] += delta(found, f"{path}.1.up_proj")
    shapes[f"{seen}.down_proj"][2] += delta(found, f"{path}.{count + 2}.down_proj")
    assert_close(in_memory(got.out, family), shapes)


def test_a_layer_that_was_fused_when_it_was_trained_comes_apart_with_its_factors() -> None:
    """Kimi's tower on disk has queries, keys and values in one matrix, in an order that transformers changes."""
    family = "kimi_k25"
    base = checkpoint(family)
    name = next(name for name in tensors(base) if name.endswith("wqkv.weight"))
    value = tensors(base)[name]
    found = factors({name.removesuffix(".weight"): tuple(value.shape)})
    got = merge(applied(base, written_adapter(base, found))).tensors
    assert_close(got, {**wide(tensors(base)), name: value.double() + delta(found, name.removesuffix(".weight"))})


@pytest.mark.parametrize("family", ["glm4v_moe", "qwen3_omni_moe_thinker"])
def test_single_experts_are_read_as_peft_reads_them(family: str) -> None:
    base = checkpoint(family)
    found = factors(modules(family))
    adapter = written_adapter(base, found)
    model = getattr(transformers, zoo.FAMILIES[family].cls).from_pretrained(base, dtype=torch.float32)
    whole = save_model(peft.PeftModel.from_pretrained(model, adapter).merge_and_unload())
    assert_close(merge(applied(base, adapter)).tensors, wide(tensors(whole)))


BARE = {"target_modules": [], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}


@pytest.mark.slow
@pytest.mark.parametrize("family", STACKED + TURNED)
def test_adapters_on_bare_parameters_are_applied_as_peft_applies_them(family: str) -> None:
    """Aria's first stack has square matrices, so that shapes alone do not tell which way they are stored."""
    base = checkpoint(family)
    adapter, whole = adapted(family, 1, **BARE, rank_pattern={"gate_up_proj": 2}, alpha_pattern={"down_proj": 3})
    got = merge(applied(base, adapter))
    assert_close(got.tensors, wide(tensors(whole)))
    before, after = in_memory(base, family), in_memory(got.out, family)
    changed = {name.rpartition(".")[2] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"gate_up_proj", "down_proj"}


@pytest.mark.slow
@pytest.mark.parametrize("one", ["gate_up_proj", "down_proj"])
def test_one_bare_parameter_beside_ordinary_layers(one: str) -> None:
    base = checkpoint("qwen3_vl_moe")
    adapter, whole = adapted("qwen3_vl_moe", 2, target_modules=["q_proj"], target_parameters=[one])
    assert_close(merge(applied(base, adapter)).tensors, wide(tensors(whole)))
    told = plugin("inspect", plus(base, adapter)).output
    assert "rank 4, scaling 2, without a module" in told
    assert "2 of rank 4, scaling 2" in told


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["linear", "ties", "optmerge", "wudi", "swudi", "tsv", "iso_c", "iso_cts", "dc_merge"]
)
def test_stacks_of_factors_give_what_whole_models_give(method: str) -> None:
    """Two adapters that share some experts; of one, nobody changes anything."""
    base = checkpoint("glm4v_moe")
    one, two = factors(modules("glm4v_moe", of=slice(2))), factors(modules("glm4v_moe", of=slice(1, 3)), 2, seed=1)
    adapters = [written_adapter(base, each) for each in (one, two)]
    wholes = [merge(applied(base, adapter)).out for adapter in adapters]
    got = merge(with_method(method, base, [plus(base, adapter) for adapter in adapters])).tensors
    assert_close(got, wide(merge(with_method(method, base, wholes)).tensors), 2e-5)
    names = [n for n in got if ".experts." in n and not torch.equal(got[n], tensors(base)[n].float())]
    assert names


def test_experts_that_no_rule_takes_apart_are_refused_as_such() -> None:
    base = checkpoint("glm4v_moe")
    path = next(iter(stacks("glm4v_moe")))
    refused(applied(base, written_adapter(base, factors({f"{path}.9.gate_proj": (48, 64)}))), "experts", "PEFT")


def test_the_rank_of_a_bare_parameter_is_that_of_each_expert() -> None:
    base = checkpoint("qwen3_vl_moe")
    adapter, _ = adapted("qwen3_vl_moe", 3, **BARE)
    config = adapter / "adapter_config.json"
    config.write_text(config.read_text().replace('"r": 4', '"r": 2'))
    refused(applied(base, adapter), "rank 2", "4 matrices")
