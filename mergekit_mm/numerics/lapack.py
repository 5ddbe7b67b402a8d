"""LAPACK's own routines on torch tensors: torch has drivers only, which compute more than is asked for.

They are those that scipy exports for Cython, as C functions whose arguments are all pointers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

_PRECISIONS = {torch.float32: ("s", ctypes.c_float), torch.float64: ("d", ctypes.c_double)}


def call(routine: str, *arguments: bytes | int | float | Tensor) -> int:
    """Run `routine`, such as "sytrd", in the precision of its tensors; its `info` is returned, 0 where all is well.

    bytes are LAPACK's option letters. Tensors are contiguous and on the CPU, of int32 or all of float32 or float64.
    A matrix is in Fortran's order: a tensor's rows are LAPACK's columns. A number is passed as a copy, so what a
    routine returns needs a tensor.
    """
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    dtype = next(tensor.dtype for tensor in tensors if tensor.is_floating_point())
    for tensor in tensors:  # through a pointer it would read and write whatever is there
        fits = tensor.dtype in (dtype, torch.int32) and tensor.device.type == "cpu" and tensor.is_contiguous()
        if not fits or dtype not in _PRECISIONS:
            told = f"shape {tuple(tensor.shape)}, {tensor.dtype} on {tensor.device}, strides {tensor.stride()}"
            raise ValueError(f"?{routine} takes contiguous tensors of one precision on the CPU, not one of {told}")
    letter, real = _PRECISIONS[dtype]
    info = ctypes.c_int(0)

    def pointer(argument: bytes | int | float | Tensor) -> object:
        if isinstance(argument, Tensor):
            return ctypes.c_void_p(argument.data_ptr())
        if isinstance(argument, bytes):
            return ctypes.c_char_p(argument)
        return ctypes.byref(ctypes.c_int(argument) if isinstance(argument, int) else real(argument))

    _function(letter + routine)(*map(pointer, arguments), ctypes.byref(info))
    return info.value


@cache
def _function(name: str) -> Callable[..., None]:
    from scipy.linalg import cython_lapack

    signature, address = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    signature.restype, signature.argtypes = ctypes.c_char_p, [ctypes.py_object]
    address.restype, address.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    capsule = cython_lapack.__pyx_capi__[name]
    return ctypes.CFUNCTYPE(None)(address(capsule, signature(capsule)))
