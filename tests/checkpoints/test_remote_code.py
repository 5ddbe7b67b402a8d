"""Checkpoints whose modelling code is not transformers' own: known by their names on disk, and none of it is run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import zoo
from end_to_end import (
    assert_close,
    assert_same_bytes,
    fresh,
    linear,
    llama,
    merge,
    refused,
    save_model,
    side_files,
    sum_of_deltas,
    task_arithmetic,
    tensors,
    with_method,
    with_tensor,
    without,
)
from remote_code import PYTHON_FILES, REMOTE_CONFIG, remote_code_checkpoint
from safetensors.torch import save_file
from transformers import Qwen2Config, Qwen2ForCausalLM


def test_remote_code_is_lossless() -> None:
    source = remote_code_checkpoint("base")
    outcome = merge(linear(source))
    assert "mlp1.1.weight" in outcome.tensors
    assert_same_bytes(outcome.tensors, tensors(source))
    assert side_files(outcome.out) == side_files(source)
    assert set(PYTHON_FILES) < set(side_files(outcome.out))
    assert json.loads((outcome.out / "config.json").read_text())["auto_map"] == REMOTE_CONFIG["auto_map"]


@pytest.mark.parametrize("flags", [(), ("--trust-remote-code",)])
def test_remote_code_is_merged_correctly(flags: tuple[str, ...]) -> None:
    base = remote_code_checkpoint("base")
    others = [remote_code_checkpoint(f"expert_{i}") for i in range(3)]
    outcome = merge(task_arithmetic(base, others), *flags)
    assert_close(outcome.tensors, sum_of_deltas(tensors(base), [tensors(path) for path in others]))


def test_remote_code_is_accounted_for() -> None:
    base, expert = remote_code_checkpoint("base"), remote_code_checkpoint("expert_0")
    refused(task_arithmetic(base, [without(expert, "mlp1.3.weight")]), "mlp1.3.weight")
    refused(task_arithmetic(base, [with_tensor(expert, "mlp1.9.weight", torch.ones(2))]), "mlp1.9.weight")


def test_remote_code_knows_towers_from_language_model() -> None:
    """The roles come from the names: optmerge leaves tower and projector alone and merges the decoder's matrices."""
    base = remote_code_checkpoint("base")
    others = [remote_code_checkpoint(f"expert_{i}") for i in range(3)]
    before, after = tensors(base), merge(with_method("optmerge", base, others)).tensors
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    layers = {n for n, v in before.items() if "language_model.model.layers" in n and v.ndim == 2}
    assert moved == layers


def test_a_text_only_llm_into_remote_code() -> None:
    """The backbone of InternVL2.5 is a Qwen2 like any other."""
    base = remote_code_checkpoint("base")
    prefix, start = "language_model.", tensors(base)
    torch.manual_seed(3)
    model = Qwen2ForCausalLM(Qwen2Config(**zoo.text("qwen2")))
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(start[prefix + name] + 0.01 * torch.randn(tensor.shape))
    llm = save_model(model)
    tuned = {prefix + name: tensor for name, tensor in tensors(llm).items()}
    outcome = merge(task_arithmetic(base, [llm]))
    assert_close(outcome.tensors, sum_of_deltas(start, [{**start, **tuned}]))
    refused(task_arithmetic(base, [llama(0)]), "q_proj.bias")


# Names that other code than transformers' uses: (matrices of the decoder, the rest of the model).
STYLES: dict[str, tuple[list[str], list[str]]] = {
    "llava_llama": (
        ["model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.weight"],
        [
            "model.embed_tokens.weight",
            "model.norm.weight",
            "lm_head.weight",
            "model.mm_projector.0.weight",
            "model.vision_tower.vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight",
        ],
    ),
    "minicpmv": (
        ["llm.model.layers.0.mlp.up_proj.weight", "llm.model.layers.1.self_attn.q_proj.weight"],
        [
            "llm.model.embed_tokens.weight",
            "llm.lm_head.weight",
            "vpm.encoder.layers.0.mlp.fc1.weight",
            "resampler.kv_proj.weight",
            "apm.layers.0.fc1.weight",
            "audio_projection_layer.linear1.weight",
        ],
    ),
    "deepseek_vl_v2": (
        ["language.model.layers.0.mlp.up_proj.weight", "language.model.layers.1.self_attn.q_proj.weight"],
        [
            "language.model.embed_tokens.weight",
            "language.lm_head.weight",
            "vision.blocks.0.attn.qkv.weight",
            "projector.layers.0.weight",
        ],
    ),
    "ovis": (
        ["llm.model.layers.0.mlp.up_proj.weight", "llm.model.layers.1.self_attn.q_proj.weight"],
        [
            "llm.model.embed_tokens.weight",
            "llm.lm_head.weight",
            "visual_tokenizer.head.0.weight",
            "visual_tokenizer.backbone.trunk.blocks.0.attn.qkv.weight",
            "vte.weight",
        ],
    ),
    "phi3_v": (
        ["model.layers.0.mlp.gate_up_proj.weight", "model.layers.1.self_attn.qkv_proj.weight"],
        [
            "model.embed_tokens.weight",
            "lm_head.weight",
            "model.vision_embed_tokens.img_projection.0.weight",
            "model.vision_embed_tokens.img_processor.vision_model.encoder.layers.0.mlp.fc1.weight",
        ],
    ),
}


def foreign_checkpoint(style: str, seed: int) -> Path:
    """A few matrices under the names of one style, as a model type that transformers does not know."""
    path = fresh(style)
    path.mkdir()
    generator = torch.Generator().manual_seed(seed)
    names = [name for part in STYLES[style] for name in part]
    save_file({n: torch.randn(12, 12, generator=generator) for n in names}, path / "model.safetensors")
    config = {"model_type": style, "architectures": ["Custom"], "auto_map": {"AutoModel": "modeling_custom.Custom"}}
    (path / "config.json").write_text(json.dumps({**config, "vision_config": {"hidden_size": 12}}))
    (path / "modeling_custom.py").write_text("raise SystemExit('this code was run')\n")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("style", STYLES)
def test_remote_code_of_other_styles(style: str) -> None:
    base, others = foreign_checkpoint(style, 0), [foreign_checkpoint(style, seed) for seed in (1, 2, 3)]
    start = tensors(base)
    assert_same_bytes(merge(linear(base)).tensors, start)
    outcome = merge(task_arithmetic(base, others))
    assert_close(outcome.tensors, sum_of_deltas(start, [tensors(path) for path in others]))
    after = merge(with_method("optmerge", base, others)).tensors
    assert {n for n in start if not torch.equal(start[n], after[n])} == set(STYLES[style][0])


def test_a_model_type_that_nobody_knows() -> None:
    """The original LLaVA code: no auto_map, no sub-configs, a model type of its own."""
    base, others = foreign_checkpoint("llava_llama", 0), [foreign_checkpoint("llava_llama", seed) for seed in (1, 2)]
    for path in (base, *others):
        (path / "modeling_custom.py").unlink()
        config = {"model_type": "llava_llama", "architectures": ["LlavaLlamaForCausalLM"], "mm_vision_tower": "clip"}
        (path / "config.json").write_text(json.dumps(config))
    outcome = merge(task_arithmetic(base, others))
    assert_close(outcome.tensors, sum_of_deltas(tensors(base), [tensors(path) for path in others]))
