"""What a merge is said to take before it is begun, what it tells while it runs, and what cannot be done here."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import resource
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from end_to_end import (
    checked,
    checkpoint,
    experts,
    fresh,
    linear,
    merge,
    mergekit_yaml,
    plugin,
    refused,
    run,
    tensors,
    with_method,
    written,
)
from hypothesis import given
from hypothesis import strategies as st
from interruptions import SHARDS, contents
from peft_adapters import pair, plus
from safetensors.torch import load_file
from sparse_checkpoints import sparse_checkpoint

from mergekit_mm.api import plan
from mergekit_mm.checkpoints.listing import size_of
from mergekit_mm.methods import catalogue
from mergekit_mm.methods.costs import operations

PROGRESS = "MERGEKIT_MM_PROGRESS"


def size(*directories: Path) -> int:
    """The bytes of all tensors of some checkpoints."""
    files = [file for directory in directories for file in directory.glob("*.safetensors")]
    return sum(tensor.nbytes for file in files for tensor in load_file(file).values())


# --------------------------------------------------------------------------------------------------------- in advance


def test_bytes_are_those_of_the_files() -> None:
    models = experts("llava")[:2]
    told = checked(linear(*models))
    assert f"takes: {size_of(size(*models))} to read, {size_of(size(models[0]))} to write" in told
    assert re.search(r"1 worker with .* of memory each; about \d+ s", told)
    assert f"takes: {size_of(size(*models))} to read" in merge(linear(*models)).console


def test_a_plan_says_all_that_check_says_but_what_it_will_take() -> None:
    config = linear(*experts("llava")[:2])
    told = checked(config).splitlines()
    first = next(at for at, line in enumerate(told) if line.startswith("takes: "))
    assert told[first - 1].startswith("  output: ")
    last = next(at for at, line in enumerate(told[first:], first) if line == "Every tensor of every input is used.")
    assert str(plan(written(config))).splitlines() == told[:first] + told[last:]


def test_adapters_are_read_as_factors() -> None:
    base = checkpoint("llava")
    config = with_method("optmerge", base, [plus(base, adapter) for adapter, _ in pair("llava")])
    (read,) = re.findall(r"takes: (\S+) kB to read", checked(config))
    assert size(base) / 1e3 < float(read) < 2 * size(base) / 1e3


def test_arithmetic_is_told_by_method_and_shape() -> None:
    told = checked(with_method("optmerge", checkpoint("llava"), experts("llava")[:2]))
    shapes = {
        tuple(map(int, found)) for found in re.findall(r"optmerge of \d+ x \((\d+) x (\d+)\): \S+ operations", told)
    }
    weights = load_file(next(checkpoint("llava").glob("*.safetensors")))
    assert shapes <= {tuple(tensor.shape) for tensor in weights.values()}
    assert shapes


@given(
    st.sampled_from([method.name for method in catalogue()]),
    st.integers(1, 4000),
    st.integers(1, 4000),
    st.integers(2, 8),
)
def test_more_takes_more(method: str, out: int, width: int, experts: int) -> None:
    takes = operations(method, {}, (out, width), experts)
    assert 0 < takes <= operations(method, {}, (2 * out, width), experts)
    assert takes <= operations(method, {}, (out, 2 * width), experts)
    assert operations(method, {}, (7, out, width), experts) == pytest.approx(7 * takes)
    assert operations(method, {"svc": True}, (out, width), experts) > takes


def test_a_loop_of_steps_takes_what_its_steps_take() -> None:
    few, many = (operations("wudi", {"iterations": steps}, (64, 64), 3) for steps in (30, 300))
    assert many == pytest.approx(10 * few)
    assert operations("wudi", {"solver": "exact"}, (64, 64), 3) < few * 2


LARGE_EMBEDDINGS: dict[str, Any] = {
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "model_type": "qwen2_vl",
    "tie_word_embeddings": True,
    "text_config": {
        "model_type": "qwen2_vl_text",
        "hidden_size": 1024,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "vocab_size": 152064,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    },
    "vision_config": {
        "depth": 1,
        "embed_dim": 64,
        "hidden_size": 1024,
        "num_heads": 2,
        "mlp_ratio": 1,
        "patch_size": 14,
    },
}


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is one of Linux")
def test_more_memory_than_there_is_is_refused_before_any_work(tmp_path: Path) -> None:
    """Embeddings of 311 MB, of which no file holds a byte, and a process that may take 850 MB more."""
    models = [sparse_checkpoint(tmp_path / name, LARGE_EMBEDDINGS) for name in ("base", "expert")]
    config = with_method("task_arithmetic", models[0], models[1:], dtype=None)
    mergekit_yaml()
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_limited, args=(config, 850_000_000, sender))
    process.start()
    sender.close()
    told, left = receiver.recv()
    process.join()
    assert re.search(r"embed_tokens.weight takes at least 934 MB of memory, of which \S+ .B are free", told)
    assert left == []


def _limited(config: dict[str, Any], more: int, told: Any) -> None:
    """Run a merge with a limit on memory; sends its error, and what it has left."""
    used = re.search(r"VmData:\s+(\d+)", Path("/proc/self/status").read_text())
    assert used is not None
    resource.setrlimit(resource.RLIMIT_DATA, (int(used[1]) * 1024 + more, resource.RLIM_INFINITY))
    outcome = run(config, "--quiet")
    told.send((outcome.error, [path.name for path in outcome.out.parent.iterdir()]))


# ------------------------------------------------------------------------------------------------------- while it runs


def events(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stderr.splitlines()]


def test_progress_for_programs() -> None:
    config, out = linear(*experts("llava")[:2]), fresh("merged")
    result = plugin("yaml", written(config), out, "--progress", "json", "--workers", 2, *SHARDS)
    assert result.exit_code == 0, result.output
    bars = {event["what"]: event for event in events(result) if event["event"] == "progress"}
    merging = bars["Merging"]
    assert merging["done"] == merging["total"] == len(tensors(out))
    assert merging["bytes"] == merging["total_bytes"] == size(out)
    assert merging["seconds_left"] == 0
    assert any(event["event"] == "told" and "takes: " in event["text"] for event in events(result))
    assert contents(out) == contents(merge(config, *SHARDS).out)
    assert PROGRESS not in os.environ


def test_progress_of_every_command() -> None:
    base = checkpoint("llava")
    recipe = written(with_method("optmerge", base, [plus(base, adapter) for adapter, _ in pair("llava")]))
    for command, flags in (("sweep", ("--scaling", "0.5,1")), ("lora", ("--rank", 2))):
        result = plugin(command, recipe, fresh("out"), *flags, "--progress", "json", "--quiet")
        assert result.exit_code == 0, result.output
        last = [event for event in events(result) if event["event"] == "progress"][-1]
        assert last["done"] == last["total"] > 0


def test_progress_of_the_stock_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PROGRESS, "json")
    lines = merge(linear(checkpoint("llava"))).console.splitlines()
    assert any(json.loads(line).get("what") == "Merging" for line in lines if line.startswith("{"))
    monkeypatch.setenv(PROGRESS, "bells")
    refused(linear(checkpoint("llava")), f"{PROGRESS}=bells", "text and json")
