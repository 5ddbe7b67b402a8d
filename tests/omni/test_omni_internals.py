"""The private names of transformers that omni models use are there, with the parameters that are passed to them.

When one of these fails, transformers has changed: `mergekit_mm/omni/internals.py` is the file to follow it.
"""

from __future__ import annotations

import inspect

import pytest
import torch
import transformers as t
import zoo

from mergekit_mm.omni.configuration import OmniConfig
from mergekit_mm.omni.internals import GeneratesAsHost
from mergekit_mm.omni.modeling import OmniForConditionalGeneration

METHODS = {  # with the parameters that transformers' own callers and `internals` use by name
    "_expand_inputs_for_generation": {"expand_size", "is_encoder_decoder", "input_ids"},
    "_maybe_prepare_encoder_kwargs_for_generation": set(),
    "_prepare_position_ids_for_generation": set(),
    "_update_model_kwargs_for_generation": set(),
    "_validate_model_kwargs": {"model_kwargs"},
    "_supports_logits_to_keep": set(),
    "_set_gradient_checkpointing": {"enable", "gradient_checkpointing_func"},
}
ATTRIBUTES = (
    *("_supports_sdpa", "_supports_flash_attn", "_supports_flex_attn", "_supports_attention_backend"),
    *("_tied_weights_keys", "_no_split_modules", "_skip_keys_device_placement", "_keep_in_fp32_modules"),
)


class Plain(t.PreTrainedModel, t.GenerationMixin):
    """A model of transformers as it is without our part."""


@pytest.mark.parametrize("name", METHODS)
def test_overridden_methods_are_transformers_own(name: str) -> None:
    assert METHODS[name] <= inspect.signature(getattr(Plain, name)).parameters.keys()
    assert getattr(OmniForConditionalGeneration, name) is getattr(GeneratesAsHost, name)


def test_no_method_overrides_nothing() -> None:
    ours = {name for name, value in vars(GeneratesAsHost).items() if name.startswith("_") and inspect.isfunction(value)}
    assert ours - {"_adopt"} == set(METHODS)


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attributes_are_transformers_own(name: str) -> None:
    assert hasattr(t.PreTrainedModel, name)


def test_an_attention_implementation_reaches_host_and_guests() -> None:
    config = OmniConfig(host=zoo.llava().to_dict(), guests={"ear": zoo.qwen2_audio().to_dict()})
    assert isinstance(vars(t.PreTrainedConfig)["_attn_implementation"], property)
    model = OmniForConditionalGeneration._from_config(config, attn_implementation="eager")
    kinds = {
        module.config._attn_implementation
        for part in (model.model, model.guests["ear"])
        for module in part.modules()
        if isinstance(module, t.PreTrainedModel)
    }
    assert kinds == {"eager"}
    assert torch.is_tensor(model.lm_head.weight)
