"""What the hub reads of a merge's card: the licence, where the model comes from, and what it is for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from end_to_end import checkpoint, experts, fresh, merge, task_arithmetic

from mergekit_mm.checkpoints.model_cards import Licence, Parent, licences_told, shared_licence

APACHE, LLAMA = {"license": "apache-2.0"}, {"license": "other", "license_name": "llama3", "license_link": "LICENSE"}


def carded(source: Path, card: str | dict[str, Any] | None) -> Path:
    """A copy of a model with this card: its metadata, or all of its text."""
    path = fresh(source.name)
    shutil.copytree(source, path)
    if card is not None:
        text = card if isinstance(card, str) else f"---\n{yaml.safe_dump(card)}---\n# A model\n"
        (path / "README.md").write_text(text)
    return path


def merged_card(*cards: str | dict[str, Any] | None) -> tuple[dict[str, Any], str]:
    """Metadata and text of the card of a merge of models with these cards, the base's first."""
    models = [checkpoint("llava"), *experts("llava")]
    base, *others = [carded(model, card) for model, card in zip(models, cards, strict=False)]
    _, head, body = (merge(task_arithmetic(base, others)).out / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), body


def test_a_licence_that_all_inputs_have() -> None:
    metadata, body = merged_card(LLAMA, LLAMA)
    assert {key: metadata[key] for key in LLAMA} == LLAMA
    assert "The licence of all inputs is llama3." in body


@pytest.mark.slow
@pytest.mark.parametrize("other", [LLAMA, None, {}, {"license": "unknown"}, "---\n- no: card\n---\n", "---\n{\n---\n"])
def test_a_licence_is_not_made_up(other: Any) -> None:
    metadata, body = merged_card(APACHE, other)
    assert "license" not in metadata
    told = "The licences of the inputs differ: apache-2.0" if other is LLAMA else "No licence is known of"
    assert told in body
    assert "apache-2.0 (" in body


def test_the_task_is_the_base_s_own_or_follows_from_its_media() -> None:
    assert merged_card(APACHE, APACHE)[0]["pipeline_tag"] == "image-text-to-text"
    own = {"pipeline_tag": "visual-question-answering"}
    assert merged_card(own, APACHE)[0]["pipeline_tag"] == "visual-question-answering"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "task"),
    [("qwen2_audio", "audio-text-to-text"), ("qwen2_5_omni", "any-to-any"), ("qwen2_vl", "image-text-to-text")],
)
def test_the_task_of_other_media(family: str, task: str) -> None:
    outcome = merge(task_arithmetic(checkpoint(family), experts(family)[:1]))
    assert f"pipeline_tag: {task}\n" in (outcome.out / "README.md").read_text()


def test_licences_by_name() -> None:
    mit, named = Licence("mit"), Licence("other", None, "https://example.org/terms")
    parents = [Parent("a", True, mit), Parent("b", True, mit), Parent("c", True, named)]
    assert licences_told(parents) == "The licences of the inputs differ: https://example.org/terms (c); mit (a, b)."
    assert shared_licence(parents) is None
    assert shared_licence(parents[:2]) == mit
    assert (
        licences_told([*parents[:2], Parent("d", True, None)]) == "No licence is known of d; of the others: mit (a, b)."
    )
