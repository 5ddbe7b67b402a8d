"""`mergekit-mm lora`: the adapter it writes, put on the base by PEFT, is the merged model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
import zoo
from end_to_end import (
    assert_close,
    checkpoint,
    command,
    experts,
    linear,
    load,
    logits,
    merge,
    tensors,
    text_inputs,
    with_method,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from peft_adapters import adapted, pair, plus, wide

from mergekit_mm.numerics.low_rank import factorise
from mergekit_mm.numerics.task_vector import TaskVector


def adapter_of(config: dict[str, Any], *flags: str) -> Path:
    out, result = command("lora", config, *flags)
    assert result.exit_code == 0, result.output
    return out


def on_base(base: Path, family: str, adapter: Path) -> Any:
    cls = getattr(transformers, zoo.FAMILIES[family].cls)
    return peft.PeftModel.from_pretrained(cls.from_pretrained(base), str(adapter)).eval()


@pytest.mark.parametrize(
    "method", [*(pytest.param(each, marks=pytest.mark.slow) for each in ("linear", "task_arithmetic")), "optmerge"]
)
@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "qwen2_audio", "paligemma"])
def test_the_adapter_on_the_base_is_the_merged_model(family: str, method: str) -> None:
    """Bit-level arithmetic differs, so the answers agree to float32; generation then agrees to the token."""
    base, both = checkpoint(family), pair(family)
    config = with_method(method, base, [plus(base, adapter) for adapter, _ in both])
    if method == "linear":
        config["models"].pop()  # the base itself, which is one of the averaged there
        del config["base_model"]
    merged = load(merge(config).out, zoo.FAMILIES[family].cls)
    adapter = adapter_of(config)
    model = on_base(base, family, adapter)
    inputs = text_inputs(merged, family)
    expected, plain = logits(merged, inputs), logits(load(base, zoo.FAMILIES[family].cls), inputs)
    assert torch.allclose(logits(model, inputs), expected, atol=1e-4)
    assert not torch.allclose(plain, expected, atol=1e-3), "the base would pass too"
    said = [m.generate(**inputs, max_new_tokens=5, do_sample=False).tolist() for m in (model, merged)]
    assert said[0] == said[1]


@pytest.mark.slow
def test_peft_and_this_package_read_the_written_adapter_alike() -> None:
    base, both = checkpoint("llava"), pair("llava")
    config = with_method("optmerge", base, [plus(base, adapter) for adapter, _ in both])
    adapter = adapter_of(config)
    config_json = json.loads((adapter / "adapter_config.json").read_text())
    assert config_json["base_model_name_or_path"] == str(base)
    assert config_json["r"] == 7, "servers make room for r, so it is the largest rank"
    assert_close(merge(applied(base, adapter)).tensors, merge(config).tensors, 1e-6)
    inputs = zoo.prompt(20, 30, 40, 50)
    alone = peft.AutoPeftModel.from_pretrained(str(adapter)).eval()
    assert torch.equal(logits(alone, inputs), logits(on_base(base, "llava", adapter), inputs))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["task_arithmetic", "optmerge"])
def test_an_adapter_of_the_base_is_part_of_the_result(method: str) -> None:
    """With `base_model: base+adapter` deltas are over both, and the written adapter is over the base alone."""
    base, ((first, _), (second, _)) = checkpoint("llava"), pair("llava")
    config = {**with_method(method, plus(base, first), [plus(base, second)]), "parameters": {"scaling": 0.5}}
    assert_close(merge(applied(base, adapter_of(config))).tensors, merge(config).tensors, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "parameters"), [("slerp", {"t": 0.3}), ("karcher", {}), ("dare_ties", {"weight": 0.5, "density": 0.5})]
)
def test_methods_that_look_at_more_than_deltas(method: str, parameters: dict[str, float]) -> None:
    """They turn weights, or draw; the adapter is still what `mergekit-yaml` makes of the base."""
    base, both = checkpoint("llava"), [adapter for adapter, _ in pair("llava")]
    config = {**with_method(method, base, [plus(base, a) for a in both[: 1 if method == "slerp" else 2]])}
    config["parameters"] = parameters
    written = adapter_of(config, "--rank", "64", "--random-seed", "5")
    assert_close(merge(applied(base, written)).tensors, merge(config, "--random-seed", "5").tensors, 1e-6)


@pytest.mark.slow
def test_a_model_in_the_place_of_an_adapter_is_a_model() -> None:
    base, both = checkpoint("llava"), pair("llava")
    config = with_method("tsv", base, [plus(base, adapter) for adapter, _ in both])
    out = adapter_of(config)
    load(merge(config, out=out).out, zoo.FAMILIES["llava"].cls)


def test_targets_mean_no_other_module() -> None:
    """All linear layers called `proj` are adapted, but so is a convolution called; all `qkv` are linear."""
    base = checkpoint("qwen2_vl")
    adapter, _ = adapted("qwen2_vl", 14, target_modules=r".*attn\.(proj|qkv)")
    written = adapter_of({**with_method("tsv", base, [plus(base, adapter)]), "parameters": {"vision_tower": "merge"}})
    model = on_base(base, "qwen2_vl", written)
    adapts = {name for name, module in model.named_modules() if isinstance(module, peft.tuners.lora.LoraLayer)}
    assert adapts
    assert all(".attn." in name for name in adapts)
    assert "qkv" in json.loads((written / "adapter_config.json").read_text())["target_modules"]


def test_adapted_embeddings_are_of_low_rank() -> None:
    """PEFT saves the embeddings that it adapts whole, beside the factors."""
    base = checkpoint("llava")
    config = with_method(
        "task_arithmetic", base, [plus(base, adapted("llava", 13, target_modules=["embed_tokens"])[0])]
    )
    _, result = command("lora", config)
    assert "modules of rank 4 to 4" in result.output, result.output


def applied(base: Path, adapter: Path) -> dict[str, Any]:
    """The merge that does nothing but apply one adapter."""
    config = with_method("task_arithmetic", base, [plus(base, adapter)])
    config["models"][0]["parameters"] = {"weight": 1.0}
    return config


def test_equal_to_pefts_own_sum_of_adapters() -> None:
    """PEFT's `cat` combination is the exact weighted sum, for adapters on the same layers."""
    base = checkpoint("llava")
    first, second = adapted("llava", 11)[0], adapted("llava", 12, r=3)[0]
    config = with_method("task_arithmetic", base, [plus(base, first), plus(base, second)])
    for entry, weight in zip(config["models"], (0.7, 0.4), strict=True):
        entry["parameters"] = {"weight": weight}
    ours = on_base(base, "llava", adapter_of(config))
    theirs = on_base(base, "llava", first)
    theirs.load_adapter(str(second), "second")
    theirs.add_weighted_adapter(["default", "second"], [0.7, 0.4], "sum", combination_type="cat")
    checked = 0
    for name, module in ours.named_modules():
        if isinstance(module, peft.tuners.lora.Linear):
            delta, expected = module.get_delta_weight("default"), theirs.get_submodule(name).get_delta_weight("sum")
            assert torch.allclose(delta, expected, atol=1e-7), name
            checked += 1
    assert checked


@pytest.mark.slow
def test_rank_and_energy_are_told_and_kept() -> None:
    base, both = checkpoint("llava"), pair("llava")
    config = with_method("task_arithmetic", base, [plus(base, adapter) for adapter, _ in both])
    out, exact = command("lora", config)
    assert "energy kept at least 1.000000" in exact.output
    assert "of rank 3 to 7" in exact.output  # 4 and 3, on layers of the one, of the other, of both
    out, cut = command("lora", config, "--rank", "2", "--dtype", "bfloat16")
    told = dict(re.findall(r"^(\S+)  rank 2  energy ([\d.]+)$", cut.output, re.M))
    whole = {k: v.float() for k, v in merge(config).tensors.items()}
    before = wide(tensors(base))
    model = on_base(base, "llava", out)
    assert told
    for path, energy in told.items():
        if "language_model" not in path:
            continue
        disk = path.replace("model.language_model", "language_model.model") + ".weight"
        delta = whole[disk] - before[disk]
        kept = model.get_submodule(f"base_model.model.{path}").get_delta_weight("default")
        best = torch.linalg.svdvals(delta)[:2].square().sum() / delta.square().sum()
        assert abs(float(energy) - float(best)) < 1e-4
        assert torch.allclose(kept.square().sum() / delta.square().sum(), best, atol=2e-2)


@pytest.mark.slow
def test_full_fine_tunes_are_cut_to_the_rank_that_is_asked_for() -> None:
    base = checkpoint("llava")
    config = {**with_method("optmerge", base, experts("llava")), "parameters": {"preset": "lora"}}
    _, refused = command("lora", config)
    assert refused.exit_code == 1
    assert "--rank" in refused.output
    merged, before = wide(merge(config).tensors), wide(tensors(base))
    got = wide(merge(applied(base, adapter_of(config, "--rank", "64"))).tensors)
    for name, value in merged.items():  # 64 is the whole rank of most matrices of this toy
        if value.ndim == 2 and min(value.shape) <= 64:
            assert torch.allclose(got[name], value, atol=1e-5), name
    assert any(not torch.equal(merged[name], before[name]) for name in merged)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"merge_method": "linear", "base_model": None, "parameters": {"normalize": False}}, "scales the base"),
        ({"tokenizer": {"source": "base"}}, "vocabulary"),
    ],
)
def test_what_no_adapter_can_hold_is_refused(change: dict[str, Any], told: str) -> None:
    base = checkpoint("llava")
    config = {**with_method("optmerge", base, experts("llava")), **change}
    for entry in config["models"]:
        entry["parameters"] = {"weight": 0.3}
    out, result = command("lora", config, "--rank", "4")
    assert result.exit_code == 1, result.output
    assert told in result.output
    assert not out.exists()


def test_weights_of_which_there_is_no_mean_are_refused() -> None:
    config = {**linear(checkpoint("llava"), experts("llava")[0]), "base_model": str(checkpoint("llava"))}
    for entry, weight in zip(config["models"], (1.0, -1.0), strict=True):
        entry["parameters"] = {"weight": weight}
    out, result = command("lora", config, "--rank", "4")
    assert result.exit_code == 1, result.output
    assert "linear cannot merge" in result.output
    assert "the weights add up to 0" in result.output
    assert not out.exists()


def test_the_base_is_asked_for_where_nothing_changes() -> None:
    _, refused = command("lora", linear(experts("llava")[0]), "--rank", "4")
    assert "`base_model:`" in refused.output


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(0, 14),
    st.integers(1, 14) | st.none(),
    st.booleans(),
    st.integers(0, 99),
)
def test_factors_are_the_best_of_their_rank(
    rows: int, columns: int, inner: int, rank: int | None, dense: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    b, a = torch.randn(rows, inner, generator=generator), torch.randn(inner, columns, generator=generator)
    found = factorise(TaskVector(b @ a) if dense else TaskVector(b, right=a), rank)
    s = torch.linalg.svdvals((b @ a).double()) if inner else torch.zeros(1)
    if not (b @ a).any():
        assert found is None
        return
    assert found is not None
    assert found.rank <= min(rows, columns, rank or 99)
    lost = float((found.b @ found.a - b @ a).double().square().sum())
    assert lost <= float(s[found.rank :].square().sum()) + 1e-6 * float(s.square().sum())
    assert abs(found.energy - (1 - lost / float(s.square().sum()))) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "parameters"),
    [("tsv", {}), ("wudi", {}), ("ties", {"space": "core"}), ("task_arithmetic", {})],
)
def test_bases_that_the_adapters_share(method: str, parameters: dict[str, Any]) -> None:
    """What the written factors hold is what the method makes of projected adapters, not the cut of what it makes."""
    base, both = checkpoint("llava"), pair("llava")
    config = with_method(method, base, [plus(base, adapter) for adapter, _ in both])
    config["parameters"] = parameters
    found = {}
    for mode in ("shared", "truncate"):
        out, result = command("lora", config, "--rank", "2", "--rank-mode", mode)
        assert result.exit_code == 0, result.output
        assert "rank 2 to 2" in result.output
        found[mode] = tensors(out)
    assert found["shared"].keys() == found["truncate"].keys()
    both_adapt = [n.replace("lora_A", "{}") for n in found["shared"] if "v_proj" in n and "lora_A" in n]
    assert both_adapt
    for name in both_adapt:
        one, other = (f[name.format("lora_B")] @ f[name.format("lora_A")] for f in found.values())
        assert not torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "told"), [("ties", "`space: core`"), ("robust_merge", "factors"), ("slerp", "weights")]
)
def test_methods_that_do_not_work_in_shared_bases(method: str, told: str) -> None:
    base, both = checkpoint("llava"), pair("llava")
    config = with_method(method, base, [plus(base, adapter) for adapter, _ in both])
    out, result = command("lora", config, "--rank", "2", "--rank-mode", "shared")
    assert result.exit_code == 1
    assert "in bases that they share" in result.output
    assert told in result.output
    assert not out.exists()


def test_shared_bases_need_a_rank() -> None:
    base, both = checkpoint("llava"), pair("llava")
    _, result = command("lora", with_method("tsv", base, [plus(base, a) for a, _ in both]), "--rank-mode", "shared")
    assert result.exit_code == 2
    assert "--rank-mode shared needs --rank" in result.output
