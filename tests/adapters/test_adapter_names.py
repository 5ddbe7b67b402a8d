"""An adapter's names: those of the class that was trained, and those that trainers give to the base."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from end_to_end import (
    Outcome,
    altered,
    assert_close,
    assert_same_bytes,
    checkpoint,
    fresh,
    llama,
    merge,
    plugin,
    refused,
    task_arithmetic,
    tensors,
)
from peft_adapters import delta, factors, in_memory, plus, randomise, written_adapter
from safetensors.torch import load_file, save_file


def applied(base: Path, adapter: Path, **more: Any) -> dict[str, Any]:
    return task_arithmetic(base, [plus(base, adapter)], weight=1.0, **more)


# ------------------------------------------------------------------------------------------------ the class trained

# families whose text class transformers has, from which AutoModelForCausalLM makes a model of the language model alone
TEXT_CLASSES = {
    "qwen3_5": "Qwen3_5ForCausalLM",
    "qwen3_5_moe": "Qwen3_5MoeForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "gemma3n": "Gemma3nForCausalLM",
    "gemma4": "Gemma4ForCausalLM",
    "llama4": "Llama4ForCausalLM",
    "mllama": "MllamaForCausalLM",
    "mistral3": "MistralForCausalLM",
    "llava": "LlamaForCausalLM",
    "internvl": "Qwen2ForCausalLM",
    "kimi_k25": "DeepseekV3ForCausalLM",
}


@pytest.mark.parametrize("family", list(TEXT_CLASSES))
def test_adapters_that_were_trained_through_the_text_class(family: str) -> None:
    """Made by PEFT on the text class, with the multimodal checkpoint as the base that they name."""
    base = checkpoint(family)
    config = transformers.AutoConfig.from_pretrained(base).get_text_config(decoder=True)
    text = getattr(transformers, TEXT_CLASSES[family])(config)
    targets = r".*self_attn\.(q|v|o|q_a|kv_b)_proj|.*linear_attn\.out_proj"
    if not config.tie_word_embeddings:
        targets += "|lm_head"
    model = peft.get_peft_model(text, peft.LoraConfig(r=3, lora_alpha=6, target_modules=targets))
    randomise(model, 1)
    model.peft_config["default"].base_model_name_or_path = str(base)
    adapter = fresh("adapter")
    model.save_pretrained(adapter, save_embedding_layers=False)
    whole, expected = in_memory(base, family), in_memory(base, family)
    layers = next(n for n in whole if "language_model" in n and "layers." in n).partition("layers.")[0]
    for name, module in model.base_model.model.named_modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            place = next(n for n in whole if n.endswith("lm_head.weight"))
            if name != "lm_head":
                place = layers + name.removeprefix("model.") + ".weight"
            expected[place] = whole[place] + module.get_delta_weight("default").double()
    assert any(not torch.equal(whole[n], expected[n]) for n in whole)
    got = merge(applied(base, adapter))
    assert_close(in_memory(got.out, family), expected)
    assert f"{adapter} has the names of" in got.said


def renamed(adapter: Path, *changes: tuple[str, str]) -> Path:
    """An adapter with other names for its modules."""
    path = fresh("renamed")
    path.mkdir()
    found = load_file(adapter / "adapter_model.safetensors")
    for old, new in changes:
        assert any(old in name for name in found)
        found = {name.replace(old, new): tensor for name, tensor in found.items()}
    save_file(found, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text((adapter / "adapter_config.json").read_text())
    return path


OTHER_NAMES = {
    "PEFT's prefix twice": [("base_model.model.", "base_model.model.base_model.model.")],
    "PEFT's prefix missing": [("base_model.model.", "")],
    "of DistributedDataParallel": [("base_model.model.", "module.base_model.model.")],
    "compiled": [("base_model.model.", "_orig_mod.base_model.model.")],
    "compiled layer by layer": [("self_attn.", "self_attn._orig_mod.")],
    "sharded": [("layers.0.", "layers.0._fsdp_wrapped_module."), ("layers.1.", "layers.1._checkpoint_wrapped_module.")],
    "without the model's own prefix": [("base_model.model.model.", "base_model.model.")],
    "of a trainer's wrapper": [("base_model.model.", "base_model.model.policy.")],
    "of the text model alone": [("model.model.language_model.", "model.")],
}


@pytest.mark.slow
@pytest.mark.parametrize("names", list(OTHER_NAMES))
@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_prefixes_that_trainers_add_or_drop(family: str, names: str) -> None:
    base = checkpoint(family)
    shape = tuple(in_memory(base, family)["model.language_model.layers.0.self_attn.q_proj.weight"].shape)
    modules = {f"model.language_model.layers.{i}.self_attn.q_proj": shape for i in (0, 1)}
    adapter = written_adapter(base, factors(modules))
    other = merge(applied(base, renamed(adapter, *OTHER_NAMES[names]))).tensors
    assert_same_bytes(other, merge(applied(base, adapter)).tensors)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "old"),
    [
        ("qwen2_vl", {"model.language_model.layers": "model.layers", "model.visual": "visual"}),
        ("qwen2_5_vl", {"model.language_model.layers": "model.layers", "model.visual": "visual"}),
        ("llava", {"model.language_model.layers": "language_model.model.layers"}),
        ("gemma3", {"model.language_model.layers": "language_model.model.layers"}),
        ("mllama", {"model.language_model.layers": "language_model.model.layers"}),
        ("internvl", {"model.language_model.layers": "language_model.model.layers"}),
    ],
)
def test_names_of_transformers_4_are_those_of_today(family: str, old: dict[str, str]) -> None:
    base = checkpoint(family)
    own = in_memory(base, family)
    wanted = [n for n in own if n.endswith(("layers.0.self_attn.q_proj.weight", "visual.blocks.0.attn.proj.weight"))]
    shapes = {n.removesuffix(".weight"): tuple(own[n].shape) for n in wanted if n.startswith(tuple(old))}
    assert len(shapes) == len(old)
    adapter = written_adapter(base, factors(shapes))
    older = renamed(adapter, *old.items())
    assert_same_bytes(merge(applied(base, older)).tensors, merge(applied(base, adapter)).tensors)


def test_remote_code_is_known_by_the_ends_of_its_names() -> None:
    """An adapter of the language model inside, whose names lack the way to it."""
    base = altered(checkpoint("internvl"), model_type="internvl_chat", architectures=["InternVLChatModel"])
    name = next(n for n in tensors(base) if n.endswith("layers.0.self_attn.q_proj.weight"))
    short = "layers.0.self_attn.q_proj"
    found = factors({f"model.{short}": tuple(tensors(base)[name].shape)})
    if not name.endswith(f"model.{short}.weight"):
        found = {short: next(iter(found.values()))}
    got = merge(applied(base, written_adapter(base, found))).tensors
    expected = tensors(base)[name].double() + delta(found, next(iter(found)))
    assert torch.allclose(got[name].double(), expected, atol=1e-6)


def test_one_tensor_under_two_names_is_refused() -> None:
    base = checkpoint("llava")
    shape = tuple(in_memory(base, "llava")["model.language_model.layers.0.self_attn.q_proj.weight"].shape)
    twice = {f"{path}.layers.0.self_attn.q_proj": shape for path in ("model.language_model", "language_model.model")}
    refused(applied(base, written_adapter(base, factors(twice))), "holds it as")


# ------------------------------------------------------------------------------------------------- the base's names

NAME = "Qwen2.5-VL-7B-Instruct"
MODULES = {"model.language_model.layers.0.self_attn.q_proj": (64, 64)}


@pytest.fixture(scope="module")
def base() -> Path:
    path = altered(checkpoint("qwen2_5_vl"))
    return path.rename(path.parent / NAME)


@functools.cache
def on_its_own(base: Path) -> Outcome:
    """The merge of an adapter that names the base on which it is put."""
    return merge(applied(base, written_adapter(base, factors(MODULES))))


@pytest.mark.slow
@pytest.mark.parametrize(
    "said",
    [
        NAME,
        f"Qwen/{NAME}",
        f"Qwen/{NAME}/",
        f"unsloth/{NAME}",
        f"unsloth/{NAME.lower()}",
        f"/root/.cache/huggingface/hub/models--Qwen--{NAME}/snapshots/0123abc",
        f"/root/.cache/huggingface/hub/models--Qwen--{NAME}/snapshots/0123abc/",
        f"/data/models--Qwen--{NAME}",
        "/root/.cache/modelscope/hub/models/Qwen/Qwen2___5-VL-7B-Instruct",
        "/mnt/Qwen/Qwen2___5-VL-7B-Instruct/",
        f"D:\\models\\{NAME}",
        f"C:\\Users\\me\\.cache\\huggingface\\hub\\models--Qwen--{NAME}\\snapshots\\0123abc\\",
        f"mlx-community/{NAME}-bf16",
    ],
)
def test_a_base_under_another_spelling_of_its_name(base: Path, said: str) -> None:
    outcome = merge(applied(base, written_adapter(said, factors(MODULES))))
    assert "quantized" not in outcome.said


@pytest.mark.parametrize(
    "ending",
    [
        *("unsloth-bnb-4bit", "bnb-4bit", "4bit", "bnb-8bit", "mlx-4bit", "GPTQ-Int4", "GPTQ-Int8", "AWQ", "AWQ-4bit"),
        *("FP8", "FP8-Dynamic", "NVFP4", "w4a16", "quantized.w8a8"),
    ],
)
def test_a_base_that_was_quantized_to_be_trained_on_is_the_base_with_a_note(base: Path, ending: str) -> None:
    said = f"unsloth/{NAME}-{ending}"
    outcome = merge(applied(base, written_adapter(said, factors(MODULES))))
    assert f"trained on quantized weights ({said})" in outcome.said


OTHERS = [
    "Qwen/Qwen2.5-VL-7B",
    "Qwen/Qwen2.5-VL-7B-Instruct-2",
    "Qwen/Qwen2.5-VL-3B-Instruct",
    "Qwen/Qwen2.5-VL-32B-Instruct-bnb-4bit",
    "Qwen/Qwen2.5-7B-Instruct",
    f"/data/{NAME}/checkpoint-100",
    f"/data/{NAME}/llm",
    f"{NAME}/merged",
]


@pytest.mark.slow
@pytest.mark.parametrize("said", OTHERS)
def test_another_base_is_refused_until_it_is_trusted(base: Path, said: str) -> None:
    adapter = written_adapter(said, factors(MODULES))
    refused(applied(base, adapter), said, "adapter_base: trust")
    expected = on_its_own(base).tensors
    everywhere, here = applied(base, adapter, parameters={"adapter_base": "trust"}), applied(base, adapter)
    here["models"][0]["parameters"]["adapter_base"] = "trust"
    for config in (everywhere, here):
        outcome = merge(config)
        assert_same_bytes(outcome.tensors, expected)
        assert f"was trained on {said}; by `adapter_base` it is put on {base}" in outcome.said


def test_the_place_of_a_base_is_not_its_name(base: Path) -> None:
    """A directory above the base of the same name as the adapter's base says nothing."""
    inner = base.parent / "other-model-7b" / "llm"
    inner.parent.mkdir(exist_ok=True)
    altered(base).rename(inner)
    refused(applied(inner, written_adapter("someone/other-model-7b", factors(MODULES))), "someone/other-model-7b")


def test_a_quantized_copy_on_this_machine_is_known_by_its_name(base: Path) -> None:
    parent = fresh("quantized")
    parent.mkdir()
    for name, same in ((f"{NAME}-bnb-4bit", True), (f"{NAME}-V2-bnb-4bit", False)):
        copy = altered(base, lambda found: {n: t * 2 for n, t in found.items()}, quantization_config={"bits": 4})
        copy = copy.rename(parent / name)
        adapter = written_adapter(copy, factors(MODULES))
        if same:
            assert "trained on quantized weights" in merge(applied(base, adapter)).said
        else:
            refused(applied(base, adapter), "adapter_base: trust")


def test_trust_is_for_the_input_that_has_it(base: Path) -> None:
    adapters = [written_adapter("someone/else", factors(MODULES, seed=seed)) for seed in (0, 1)]
    config = task_arithmetic(base, [plus(base, adapter) for adapter in adapters])
    config["models"][0]["parameters"] = {"weight": 1.0, "adapter_base": "trust"}
    error = refused(config, str(adapters[1]), "adapter_base: trust").error
    assert f"{adapters[0]} was trained on" not in error


def test_the_one_value_of_adapter_base_is_trust(base: Path) -> None:
    adapter = written_adapter("someone/else", factors(MODULES))
    refused(applied(base, adapter, parameters={"adapter_base": "yes"}), "adapter_base", "'yes'", "trust")


def test_inspect_takes_the_same_word_for_it(base: Path) -> None:
    adapter = written_adapter("someone/else", factors(MODULES))
    assert "adapter_base" in plugin("inspect", plus(base, adapter)).output
    done = plugin("inspect", plus(base, adapter), "--adapter-base", "trust")
    assert done.exit_code == 0, done.output
    assert "was trained on someone/else" in done.output


@pytest.mark.slow
def test_an_adapter_of_the_text_only_llm_goes_on_a_model_around_that_llm_if_it_is_trusted() -> None:
    """PEFT applies it to whatever has modules of these names; here the user has to say so. Over its own base the
    adapter is an input like any other text-only LLM."""
    vlm, llm = checkpoint("llava"), llama(0)
    name = "model.layers.0.self_attn.q_proj"
    found = factors({name: tuple(tensors(llm)[f"{name}.weight"].shape)})
    adapter = written_adapter(llm, found)
    refused(applied(vlm, adapter), "adapter_base: trust", f"{llm}+{adapter}")
    got = merge(applied(vlm, adapter, parameters={"adapter_base": "trust"})).out
    whole = in_memory(vlm, "llava")
    place = "model.language_model.layers.0.self_attn.q_proj.weight"
    assert_close(in_memory(got, "llava"), {**whole, place: whole[place] + delta(found, name)})
    over = merge(task_arithmetic(vlm, [plus(llm, adapter)], weight=1.0)).out
    tuned = tensors(llm)[f"{name}.weight"].double() + delta(found, name)
    assert torch.allclose(in_memory(over, "llava")[place], tuned, atol=1e-5)
