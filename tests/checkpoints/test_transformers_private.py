"""The private parts of transformers do what the rooms below `checkpoints` need of them, in the version that is here."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
import transformers
import zoo

import mergekit_mm
from mergekit_mm.checkpoints.transformers_private import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    get_model_conversion_mapping,
    get_relative_imports,
    ignored_if_missing,
    ignored_if_unexpected,
    media_model_types,
    on_meta_device,
    parsed_config,
    processor_class,
    processor_parts_of_auto_classes,
    rename_source_key,
)


def meta(family: str) -> transformers.PreTrainedModel:
    spec = zoo.FAMILIES[family]
    return on_meta_device(getattr(transformers, spec.cls), spec.config())


def test_a_model_on_the_meta_device_has_its_ties() -> None:
    config = transformers.LlamaConfig(**{**zoo.text("llama"), "tie_word_embeddings": True})
    model = on_meta_device(transformers.LlamaForCausalLM, config)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_infinities_in_a_config(tmp_path: Path) -> None:
    """As transformers writes them, at any depth."""
    transformers.LlamaConfig(bound=-math.inf, text={"bounds": [math.inf, 1.0]}).save_pretrained(tmp_path)
    parsed = parsed_config(json.loads((tmp_path / "config.json").read_text()))
    assert (parsed["bound"], parsed["text"]) == (-math.inf, {"bounds": [math.inf, 1.0]})


def test_patterns_of_tensors_that_loading_passes_over() -> None:
    config = transformers.T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=8)
    model = on_meta_device(transformers.T5ForConditionalGeneration, config)
    relative = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    assert any(re.search(pattern, relative) for pattern in ignored_if_unexpected(model))
    model._keys_to_ignore_on_load_missing = ["made_anew"]
    assert list(ignored_if_missing(model)) == ["made_anew"]
    assert list(ignored_if_missing(meta("llava"))) == []


def test_older_names_and_split_tensors_find_their_place() -> None:
    """A renaming of LLaVA's, and a conversion of single experts to a stack."""
    for family, old, new, is_converted in (
        ("llava", "language_model.model.layers.0.mlp.up_proj.weight", "layers.0.mlp.up_proj.weight", False),
        ("qwen3_omni_moe_thinker", "model.layers.0.mlp.experts.0.down_proj.weight", "mlp.experts.down_proj", True),
    ):
        model = meta(family)
        transforms = get_model_conversion_mapping(model)
        renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
        converters = [each for each in transforms if isinstance(each, WeightConverter)]
        target, pattern = rename_source_key(old, renamings, converters, model.base_model_prefix, model.state_dict())
        assert target in model.state_dict()
        assert target.endswith(new)
        assert (pattern is not None) == is_converted


def test_a_conversion_runs_there_and_back() -> None:
    model = meta("qwen3_omni_moe_thinker")
    transforms = get_model_conversion_mapping(model)
    converter = next(c for c in transforms if isinstance(c, WeightConverter) and len(c.source_patterns) == 1)
    target = next(name for name in model.state_dict() if name.endswith("mlp.experts.down_proj"))
    inverse = converter.reverse_transform()
    renamed, pattern = inverse.rename_source_key(target)
    stack = torch.randn(model.state_dict()[target].shape)
    inverse.add_tensor(renamed, target, pattern, stack)
    parts = inverse.convert(renamed, model=model, config=model.config)
    for name in sorted(parts, key=dot_natural_key):
        tensor = parts[name][0] if isinstance(parts[name], list) else parts[name]
        converter.add_tensor(target, name, converter.rename_source_key(name)[1], tensor)
    (again,) = converter.convert(target, model=model, config=model.config).values()
    assert torch.equal(again[0] if isinstance(again, list) else again, stack)


def test_names_are_sorted_by_their_numbers() -> None:
    assert sorted(["layers.10.w", "layers.9.w"], key=dot_natural_key) == ["layers.9.w", "layers.10.w"]


def test_relative_imports_of_code(tmp_path: Path) -> None:
    (tmp_path / "modeling_it.py").write_text("import torch\nfrom .configuration_it import ItConfig\n")
    assert get_relative_imports(tmp_path / "modeling_it.py") == ["configuration_it"]


def test_parts_of_processors() -> None:
    assert set(processor_class("llava").get_attributes()) == {"image_processor", "tokenizer"}
    assert processor_parts_of_auto_classes("whisper") == ("feature_extractor",)
    with pytest.raises(KeyError):
        processor_class("no such architecture")


def test_no_other_file_reaches_into_transformers() -> None:
    private = re.compile(
        r"transformers\.(conversion_mapping|core_model_loading|initialization|dynamic_module_utils|models\.)"
        r"|_keys_to_ignore|_decode_special_floats|_ConvNd"
    )
    package = Path(mergekit_mm.__file__).parent
    files = [file for room in ("checkpoints", "plan", "tasks", "output") for file in (package / room).rglob("*.py")]
    assert [file.name for file in files if private.search(file.read_text())] == ["transformers_private.py"]


def test_the_model_types_with_media() -> None:
    assert {"llava", "qwen2_vl", "qwen2_audio", "whisper"} <= media_model_types()
    assert not {"llama", "qwen2"} & media_model_types()
