"""Random numbers that are the same on every device and in every thread, whatever else is drawn."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from mergekit_mm.numerics.task_vector import TaskVector

_DRAWING = threading.Lock()  # torch's own generator serves the whole process


class OwnStream(TorchFunctionMode):
    """A context in which all random numbers that torch draws in this thread come from one stream on the CPU.

    A GPU has generators of its own, which give other numbers. So numbers for a tensor on a GPU are drawn on the CPU and
    moved; everything else is computed where the tensors are. A generator that a call names itself is left to it.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._state = torch.Generator().manual_seed(seed).get_state()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if not _draws(func) or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        device = kwargs.get("device") or (tensors[0].device if tensors else "cpu")
        cpu_kwargs = {**kwargs, "device": "cpu"} if "device" in kwargs else kwargs
        drawn = self._draw(func, *tree_map_only(torch.Tensor, lambda tensor: tensor.to("cpu"), (args, cpu_kwargs)))
        target = args[0] if func.__name__.endswith("_") else kwargs.get("out")
        return drawn.to(device) if target is None else target.copy_(drawn)

    def _draw(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
        """The result of a function on the CPU, with torch's generator set to this stream for the time of the call."""
        with _DRAWING:
            outer_state = torch.get_rng_state()
            torch.set_rng_state(self._state)
            try:
                drawn: torch.Tensor = func(*args, **kwargs)
                return drawn
            finally:
                self._state = torch.get_rng_state()
                torch.set_rng_state(outer_state)


def stream_of(seed: int, name: str, values: Sequence[torch.Tensor | TaskVector]) -> OwnStream:
    """The stream of one tensor, which depends on the seed, the tensor's name and the first values of each input.

    So experts that are merged one at a time get different masks, and paths or the order of the work change nothing.
    """
    state = zlib.crc32(f"{seed} {name}".encode())
    for value in values:
        tensor = value.left if isinstance(value, TaskVector) else value
        first = tensor.reshape(-1)[:256].to("cpu", torch.float32).contiguous()
        state = zlib.crc32(first.numpy().tobytes(), state)
    return OwnStream(state)


@cache
def _draws(func: Callable[..., Any]) -> bool:
    """Whether a function of torch draws random numbers: torch marks the operators that do."""
    operator = getattr(torch.ops.aten, getattr(func, "__name__", ""), None)
    if not isinstance(operator, torch._ops.OpOverloadPacket):
        return False
    return any(torch.Tag.nondeterministic_seeded in getattr(operator, name).tags for name in operator.overloads())
