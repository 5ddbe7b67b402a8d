"""LAPACK's own routines on torch tensors: torch has drivers only, which compute more than is asked for.

They are those that scipy exports for Cython, as C functions whose arguments are all pointers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor


def call(routine: str, *arguments: bytes | int | float | Tensor) -> int:
    """Run `routine`, such as "sytrd", in the precision of its tensors; its `info` is returned, 0 where all is well.

    bytes are LAPACK's option letters, tensors are contiguous and on the CPU. A matrix is in Fortran's order: a tensor's
    rows are LAPACK's columns. A number is passed as a copy, so what a routine returns needs a tensor.
    """
    dtype = next(a.dtype for a in arguments if isinstance(a, Tensor) and a.is_floating_point())
    real = ctypes.c_double if dtype == torch.float64 else ctypes.c_float
    info = ctypes.c_int(0)

    def pointer(argument: bytes | int | float | Tensor) -> object:
        if isinstance(argument, Tensor):
            if not argument.is_contiguous():
                raise ValueError(f"?{routine}: a tensor of shape {tuple(argument.shape)} is not contiguous")
            return ctypes.c_void_p(argument.data_ptr())
        if isinstance(argument, bytes):
            return ctypes.c_char_p(argument)
        return ctypes.byref(ctypes.c_int(argument) if isinstance(argument, int) else real(argument))

    _function(("d" if dtype == torch.float64 else "s") + routine)(*map(pointer, arguments), ctypes.byref(info))
    return info.value


@cache
def _function(name: str) -> Callable[..., None]:
    from scipy.linalg import cython_lapack

    signature, address = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    signature.restype, signature.argtypes = ctypes.c_char_p, [ctypes.py_object]
    address.restype, address.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    capsule = cython_lapack.__pyx_capi__[name]
    return ctypes.CFUNCTYPE(None)(address(capsule, signature(capsule)))
