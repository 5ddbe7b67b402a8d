"""`mergekit_mm.api`: what other programs call does what the commands do, and refuses what a user can mend."""

from __future__ import annotations

import re
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import transformers
import yaml
from end_to_end import (
    assert_same_bytes,
    checked,
    checkpoint,
    experts,
    fresh,
    llama,
    merge,
    side_files,
    task_arithmetic,
    tensors,
    with_method,
    written,
)
from mergekit.tokenizer import build

from mergekit_mm import api
from mergekit_mm.plan.as_json import digest


def recipe(**more: Any) -> dict[str, Any]:
    return task_arithmetic(checkpoint("llava"), experts("llava")[:2], **more)


def test_a_config_is_a_path_a_text_or_a_mapping() -> None:
    config = recipe()
    path = written(config)
    plans = [api.plan(given) for given in (path, str(path), path.read_text(), config, yaml.safe_load(path.read_text()))]
    assert all(plan == plans[0] for plan in plans)
    told, timed = (re.sub(r"about .*", "", text) for text in (api.check(config), checked(config)))
    assert told.strip() in timed


def test_a_mapping_may_name_models_by_paths() -> None:
    entries = [{"model": path, "parameters": {"weight": 0.3}} for path in experts("llava")[:2]]
    assert api.plan(recipe(base_model=checkpoint("llava"), models=entries)) == api.plan(recipe())


@pytest.mark.parametrize("is_text_only", [False, True])
def test_a_merge_is_that_of_the_command(is_text_only: bool) -> None:
    config = recipe()
    if is_text_only:
        base = llama(0)
        config = task_arithmetic(base, [llama(1, base)])
    expected, out = merge(config), fresh("from_python")
    assert api.merge(config, out, quiet=True) == out
    assert_same_bytes(tensors(out), expected.tensors)
    assert side_files(out) == side_files(expected.out)
    assert (out / "config.json").read_bytes() == (expected.out / "config.json").read_bytes()


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ("/nowhere/at/all.yaml", "/nowhere/at/all.yaml cannot be read"),
        ("", "cannot be read"),
        ("a\0b", "cannot be read"),
        ("merge_method: linear\nmodels: [", "the text is no merge config"),
        ({"merge_method": "linear"}, "the mapping is no merge config"),
        ({"merge_method": object()}, "the mapping is no merge config"),
        ({}, "the mapping is no merge config: merge_method: Field required"),
    ],
)
def test_what_is_no_config_is_refused(config: Any, told: str) -> None:
    with pytest.raises(api.MergeError) as refusal:
        api.plan(config)
    assert told in str(refusal.value)


def test_a_file_that_is_no_text_is_refused() -> None:
    path = fresh("config.yaml")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(api.MergeError, match="cannot be read"):
        api.plan(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"trust_remote": True}, "Unknown option 'trust_remote'; those of mergekit are .*trust_remote_code"),
        ({"out_shard_size": "5 GB"}, "Option out_shard_size: '5 GB' will not do"),
        ({"random_seed": "one"}, "Option random_seed: 'one' will not do"),
    ],
)
def test_options_that_there_are_not_are_refused(options: dict[str, Any], told: str) -> None:
    for ask in (api.plan, api.check, lambda config, **given: api.merge(config, fresh("out"), **given)):
        with pytest.raises(api.MergeError, match=told):
            ask(recipe(), **options)


def grown(source: Path, tokens: int) -> Path:
    """A copy whose tokenizer has more tokens than its embeddings have rows."""
    path = fresh(source.name)
    shutil.copytree(source, path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    tokenizer.add_tokens([f"<more_{i}>" for i in range(tokens)])
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.slow
def test_merges_in_several_threads_are_those_of_one() -> None:
    """mergekit's builder of tokenizers and torch's generator serve the whole process."""
    union = {"source": "union", "pad_to_multiple_of": 64}
    recipes = [
        recipe(tokenizer=union),
        task_arithmetic(checkpoint("qwen2_audio"), experts("qwen2_audio")[:2], tokenizer={**union, "source": "base"}),
        task_arithmetic(checkpoint("qwen2_vl"), [grown(experts("qwen2_vl")[0], 9)], tokenizer_source="base"),
        with_method("ties", checkpoint("gemma3"), experts("gemma3")[:2]),
        {**with_method("dare_ties", checkpoint("llava"), experts("llava")[:2]), "parameters": {"density": 0.5}},
        with_method("optmerge", checkpoint("llava"), experts("llava")[:2]),
    ]
    for entry in recipes[4]["models"]:
        entry["parameters"] = {"weight": 0.5}
    original = build.get_vocab_size
    alone = [(digest(api.plan(config)), api.merge(config, fresh("alone"), quiet=True)) for config in recipes]
    found: dict[int, tuple[str, Path]] = {}

    def work(index: int) -> None:
        found[index] = digest(api.plan(recipes[index])), api.merge(recipes[index], fresh("together"), quiet=True)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(recipes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert build.get_vocab_size is original
    assert found.keys() == set(range(len(recipes)))
    for index, (expected, out) in enumerate(alone):
        assert found[index][0] == expected
        assert_same_bytes(tensors(found[index][1]), tensors(out))
