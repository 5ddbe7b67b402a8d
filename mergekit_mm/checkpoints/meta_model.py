"""The model that a config describes, instantiated without storage: names, shapes and ties of its tensors."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from mergekit_mm.checkpoints.transformers_private import ignored_if_missing, on_meta_device, parsed_config
from mergekit_mm.errors import MergeError
from mergekit_mm.omni import register as register_omni
from mergekit_mm.omni.configuration import OmniConfig

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True, eq=False)
class MetaModel:
    """A model on the meta device. Its modules say what each tensor of its state dict is."""

    model: PreTrainedModel

    @cached_property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """The state dict: name in memory -> meta tensor."""
        state: dict[str, torch.Tensor] = self.model.state_dict()
        return state

    @cached_property
    def aliases(self) -> Mapping[str, str]:
        """For each tied tensor, the first name in the state dict that shares its storage."""
        first: dict[int, str] = {}
        result: dict[str, str] = {}
        held = dict(self.model.named_parameters(remove_duplicate=False))
        held.update(self.model.named_buffers(remove_duplicate=False))
        for name in self.tensors:
            owner = held.get(name)
            if owner is None:  # no module lists extra state
                continue
            if (known := first.setdefault(id(owner), name)) != name:
                result[name] = known
        return result

    def tied_to(self, name: str) -> list[str]:
        """The other tensors that share a tensor's storage, the first in the state dict first."""
        first = self.aliases.get(name, name)
        together = [first, *(alias for alias, source in self.aliases.items() if source == first)]
        return [other for other in together if other != name]

    def first_of(self, name: str, held: Container[str]) -> str:
        """Of the `held` tensors that share a tensor's storage, the first in the state dict; else the tensor itself."""
        first = self.aliases.get(name, name)
        together = (first, *(alias for alias, source in self.aliases.items() if source == first))
        return next((other for other in together if other in held), name)

    @cached_property
    def buffers(self) -> frozenset[str]:
        """Names of all buffers, those that are not saved included."""
        return frozenset(name for name, _ in self.model.named_buffers(remove_duplicate=False))

    @cached_property
    def convolutions(self) -> frozenset[str]:
        """Names of convolution kernels: tensors of three or more axes that are not stacks of matrices."""
        modules = self.model.named_modules()
        return frozenset(f"{name}.weight" for name, module in modules if isinstance(module, _CONVOLUTIONS))

    def may_be_absent(self, name: str) -> bool:
        """Whether transformers loads the model without a word when this tensor is not on disk."""
        return name in self.buffers or any(re.search(pattern, name) for pattern in ignored_if_missing(self.model))


def meta_model_of(raw_config: Mapping[str, Any]) -> MetaModel | None:
    """Instantiate the model of a `config.json` on the meta device.

    Returns None for a checkpoint whose modelling code does not come with transformers (remote code). Such code is not
    run: it would only tell names that are on disk anyway.

    Raises:
        MergeError: transformers knows the model type but cannot build this config.
    """
    model_type = raw_config.get("model_type")
    if model_type == OmniConfig.model_type:
        register_omni()
        return _build(json.dumps(raw_config, sort_keys=True))
    if model_type not in transformers.CONFIG_MAPPING:
        return None
    architectures = raw_config.get("architectures") or [None]
    if architectures[0] is not None and not hasattr(transformers, architectures[0]):
        return None
    return _build(json.dumps(raw_config, sort_keys=True))


# experts of one base mostly have the same config, so that one instance serves them all
@lru_cache(maxsize=16)
def _build(config_json: str) -> MetaModel:
    raw = parsed_config(json.loads(config_json))
    model_type = raw.pop("model_type")
    # an attention implementation may need a package that is not installed
    raw.pop("_attn_implementation", None)
    try:
        config = AutoConfig.for_model(model_type, **raw)
        model = on_meta_device(_model_class(config), config)
    except Exception as error:
        raise MergeError(
            f"transformers {transformers.__version__} cannot instantiate the {model_type} model of this config: "
            f"{type(error).__name__}: {error}"
        ) from error
    return MetaModel(model)


def _model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    if config.architectures and config.model_type != OmniConfig.model_type:
        cls: type[PreTrainedModel] = getattr(transformers, config.architectures[0])
        return cls
    for mapping in (MODEL_FOR_MULTIMODAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING):
        if type(config) in mapping:
            found = mapping[type(config)]
            return found[0] if isinstance(found, tuple) else found
    raise MergeError("config.json names no architecture and transformers has no default one for it")
