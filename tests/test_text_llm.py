"""A text-only fine-tune of the backbone goes into the multimodal model around it, and the other way round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import zoo
from checkpoints import (
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
}


def decoder_of(family: str, layout: str, path: Path) -> Tensors:
    """The decoder of a multimodal checkpoint under the names of its text-only twin."""
    decoder, head = ON_DISK[family, layout]
    found = {}
    for name, tensor in tensors(path).items():
        if head and name.startswith(head):
            found["lm_head." + name.removeprefix(head)] = tensor
        elif name.startswith(decoder):
            found["model." + name.removeprefix(decoder)] = tensor
    return found


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
    decoder, head = ON_DISK[family, layout]
    base = tensors(checkpoint(family, layout))
    towers = {n for n in base if not n.startswith(decoder) and not (head and n.startswith(head))}
    if decoder == "model.":  # this layout tells a tower by its own first word
        towers = {n for n in base if n.startswith(("visual.", "audio_tower."))}
    assert towers
    assert_same_bytes({n: outcome[n] for n in towers}, {n: base[n] for n in towers})


@pytest.mark.parametrize(("family", "layout"), ON_DISK)
def test_into_the_multimodal_model(family: str, layout: str) -> None:
    llm = text_llm(family, layout)
    outcome = merge(task_arithmetic(checkpoint(family, layout), [llm]))
    assert outcome.tensors.keys() == tensors(checkpoint(family, layout)).keys()
    before, expert = decoder_of(family, layout, checkpoint(family, layout)), tensors(llm)
    assert_close(decoder_of(family, layout, outcome.out), sum_of_deltas(before, [expert]))
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


# ------------------------------------------------------------------------------------------------- vocabulary

VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")


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


def test_a_deeper_backbone() -> None:
    llm = text_llm("llava", num_hidden_layers=3)
    error = error_of(task_arithmetic(checkpoint("llava"), [llm]))
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


@pytest.mark.parametrize(
    ("family", "layout"),
    [("llava", "plain"), ("llava", "hub"), ("llava", "memory"), ("qwen2_vl", "plain"), ("internvl", "plain")],
)
def test_a_multimodal_expert_into_a_text_llm(family: str, layout: str) -> None:
    base = text_llm(family, layout)
    expert = checkpoint(family, layout, "expert_0")
    outcome = merge(task_arithmetic(base, [expert]))
    assert_close(outcome.tensors, sum_of_deltas(tensors(base), [decoder_of(family, layout, expert)]))
    load(outcome.out, TWINS[family][0])
    assert "not used" in outcome.said or "language model" in outcome.said


def test_both_ways_at_once() -> None:
    """A text LLM as base, another and a multimodal model as experts."""
    base, sibling = text_llm("llava", seed=1), text_llm("llava", seed=2)
    expert = checkpoint("llava", "hub", "expert_1")
    got = merge(task_arithmetic(base, [sibling, expert])).tensors
    assert_close(got, sum_of_deltas(tensors(base), [tensors(sibling), decoder_of("llava", "hub", expert)]))


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
