"""Merging one model with weight 1 gives that model back: every bit, under the same names, and it loads.

Every family of the zoo, in every layout its checkpoints come in.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import transformers
import zoo
from end_to_end import (
    Outcome,
    altered,
    assert_names,
    assert_same_bytes,
    checkpoint,
    every_layout,
    linear,
    load,
    logits,
    merge,
    save_model,
    side_files,
    tensors,
    text_inputs,
)

pytestmark = pytest.mark.long


@functools.cache
def identity(family: str, layout: str) -> Outcome:
    return merge(linear(checkpoint(family, layout)))


@functools.cache
def asked(family: str) -> tuple[dict[str, Any], torch.Tensor, dict[str, Any] | None, torch.Tensor | None]:
    """A prompt and a base's logits for it; a prompt with media, and the logits for that. Its layouts answer alike."""
    model, media = load(checkpoint(family), zoo.FAMILIES[family].cls), zoo.FAMILIES[family].media
    text = text_inputs(model, family)
    if media is None:
        return text, logits(model, text), None, None
    seen = media()
    changed = {k: v * 2 + 1 if v.is_floating_point() else v for k, v in seen.items()}
    expected = logits(model, seen)
    assert not torch.allclose(expected, logits(model, changed), atol=1e-4), "the media do not reach the model"
    return text, logits(model, text), seen, expected


@pytest.mark.parametrize(("family", "layout"), every_layout())
def test_every_bit_comes_back(family: str, layout: str) -> None:
    assert_same_bytes(identity(family, layout).tensors, tensors(checkpoint(family, layout)))


@pytest.mark.parametrize(("family", "layout"), every_layout())
def test_side_files_come_along(family: str, layout: str) -> None:
    expected = side_files(checkpoint(family, layout))
    got = side_files(identity(family, layout).out)
    wrong = [name for name, content in expected.items() if got.get(name) != content]
    assert not wrong, f"lost or changed: {wrong}"


@pytest.mark.parametrize(("family", "layout"), every_layout())
def test_output_loads_and_answers_alike(family: str, layout: str) -> None:
    """The same logits, for a prompt and for a prompt with an image or a sound in it."""
    if family == "llama4" and transformers.__version__ == "5.24.0":
        pytest.skip("the forward of Llama 4 ends in an error of transformers 5.24.0, whatever the checkpoint")
    text, answer, seen, answer_to_media = asked(family)
    after = load(identity(family, layout).out, zoo.FAMILIES[family].cls)
    assert torch.equal(logits(after, text), answer)
    if seen is not None:
        assert torch.equal(logits(after, seen), answer_to_media)


def test_most_families_are_shown_something() -> None:
    """The models tested with an image or a sound, and every kind of input among them."""
    shown = {name: media() for name, family in zoo.FAMILIES.items() if (media := family.media)}
    assert len(shown) >= 45
    assert {"pixel_values", "pixel_values_videos", "input_features"} <= {k for inputs in shown.values() for k in inputs}


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "internvl", "granite_speech", "gemma4_infinite", "kimi_k25"])
def test_a_dtype_leaves_float32_and_integers_alone(family: str) -> None:
    source = checkpoint(family)
    assert_same_bytes(merge(linear(source, dtype="float32")).tensors, tensors(source))


def test_integer_and_infinite_buffers_are_covered() -> None:
    """The zoo has what the two rules are about."""
    counters = [v for v in tensors(checkpoint("granite_speech")).values() if v.dtype == torch.int64]
    assert counters
    assert all((v == zoo.BATCHES_TRACKED).all() and v.float().long().ne(v).all() for v in counters)
    assert any(v.isinf().any() for v in tensors(checkpoint("gemma4_infinite")).values() if v.is_floating_point())


def test_a_speech_model() -> None:
    """No multimodal LLM to transformers, but mergekit alone ends with an error or loses tensors of such a model."""
    config = transformers.WhisperConfig(
        vocab_size=zoo.VOCAB,
        num_mel_bins=16,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_source_positions=60,
        max_target_positions=60,
        pad_token_id=zoo.PAD,
        bos_token_id=zoo.BOS,
        eos_token_id=zoo.EOS,
        decoder_start_token_id=zoo.BOS,
    )
    source = save_model(transformers.WhisperForConditionalGeneration(config))
    outcome = merge(linear(source))
    assert_same_bytes(outcome.tensors, tensors(source))
    load(outcome.out, "WhisperForConditionalGeneration")


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl_moe"])
def test_bfloat16_comes_back_bit_for_bit(family: str) -> None:
    half = altered(checkpoint(family), lambda found: {k: v.bfloat16() for k, v in found.items()}, dtype="bfloat16")
    assert_same_bytes(merge(linear(half)).tensors, tensors(half))


@pytest.mark.parametrize("family", ["llava", "qwen3_5", "video_llava"])
def test_small_shards(family: str) -> None:
    source = checkpoint(family)
    outcome = merge(linear(source), "--out-shard-size", "200K")
    assert len(list(outcome.out.glob("*.safetensors"))) > 1
    assert_same_bytes(outcome.tensors, tensors(source))
    load(outcome.out, zoo.FAMILIES[family].cls)


def test_a_tensor_tied_on_load_may_be_on_disk_as_well() -> None:
    """Some published checkpoints store a tied lm_head beside the embeddings."""
    source = checkpoint("gemma3", "memory")
    name = next(n for n in tensors(source) if n.endswith("embed_tokens.weight"))
    both = altered(source, lambda found: {**found, "lm_head.weight": found[name].clone()})
    outcome = merge(linear(both))
    assert_names(outcome.tensors.keys() | {"lm_head.weight"}, tensors(both))
    load(outcome.out, "Gemma3ForConditionalGeneration")
