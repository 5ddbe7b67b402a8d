"""Planning at real sizes: a 72B model is planned from headers alone, and its merge holds few tensors at a time."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from end_to_end import checkpoint, experts, with_method
from mergekit.config import MergeConfiguration
from mergekit.graph import Executor
from mergekit.options import MergeOptions
from sparse_checkpoints import sparse_checkpoint

from mergekit_mm.checkpoints.checkpoint import open_checkpoint
from mergekit_mm.merge import plan_merge
from mergekit_mm.plan.build import build_plan
from mergekit_mm.tasks.compile import Compiler
from mergekit_mm.tasks.loading import LoadTensor

pytestmark = pytest.mark.long

QWEN2_VL_72B: dict[str, Any] = {
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "model_type": "qwen2_vl",
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
    "text_config": {
        "model_type": "qwen2_vl_text",
        "hidden_size": 8192,
        "intermediate_size": 29568,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 152064,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    },
    "vision_config": {
        "depth": 32,
        "embed_dim": 1280,
        "hidden_size": 8192,
        "num_heads": 16,
        "mlp_ratio": 4,
        "patch_size": 14,
        "spatial_merge_size": 2,
    },
}


def config(base: Path, models: list[Path], method: str = "task_arithmetic") -> MergeConfiguration:
    return MergeConfiguration.model_validate(with_method(method, base, models, dtype=None))


def _fill(model: Path, name: str, byte: int) -> None:
    """Give a tensor of a sparse checkpoint values, all bytes of which are this one."""
    file = model / json.loads((model / "model.safetensors.index.json").read_text())["weight_map"][name]
    with file.open("r+b") as content:
        length = int.from_bytes(content.read(8), "little")
        start, end = json.loads(content.read(length))[name]["data_offsets"]
        content.seek(8 + length + start)
        content.write(bytes([byte]) * (end - start))


@pytest.mark.slow
def test_a_72b_merge_is_planned_from_headers(tmp_path: Path) -> None:
    base = sparse_checkpoint(tmp_path / "base", QWEN2_VL_72B)
    tuned = [sparse_checkpoint(tmp_path / f"expert_{i}", QWEN2_VL_72B) for i in range(2)]
    for number, model in enumerate(tuned, 1):  # equal models would be compared much further
        _fill(model, "model.norm.weight", number)
    report = str(plan_merge(config(base, tuned, "optmerge"), MergeOptions()))
    assert "language_model  560 optmerge" in report  # 80 layers of 4 attention and 3 MLP matrices
    assert f"vision_tower    385 kept as in {base}" in report
    assert "output: 147 GB in 1354 tensors" in report


@pytest.mark.parametrize(
    ("base_layout", "expert_layout"), [("plain", "plain"), ("plain", "memory"), ("memory", "hub"), ("hub", "memory")]
)
def test_inputs_of_one_output_are_read_together(base_layout: str, expert_layout: str) -> None:
    """mergekit runs tasks in the order of their labels; were those each input's own names, inputs in different layouts
    would be read one whole model after the other, all held in memory at once."""
    models = experts("llava", expert_layout)
    base = checkpoint("llava", base_layout)
    plan = build_plan(config(base, models), MergeOptions())
    schedule = Executor(targets=list(Compiler(plan, MergeOptions()).to_model().values())).schedule
    largest = max(tensor.nbytes for tensor in open_checkpoint("base", base).disk.values())
    held: dict[Any, int] = {}
    peak = 0
    for index, handle in enumerate(schedule.tasks):
        task = handle.task()
        if isinstance(task, LoadTensor):
            shape = task.source.checkpoint.tensors[task.tensor].shape
            held[handle] = 4 * math.prod(shape)
        peak = max(peak, sum(held.values()))
        held = {h: size for h, size in held.items() if schedule.last_use_index[h] > index}
    assert peak <= 2 * largest * (len(models) + 1)
