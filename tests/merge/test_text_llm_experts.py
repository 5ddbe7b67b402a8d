"""A text-only fine-tune of the backbone goes into the multimodal model around it, and the other way round."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import zoo
from end_to_end import (
    WEIGHT,
    Tensors,
    altered,
    assert_close,
    assert_same_bytes,
    checkpoint,
    edit_json,
    linear,
    load,
    logits,
    merge,
    refused,
    save_model,
    sum_of_deltas,
    task_arithmetic,
    tensors,
    with_method,
)

# family -> (class of the text-only twin, its model type, what its config needs beyond the decoder's)
TWINS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llava": ("LlamaForCausalLM", "llama", {}),
    "llava_qwen2": ("Qwen2ForCausalLM", "qwen2", {}),
    "qwen2_vl": ("Qwen2ForCausalLM", "qwen2", {"rope_parameters": zoo.rope()}),
    "qwen2_5_vl": ("Qwen2ForCausalLM", "qwen2", {"rope_parameters": zoo.rope()}),
    "internvl": ("Qwen2ForCausalLM", "qwen2", {}),
    "qwen3_vl": ("Qwen3ForCausalLM", "qwen3", {"rope_parameters": zoo.rope()}),
    "gemma3": ("Gemma3ForCausalLM", "gemma3_text", {}),
    "mistral3": ("MistralForCausalLM", "mistral", {}),
    "smolvlm": ("LlamaForCausalLM", "llama", {}),
    "voxtral": ("LlamaForCausalLM", "llama", {}),
    "qwen2_5_omni_thinker": ("Qwen2ForCausalLM", "qwen2", {"rope_parameters": zoo.rope()}),
    "mllama": ("LlamaForCausalLM", "llama", {"num_hidden_layers": 2}),
}
# how the decoder and the head are called on disk
ON_DISK: dict[tuple[str, str], tuple[str, str]] = {
    ("llava", "plain"): ("language_model.model.", "language_model.lm_head."),
    ("llava", "hub"): ("language_model.model.", "language_model.lm_head."),
    ("llava", "memory"): ("model.language_model.", "lm_head."),
    ("llava_qwen2", "hub"): ("language_model.model.", "language_model.lm_head."),
    ("qwen2_vl", "plain"): ("model.", "lm_head."),
    ("qwen2_vl", "memory"): ("model.language_model.", "lm_head."),
    ("qwen2_5_vl", "plain"): ("model.", "lm_head."),
    ("internvl", "plain"): ("language_model.model.", "language_model.lm_head."),
    ("qwen3_vl", "plain"): ("model.language_model.", "lm_head."),
    ("gemma3", "hub"): ("language_model.model.", ""),
    ("mistral3", "plain"): ("language_model.model.", "language_model.lm_head."),
    ("smolvlm", "plain"): ("model.text_model.", ""),
    ("voxtral", "memory"): ("model.language_model.", "lm_head."),
    ("qwen2_5_omni_thinker", "hub"): ("thinker.model.", "thinker.lm_head."),
    ("mllama", "plain"): ("language_model.model.", "language_model.lm_head."),
    ("mllama", "memory"): ("model.language_model.", "lm_head."),
}
# layer -> layer in the twin, where the decoder has others between them: here of cross-attention to the image
IN_TWIN: dict[str, dict[str, str]] = {"mllama": {"0": "0", "2": "1"}}


def decoder_of(family: str, layout: str, path: Path) -> Tensors:
    """The decoder of a multimodal checkpoint under the names of its text-only twin."""
    return {twin: t for name, t in tensors(path).items() if (twin := name_in_twin(family, layout, name))}


def name_in_twin(family: str, layout: str, name: str) -> str | None:
    decoder, head = ON_DISK[family, layout]
    if head and name.startswith(head):
        return "lm_head." + name.removeprefix(head)
    if not name.startswith(decoder):
        return None
    place = "model." + name.removeprefix(decoder)
    layer = re.match(r"model\.layers\.(\d+)\.(.+)", place)
    if layer is None or family not in IN_TWIN:
        return place
    return f"model.layers.{IN_TWIN[family][layer[1]]}.{layer[2]}" if layer[1] in IN_TWIN[family] else None


def as_long(expert: Tensors, base: Tensors) -> Tensors:
    """The expert's tensors; the base's where the expert has more or fewer tokens."""
    return {n: expert[n] if expert[n].shape == value.shape else value for n, value in base.items()}


def text_llm(family: str, layout: str = "plain", seed: int = 1, **over: Any) -> Path:
    """A text-only LLM: the decoder of the base, fine-tuned (0.01 of noise), saved by transformers."""
    cls, model_type, more = TWINS[family]
    decoder = zoo.FAMILIES[family].config().get_text_config()
    known = {k: v for k, v in decoder.to_dict().items() if k not in {"model_type", "architectures", "dtype"}}
    config = transformers.AutoConfig.for_model(model_type, **{**known, **more, **over})
    torch.manual_seed(seed)
    model = getattr(transformers, cls)(config).float().eval()
    start = decoder_of(family, layout, checkpoint(family, layout))
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name in start and start[name].shape == tensor.shape:
                tensor.copy_(start[name] + 0.01 * torch.randn(tensor.shape))
    return save_model(model, vocab=over.get("vocab_size", zoo.VOCAB))


def assert_towers_kept(outcome: Tensors, family: str, layout: str) -> None:
    base = tensors(checkpoint(family, layout))
    towers = {n for n in base if name_in_twin(family, layout, n) is None}
    assert towers
    assert_same_bytes({n: outcome[n] for n in towers}, {n: base[n] for n in towers})


@pytest.mark.slow
@pytest.mark.parametrize(("family", "layout"), ON_DISK)
def test_into_the_multimodal_model(family: str, layout: str) -> None:
    llm = text_llm(family, layout)
    outcome = merge(task_arithmetic(checkpoint(family, layout), [llm]))
    assert outcome.tensors.keys() == tensors(checkpoint(family, layout)).keys()
    before, expert = decoder_of(family, layout, checkpoint(family, layout)), tensors(llm)
    assert_close(decoder_of(family, layout, outcome.out), sum_of_deltas(before, [as_long(expert, before)]))
    assert_towers_kept(outcome.tensors, family, layout)


@pytest.mark.parametrize(
    ("family", "layout"), [("llava", "hub"), ("qwen2_vl", "plain"), ("internvl", "plain"), ("gemma3", "hub")]
)
def test_at_weight_one_it_speaks_like_the_llm_and_sees_like_the_mllm(family: str, layout: str) -> None:
    llm = text_llm(family, layout)
    outcome = merge(task_arithmetic(checkpoint(family, layout), [llm], weight=1.0))
    merged = load(outcome.out, zoo.FAMILIES[family].cls)
    alone = load(llm, TWINS[family][0])
    prompt = zoo.prompt(20, 30, 40)
    assert torch.allclose(logits(merged, prompt), logits(alone, prompt), atol=1e-4)
    media = zoo.FAMILIES[family].media
    assert media is not None
    assert torch.isfinite(logits(merged, media())).all()


def test_beside_a_multimodal_expert() -> None:
    """Both move the decoder, only one of them the towers."""
    base, other = checkpoint("llava", "hub"), checkpoint("llava", "memory", "expert_0")
    llm = text_llm("llava", "hub")
    got = merge(task_arithmetic(base, [llm, other])).tensors
    start, twin = tensors(base), tensors(checkpoint("llava", "hub", "expert_0"))
    decoder, head = ON_DISK["llava", "hub"]
    text = {
        n: tensors(llm)[n.replace(decoder, "model.").replace(head, "lm_head.")] if n.startswith((decoder, head)) else v
        for n, v in start.items()
    }
    assert_close(got, sum_of_deltas(start, [twin, text]))


@pytest.mark.slow
@pytest.mark.parametrize(("family", "layout"), [("llava", "hub"), ("qwen2_vl", "plain")])
@pytest.mark.parametrize("method", ["linear", "ties", "optmerge"])
def test_by_other_methods(method: str, family: str, layout: str) -> None:
    """Two text-only fine-tunes into one model; what they cannot know comes from the base."""
    base = checkpoint(family, layout)
    llms = [text_llm(family, layout, seed) for seed in (1, 2)]
    config = with_method(method, base, llms)
    if method == "linear":
        config = linear(base, *llms, dtype="float32")
    got = merge(config)
    assert_towers_kept(got.tensors, family, layout)
    before, after = decoder_of(family, layout, base), decoder_of(family, layout, got.out)
    for name in ("model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.weight"):
        assert not torch.equal(before[name], after[name]), name
    if method == "linear":
        parts = [before, *(tensors(llm) for llm in llms)]
        assert_close(after, {n: torch.stack([p[n].double() for p in parts]).mean(0) for n in before})


def test_a_tied_head_stands_for_itself() -> None:
    """The fine-tune has one matrix for embeddings and head, the multimodal model two."""
    llm = text_llm("llava_qwen2", "hub", tie_word_embeddings=True)
    expert = tensors(llm)
    assert "lm_head.weight" not in expert
    expert["lm_head.weight"] = expert["model.embed_tokens.weight"]
    outcome = merge(task_arithmetic(checkpoint("llava_qwen2", "hub"), [llm]))
    before = decoder_of("llava_qwen2", "hub", checkpoint("llava_qwen2", "hub"))
    assert_close(decoder_of("llava_qwen2", "hub", outcome.out), sum_of_deltas(before, [expert]))


# ------------------------------------------------------------------------- layers that the text LLM does not have


def test_between_layers_of_cross_attention() -> None:
    """At weight one it speaks like the LLM with the base's embeddings, whose image token the LLM does not know."""
    llm = text_llm("mllama")
    outcome = merge(task_arithmetic(checkpoint("mllama"), [llm], weight=1.0))
    assert "Layers 1, 3 of" in outcome.said
    merged, alone = load(outcome.out, "MllamaForConditionalGeneration"), load(llm, "LlamaForCausalLM")
    alone.model.embed_tokens.weight.data = tensors(outcome.out)["language_model.model.embed_tokens.weight"]
    prompt = zoo.prompt(20, 30, 40)
    assert torch.allclose(logits(merged, prompt), logits(alone, prompt), atol=1e-4)
    image = {
        "pixel_values": torch.rand(1, 1, 4, 3, 28, 28),
        "aspect_ratio_ids": torch.ones(1, 1, dtype=torch.long),
        "aspect_ratio_mask": torch.ones(1, 1, 4, dtype=torch.long),
        "cross_attention_mask": torch.ones(1, prompt["input_ids"].shape[1], 1, 4),
    }
    seen = logits(merged, {**prompt, **image})
    assert torch.isfinite(seen).all()
    assert not torch.allclose(seen, logits(merged, prompt))


def test_a_multimodal_expert_moves_them_and_gradients_count_them() -> None:
    """The weight of the text LLM grows over all four layers of the base; layers 1 and 3 have one expert."""
    base, seeing, llm = checkpoint("mllama"), checkpoint("mllama", "plain", "expert_0"), text_llm("mllama")
    config = task_arithmetic(base, [llm, seeing])
    config["models"][0]["parameters"] = {"weight": [0.0, 1.0]}
    got, start, moved, spoken = merge(config).tensors, tensors(base), tensors(seeing), tensors(llm)
    for layer in range(4):
        name = f"language_model.model.layers.{layer}.mlp.up_proj.weight"
        expected = start[name] + WEIGHT * (moved[name] - start[name])
        if twin := IN_TWIN["mllama"].get(str(layer)):
            expected += layer / 3 * (spoken[f"model.layers.{twin}.mlp.up_proj.weight"] - start[name])
        assert_close({name: got[name]}, {name: expected})


def test_a_decoder_of_its_own_kind_has_them_too() -> None:
    """The text half of Mllama, saved by itself: all that it has is merged."""
    torch.manual_seed(1)
    half = transformers.MllamaForCausalLM(zoo.mllama().text_config)
    llm, base = save_model(half), checkpoint("mllama")
    start, expert = tensors(base), tensors(llm)
    prefix = "language_model."
    whole = {n: expert[n.removeprefix(prefix)] if n.startswith(prefix) else value for n, value in start.items()}
    assert_close(merge(task_arithmetic(base, [llm])).tensors, sum_of_deltas(start, [whole]))


# ------------------------------------------------------------------------------------------------- vocabulary

VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "layout"), [("llava", "plain"), ("llava", "memory"), ("qwen2_vl", "plain"), ("internvl", "plain")]
)
@pytest.mark.parametrize("rows", [280, 316])
def test_another_vocabulary_size_keeps_the_bases(family: str, layout: str, rows: int) -> None:
    llm = text_llm(family, layout, vocab_size=rows)
    outcome = merge(task_arithmetic(checkpoint(family, layout), [llm]))
    before = decoder_of(family, layout, checkpoint(family, layout))
    after, expert = decoder_of(family, layout, outcome.out), tensors(llm)
    assert_same_bytes({n: after[n] for n in VOCABULARY}, {n: before[n] for n in VOCABULARY})
    rest = {n: v for n, v in before.items() if n not in VOCABULARY}
    assert_close({n: after[n] for n in rest}, sum_of_deltas(rest, [expert]))
    assert "embed_tokens" in outcome.said
    assert str(rows) in outcome.said
    assert "lm_head" in outcome.said
    load(outcome.out, zoo.FAMILIES[family].cls)


def test_a_tokenizer_section_merges_the_vocabularies() -> None:
    """The first 300 tokens have the same names in both, so their rows are merged; the fine-tune's own are left out."""
    llm = text_llm("llava", vocab_size=316)
    expert = {n: v[:300] if n in VOCABULARY else v for n, v in tensors(llm).items()}
    config = task_arithmetic(checkpoint("llava"), [llm], tokenizer={"source": "base"})
    outcome = merge(config)
    before = decoder_of("llava", "plain", checkpoint("llava"))
    assert_close(decoder_of("llava", "plain", outcome.out), sum_of_deltas(before, [expert]))
    assert_towers_kept(outcome.tensors, "llava", "plain")
    load(outcome.out, "LlavaForConditionalGeneration")


def test_a_union_of_vocabularies() -> None:
    """The result knows the fine-tune's own tokens as well: embeddings, config and tokenizer have grown together."""
    llm = text_llm("llava", vocab_size=316)
    outcome = merge(task_arithmetic(checkpoint("llava"), [llm], tokenizer={"source": "union"}))
    model = load(outcome.out, "LlavaForConditionalGeneration")
    assert model.get_input_embeddings().weight.shape[0] == model.get_output_embeddings().weight.shape[0] == 316
    assert model.config.text_config.vocab_size == 316
    assert len(transformers.AutoTokenizer.from_pretrained(outcome.out)) == 316
    got = decoder_of("llava", "plain", outcome.out)
    shared = {n: t[:300] if n in VOCABULARY else t for n, t in got.items()}
    expert = {n: t[:300] if n in VOCABULARY else t for n, t in tensors(llm).items()}
    assert_close(shared, sum_of_deltas(decoder_of("llava", "plain", checkpoint("llava")), [expert]))


@pytest.mark.parametrize("flags", [(), ("--unsafe-truncate-embeddings",)])
def test_a_head_without_the_image_token(flags: tuple[str, ...]) -> None:
    """Embeddings and head of Mllama differ in length, and so could not follow one new vocabulary."""
    section: dict[str, Any] = {} if flags else {"tokenizer": {"source": "base"}}
    base = checkpoint("mllama")
    refused(task_arithmetic(base, [text_llm("mllama")], **section), str(base), "different lengths", flags=flags)


# --------------------------------------------------------------------------------------------------- refusals


def error_of(config: dict[str, Any]) -> str:
    error = refused(config).error
    assert "allow-crimes" not in error
    return error


@pytest.mark.parametrize(("family", "layout"), [("llava", "hub"), ("qwen2_vl", "plain"), ("internvl", "plain")])
def test_a_wider_backbone(family: str, layout: str) -> None:
    llm = text_llm(family, layout, intermediate_size=96)
    error = error_of(task_arithmetic(checkpoint(family, layout), [llm]))
    for part in (str(llm), "layers.0.mlp.up_proj.weight", "layers.1.mlp.down_proj.weight", "(96, 64)", "(128, 64)"):
        assert part in error


@pytest.mark.parametrize("family", ["llava", "mllama"])
def test_a_deeper_backbone(family: str) -> None:
    llm = text_llm(family, num_hidden_layers=3)
    error = error_of(task_arithmetic(checkpoint(family), [llm]))
    assert str(llm) in error
    assert "layers.2." in error


def test_a_shallower_backbone() -> None:
    llm = text_llm("llava", num_hidden_layers=1)
    error = error_of(task_arithmetic(checkpoint("llava"), [llm]))
    assert str(llm) in error
    assert "layers.1." in error


def test_another_backbone_altogether() -> None:
    """Qwen2 has biases that Llama lacks: nothing is merged by halves."""
    llm = text_llm("llava_qwen2", "hub")
    error = error_of(task_arithmetic(checkpoint("llava"), [llm]))
    assert str(llm) in error
    assert "q_proj.bias" in error


def test_equal_shapes_that_compute_otherwise() -> None:
    """The heads divide the same matrices another way: refused. Rotary positions of another base: told."""
    halved = text_llm("llava", num_attention_heads=8, num_key_value_heads=4, head_dim=8)
    error = error_of(task_arithmetic(checkpoint("llava"), [halved]))
    assert f"num_attention_heads 8 in {halved}, 4 in {checkpoint('llava')}" in error
    turned = text_llm("llava", rope_parameters={"rope_type": "default", "rope_theta": 123.0})
    assert "123.0" in merge(task_arithmetic(checkpoint("llava"), [turned])).said


# ------------------------------------------------------------------------------------------------ and back


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "layout"),
    [
        ("llava", "plain"),
        ("llava", "hub"),
        ("llava", "memory"),
        ("qwen2_vl", "plain"),
        ("internvl", "plain"),
        ("mllama", "plain"),
        ("mllama", "memory"),
    ],
)
def test_a_multimodal_expert_into_a_text_llm(family: str, layout: str) -> None:
    base = text_llm(family, layout)
    expert = checkpoint(family, layout, "expert_0")
    outcome = merge(task_arithmetic(base, [expert]))
    start = tensors(base)
    assert_close(outcome.tensors, sum_of_deltas(start, [as_long(decoder_of(family, layout, expert), start)]))
    load(outcome.out, TWINS[family][0])
    assert "not used" in outcome.said or "language model" in outcome.said


def test_both_ways_at_once() -> None:
    """A text LLM as base, another and a multimodal model as experts."""
    base, sibling = text_llm("llava", seed=1), text_llm("llava", seed=2)
    expert = checkpoint("llava", "hub", "expert_1")
    got = merge(task_arithmetic(base, [sibling, expert])).tensors
    assert_close(got, sum_of_deltas(tensors(base), [tensors(sibling), decoder_of("llava", "hub", expert)]))


@pytest.mark.slow
def test_without_a_base_model_the_first_one_gives_the_shape() -> None:
    """`linear` has no base: the first model listed decides what comes out."""
    llm, mllm = text_llm("llava"), checkpoint("llava")
    a = merge(linear(mllm, llm, dtype="float32"))
    assert_towers_kept(a.tensors, "llava", "plain")
    b = merge(linear(llm, mllm, dtype="float32"))
    assert b.tensors.keys() == tensors(llm).keys()
    assert_close(b.tensors, decoder_of("llava", "plain", a.out))


def test_old_llm_names_without_a_prefix() -> None:
    """A fine-tune saved from the bare decoder (`LlamaModel`, no `model.`, no head) fits as well."""
    full = text_llm("llava")
    bare = altered(
        full,
        lambda found: {n.removeprefix("model."): v for n, v in found.items() if not n.startswith("lm_head.")},
    )
    edit_json(bare / "config.json", architectures=["LlamaModel"])
    got = merge(task_arithmetic(checkpoint("llava"), [bare]))
    before = decoder_of("llava", "plain", checkpoint("llava"))
    expert = {**tensors(full), "lm_head.weight": before["lm_head.weight"]}
    assert_close(decoder_of("llava", "plain", got.out), sum_of_deltas(before, [expert]))


def test_weights_are_the_configs() -> None:
    """WEIGHT is what the oracle above assumes; a different one gives a different model."""
    llm = text_llm("llava")
    name = "language_model.model.layers.0.mlp.up_proj.weight"
    some = merge(task_arithmetic(checkpoint("llava"), [llm], weight=WEIGHT)).tensors[name]
    more = merge(task_arithmetic(checkpoint("llava"), [llm], weight=2 * WEIGHT)).tensors[name]
    assert not torch.allclose(some, more, atol=1e-4)
