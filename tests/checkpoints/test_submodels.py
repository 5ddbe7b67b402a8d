"""Checkpoints of a part of the base's model, and of what holds it: a thinker of an omni model, a tower, a model without
its head. The part is merged, everything else stays as it is."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
import transformers
import zoo
from end_to_end import (
    Tensors,
    altered,
    assert_close,
    assert_same_bytes,
    checkpoint,
    experts,
    load,
    merge,
    refused,
    save_model,
    sum_of_deltas,
    task_arithmetic,
    tensors,
    with_method,
)
from peft_adapters import delta, factors, in_memory, plus, written_adapter

OMNI = ["qwen2_5_omni", "qwen3_omni_moe"]


@functools.cache
def part(family: str, path: str, tag: str = "base") -> Path:
    """A module of a zoo model as a checkpoint of its own, which a trainer saves."""
    model = getattr(transformers, zoo.FAMILIES[family].cls).from_pretrained(
        checkpoint(family, tag=tag), dtype=torch.float32
    )
    return save_model(model.get_submodule(path), path.replace(".", "_"))


def merged_inside(family: str, path: str, others: list[Path]) -> Tensors:
    """The whole base in memory with the tensors below `path` merged over those of whole experts."""
    base, found = in_memory(checkpoint(family), family), [in_memory(other, family) for other in others]
    inside = sum_of_deltas({n: t for n, t in base.items() if n.startswith(f"{path}.")}, found)
    return {**base, **inside}


@pytest.mark.slow
@pytest.mark.parametrize("family", OMNI)
def test_fine_tunes_of_a_thinker_are_merged_into_the_full_model(family: str) -> None:
    got = merge(task_arithmetic(checkpoint(family), [part(family, "thinker", f"expert_{i}") for i in (0, 1)]))
    assert_close(in_memory(got.out, family), merged_inside(family, "thinker", experts(family)[:2]))
    assert "has as `thinker`" in got.said
    assert "come from the inputs that have them" in got.said


@pytest.mark.slow
@pytest.mark.parametrize("family", OMNI)
def test_fine_tunes_of_the_full_model_are_merged_into_a_thinker(family: str) -> None:
    thinker = part(family, "thinker")
    got = merge(task_arithmetic(thinker, [part(family, "thinker", "expert_0"), *experts(family)[1:2]]))
    expected = task_arithmetic(thinker, [part(family, "thinker", f"expert_{i}") for i in (0, 1)])
    assert_same_bytes(got.tensors, merge(expected).tensors)
    assert "are not used" in got.said


@pytest.mark.slow
def test_a_full_model_without_its_talker_is_merged_and_the_talker_kept() -> None:
    family = "qwen2_5_omni"
    silent = altered(
        checkpoint(family, tag="expert_0"),
        lambda found: {n: t for n, t in found.items() if n.startswith("thinker.")},
        enable_audio_output=False,
    )
    got = merge(task_arithmetic(checkpoint(family), [silent]))
    assert_close(in_memory(got.out, family), merged_inside(family, "thinker", experts(family)[:1]))
    assert "has no talker, token2wav" in got.said


def test_the_talker_of_an_expert_is_not_used_by_a_base_without_one() -> None:
    family = "qwen2_5_omni"
    silent = altered(
        checkpoint(family),
        lambda found: {n: t for n, t in found.items() if n.startswith("thinker.")},
        enable_audio_output=False,
    )
    got = merge(task_arithmetic(silent, experts(family)[:1]))
    assert got.tensors.keys() == tensors(silent).keys()
    assert "they are not used" in got.said


@pytest.mark.parametrize(
    ("family", "path"),
    [
        ("qwen2_5_vl", "model"),
        ("llava", "model"),
        ("qwen2_5_vl", "model.visual"),
        ("llava", "model.vision_tower"),
        ("qwen2_audio", "model.audio_tower"),
        ("qwen2_5_omni", "thinker.model"),
    ],
)
def test_a_module_that_was_saved_by_itself_is_merged_where_it_belongs(family: str, path: str) -> None:
    saved = part(family, path, "expert_0")
    got = merge(task_arithmetic(checkpoint(family), [saved]))
    assert_close(in_memory(got.out, family), merged_inside(family, path, experts(family)[:1]))
    load(got.out, zoo.FAMILIES[family].cls)


def test_a_module_that_a_model_has_twice_is_refused() -> None:
    tower = part("video_llava", "model.image_tower", "expert_0")
    refused(task_arithmetic(checkpoint("video_llava"), [tower]), "model.image_tower", "model.video_tower")


def test_a_tower_of_fewer_layers_is_no_part_that_a_config_leaves_out() -> None:
    config = zoo.FAMILIES["llava"].config()
    config.vision_config.num_hidden_layers = 1
    smaller = save_model(getattr(transformers, zoo.FAMILIES["llava"].cls)(config))
    refused(task_arithmetic(checkpoint("llava"), [smaller]), "lacks")


@pytest.mark.slow
@pytest.mark.parametrize("family", OMNI)
@pytest.mark.parametrize("method", ["task_arithmetic", "optmerge"])
def test_adapters_of_a_thinker_fit_the_full_model_and_the_other_way_round(family: str, method: str) -> None:
    """Names without `thinker.` on the model that has one, and with it on the thinker alone."""
    base, thinker = checkpoint(family), part(family, "thinker")
    name = "model.language_model.layers.1.self_attn.q_proj"
    shape = tuple(in_memory(base, family)[f"thinker.{name}.weight"].shape)
    found = factors({name: shape})
    longer = {f"thinker.{name}": pair for name, pair in found.items()}
    results = {}
    for told, model, names in (
        ("own", base, longer),
        ("shorter", base, found),
        ("alone", thinker, found),
        ("longer", thinker, longer),
    ):
        adapter = written_adapter(model, names)
        results[told] = merge(with_method(method, model, [plus(model, adapter)]))
    assert_same_bytes(results["own"].tensors, results["shorter"].tensors)
    assert_same_bytes(results["alone"].tensors, results["longer"].tensors)
    before, after = in_memory(base, family), in_memory(results["own"].out, family)
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed == {f"thinker.{name}.weight"}
    if method == "task_arithmetic":
        weight = with_method(method, base, [base])["models"][0]["parameters"]["weight"]
        got = after[f"thinker.{name}.weight"] - before[f"thinker.{name}.weight"]
        assert torch.allclose(got, weight * delta(found, name), atol=1e-6)


def test_two_modules_of_one_name_are_told_apart_by_their_shapes() -> None:
    """The talker's layers are named as the thinker's, and narrower."""
    base = checkpoint("qwen2_5_omni")
    own = in_memory(base, "qwen2_5_omni")
    name = "layers.0.self_attn.q_proj"
    shape = tuple(own[f"talker.model.{name}.weight"].shape)
    assert shape != tuple(own[f"thinker.model.language_model.{name}.weight"].shape)
    found = factors({f"model.{name}": shape})
    got = in_memory(merge(task_arithmetic(base, [plus(base, written_adapter(base, found))], 1.0)).out, "qwen2_5_omni")
    expected = {
        **own,
        f"talker.model.{name}.weight": own[f"talker.model.{name}.weight"] + delta(found, f"model.{name}"),
    }
    assert_close(got, expected)
