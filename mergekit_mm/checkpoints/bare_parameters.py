"""LoRA on parameters that have no module of their own (PEFT's `target_parameters`), mostly stacks of expert matrices.

PEFT wraps the module that holds the parameter, once for each of its parameters that is adapted: the factors of the
innermost one are at `experts.base_layer.lora_A`, those of the outermost at `experts.lora_A`. A stack of E matrices has
its factors in two matrices, A (E r, in) and B (out, r E).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from mergekit_mm.checkpoints.meta_model import MetaModel

_WRAPPER = ".base_layer"


def module_and_depth(path: str) -> tuple[str, int]:
    """The module that holds an adapted parameter, and how many of PEFT's wrappers lie around the parameter's own."""
    module, depth = path, 0
    while module.endswith(_WRAPPER):
        module, depth = module.removesuffix(_WRAPPER), depth + 1
    return module, depth


def is_target(path: str, targets: Collection[str]) -> bool:
    """Whether `target_parameters` of an adapter's config names a parameter, as PEFT matches it."""
    return any(path == target or path.endswith(f".{target}") for target in targets)


def outermost_first(meta_model: MetaModel, parameters: Iterable[str]) -> list[str]:
    """The adapted parameters of one module, in the order of their wrappers: PEFT wraps in the order of the module."""
    order = {name: index for index, name in enumerate(meta_model.tensors)}
    return sorted(parameters, key=order.__getitem__, reverse=True)


def number_of_matrices(shape: tuple[int, ...]) -> int:
    """How many matrices a parameter holds, each of which has factors of its own."""
    return shape[0] if len(shape) == 3 else 1


def is_turned(meta_model: MetaModel, parameter: str, rows: int, columns: int) -> bool | None:
    """Whether a parameter stores its matrices (in, out), for factors of (out, in) = (rows, columns).

    None for factors of another shape than the parameter's. The shape of a square matrix does not tell; PEFT asks the
    module then.
    """
    shape = tuple(meta_model.tensors[parameter].shape)
    if shape[-2:] not in ((rows, columns), (columns, rows)) or (len(shape) == 2 and shape != (rows, columns)):
        return None
    if len(shape) == 2 or rows != columns:
        return shape[-2:] != (rows, columns)
    module = meta_model.model.get_submodule(parameter.rpartition(".")[0])
    return bool(getattr(module, "is_transposed", False))
