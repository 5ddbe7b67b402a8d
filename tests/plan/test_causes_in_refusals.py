"""Refusals name what is wrong, where other parts of the checkpoint or the config would seem to be at fault."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from end_to_end import altered, checkpoint, experts, linear, llama, plugin, sharded, task_arithmetic, tensors, written
from peft_adapters import adapted, plus
from safetensors.torch import save_file


def message(config: dict[str, Any]) -> str:
    """What `mergekit-mm check` says of a config that it refuses."""
    result = plugin("check", written(config))
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    return result.output


def without_keys(model: Path, *keys: str) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in keys}))


def renamed(model: Path, prefix: str) -> Path:
    return altered(model, lambda found: {prefix + name: tensor for name, tensor in found.items()})


def test_a_config_that_has_lost_its_model_type() -> None:
    expert = altered(experts("llava")[0])
    without_keys(expert, "model_type")
    told = message(task_arithmetic(checkpoint("llava"), [expert]))
    assert f"{expert}/config.json has no `model_type`" in told
    assert "architectures" not in told


@pytest.mark.parametrize("family", ["gemma3", "llava"])
def test_the_config_of_the_text_model_over_the_weights_of_the_whole(family: str) -> None:
    expert = altered(experts(family)[0])
    text = json.loads((expert / "config.json").read_text())["text_config"]
    (expert / "config.json").write_text(json.dumps(text))
    told = message(task_arithmetic(checkpoint(family), [expert]))
    assert "Its weights are those of a whole multimodal model" in told
    assert f"describes a text model alone ({text['model_type']})" in told


def test_the_config_of_the_whole_over_the_weights_of_a_text_model() -> None:
    text = llama(0)
    shutil.copy(checkpoint("llava") / "config.json", text)
    told = message(linear(text, experts("llava")[0]))
    assert "Its weights are those of a text model alone" in told
    assert "describes a whole multimodal model (llava)" in told


def test_names_that_an_unknown_wrapper_of_training_has_changed() -> None:
    told = message(task_arithmetic(checkpoint("llava"), [renamed(experts("llava")[0], "policy.")]))
    assert "names that begin with policy." in told
    assert "a wrapper of training" in told


def test_an_adapter_in_the_place_of_a_model() -> None:
    base = checkpoint("llava")
    adapter, _ = adapted("llava", 21)
    content = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**content, "base_model_name_or_path": None}))
    with_config = Path(shutil.copytree(adapter, adapter.parent / "with_config"))
    shutil.copy(base / "config.json", with_config)
    for named in (adapter, with_config):
        assert f"write the model it belongs to before it, as in BASE+{named}" in message(
            linear(named, experts("llava")[0])
        )
    without = Path(shutil.copytree(adapter, adapter.parent / "without_config"))
    (without / "adapter_config.json").unlink()
    assert "adapter_config.json is missing" in message(linear(without, experts("llava")[0]))
    assert "holds no adapter_config.json" in message(task_arithmetic(base, [plus(base, without)]))


def test_modules_of_another_layout_than_the_first_models() -> None:
    text, expert = llama(0), experts("llava")[0]
    modules = {
        name: {"models": [{"model": str(model), "parameters": {"weight": 1.0}}]}
        for name, model in (("language_model", text), ("vision_tower", expert), ("projector", expert))
    }
    told = message({"merge_method": "linear", "modules": modules})
    assert f"the output has the layout of {text}, whose modules are language_model" in told
    assert f"{expert} has it: for its layout, make it the `base_model:`" in told
    assert "vision_model" not in told
    modules = {"vison_tower": modules["vision_tower"], "language_model": modules["language_model"]}
    told = message({"merge_method": "linear", "base_model": str(expert), "modules": modules})
    assert "Did you mean 'vision_tower'?" in told


def test_the_names_of_modules_in_mergekits_own_definitions_where_the_layout_lacks_them() -> None:
    modules = {
        name: {"models": [{"model": str(llama(0)), "parameters": {"weight": 1.0}}]}
        for name in ("text_decoder", "vision_model")
    }
    modules["text_decoder"]["models"].append({"model": str(experts("llava")[0]), "parameters": {"weight": 1.0}})
    assert "Unknown module 'vision_model'" in message({"merge_method": "linear", "modules": modules})


@pytest.mark.parametrize("method", ["passthrough", "slerp", "model_stock"])
def test_a_base_model_that_counts_as_an_input(method: str) -> None:
    base, first, *others = checkpoint("llava"), *experts("llava")
    listed = {"passthrough": [first], "slerp": [first, *others], "model_stock": [first]}[method]
    config = {"merge_method": method, "base_model": str(base), "models": [{"model": str(m)} for m in listed]}
    if method == "slerp":
        config["parameters"] = {"t": 0.5}
    told = message(config)
    assert f"{base} (base_model)" in told
    assert "The base_model is an input like any other" in told
    assert "slices[0]" not in told


def test_shards_without_their_index() -> None:
    lost = sharded(experts("llava")[0])
    (lost / "model.safetensors.index.json").unlink()
    told = message(task_arithmetic(checkpoint("llava"), [lost]))
    assert "It has 3 of 3 shards, model-00001-of-00003.safetensors" in told
    assert "fetch model.safetensors.index.json" in told
    (lost / "model-00002-of-00003.safetensors").unlink()
    assert "It has 2 of 3 shards" in message(task_arithmetic(checkpoint("llava"), [lost]))
    single = altered(experts("llava")[0])
    (single / "model.safetensors").rename(single / "model-00001-of-00001.safetensors")
    assert "name it model.safetensors" in message(task_arithmetic(checkpoint("llava"), [single]))


def test_weights_under_another_name_or_in_another_format() -> None:
    lost = altered(experts("llava")[0])
    (lost / "model.safetensors").rename(lost / "consolidated.safetensors")
    told = message(task_arithmetic(checkpoint("llava"), [lost]))
    assert "another format or has another name: consolidated.safetensors" in told


def test_a_type_that_transformers_does_not_know_here_brings_no_code() -> None:
    """As a family that is newer than the transformers that is installed."""
    newer = altered(experts("llava")[0], model_type="llava_of_tomorrow", architectures=["LlavaOfTomorrow"])
    told = message({**linear(newer, experts("qwen2_audio")[0])})
    assert f"{newer} is of a type that transformers does not know here" in told


def test_a_text_model_that_is_whole_is_not_called_so() -> None:
    """Only a tensor or two are lost: the config is the right one, and nothing is said of it."""
    base = checkpoint("llava")
    lost = altered(experts("llava")[0])
    found = {k: v for k, v in tensors(lost).items() if "layers.1.mlp" not in k}
    save_file({k: v.clone() for k, v in found.items()}, lost / "model.safetensors", metadata={"format": "pt"})
    told = message(task_arithmetic(base, [lost]))
    assert "lacks 7 tensors" in told
    assert "config.json" not in told


@pytest.mark.parametrize("name", ["", "  "])
def test_a_model_without_a_name(name: str) -> None:
    """An empty path is the current directory, which nobody means by it."""
    entries = [{"model": each, "parameters": {"weight": 0.5}} for each in (str(checkpoint("llava")), name)]
    told = message({"merge_method": "linear", "models": entries})
    assert "A model has an empty name" in told
    assert "config.json" not in told


@pytest.mark.parametrize("key", ["model", "state_dict"])
def test_weights_in_a_checkpoint_of_training(key: str) -> None:
    """transformers loads no such file as a model; the advice, followed, makes one of it."""
    expert = altered(experts("llava")[0])
    (expert / "model.safetensors").unlink()
    file, state = expert / "pytorch_model.bin", tensors(experts("llava")[0])
    torch.save({key: state, "epoch": 3}, file)
    config = task_arithmetic(checkpoint("llava"), [expert])
    told = message(config)
    assert f"its {len(state)} tensors are under the key '{key}'" in told
    assert f"torch.save(torch.load(file)['{key}'], file)" in told
    torch.save(torch.load(file)[key], file)
    assert plugin("check", written(config)).exit_code == 0
