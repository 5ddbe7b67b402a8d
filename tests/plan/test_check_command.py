"""What the merge would refuse in the end is refused by `mergekit-mm check`, and nothing ends in a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from end_to_end import (
    assert_same_bytes,
    checkpoint,
    experts,
    linear,
    load,
    merge,
    plugin,
    refused,
    save_model,
    task_arithmetic,
    tensors,
    written,
)


def check(config: dict[str, Any]) -> tuple[int, str]:
    """Exit code and output of `mergekit-mm check`, which never ends in a traceback."""
    result = plugin("check", written(config))
    assert isinstance(result.exception, SystemExit | None), repr(result.exception)
    return result.exit_code, result.output


def slices(base: Path, *ranges: tuple[int, int]) -> dict[str, Any]:
    parts = [{"sources": [{"model": str(base), "layer_range": list(r)}]} for r in ranges]
    return {
        "merge_method": "passthrough",
        "base_model": str(base),
        "modules": {"language_model": {"slices": parts}},
    }


@pytest.mark.slow
@pytest.mark.parametrize("ranges", [((0, 4), (0, 4)), ((0, 2), (1, 4))])
def test_repeated_layers_of_cross_attention(ranges: tuple[tuple[int, int], ...]) -> None:
    """Llama 3.2 Vision lists these layers by number, and the list follows the layers."""
    config = slices(checkpoint("mllama"), *ranges)
    assert check(config)[0] == 0
    order = [i for low, high in ranges for i in range(low, high)]
    out = merge(config).out
    model, before = (load(p, "MllamaForConditionalGeneration").get_decoder() for p in (out, checkpoint("mllama")))
    own = before.config.cross_attention_layers
    assert model.config.cross_attention_layers == [new for new, old in enumerate(order) if old in own]
    for new, old in enumerate(order):
        assert_same_bytes(model.layers[new].state_dict(), before.layers[old].state_dict())


@pytest.mark.parametrize(
    ("family", "ranges"),
    [("gemma4", ((0, 4), (0, 4))), ("gemma3n", ((0, 1),)), ("florence2", ((0, 2), (0, 2))), ("kosmos2_5", ((1, 2),))],
)
def test_slices_of_which_transformers_makes_no_model(family: str, ranges: tuple[tuple[int, int], ...]) -> None:
    """Some families have tensors for all layers together, or count their layers where the config does not follow."""
    config = slices(checkpoint(family), *ranges)
    code, told = check(config)
    assert code == 1
    order = [i for low, high in ranges for i in range(low, high)]
    assert f"Layers {order} of {checkpoint(family)}, which the slices ask for, make no model" in told
    refused(config, "which the slices ask for, make no model")


def test_slices_of_an_omni_model_are_checked_with_it() -> None:
    host, guest = checkpoint("llava"), checkpoint("qwen2_audio_llama")
    sources = [{"model": str(m), "layer_range": [0, 2], "parameters": {"weight": 0.5}} for m in (host, guest)]
    config = {"merge_method": "linear", "modules": {"language_model": {"slices": [{"sources": sources}] * 2}}}
    assert check(config)[0] == 0
    config["parameters"] = {"composition": "dampc"}
    assert check(config)[0] == 1


def test_the_size_of_a_new_vocabulary_is_known() -> None:
    config = task_arithmetic(
        checkpoint("llava"), experts("llava")[:1], tokenizer={"source": "union", "pad_to_multiple_of": 64}
    )
    assert check(config)[0] == 0
    out = merge(config).out
    rows = next(t.shape[0] for n, t in tensors(out).items() if n.endswith("embed_tokens.weight"))
    assert rows % 64 == 0
    assert json.loads((out / "config.json").read_text())["text_config"]["vocab_size"] == rows
    load(out, "LlavaForConditionalGeneration")


# --------------------------------------------------------------------------------------------- pairs of families


def thinker() -> Path:
    """The part of a full Omni model that takes text and media, saved by itself."""
    whole = load(checkpoint("qwen3_omni_moe"), "Qwen3OmniMoeForConditionalGeneration")
    return save_model(whole.thinker)


@pytest.mark.slow
def test_a_full_omni_model_with_its_own_part() -> None:
    for base, other in ((checkpoint("qwen3_omni_moe"), thinker()), (thinker(), checkpoint("qwen3_omni_moe"))):
        check(task_arithmetic(base, [other]))
        check(linear(base, other))


# one of each kind: with a decoder, an encoder and a decoder, remote vocabularies, mixtures, audio, the full Omni models
KINDS = ["llava", "florence2", "voxtral", "qwen2_5_omni", "qwen3_omni_moe", "mllama", "gemma4", "phi4_multimodal"]


@pytest.mark.slow
@pytest.mark.parametrize("base", KINDS)
def test_no_pair_of_families_ends_in_a_traceback(base: str) -> None:
    known = [family for family in KINDS if family in zoo.FAMILIES]
    for other in known:
        if other != base:
            for config in (
                task_arithmetic(checkpoint(base), experts(other)[:1]),
                linear(checkpoint(base), experts(other)[0]),
            ):
                code, told = check(config)
                assert told.strip()
                assert code in (0, 1)


def test_an_encoder_decoder_is_no_host() -> None:
    code, told = check(task_arithmetic(checkpoint("florence2"), experts("voxtral")[:1]))
    assert code == 1
    assert "has no decoder with embeddings of its own" in told
    assert str(checkpoint("florence2")) in told


def test_check_reads_no_weights_of_a_pair_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    from mergekit.io.lazy_tensor_loader import LazyTensorLoader

    def get_tensor(*_args: object, **_kwargs: object) -> torch.Tensor:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(LazyTensorLoader, "get_tensor", get_tensor)
    assert check(task_arithmetic(checkpoint("llava"), experts("llava")))[0] == 0
