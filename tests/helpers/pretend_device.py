"""A CUDA device that is not there: tensors which say that they are on one, while the CPU computes.

What a real device refuses is refused here too: operations on tensors of two devices, numpy's view of a tensor, a
generator of another device. Merges can so be run as on a GPU, on a machine without one.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch.utils._device import DeviceContext
from torch.utils._pytree import tree_map_only

_FACTORIES = "arange as_tensor asarray empty empty_strided eye full linspace ones scalar_tensor tensor zeros"
_FACTORIES += " rand randint randn randperm"
_LIKE = "empty_like full_like ones_like rand_like randn_like zeros_like"
_NEW = "new_empty new_full new_ones new_tensor new_zeros"
_ACROSS = ("copy_", "_to_copy")  # operations between two devices
_INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")  # take indices from the CPU
_original_to = torch.Tensor.to


class PretendTensor(torch.Tensor):
    """Values on the CPU (`inner`), and the device that they are said to be on."""

    inner: torch.Tensor
    place: torch.device

    @staticmethod
    def __new__(cls, inner: torch.Tensor, place: torch.device) -> PretendTensor:
        made: PretendTensor = torch.Tensor._make_subclass(cls, inner)
        made.inner, made.place = inner, place
        return made

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        place = _common_device(func, args, kwargs)
        operations[place] += 1
        own = {id(t.inner): t for t in _tensors((args, kwargs)) if isinstance(t, PretendTensor)}
        made = func(*_inner(args), **_inner(kwargs))
        if place.type == "cpu":
            return made
        return tree_map_only(torch.Tensor, lambda t: own[id(t)].reshaped() if id(t) in own else cls(t, place), made)

    def reshaped(self) -> PretendTensor:
        """Itself after an operation in place, which may have changed its shape."""
        if self.shape != self.inner.shape or self.stride() != self.inner.stride():
            with torch._C._DisableTorchDispatch():
                self.as_strided_(self.inner.shape, self.inner.stride(), self.inner.storage_offset())
        return self

    @property
    def device(self) -> torch.device:
        return self.place

    @property
    def is_cuda(self) -> bool:
        return True

    @property
    def is_cpu(self) -> bool:
        return False

    def tolist(self) -> Any:
        return self.inner.tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    def numpy(self, *_args: Any, **_kwargs: Any) -> Any:
        raise TypeError(f"can't convert {self.place} device type tensor to numpy")

    __array__ = numpy

    def __repr__(self, **_kwargs: Any) -> str:
        return f"PretendTensor({self.inner!r}, {self.place})"


def _tensors(value: Any) -> list[torch.Tensor]:
    """All tensors among the arguments of an operation."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return []
    return [tensor for part in value for tensor in _tensors(part)]


def _inner(value: Any) -> Any:
    """The same arguments with the values of pretended tensors."""
    if isinstance(value, PretendTensor):
        return value.inner
    if isinstance(value, dict):
        return {key: _inner(part) for key, part in value.items()}
    return type(value)(map(_inner, value)) if type(value) in (list, tuple) else value


operations: Counter[torch.device] = Counter()  # device -> operations that were run on it


def _common_device(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device:
    """Where an operation runs; RuntimeError for tensors on two devices, as of CUDA."""
    name = func.overloadpacket.__name__
    if name in _ACROSS:
        return args[0].device  # what is written to; `to` never comes here
    if name in _INDEXING:  # indices may be on the CPU or where the indexed tensor is
        args = (args[0], [t for t in args[1] if t is not None and t.device.type != "cpu"], *args[2:])
    # a number on the CPU goes with tensors of any device
    places = {tensor.device for tensor in _tensors((args, kwargs)) if tensor.device.type != "cpu" or tensor.ndim}
    if len(places) > 1:
        named = " and ".join(sorted(map(str, places)))
        raise RuntimeError(f"Expected all tensors to be on the same device, but found at least two devices, {named}!")
    return places.pop()


def moved(tensor: torch.Tensor, place: torch.device) -> torch.Tensor:
    """A tensor on another device; itself if it is there."""
    if tensor.device == place:
        return tensor
    plain = tensor.inner if isinstance(tensor, PretendTensor) else tensor
    plain = plain.clone()
    return plain if place.type == "cpu" else PretendTensor(plain, place)


def _device(given: object) -> torch.device | None:
    """The device that an argument means, if it means one."""
    if isinstance(given, torch.Tensor):
        return given.device
    if isinstance(given, int) and not isinstance(given, bool):
        given = torch.device("cuda", given)
    if not isinstance(given, (str, torch.device)):
        return None
    place = torch.device(given)
    return torch.device("cuda", 0) if place.type == "cuda" and place.index is None else place


def _to(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """`Tensor.to`, between the CPU and the pretended devices."""
    args, places = list(args), [kwargs.pop("device", None)]
    if args and (place := _device(args[0])) is not None:
        places.append(place)
        if isinstance(args[0], torch.Tensor):
            args[0] = args[0].dtype
        else:
            args.pop(0)
    place = next((place for each in places if (place := _device(each)) is not None), tensor.device)
    if args or kwargs.keys() & {"dtype", "copy", "memory_format"}:
        kwargs.pop("non_blocking", None)
        tensor = _original_to(tensor, *args, **kwargs)
    return moved(tensor, place)


def _cpu(tensor: torch.Tensor) -> torch.Tensor:
    return moved(tensor, torch.device("cpu"))


def _cuda(tensor: torch.Tensor, device: object = "cuda") -> torch.Tensor:
    place = _device(device)
    assert place is not None
    return moved(tensor, place)


def _default_device() -> torch.device | None:
    """Of `with torch.device(...)`, where there is one."""
    modes = torch.overrides._get_current_function_mode_stack()
    return next((mode.device for mode in reversed(modes) if isinstance(mode, DeviceContext)), None)


def _factory(original: Callable[..., torch.Tensor], takes_default: bool) -> Callable[..., torch.Tensor]:
    """A function that makes a tensor on the device it is told, or on the default one if it `takes_default`."""

    def make(*args: Any, device: object = None, **kwargs: Any) -> torch.Tensor:
        kwargs.pop("pin_memory", None)  # memory of the CPU from which a real device copies faster
        given = device if device is not None or not takes_default else _default_device()
        place = _device(given)
        if place is None or place.type not in ("cpu", "cuda"):
            return original(*args, **kwargs, **({} if device is None else {"device": device}))
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type != place.type:
            raise RuntimeError(f"Expected a '{place}' generator device but found '{generator.device}'")
        made = original(*_inner(args), device="cpu", **_inner(kwargs))
        return made if place.type == "cpu" else PretendTensor(made, place)

    return make


@contextlib.contextmanager
def pretend_devices(count: int = 1) -> Iterator[Counter[torch.device]]:
    """While open, torch has `count` CUDA devices; gives how many operations were run on each."""
    operations.clear()
    torch.utils._device._device_constructors()  # remembered by torch, so before they are patched
    with contextlib.ExitStack() as patches:

        def patch(owner: Any, name: str, new: Any) -> None:
            patches.enter_context(mock.patch.object(owner, name, new))

        for name in _FACTORIES.split():
            patch(torch, name, _factory(getattr(torch, name), takes_default=True))
        for name in _LIKE.split():
            patch(torch, name, _factory(getattr(torch, name), takes_default=False))
        for name in _NEW.split():
            patch(torch.Tensor, name, _factory(getattr(torch.Tensor, name), takes_default=False))
        for name, new in {"to": _to, "cpu": _cpu, "cuda": _cuda}.items():
            patch(torch.Tensor, name, new)
        patch(torch.cuda, "is_available", lambda: True)
        patch(torch.cuda, "device_count", lambda: count)
        patch(torch.cuda, "synchronize", lambda device=None: None)
        patch(torch.cuda, "Stream", lambda device=None: None)
        patch(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
        patch(torch.accelerator, "current_accelerator", lambda *_, **__: torch.device("cuda"))
        yield operations
