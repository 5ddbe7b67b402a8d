"""Less memory for the gradient: layers keep their inputs, and are computed again when the gradient reaches them."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

_LARGE = 1_000_000_000  # parameters of a model whose activations outgrow most memories


def recompute_layers(model: nn.Module, wanted: bool | None) -> bool:
    """Let the layers of a model of transformers that have trained parameters be computed again; whether that was done.

    wanted: None for models of more than a billion parameters. transformers itself does it in the mode for training
    only, in which dropout is at work; here the mode is left alone, and no value changes.
    """
    if wanted is None:
        wanted = sum(each.numel() for each in model.parameters()) > _LARGE
    if wanted:
        for layer in _outermost(model):
            layer.forward = _recomputed(layer.forward)
    return wanted


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The forward of a layer that runs in the same context both times: omni models hand masks to layers by that."""

    def run(*args: Any, **kwargs: Any) -> Any:
        context = copy_context()
        return checkpoint(context.run, forward, *args, use_reentrant=False, **kwargs)

    return run


def _outermost(module: nn.Module) -> list[nn.Module]:
    """The layers with trained parameters that lie in no other such layer."""
    if isinstance(module, GradientCheckpointingLayer):
        return [module] if any(each.requires_grad for each in module.parameters()) else []
    return [layer for child in module.children() for layer in _outermost(child)]
