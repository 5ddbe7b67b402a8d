"""`tokenizer:` in a config of multimodal models; these have its size where mergekit does not look."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import zoo
from click.testing import CliRunner
from end_to_end import (
    altered,
    assert_nothing_left,
    assert_same_bytes,
    checkpoint,
    edit_json,
    experts,
    fresh,
    linear,
    load,
    merge,
    plugin,
    refused,
    run,
    task_arithmetic,
    tensors,
    written,
)

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


@pytest.mark.slow
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


@pytest.mark.parametrize("family", ["florence2", "blip_2", "kosmos2_5"])
def test_tables_of_places_are_no_vocabulary(family: str) -> None:
    """Encoder-decoders, OPT and Kosmos embed places or segments too, whose numbers are none of tokens."""
    base, expert = checkpoint(family), experts(family)[0]
    config = task_arithmetic(base, [expert])
    new = {**config, "tokenizer": {"source": "union"}}
    assert plugin("check", written(new)).exit_code == 0
    got = merge(new).tensors
    expected = merge(config).tensors
    tables = [n for n in got if "embed_positions" in n or "segment_emb" in n]
    assert tables
    assert_same_bytes(got, expected)


def with_extra_tables(source: Path) -> Path:
    """The checkpoint with two tables that its model has no place for: one with a row for each token, one without."""
    extra = {"mtp.embed_tokens.weight": torch.arange(float(zoo.VOCAB * zoo.HIDDEN)).reshape(-1, zoo.HIDDEN)}
    extra["extra.lm_head.weight"] = torch.arange(64.0 * zoo.HIDDEN).reshape(-1, zoo.HIDDEN)
    return altered(source, lambda found: {**found, **extra})


def test_tables_without_a_place_in_the_model() -> None:
    """Such a table belongs to the vocabulary if it has as many rows, whatever its name."""
    base, expert = with_extra_tables(checkpoint("llava")), grown(with_extra_tables(experts("llava")[0]), "<plus>")
    config = task_arithmetic(base, [expert], weight=1.0, tokenizer={"source": "union"})
    assert plugin("check", written(config)).exit_code == 0
    outcome = merge(config)
    found, own, before = vocabulary(outcome.out), vocabulary(expert), tensors(base)
    got, theirs = outcome.tensors, tensors(expert)
    name = "mtp.embed_tokens.weight"
    assert got[name].shape[0] == len(found)
    for token in ("<plus>", "<image>", "a"):
        torch.testing.assert_close(got[name][found[token]], theirs[name][own[token]])
    assert_same_bytes({"": got["extra.lm_head.weight"]}, {"": before["extra.lm_head.weight"]})


@pytest.mark.parametrize("change", [{"source": "base"}, {"source": "union", "pad_to_multiple_of": 64}])
def test_ids_that_stand_for_media_fix_the_vocabulary(change: dict[str, Any]) -> None:
    """Gemma 3n has per-layer embeddings for text alone; its config says at which id those of images begin."""
    base = checkpoint("gemma3n")
    config = task_arithmetic(base, experts("gemma3n")[:1], tokenizer=change)
    refused(config, str(base), "different lengths", "280 rows in", "embed_tokens_per_layer", "300 rows in")


@pytest.mark.slow
def test_per_layer_embeddings_follow_the_vocabulary() -> None:
    family = "gemma4"
    base, expert = checkpoint(family), experts(family)[0]
    config = task_arithmetic(base, [expert])
    outcome = merge({**config, "tokenizer": {"source": "union", "pad_to_multiple_of": 64}})
    expected = merge(config).tensors
    tables = [n for n in expected if n.endswith(("embed_tokens.weight", "embed_tokens_per_layer.weight"))]
    assert len(tables) == 2
    got = outcome.tensors
    assert {got[name].shape[0] for name in tables} == {320}
    assert_same_bytes({n: got[n][: zoo.VOCAB] if n in tables else got[n] for n in got}, expected)
    text = json.loads((outcome.out / "config.json").read_text())["text_config"]
    assert (text["vocab_size"], text["vocab_size_per_layer_input"]) == (320, 320)
    load(outcome.out, zoo.FAMILIES[family].cls)


@pytest.mark.parametrize("source", ["union", "base"])
def test_tokens_that_no_model_has_a_row_for(source: str) -> None:
    """The base has a row for the added token, which an expert knows and has none for."""
    base, expert = grown(checkpoint("llava"), "<plus>"), altered(experts("llava")[0])
    shutil.copy(base / "tokenizer.json", expert / "tokenizer.json")
    shutil.copy(base / "tokenizer_config.json", expert / "tokenizer_config.json")
    config = task_arithmetic(base, [expert], tokenizer={"source": source})
    outcome = merge(config)
    assert vocabulary(outcome.out) == vocabulary(base)
    number = vocabulary(base)["<plus>"]
    torch.testing.assert_close(embeddings(outcome.out)[number], embeddings(base)[number])


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"source": {"kind": "model_token", "model": "EXPERT", "token": "<never>"}}, "has no token '<never>'"),
        ({"source": {"kind": "model_token", "model": "EXPERT", "token_id": 9999}}, "none of number 9999"),
        ({"source": "EXPERT"}, "has no row for it"),
        ({"source": "/no/such/model"}, "is none of the inputs"),
        ({"force": True}, "needs a `source`"),
    ],
)
def test_rows_that_the_config_asks_for_and_no_model_has(wanted: dict[str, Any], told: str) -> None:
    """The merge would find that out in the end; check finds it at once."""
    base, expert = grown(checkpoint("llava"), "<plus>"), experts("llava")[0]
    text = json.dumps(wanted).replace("EXPERT", str(expert))
    tokenizer = {"source": "union", "tokens": {"<plus>": json.loads(text)}}
    config = task_arithmetic(base, [expert], tokenizer=tokenizer)
    refusal = plugin("check", written(config))
    assert refusal.exit_code == 1
    assert "tokenizer: tokens: <plus>: " in refusal.output
    assert told in refusal.output
    refused(config, told)
