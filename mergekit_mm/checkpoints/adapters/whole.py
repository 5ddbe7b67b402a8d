"""Modules of a model that an adapter can hold whole (PEFT's `modules_to_save`), for changes that have no factors."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from torch import nn

from mergekit_mm.checkpoints.checkpoint import Checkpoint
from mergekit_mm.checkpoints.roles import Role

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)  # PEFT cannot wrap them


def module_paths(base: Checkpoint) -> set[str]:
    """Paths of all modules. PEFT finds the modules that a config names among them."""
    if base.meta_model is not None:
        return {path for path, _ in base.meta_model.model.named_modules() if path}
    parts = [name.split(".") for name in base.tensors]
    return {".".join(each[:i]) for each in parts for i in range(1, len(each))}


def tensors_of(base: Checkpoint, module: str) -> list[str]:
    """Names in memory of all tensors in a module. PEFT asks for all of them when it loads a module whole."""
    names: Iterable[str] = base.meta_model.tensors if base.meta_model is not None else base.tensors
    return [name for name in names if name.startswith(f"{module}.")]


def saved_modules(base: Checkpoint, changed: Collection[str]) -> tuple[list[str], dict[str, str]]:
    """The smallest modules that hold all changed tensors, and the reason for each tensor that no module can hold.

    changed: names in memory.

    Returns:
        Paths of modules, none of which lies within another; and tensor -> reason.
    """
    paths = module_paths(base)
    owners = {name.rpartition(".")[0] for name in changed}
    refused = {owner: why for owner in owners if (why := _why_not(base, owner, paths))}
    fit = owners - refused.keys()
    outermost = [owner for owner in fit if not any(owner.startswith(f"{other}.") for other in fit)]
    held = tuple(f"{module}." for module in outermost)
    left = [name for name in changed if not name.startswith(held)]
    return sorted(outermost), {name: refused[name.rpartition(".")[0]] for name in left}


def shortened(chosen: Collection[str], paths: Collection[str]) -> list[str]:
    """Names for `modules_to_save`: only the last part of a path, if all modules with that last part are chosen."""

    def name_of(path: str) -> str:
        last = path.rpartition(".")[2]
        return last if all(other in chosen for other in paths if other.endswith(last)) else path

    return sorted({name_of(path) for path in chosen})


def _why_not(base: Checkpoint, owner: str, paths: Collection[str]) -> str | None:
    """Why PEFT cannot save the module of a changed tensor, or only with most of the model; None if it can.

    owner: path of the module. paths: the paths of all modules.
    """
    if not owner:
        return "it belongs to the model itself and to no module"
    meta_model, names = base.meta_model, tensors_of(base, owner)
    if meta_model is not None:
        if isinstance(meta_model.model.get_submodule(owner), _CONTAINERS):
            return f"{owner} is a list of parameters, which PEFT cannot save"
        if tied := next((other for name in names for other in meta_model.tied_to(name)), None):
            return f"{owner} is tied to {tied}, which an adapter would take apart"
    if absent := [name for name in names if name not in base.tensors]:
        return f"PEFT saves {owner} with {absent[0]}, which {base.name} does not hold"
    if _holds_layers(base.tensors, owner, names):
        return f"the module that it belongs to, {owner}, has all layers of the model in it"
    if others := [path for path in paths if path.endswith(owner) and path != owner]:
        return f"PEFT takes every module whose path ends in {owner}, {min(others)} too"
    return None


def _holds_layers(tensors: Mapping[str, object], owner: str, names: Iterable[str]) -> bool:
    """Whether a module holds numbered layers. The few layers of a projector do not count."""
    layers = [name for name in names if re.match(r"(.+\.)?\d+\.", name.removeprefix(f"{owner}."))]
    roles = {getattr(tensors[name], "role", None) for name in layers}
    return bool(roles - {Role.PROJECTOR})
