"""The modules of a model (`modules:` in a mergekit config) as mergekit's planner wants them, made from roles."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import dropwhile, takewhile

from mergekit.architecture import ModelArchitecture, ModuleArchitecture, ModuleDefinition, WeightInfo
from transformers import PreTrainedConfig

from mergekit_mm.checkpoints.checkpoint import Checkpoint, TensorInfo, layer_stack

# names that mergekit's own definitions of multimodal families use
ALIASES = {"text_decoder": "language_model", "multi_modal_projector": "projector", "vision_model": "vision_tower"}


class RoleModule(ModuleArchitecture):
    """All tensors of one module, those of its main stack of layers told apart from the rest.

    Names are the output's in memory. The config that mergekit passes is not needed: the tensors are known.
    """

    def __init__(self, tensors: Sequence[TensorInfo]):
        self.tensors = {info.name: info for info in tensors}

    @cached_property
    def stack(self) -> str:
        """The path of the main stack of layers, with a dot at its end; empty if there is none."""
        path = layer_stack(list(self.tensors))
        return path + "." if path else ""

    @cached_property
    def layers(self) -> list[list[str]]:
        """For each layer, the names of its tensors after the layer's index."""
        found: dict[int, list[str]] = {}
        for name in self.tensors:
            if self.stack and (match := re.match(re.escape(self.stack) + r"(\d+)\.(.+)", name)):
                found.setdefault(int(match[1]), []).append(match[2])
        return [found.get(index, []) for index in range(max(found, default=-1) + 1)]

    def name_at(self, index: int, suffix: str) -> str:
        return f"{self.stack}{index}.{suffix}"

    def weight(self, name: str, like: str | None = None) -> WeightInfo:
        return WeightInfo(name=name, vocabulary_axis=self.tensors[like or name].vocabulary_axis)

    def num_layers_config_key(self) -> str:
        return ""  # the output's config.json is edited by the plugin

    def num_layers(self, config: PreTrainedConfig) -> int:
        return len(self.layers)

    def pre_weights(self, config: PreTrainedConfig) -> list[WeightInfo]:
        return [self.weight(n) for n in takewhile(lambda n: not self._in_stack(n), self.tensors)]

    def layer_weights(self, index: int, config: PreTrainedConfig) -> list[WeightInfo]:
        return [self.weight(self.name_at(index, suffix)) for suffix in self.layers[index]]

    def post_weights(self, config: PreTrainedConfig) -> list[WeightInfo]:
        rest = dropwhile(lambda n: not self._in_stack(n), self.tensors)
        return [self.weight(n) for n in rest if not self._in_stack(n)]

    def _in_stack(self, name: str) -> bool:
        return bool(self.stack) and re.match(re.escape(self.stack) + r"\d+\.", name) is not None


def merge_architecture(base: Checkpoint, tensors: Mapping[str, TensorInfo]) -> ModelArchitecture:
    """The output's tensors as mergekit modules: `language_model`, `vision_tower`, `projector`, ..."""
    modules: dict[str, list[TensorInfo]] = {}
    for info in tensors.values():
        modules.setdefault(info.role.module, []).append(info)
    return ModelArchitecture(
        modules={name: ModuleDefinition(architecture=RoleModule(infos)) for name, infos in modules.items()},
        architectures=base.config.get("architectures") or [],
        model_type=base.config.get("model_type", ""),
    )
