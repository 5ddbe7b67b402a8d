"""LoRA adapters as inputs: the output is that of the same merge over models into which PEFT merged each adapter."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
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
    edit_json,
    fresh,
    load,
    logits,
    merge,
    plugin,
    refused,
    run,
    save_model,
    side_files,
    tensors,
    text_inputs,
    with_method,
)
from peft_adapters import adapted, pair, plus, randomise, wide
from safetensors.torch import load_file, save_file

# stock mergekit cannot apply an adapter to any of the first four; the others have other layouts, towers and heads
FAMILIES = ["llava", "internvl", "qwen2_vl", "qwen2_audio", "qwen2_5_vl", "gemma3", "smolvlm", "paligemma"]
METHODS = [*(pytest.param(each, marks=pytest.mark.slow) for each in ("linear", "task_arithmetic", "ties")), "optmerge"]

Adapt = Callable[[Any], Any]


def assert_same_merge(config: dict[str, Any], reference: dict[str, Any], tolerance: float = 1e-5) -> Tensors:
    got, expected = merge(config).tensors, merge(reference).tensors
    assert_close(got, wide(expected), tolerance)
    return got


def differs(a: Tensors, b: Tensors) -> bool:
    return any(not torch.allclose(a[name].float(), b[name].float(), atol=1e-3) for name in a)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_merge_as_the_models_that_peft_makes_of_them(family: str, method: str) -> None:
    base = checkpoint(family)
    both = pair(family)
    got = assert_same_merge(
        with_method(method, base, [plus(base, adapter) for adapter, _ in both]),
        with_method(method, base, [whole for _, whole in both]),
    )
    assert differs(got, tensors(base)), "nothing was merged"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("optmerge", {"preset": "modality"}),
        ("wudi", {"solver": "exact"}),
        ("swudi", {"time": "relative", "exp_time": 3.0}),
        ("aswudi", {"rank_rule": "entropy"}),
        ("tsv", {}),
        ("iso_c", {}),
        ("iso_cts", {}),
        ("dc_merge", {"svc": True}),
    ],
)
def test_every_method_of_the_plugin_gives_from_factors_what_it_gives_from_models(
    method: str, parameters: dict[str, Any]
) -> None:
    """The models are rounded to float32 when they are saved, so an absolute tolerance; deltas are about 0.05."""
    base, both = checkpoint("llava"), pair("llava")
    more = {"parameters": {"scaling": 0.5, **parameters}}
    got = assert_same_merge(
        {**with_method(method, base, [plus(base, adapter) for adapter, _ in both]), **more},
        {**with_method(method, base, [whole for _, whole in both]), **more},
        tolerance=2e-5,
    )
    assert differs(got, tensors(base)), "nothing was merged"


LLAMA = {"vocab_size": zoo.VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
GPT2 = {"vocab_size": zoo.VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4}  # layers are (in, out): `fan_in_fan_out`


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "suffix"),
    [
        (transformers.LlamaConfig(**LLAMA, num_attention_heads=4), ".safetensors"),
        (transformers.GPT2Config(**GPT2), ".bin"),
    ],
    ids=["llama", "gpt2"],
)
def test_adapters_of_a_text_only_model_keep_their_factors_too(
    config: transformers.PreTrainedConfig, suffix: str, tmp_path: Path
) -> None:
    """mergekit by itself would write a merged model of each adapter to its cache."""
    torch.manual_seed(0)
    base = save_model(transformers.AutoModelForCausalLM.from_config(config))
    adapters, wholes = [], []
    for seed in range(2):
        model = peft.get_peft_model(
            transformers.AutoModelForCausalLM.from_pretrained(base),
            peft.LoraConfig(r=3, lora_alpha=4, target_modules="all-linear", fan_in_fan_out=config.model_type == "gpt2"),
        )
        randomise(model, seed)
        adapters.append(fresh("adapter"))
        model.save_pretrained(adapters[-1])
        if suffix == ".bin":
            file = adapters[-1] / "adapter_model.safetensors"
            torch.save(load_file(file), file.with_suffix(suffix))
            file.unlink()
        wholes.append(save_model(model.merge_and_unload()))
    cache = tmp_path / "cache"
    outcome = merge(with_method("iso_c", base, [plus(base, a) for a in adapters]), "--lora-merge-cache", str(cache))
    assert not cache.exists()
    assert_close(outcome.tensors, merge(with_method("iso_c", base, wholes)).tensors, 2e-5)
    assert differs(outcome.tensors, tensors(base)), "nothing was merged"
    transformers.AutoModelForCausalLM.from_pretrained(outcome.out)


# one of each way to build and to store a model: MoE, several towers, converted and fused tensors, encoder-decoder, ...
OTHERS = [
    "aria",
    "blip_2",
    "florence2",
    "gemma3n",
    "glm4v_moe",
    "granite_speech",
    "kimi_k25",
    "mllama",
    "phi4_multimodal",
]
OTHERS += ["qwen2_5_omni", "qwen3_5", "qwen3_omni_moe_thinker", "qwen3_vl", "video_llava", "voxtral"]


@pytest.mark.parametrize("family", OTHERS)
def test_an_adapter_on_all_linear_layers_of_any_family(family: str) -> None:
    base = checkpoint(family)
    by_name = family in (
        "glm4v_moe",
        "qwen2_5_omni",
        "qwen3_omni_moe",
        "qwen3_omni_moe_thinker",
    )  # where PEFT has trouble
    targets = r".*self_attn.*\.(q|v|o)_proj" if by_name else "all-linear"
    adapter, whole = adapted(family, 10, r=2, target_modules=targets)
    config = with_method("task_arithmetic", base, [plus(base, adapter)])
    config["models"][0]["parameters"] = {"weight": 1.0}
    got = merge(config).tensors
    assert_close(got, wide(tensors(whole)))
    assert differs(got, tensors(base)), "nothing was merged"


VARIANTS: dict[str, dict[str, Any]] = {
    "ranks and alphas by pattern": {
        "rank_pattern": {"q_proj": 2, r"layers\.0.*up_proj": 6},
        "alpha_pattern": {"v_proj": 3},
    },
    "rank-stabilised": {"use_rslora": True},
    "whole modules": {"modules_to_save": ["lm_head", "linear_1"]},
    "embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
    "convolution": {"target_modules": ["patch_embedding", "q_proj"]},
    "biases": {"target_modules": r".*vision_tower.*(q_proj|fc1)", "bias": "lora_only"},
    "both biases": {
        "target_modules": r".*vision_tower.*(q_proj|fc1)",
        "bias": "lora_only",
        "lora_bias": True,
    },
    "bias of the adapter": {"target_modules": r".*vision_tower.*(q_proj|fc1)", "lora_bias": True},
    "DoRA": {"use_dora": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_every_kind_of_adapter_is_applied_as_peft_applies_it(variant: str) -> None:
    base = checkpoint("llava")
    adapter, whole = adapted("llava", 3, **VARIANTS[variant])
    merge_both = {"merge_method": "task_arithmetic", "base_model": str(base), "dtype": "float32"}
    parameters = {"parameters": {"weight": 1.0}}
    got = assert_same_merge(
        {**merge_both, "models": [{"model": f"{base}+{adapter}", **parameters}]},
        {**merge_both, "models": [{"model": str(whole), **parameters}]},
    )
    assert_close(got, wide(tensors(whole)))


@pytest.mark.slow
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_every_kind_of_adapter_goes_through_the_plugins_methods(variant: str) -> None:
    base = checkpoint("llava")
    both = [adapted("llava", 4, **VARIANTS[variant]), adapted("llava", 5)]
    policies = dict.fromkeys(("vision_tower", "projector", "embeddings", "lm_head", "norms", "biases"), "merge")
    assert_same_merge(
        {**with_method("optmerge", base, [plus(base, a) for a, _ in both]), "parameters": policies},
        {**with_method("optmerge", base, [whole for _, whole in both]), "parameters": policies},
    )


def test_the_output_loads_and_answers_as_the_merge_of_whole_models() -> None:
    base, both = checkpoint("llava"), pair("llava")
    models = []
    for others in ([plus(base, adapter) for adapter, _ in both], [whole for _, whole in both]):
        models.append(load(merge(with_method("task_arithmetic", base, others)).out, zoo.FAMILIES["llava"].cls))
    inputs = text_inputs(models[0], "llava")
    assert torch.allclose(logits(models[0], inputs), logits(models[1], inputs), atol=1e-4)


def test_tensors_that_no_adapter_changes_are_the_bases_bit_for_bit() -> None:
    base, ((adapter, _), _) = checkpoint("llava"), pair("llava")
    config = with_method("task_arithmetic", base, [plus(base, adapter)])
    got, expected = merge({k: v for k, v in config.items() if k != "dtype"}).tensors, tensors(base)
    changed = {name for name in expected if not torch.equal(got[name], expected[name])}
    assert changed
    assert all("q_proj" in n or "v_proj" in n or "o_proj" in n or "up_proj" in n or "down_proj" in n for n in changed)
    assert {name: t.dtype for name, t in got.items()} == {name: t.dtype for name, t in expected.items()}


def test_side_files_are_the_bases_and_nothing_is_written_beside_the_output(tmp_path: Path) -> None:
    base, ((adapter, _), _) = checkpoint("llava"), pair("llava")
    cache = tmp_path / "cache"
    outcome = merge(with_method("optmerge", base, [plus(base, adapter)]), "--lora-merge-cache", str(cache))
    assert side_files(outcome.out) == side_files(base)
    assert not cache.exists()
    assert f"{adapter} | adapter_model.safetensors" in (outcome.out / "README.md").read_text()


def test_an_adapter_is_not_rounded_to_the_base_before_it_is_merged() -> None:
    """Over a bfloat16 base a small delta would be lost in the rounding of a merged copy, and of each sum."""
    half = altered(checkpoint("llava"), lambda t: {n: v.bfloat16() for n, v in t.items()}, dtype="bfloat16")
    adapter, _ = adapted("llava", 6, path=half, lora_alpha=0.04)
    for method in ("task_arithmetic", "optmerge"):
        config = {**with_method(method, half, [plus(half, adapter)]), "dtype": "float32"}
        if method == "task_arithmetic":
            config["models"][0]["parameters"] = {"weight": 1.0}
        got, before = merge(config).tensors, tensors(half)
        factors = load_file(adapter / "adapter_model.safetensors")
        names = [name for name in got if f"{trained_name(name)}.lora_A.weight" in factors]
        assert names
        for name in names:
            b, a = (factors[f"{trained_name(name)}.lora_{part}.weight"] for part in "BA")
            assert torch.allclose(got[name] - before[name].float(), b @ a * (0.04 / 4), atol=1e-7), (method, name)


def test_16_bits_are_widened_before_anything_is_computed() -> None:
    """The same values in 16 and in 32 bits give the same bytes."""
    base = checkpoint("llava")
    adapter, _ = adapted("llava", 13, use_dora=True, lora_alpha=3)
    got = []
    for dtype in (torch.bfloat16, torch.float32):

        def rounded(found: Tensors, dtype: torch.dtype = dtype) -> Tensors:
            return {name: tensor.bfloat16().to(dtype) for name, tensor in found.items()}

        model, change = altered(base, rounded), rewritten(adapter, rounded)
        edit_json(change / "adapter_config.json", base_model_name_or_path=str(model))
        got.append(merge(with_method("task_arithmetic", model, [plus(model, change)])).tensors)
    assert_same_bytes(*got)


def trained_name(name: str) -> str:
    """A tensor of the LLaVA checkpoint as an adapter of it names its module."""
    module = name.removesuffix(".weight").replace("language_model.model", "model.language_model")
    return f"base_model.model.{module}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["default", "chart"])
def test_names_of_older_versions_are_understood(name: str) -> None:
    """LLaVA's language model was `language_model.model.layers` before transformers 4.52; the adapter's name, mostly
    `default`, is in the state dict of a model that trainers save without PEFT."""
    base, ((adapter, _), _) = checkpoint("llava"), pair("llava")
    older = fresh("older")
    shutil.copytree(adapter, older)
    found = load_file(adapter / "adapter_model.safetensors")
    renamed = {k.replace("model.model.language_model.", "model.language_model.model."): v for k, v in found.items()}
    assert renamed.keys() != found.keys()
    renamed = {k.replace(".weight", f".{name}.weight"): v for k, v in renamed.items()}
    save_file(renamed, older / "adapter_model.safetensors")
    got = merge(with_method("task_arithmetic", base, [plus(base, older)])).tensors
    assert_same_bytes(got, merge(with_method("task_arithmetic", base, [plus(base, adapter)])).tensors)


# ------------------------------------------------------------------------------------------------------------- refused


def copied(adapter: Path, **config: Any) -> Path:
    path = fresh("adapter")
    shutil.copytree(adapter, path)
    edit_json(path / "adapter_config.json", **config)
    return path


def rewritten(adapter: Path, change: Callable[[Tensors], Tensors]) -> Path:
    path = copied(adapter)
    save_file(change(load_file(path / "adapter_model.safetensors")), path / "adapter_model.safetensors")
    return path


def without_one(found: Tensors) -> Tensors:
    return {k: v for k, v in found.items() if k != next(k for k in found if "lora_B" in k)}


def of_other_shape(found: Tensors) -> Tensors:
    return {k: torch.cat([v, v]) if "lora_B" in k else v for k, v in found.items()}


def of_another_model(found: Tensors) -> Tensors:
    return {k.replace("q_proj", "query"): v for k, v in found.items()}


def of_more_tokens(found: Tensors) -> Tensors:
    return {**found, "base_model.model.lm_head.weight": torch.zeros(zoo.VOCAB + 8, 64)}


def of_nothing(found: Tensors) -> Tensors:
    return {}


def of_two_adapters(found: Tensors) -> Tensors:
    return {k.replace(".weight", f".{name}.weight"): v.clone() for k, v in found.items() for name in ("chart", "ocr")}


def not_a_number(found: Tensors) -> Tensors:
    return {k: v / 0 if "lora_B" in k else v for k, v in found.items()}


def overwritten(adapter: Path, name: str, content: bytes) -> Path:
    path = copied(adapter)
    (path / name).write_bytes(content)
    return path


def folder(adapter: Path) -> Path:
    """What PEFT saves of a model with adapters that have names."""
    path = fresh("folder")
    shutil.copytree(adapter, path / "chart")
    return path


REFUSALS: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "not there": (lambda a: a / "nothing", ["nothing"]),
    "no config": (lambda a: checkpoint("llava"), ["adapter_config.json"]),
    "another type": (lambda a: copied(a, peft_type="IA3"), ["IA3", "merge_and_unload"]),
    "a variant": (lambda a: copied(a, use_qalora=True), ["QA-LoRA"]),
    "a start that changes the base": (lambda a: copied(a, init_lora_weights="pissa"), ["pissa"]),
    "another rank": (lambda a: copied(a, r=7), ["rank 7", "_proj"]),
    "another base": (lambda a: copied(a, base_model_name_or_path="someone/else-7b"), ["someone/else-7b"]),
    "DoRA on an embedding": (
        lambda a: adapted("llava", 12, target_modules=["embed_tokens"], use_dora=True)[0],
        ["DoRA", "no linear layer"],
    ),
    "DoRA on transposed layers": (lambda a: copied(a, use_dora=True, fan_in_fan_out=True), ["DoRA to transposed"]),
    "nothing in it": (lambda a: rewritten(a, of_nothing), ["holds no tensors"]),
    "half a pair": (lambda a: rewritten(a, without_one), ["incomplete", "lora_A"]),
    "other shapes": (lambda a: rewritten(a, of_other_shape), ["does not fit", "q_proj"]),
    "another vocabulary": (lambda a: rewritten(a, of_more_tokens), ["lm_head", "resize"]),
    "not a number": (lambda a: rewritten(a, not_a_number), ["NaN", "_proj"]),
    "a damaged config": (lambda a: overwritten(a, "adapter_config.json", b"{nope"), ["adapter_config.json is damaged"]),
    "a damaged pattern": (lambda a: copied(a, rank_pattern={"(q": 2}), ["rank_pattern"]),
    "damaged weights": (lambda a: overwritten(a, "adapter_model.safetensors", b"nope" * 9), ["cannot be read"]),
    "a folder of adapters": (folder, ["a folder of adapters", "chart"]),
    "several adapters in one file": (
        lambda a: rewritten(a, of_two_adapters),
        ["2 adapters in one file (chart, ocr)", "save_pretrained"],
    ),
    "other names": (lambda a: rewritten(a, of_another_model), ["no such tensor", "query"]),
}


@pytest.mark.parametrize("what", list(REFUSALS))
@pytest.mark.parametrize("method", ["task_arithmetic", "optmerge"])
def test_what_cannot_be_merged_exactly_is_refused(what: str, method: str) -> None:
    change, expected = REFUSALS[what]
    base, ((adapter, _), _) = checkpoint("llava"), pair("llava")
    refused(with_method(method, base, [plus(base, change(adapter)), plus(base, adapter)]), *expected)


@pytest.mark.slow
def test_an_adapter_trained_on_another_local_model_is_refused() -> None:
    """Same architecture, same shapes, other weights: the adapter says so. On its own model it is an expert like any."""
    base, other = checkpoint("llava"), checkpoint("llava", tag="expert_0")
    adapter, _ = adapted("llava", 7, path=other)
    assert str(other) in run(with_method("optmerge", base, [plus(base, adapter)])).error
    assert "the two together are one expert" in merge(with_method("optmerge", base, [plus(other, adapter)])).said


@pytest.mark.slow
def test_a_copy_of_the_base_is_the_base() -> None:
    base, ((adapter, _), _) = checkpoint("llava"), pair("llava")
    copy = altered(base)
    got = merge(with_method("optmerge", copy, [plus(copy, adapter)]))
    assert_same_bytes(got.tensors, merge(with_method("optmerge", base, [plus(base, adapter)])).tensors)


@pytest.mark.slow
def test_a_base_is_the_same_however_its_path_is_spelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or its adapters would lose their factors, and with them speed and the last digits."""
    base, ((adapter, _), _) = checkpoint("llava"), pair("llava")
    monkeypatch.chdir(base.parent)
    got = merge({**with_method("iso_c", base, [plus(base, adapter)]), "base_model": f"./{base.name}/"})
    assert_same_bytes(got.tensors, merge(with_method("iso_c", base, [plus(base, adapter)])).tensors)


def test_a_tied_weight_is_not_changed_behind_the_back_of_its_twin() -> None:
    base = checkpoint("gemma3")
    adapter, _ = adapted("gemma3", 8, target_modules=["embed_tokens"])
    assert "ties it to" in run(with_method("task_arithmetic", base, [plus(base, adapter)])).error


def test_what_a_policy_leaves_out_is_said() -> None:
    base = checkpoint("llava")
    adapter, _ = adapted("llava", 9, target_modules=r".*(vision_tower|language_model).*q_proj")
    outcome = merge(with_method("optmerge", base, [plus(base, adapter)]))
    assert "vision_tower" in outcome.said
    assert f"that {adapter} changes are left out" in outcome.said


def test_inspect_shows_what_an_adapter_changes() -> None:
    base, ((adapter, _), _) = checkpoint("llava"), pair("llava")
    done = plugin("inspect", plus(base, adapter))
    assert done.exit_code == 0, done.output
    assert f"{adapter}: LoRA of" in done.output
    assert "language_model       10  10 of rank 4, scaling 2" in done.output  # two layers of q, v, o, up and down


def test_a_module_that_was_saved_whole_under_the_name_of_its_adapter() -> None:
    """PEFT's own files have no names of adapters in them; the state dict of a wrapped model has."""
    base = checkpoint("llava")
    adapter, whole = adapted("llava", 3, modules_to_save=["lm_head"])

    def named(found: Tensors) -> Tensors:
        found = {k.replace("lm_head.weight", "lm_head.modules_to_save.weight"): v for k, v in found.items()}
        return {k.replace(".weight", ".chart.weight"): v for k, v in found.items()}

    configs = (
        with_method("task_arithmetic", base, [model]) for model in (plus(base, rewritten(adapter, named)), whole)
    )
    got = assert_same_merge(*configs)
    assert differs(got, tensors(base))
