"""The modules of the output (`modules:` of a merge config), which follow from its tensors' roles, and their slices."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import dropwhile, takewhile

from mergekit.common import ModelReference
from mergekit.config import (
    InputModelDefinition,
    InputSliceDefinition,
    MergeConfiguration,
    OutputModuleDefinition,
    OutputSliceDefinition,
)

from mergekit_mm.checkpoints.checkpoint import TensorInfo, layer_stack

# Module names of mergekit's own definitions of multimodal architectures -> the names here.
ALIASES = {"text_decoder": "language_model", "multi_modal_projector": "projector", "vision_model": "vision_tower"}


@dataclass(frozen=True, eq=False)
class Module:
    """All tensors of one module, divided into its main stack of layers and the rest. Names are the output's."""

    tensors: Mapping[str, TensorInfo]

    @cached_property
    def stack(self) -> str:
        """The path of the main stack of layers, with a dot at its end; empty if there is none."""
        path = layer_stack(list(self.tensors))
        return path + "." if path else ""

    @cached_property
    def layers(self) -> Sequence[Sequence[str]]:
        """For each layer, the names of its tensors after the layer's index."""
        suffixes: dict[int, list[str]] = {}
        for name in self.tensors:
            if self.stack and (match := re.match(re.escape(self.stack) + r"(\d+)\.(.+)", name)):
                suffixes.setdefault(int(match[1]), []).append(match[2])
        return [suffixes.get(index, []) for index in range(max(suffixes, default=-1) + 1)]

    def name_at(self, index: int, suffix: str) -> str:
        """The name of a tensor in the layer of an index."""
        return f"{self.stack}{index}.{suffix}"

    @property
    def before_layers(self) -> list[str]:
        return list(takewhile(lambda name: not self._in_stack(name), self.tensors))

    @property
    def after_layers(self) -> list[str]:
        rest = dropwhile(lambda name: not self._in_stack(name), self.tensors)
        return [name for name in rest if not self._in_stack(name)]

    def _in_stack(self, name: str) -> bool:
        return bool(self.stack) and re.match(re.escape(self.stack) + r"\d+\.", name) is not None


def modules_of(tensors: Iterable[TensorInfo]) -> dict[str, Module]:
    """`language_model`, `vision_tower`, `projector`, ... -> the tensors of that module, in the order of the layout."""
    modules: dict[str, dict[str, TensorInfo]] = {}
    for info in tensors:
        modules.setdefault(info.role.module, {})[info.name] = info
    return {name: Module(infos) for name, infos in modules.items()}


def module_definitions(
    config: MergeConfiguration, modules: Mapping[str, Module], layout: ModelReference
) -> dict[str, OutputModuleDefinition]:
    """`models:`, `slices:` and `modules:` of a config in one form: module -> its slices.

    A module that the config does not list is sliced from `layout` alone, the model whose layout the output has.
    """
    given: dict[str, OutputModuleDefinition]
    if config.slices:
        given = {"language_model": OutputModuleDefinition(slices=config.slices)}
    elif config.models:
        given = {name: OutputModuleDefinition(models=config.models) for name in modules}
    else:
        given = {ALIASES.get(name, name): module for name, module in (config.modules or {}).items()}
    for name in modules:
        given.setdefault(name, OutputModuleDefinition(models=[InputModelDefinition(model=layout)]))
    return {name: _in_slices(given[name], len(modules[name].layers), config.base_model) for name in given}


def unlisted_modules(config: MergeConfiguration, modules: Iterable[str]) -> list[str]:
    """The modules that a config with `modules:` or `slices:` does not list."""
    if config.models:
        return []
    listed = {"language_model"} if config.slices else {ALIASES.get(name, name) for name in config.modules or ()}
    return [name for name in modules if name not in listed]


def layers_of(module: OutputModuleDefinition) -> list[int]:
    """For each layer of a module in the output, the input's layer that it comes from."""
    ranges = [part.sources[0].layer_range for part in module.slices or ()]
    return [index for low, high in ranges for index in range(low, high)]


def moved_layers(
    modules: Mapping[str, Module], definitions: Mapping[str, OutputModuleDefinition]
) -> tuple[int, ...] | None:
    """For each layer of the output's language model, the layer it comes from; None if no layer is moved."""
    if "language_model" not in modules:
        return None
    layers = layers_of(definitions["language_model"])
    return None if layers == list(range(len(modules["language_model"].layers))) else tuple(layers)


def _in_slices(module: OutputModuleDefinition, layers: int, base: ModelReference | None) -> OutputModuleDefinition:
    """A module with `models:` as one slice of all its layers, to which the base model is added if it is not listed."""
    if not module.models:
        return module
    sources = [
        InputSliceDefinition(model=each.model, layer_range=(0, layers), parameters=each.parameters)
        for each in module.models
    ]
    if base and all(source.model != base for source in sources):
        sources.append(InputSliceDefinition(model=base, layer_range=(0, layers)))
    return OutputModuleDefinition(slices=[OutputSliceDefinition(sources=sources)], parameters=module.parameters)
