"""Tokens, stop tokens, templates and generation configs of the experts, held against what the output gets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import zoo
from end_to_end import (
    Tensors,
    altered,
    checked,
    checkpoint,
    edit_json,
    experts,
    linear,
    llama,
    merge,
    notes,
    plugin,
    task_arithmetic,
    tensors,
    with_method,
    written,
)
from peft_adapters import adapted, plus
from safetensors.torch import save_file

RESERVED = 280  # a row that the zoo's tokenizer names <unused280>


def with_token(source: Path, token: str, index: int = RESERVED) -> Path:
    """A copy of a checkpoint whose tokenizer has one token renamed, as a trainer uses a row in reserve."""
    path = altered(source)
    held = json.loads((path / "tokenizer.json").read_text())
    vocabulary = {name: number for name, number in held["model"]["vocab"].items() if number != index}
    held["model"]["vocab"] = {**vocabulary, token: index}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    held["added_tokens"].append({"id": index, "content": token, "special": True, **flags})
    (path / "tokenizer.json").write_text(json.dumps(held))
    return path


def stopping(source: Path, eos: Any) -> Path:
    path = altered(source)
    edit_json(path / "generation_config.json", eos_token_id=eos)
    return path


def shared_files(base: Path, *others: Path) -> None:
    """Give experts the base's chat template and processor, which those of the zoo do not share."""
    for path in others:
        for name in ("chat_template.jinja", "chat_template.json"):
            (path / name).write_bytes((base / name).read_bytes())
        for file in base.glob("*processor_config.json"):
            (path / file.name).write_bytes(file.read_bytes())


# ------------------------------------------------------------------------------------------------------------ tokens


def test_equal_side_files_need_no_note() -> None:
    base, others = checkpoint("llava"), [altered(path) for path in experts("llava")]
    shared_files(base, *others)
    for path in others:
        edit_json(path / "tokenizer_config.json", padding_side="left", model_max_length=77, name_or_path="elsewhere")
        edit_json(path / "generation_config.json", transformers_version="4.1", do_sample=False, temperature=1.0)
        held = json.loads((path / "tokenizer.json").read_text())
        held |= {"truncation": {"max_length": 7, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}}
        (path / "tokenizer.json").write_text(json.dumps(held, sort_keys=True))
    said = checked(task_arithmetic(base, others))
    assert not notes(said, ""), said


def test_new_tokens_of_experts_are_told_together() -> None:
    base, others = checkpoint("llava"), [with_token(path, "<SEG>") for path in experts("llava")]
    shared_files(base, *others)
    said = checked(task_arithmetic(base, others))
    (note,) = notes(said, "Vocabulary")
    assert f"{RESERVED} is '<SEG>' there, '<unused{RESERVED}>' here" in note
    assert all(str(path) in note for path in others)
    (choice,) = notes(said, "processor_source")
    assert "vocabulary" in choice
    assert "all 3 experts" in choice


def test_an_id_beyond_the_tokenizer_is_a_new_token() -> None:
    base, expert = checkpoint("llava"), altered(experts("llava")[0])
    short = altered(base)
    held = json.loads((short / "tokenizer.json").read_text())
    held["model"]["vocab"] = {name: i for name, i in held["model"]["vocab"].items() if i < RESERVED}
    (short / "tokenizer.json").write_text(json.dumps(held))
    (note,) = notes(checked(task_arithmetic(short, [expert])), "Vocabulary")
    assert f"new tokens '<unused{RESERVED}>' ({RESERVED})" in note
    named = {*range(RESERVED, zoo.VOCAB)} - {added["id"] for added in held["added_tokens"]}
    assert f"and {len(named) - 3} more" in note


@pytest.mark.slow
@pytest.mark.parametrize("quiet", [(), ("--quiet",)])
def test_one_id_with_two_meanings_is_a_warning(quiet: tuple[str, ...]) -> None:
    base = checkpoint("llava")
    first, second = (with_token(path, f"<SEG{i}>") for i, path in enumerate(experts("llava")[:2]))
    config = task_arithmetic(base, [first, second])
    for said in (checked(config), merge(config, *quiet).said):
        (line,) = {line for line in said.splitlines() if "different tokens" in line and "note:" not in line} or {
            line for line in said.splitlines() if "different tokens" in line
        }
        assert f"{RESERVED} is '<SEG0>' in {first} and '<SEG1>' in {second}" in line


def test_what_the_warning_advises_gives_each_token_its_row() -> None:
    base = checkpoint("llava")
    first, second = (with_token(path, f"<SEG{i}>") for i, path in enumerate(experts("llava")[:2]))
    outcome = merge(task_arithmetic(base, [first, second], tokenizer={"source": "union"}))
    numbers = transformers.AutoTokenizer.from_pretrained(outcome.out).get_vocab()
    assert numbers["<SEG0>"] != numbers["<SEG1>"]
    assert "different tokens" not in outcome.said
    assert not notes(outcome.console, "Vocabulary")


def test_texts_that_are_split_otherwise() -> None:
    base, expert = checkpoint("llava"), altered(experts("llava")[0])
    held = json.loads((expert / "tokenizer.json").read_text())
    held["normalizer"] = {"type": "Lowercase"}
    (expert / "tokenizer.json").write_text(json.dumps(held))
    (note,) = notes(checked(task_arithmetic(base, [expert])), "Vocabulary")
    assert "split otherwise (normalizer)" in note


def test_special_tokens() -> None:
    base, expert = checkpoint("llava"), altered(experts("llava")[0])
    edit_json(expert / "tokenizer_config.json", eos_token="<pad>", pad_token={"content": "<pad>"})
    (note,) = notes(checked(task_arithmetic(base, [expert])), "Special tokens")
    assert "eos_token '<pad>' ('</s>')" in note
    assert "pad_token" not in note


def test_a_text_only_expert_is_compared_where_it_makes_sense() -> None:
    """Its template, and that it has no processor, are no news."""
    base = checkpoint("llava")
    said = checked(task_arithmetic(base, [llama(1)]))
    assert not notes(said, "Chat template")
    assert not notes(said, "Processor")
    assert not notes(said, "Vocabulary")


# ------------------------------------------------------------------------------------------------------- stop tokens


def test_stop_tokens_of_the_experts_are_told_and_can_be_chosen() -> None:
    base, others = stopping(checkpoint("llava"), 1), [stopping(path, [7, 2]) for path in experts("llava")[:2]]
    config = task_arithmetic(base, others)
    said = checked(config)
    (note,) = notes(said, "Stop tokens")
    assert "eos_token_id [2, 7], not 1" in note
    (choice,) = notes(said, "processor_source")
    assert f"processor_source: {others[0]}" in choice
    chosen = merge({**config, "parameters": {"processor_source": str(others[0])}})
    assert json.loads((chosen.out / "generation_config.json").read_text())["eos_token_id"] == [7, 2]
    assert not notes(chosen.console, "Stop tokens")


def test_one_stop_token_or_a_list_of_it_is_the_same() -> None:
    base, expert = stopping(checkpoint("llava"), 2), stopping(experts("llava")[0], [2])
    assert not notes(checked(task_arithmetic(base, [expert])), "Stop tokens")


@pytest.mark.parametrize("way", ["processor_source", "tokenizer"])
def test_stop_tokens_follow_the_tokenizer(way: str) -> None:
    """Also where the expert tells them in its config alone, and the generation config of the base says otherwise."""
    base = stopping(checkpoint("llava"), 1)
    expert = altered(experts("llava")[0], eos_token_id=5)
    (expert / "generation_config.json").unlink()
    more: Mapping[str, Any] = (
        {"parameters": {way: str(expert)}} if way == "processor_source" else {way: {"source": str(expert)}}
    )
    outcome = merge({**task_arithmetic(base, [expert]), **more})
    generation = json.loads((outcome.out / "generation_config.json").read_text())
    assert generation == {"max_new_tokens": 7, "eos_token_id": 5}
    assert notes(outcome.console, "The output stops at eos_token_id 5")


def test_generation_configs() -> None:
    base, expert = checkpoint("llava"), altered(experts("llava")[0])
    edit_json(expert / "generation_config.json", do_sample=True, temperature=0.1)
    (note,) = notes(checked(task_arithmetic(base, [expert])), "Generation config")
    assert "do_sample True (False), temperature 0.1 (1.0)" in note


def test_chat_templates_are_compared_and_adopted_in_check_too() -> None:
    base, others = altered(checkpoint("llava")), [altered(path) for path in experts("llava")[:2]]
    for path in (base, *others):
        (path / "chat_template.json").unlink()
        (path / "chat_template.jinja").write_text("of the base" if path == base else "of the experts")
    (note,) = notes(checked(task_arithmetic(base, others)), "Chat template")
    assert all(str(path) in note for path in others)
    (base / "chat_template.jinja").unlink()
    (note,) = notes(checked(task_arithmetic(base, others)), "no chat template")
    assert "all 2 experts share was taken" in note


def test_files_beside_an_adapter_are_its_experts() -> None:
    base = checkpoint("llava")
    adapter, _ = adapted("llava", 1)
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(base))
    (adapter / "tokenizer.json").write_bytes((with_token(base, "<BOX>") / "tokenizer.json").read_bytes())
    (note,) = notes(checked(task_arithmetic(base, [plus(base, adapter)])), "Vocabulary")
    assert "'<BOX>'" in note


# ---------------------------------------------------------------------------------------- inputs that change nothing


def test_an_expert_that_is_its_base() -> None:
    base, copy = checkpoint("llava"), altered(checkpoint("llava"))
    config = task_arithmetic(base, [copy, experts("llava")[1]])
    for said in (checked(config), merge(config).console):
        (note,) = notes(said, "identical")
        assert str(copy) in note
        assert "adds nothing" in note


def test_an_expert_in_another_layout_of_the_base() -> None:
    base, copy = checkpoint("llava", "hub"), checkpoint("llava", "plain")
    (note,) = notes(checked(task_arithmetic(base, [copy])), "identical")
    assert str(copy) in note


def test_one_expert_under_two_paths() -> None:
    first = experts("llava")[0]
    again = altered(first)
    (note,) = notes(checked(task_arithmetic(checkpoint("llava"), [first, again])), "identical")
    assert str(first) in note
    assert str(again) in note
    assert "counts twice" in note


def test_a_single_value_makes_a_difference() -> None:
    """One that no sample holds: models of this size are read whole."""

    def change(found: Tensors) -> None:
        weight = found["language_model.model.layers.0.mlp.up_proj.weight"]
        weight[0, 0] += 1

    nearly = altered(checkpoint("llava"), change)
    assert not notes(checked(task_arithmetic(checkpoint("llava"), [nearly])), "identical")


def zeroed(base: Path, **config: Any) -> Path:
    """An adapter of the zoo with other keys in its config, or with zeros for B."""
    adapter, _ = adapted("llava", 1)
    adapter = altered(adapter)
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(base), **config)
    if not config:
        file = adapter / "adapter_model.safetensors"
        found = {name: torch.zeros_like(t) if "lora_B" in name else t for name, t in tensors(adapter).items()}
        save_file(found, file, metadata={"format": "pt"})
    return adapter


@pytest.mark.slow
@pytest.mark.parametrize(("config", "why"), [({"lora_alpha": 0}, "lora_alpha"), ({}, "B factors are zero")])
@pytest.mark.parametrize("method", ["task_arithmetic", "optmerge"])
def test_an_adapter_that_adds_nothing(config: Mapping[str, Any], why: str, method: str) -> None:
    base = checkpoint("llava")
    adapter, other = zeroed(base, **config), adapted("llava", 2)[0]
    models = [plus(base, adapter), plus(base, other)]
    (note,) = notes(checked(with_method(method, base, models)), "adds nothing")
    assert str(adapter) in note
    assert why in note


def test_one_adapter_under_two_paths() -> None:
    base, adapter = checkpoint("llava"), adapted("llava", 1)[0]
    again = altered(adapter)
    (note,) = notes(checked(task_arithmetic(base, [plus(base, adapter), plus(base, again)])), "identical")
    assert str(again) in note


def test_lora_out_tells_it_too(tmp_path: Path) -> None:
    base = checkpoint("llava")
    adapter, other = zeroed(base, lora_alpha=0), adapted("llava", 2)[0]
    recipe = written(task_arithmetic(base, [plus(base, adapter), plus(base, other)]))
    result = plugin("lora", recipe, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "adds nothing" in result.output


def test_without_a_base_the_same_holds() -> None:
    first = experts("llava")[0]
    (note,) = notes(checked(linear(first, altered(first))), "identical")
    assert "counts twice" in note
