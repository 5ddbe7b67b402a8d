"""`tokenizer:` in a config of multimodal models; these have its size where mergekit does not look."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import zoo
from checkpoints import (
    altered,
    assert_nothing_left,
    checkpoint,
    edit_json,
    experts,
    fresh,
    linear,
    load,
    merge,
    refused,
    run,
    task_arithmetic,
    tensors,
)
from click.testing import CliRunner

from mergekit_mm.cli import main as cli

ROWS = 316


def grown(source: Path, *tokens: str) -> Path:
    """The checkpoint with tokens of its own, and more rows than it has tokens."""

    def grow(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        new = torch.arange((ROWS - zoo.VOCAB) * zoo.HIDDEN).reshape(-1, zoo.HIDDEN) / 1000
        return {n: torch.cat([t, new.to(t)]) if t.shape == (zoo.VOCAB, zoo.HIDDEN) else t for n, t in found.items()}

    path = altered(source, grow)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    tokenizer.add_tokens(list(tokens))
    tokenizer.save_pretrained(path)
    config = json.loads((path / "config.json").read_text())
    for part in (config, config.get("text_config", {})):
        if "vocab_size" in part:
            part["vocab_size"] = ROWS
    (path / "config.json").write_text(json.dumps(config))
    return path


def vocabulary(path: Path) -> dict[str, int]:
    found: dict[str, int] = transformers.AutoTokenizer.from_pretrained(path).get_vocab()
    return found


def embeddings(path: Path) -> torch.Tensor:
    return next(tensor for name, tensor in tensors(path).items() if name.endswith("embed_tokens.weight"))


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "qwen2_5_vl", "gemma3"])
def test_a_union_has_the_experts_tokens(family: str) -> None:
    expert = grown(experts(family)[0], "<plus>", "<minus>")
    outcome = merge(task_arithmetic(checkpoint(family), [expert], weight=1.0, tokenizer={"source": "union"}))
    found, own = vocabulary(outcome.out), vocabulary(expert)
    assert found.keys() == own.keys()
    load(outcome.out, zoo.FAMILIES[family].cls)
    got, expected = embeddings(outcome.out), embeddings(expert)
    for token in ("<plus>", "<minus>"):
        assert torch.allclose(got[found[token]], expected[own[token]], atol=1e-6)


def test_tokens_without_a_row() -> None:
    """A tokenizer that knows more tokens than the model has rows."""
    path = altered(checkpoint("llava"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    tokenizer.add_tokens(["<plus>"])
    tokenizer.save_pretrained(path)
    outcome = merge(linear(path, tokenizer={"source": "base"}))
    assert vocabulary(outcome.out) == vocabulary(checkpoint("llava"))


def test_a_tokenizer_that_mergekit_cannot_rebuild() -> None:
    path = altered(checkpoint("llava"))
    known = json.loads((path / "tokenizer.json").read_text())
    words = {**known["model"]["vocab"], "without a row": 9999}
    edit_json(path / "tokenizer.json", model={"type": "WordLevel", "vocab": words, "unk_token": next(iter(words))})
    refused(linear(path, tokenizer={"source": "base"}), str(path), "only BPE is currently supported")


def test_without_a_base_model_the_first_input_gives_the_tokenizer() -> None:
    """And not the first of a set of models, which is the same for both of these merges."""
    models = grown(experts("llava")[0], "<plus>"), grown(experts("llava")[1], "<minus>")
    for first, second in (models, models[::-1]):
        outcome = merge(linear(first, second, tokenizer={"source": "base"}))
        assert vocabulary(outcome.out) == vocabulary(first)


def test_paths_from_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer that cannot be loaded would count as the base's."""
    expert = grown(experts("llava")[0], "<plus>")
    monkeypatch.setenv("HOME", str(expert.parent))
    base, short = checkpoint("llava"), Path("~") / expert.name
    outcome = merge(task_arithmetic(base, [short], tokenizer={"source": "union"}))
    assert vocabulary(outcome.out) == vocabulary(expert)


def swapped(source: Path, one: str, two: str) -> Path:
    path = altered(source)
    file = path / "tokenizer.json"
    known: dict[str, Any] = json.loads(file.read_text())
    numbers = {token["content"]: token["id"] for token in known["added_tokens"]}
    for token in known["added_tokens"]:
        token["id"] = {one: numbers[two], two: numbers[one]}.get(token["content"], token["id"])
    words = known["model"]["vocab"]
    words[one], words[two] = words[two], words[one]
    edit_json(file, **known)
    assert vocabulary(path)[one] == numbers[two]
    return path


def test_a_vocabulary_in_which_the_image_token_has_moved() -> None:
    """The config would go on to point at the old place."""
    other = swapped(experts("llava")[0], "<image>", "<video>")
    config = task_arithmetic(checkpoint("llava"), [other], tokenizer={"source": str(other)})
    outcome, file = run(config), fresh("config.yaml")
    assert isinstance(outcome.exception, SystemExit)
    assert "image_token_index" in outcome.error
    assert "<image>" in outcome.error
    assert_nothing_left(outcome)
    file.write_text(json.dumps(config))
    checked = CliRunner().invoke(cli, ["check", str(file)])
    assert (checked.exit_code, checked.output.splitlines()[-1]) == (1, outcome.console.splitlines()[-1])
    merge(task_arithmetic(checkpoint("llava"), [other], tokenizer={"source": "union"}))
