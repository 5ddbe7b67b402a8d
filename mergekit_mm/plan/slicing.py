"""`models:`, `slices:` and `modules:` of a merge config in one form: for every module its slices."""

from __future__ import annotations

from collections.abc import Mapping

from mergekit.common import ModelReference
from mergekit.config import (
    InputModelDefinition,
    InputSliceDefinition,
    MergeConfiguration,
    OutputModuleDefinition,
    OutputSliceDefinition,
)

from mergekit_mm.plan.modules import ALIASES, RoleModule


def slice_by_module(config: MergeConfiguration, modules: Mapping[str, RoleModule], base: ModelReference) -> list[str]:
    """Rewrite `config` in place; returns the modules that it does not list, which are sliced from `base` alone."""
    if config.slices:
        config.modules = {"language_model": OutputModuleDefinition(slices=config.slices)}
    elif config.models:
        config.modules = {name: OutputModuleDefinition(models=config.models) for name in modules}
    config.models = config.slices = None
    config.modules = {ALIASES.get(name, name): module for name, module in config.modules.items()}
    unlisted = [name for name in modules if name not in config.modules]
    for name in unlisted:
        config.modules[name] = OutputModuleDefinition(models=[InputModelDefinition(model=base)])
    for name, module in config.modules.items():
        if module.models:
            sources = _sources(module.models, len(modules[name].layers), config.base_model)
            module.slices, module.models = [OutputSliceDefinition(sources=sources)], None
    return unlisted


def layers_of(module: OutputModuleDefinition) -> list[int]:
    """For each layer of a module in the output, the input's layer that it comes from."""
    ranges = [part.sources[0].layer_range for part in module.slices]
    return [index for low, high in ranges for index in range(low, high)]


def _sources(
    models: list[InputModelDefinition], layers: int, base: ModelReference | None
) -> list[InputSliceDefinition]:
    sources = [InputSliceDefinition(model=m.model, layer_range=(0, layers), parameters=m.parameters) for m in models]
    if base and all(source.model != base for source in sources):
        sources.append(InputSliceDefinition(model=base, layer_range=(0, layers)))
    return sources
