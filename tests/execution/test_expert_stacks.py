"""Stacks of experts that are made in parts: the bytes of the whole, by any number of workers, and after a kill."""

from __future__ import annotations

import functools
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from end_to_end import (
    Tensors,
    altered,
    assert_same_bytes,
    checkpoint,
    fresh,
    merge,
    mergekit_yaml,
    run,
    tensors,
    with_method,
)
from interruptions import contents, interrupted, journal_of, slow_method
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions

from mergekit_mm.execution.values import values
from mergekit_mm.plan.build import build_plan
from mergekit_mm.plan.merge_plan import MergePlan
from mergekit_mm.tasks.compile import Compiler

EXPERTS, WIDTH = 12, 384  # Stacks of this size are large enough to be made in parts.
_STACK = re.compile(r"(.*mlp\.experts\.)(gate_up_proj|down_proj)")
_SINGLE = re.compile(r"(.*mlp\.experts\.)(\d+)(\.(?:gate|up|down)_proj\.weight)")
_ROUTER = re.compile(r".*mlp\.gate\.weight")
# On disk these are stacks of transposed matrices, a tensor for each expert, and stacks as in memory.
WAYS = [("qwen3_vl_moe", "plain"), ("qwen3_5_moe", "plain"), ("qwen3_5_moe", "memory")]


@pytest.fixture(autouse=True, scope="module")
def _method() -> Iterator[None]:
    with slow_method():
        yield


@functools.cache
def wide(family: str, layout: str, tag: str) -> Path:
    """A checkpoint of the zoo with more and wider experts."""
    source = checkpoint(family, layout, tag)
    text = json.loads((source / "config.json").read_text())["text_config"]
    hidden, drawn = text["hidden_size"], torch.Generator().manual_seed(sum(tag.encode()))

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=drawn).mul_(0.02)

    def change(found: Tensors) -> Tensors:
        changed: Tensors = {}
        for name, tensor in found.items():
            if stack := _STACK.fullmatch(name):
                rows, columns = (2 * WIDTH, hidden) if stack[2] == "gate_up_proj" else (hidden, WIDTH)
                is_turned = tensor.shape[1] == (hidden if stack[2] == "gate_up_proj" else text["moe_intermediate_size"])
                changed[name] = random(EXPERTS, columns, rows) if is_turned else random(EXPERTS, rows, columns)
            elif single := _SINGLE.fullmatch(name):
                shape = (hidden, WIDTH) if "down" in single[3] else (WIDTH, hidden)
                more = range(EXPERTS) if single[2] == "0" else []
                changed |= {f"{single[1]}{number}{single[3]}": random(*shape) for number in more}
            else:
                changed[name] = random(EXPERTS, hidden) if _ROUTER.fullmatch(name) else tensor
        return changed

    numbers = {key: EXPERTS for key in ("num_experts", "num_local_experts") if key in text}
    return altered(source, change, text_config={**text, **numbers, "moe_intermediate_size": WIDTH})


def config(method: str, *ways: tuple[str, str], **more: Any) -> dict[str, Any]:
    """A merge of two experts; one way to store all inputs, or one for each."""
    each = ways if len(ways) == 3 else ways * 3
    base, *others = (wide(*way, tag) for way, tag in zip(each, ("base", "expert_0", "expert_1"), strict=True))
    return with_method(method, base, others, **more)


def planned(config: dict[str, Any]) -> tuple[MergePlan, MergeOptions]:
    mergekit_yaml()
    options = MergeOptions(quiet=True)
    return build_plan(MergeConfiguration.model_validate(config), options, yaml.safe_dump(config)), options


def made_as_wholes(config: dict[str, Any]) -> Tensors:
    """The tensors of the output, each made as a whole, in this process."""
    plan, options = planned(config)
    compiler = Compiler(plan, options)
    whole = dict(values(compiler, compiler.to_memory()))
    found: Tensors = {}
    for group in plan.inputs.base_checkpoint.groups:
        found |= group.to_disk({name: whole[name] for name in group.memory})
    return found


def parts_of(config: dict[str, Any]) -> set[tuple[int, int]]:
    return {output.part for output in planned(config)[0].made if output.part}


def experts_in(out: Path) -> list[str]:
    """What the journal of an unfinished output has of stacks of experts."""
    return [name for entry in journal_of(out) for name in entry.get("tensors", {}) if ".experts." in name]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("method", "dtype"), [("optmerge", "float32"), ("linear", "bfloat16")])
def test_the_bytes_of_the_whole(way: tuple[str, str], method: str, dtype: str) -> None:
    recipe = config(method, way, dtype=dtype)
    assert len(parts_of(recipe)) >= 2
    assert_same_bytes(merge(recipe).tensors, made_as_wholes(recipe))


def test_inputs_that_store_them_otherwise() -> None:
    recipe = config("task_arithmetic", WAYS[1], WAYS[2], WAYS[1])
    assert len(parts_of(recipe)) >= 2
    assert_same_bytes(merge(recipe).tensors, made_as_wholes(recipe))


@pytest.mark.parametrize("way", WAYS[:2])
def test_any_number_of_workers_and_a_kill_in_between(way: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, out = config("slow_sum", way), fresh("merged")
    flags = ("--out-shard-size", "400K")
    monkeypatch.setenv("MERGEKIT_MM_WORKERS", "1")
    whole = merge(recipe, *flags).out
    monkeypatch.setenv("MERGEKIT_MM_WORKERS", "2")
    code = interrupted(lambda: run(recipe, *flags, out=out), out, lambda: len(experts_in(out)) >= 3)
    assert code == -signal.SIGKILL
    assert any(name.endswith("]") for name in experts_in(out)) == (way == WAYS[0])
    monkeypatch.setenv("MERGEKIT_MM_WORKERS", "3")
    outcome = merge(recipe, *flags, out=out)
    assert re.search(rf"continuing: \d+ of {len(tensors(whole))} tensors are done", outcome.console)
    assert contents(out) == contents(whole)


def test_what_looks_at_a_whole_stack_gets_it() -> None:
    recipe = config("optmerge", WAYS[0], parameters={"scaling": "auto"})
    assert {output.part for output in planned(recipe)[0].made} == {None}
    ties = config("ties", WAYS[0])
    assert not any(output.part for output in planned(ties)[0].made if "experts" in output.name)
