"""Adapters that hold embeddings and head whole, on models that tie the two: PEFT saves them, changed or not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from end_to_end import assert_close, checkpoint, load, merge, refused, task_arithmetic, tensors, with_method
from peft_adapters import adapted, plus, wide
from safetensors.torch import load_file, save_file

FAMILY = "gemma3"
EMBEDDINGS, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"


def embeddings() -> tuple[str, torch.Tensor]:
    """Of the base: name on disk and value, the only one that its files hold of the two."""
    return next((n, t) for n, t in tensors(checkpoint(FAMILY)).items() if "embed_tokens" in n)


def with_whole(held: dict[str, torch.Tensor], seed: int = 1) -> tuple[Path, Path]:
    """An adapter that holds these tensors whole as well, and what PEFT merges the rest of it into."""
    adapter, whole = adapted(FAMILY, seed)
    file = adapter / "adapter_model.safetensors"
    save_file(load_file(file) | {f"base_model.model.{n}": t.clone() for n, t in held.items()}, file)
    return adapter, whole


@pytest.mark.slow
@pytest.mark.parametrize("names", [[EMBEDDINGS], [HEAD], [EMBEDDINGS, HEAD]])
def test_copies_of_the_models_own_values_change_nothing(names: list[str]) -> None:
    base, (_, value) = checkpoint(FAMILY), embeddings()
    adapter, whole = with_whole(dict.fromkeys(names, value.float()))
    got = merge(task_arithmetic(base, [plus(base, adapter)], weight=1.0)).tensors
    assert_close(got, wide(tensors(whole)))


@pytest.mark.parametrize("method", ["task_arithmetic", "linear"])
def test_the_same_new_values_for_both_are_one_tensor(method: str) -> None:
    base, (name, value) = checkpoint(FAMILY), embeddings()
    adapter, _ = with_whole(dict.fromkeys([EMBEDDINGS, HEAD], value.float() + 1))
    outcome = merge(with_method(method, base, [plus(base, adapter)]))
    share = {"task_arithmetic": 0.3, "linear": 0.5}[method]
    assert torch.allclose(outcome.tensors[name], value.float() + share, atol=1e-5)
    assert load(outcome.out, "Gemma3ForConditionalGeneration").get_output_embeddings().weight.shape == value.shape


def test_new_values_for_one_of_the_two_or_different_ones_would_untie_them() -> None:
    base, (_, value) = checkpoint(FAMILY), embeddings()
    for held in ({EMBEDDINGS: value + 1}, {HEAD: value + 1}, {EMBEDDINGS: value + 1, HEAD: value + 2}):
        refused(task_arithmetic(base, [plus(base, with_whole(held)[0])]), "ties it to", "untie")
    adapter, _ = with_whole({EMBEDDINGS: value, HEAD: value + 1})
    refused(task_arithmetic(base, [plus(base, adapter)]), f"{HEAD}: the model ties it to")
