"""Linear layers with separate weights for the tokens of each donor's modalities (DAMC: Chen et al., ACL 2024).

The tokens of text, generated ones included, go through the layer as it was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar, copy_context
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

FULL = "full"  # the form of a layer with a whole matrix per donor; any other form is the rank of added factors


class Places(NamedTuple):
    """The tokens of a batch by their owner, as indices into its flattened (batch, sequence)."""

    of: dict[str, torch.Tensor]  # owner of a modality -> the indices of its tokens
    text: torch.Tensor  # the indices of all other tokens
    back: torch.Tensor  # the order that puts `text` and the values of `of`, concatenated, back into the batch's order


# The tokens of the forward that runs now; None when all are text. It is a context variable because the host's forward,
# through which it passes, has no keyword for it.
_places: ContextVar[Places | None] = ContextVar("_places", default=None)


@contextlib.contextmanager
def token_places(masks: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """While open, routed layers know which tokens belong to whom. masks: owner -> mask (batch, sequence)."""
    token = _places.set(_find(masks))
    try:
        yield
    finally:
        _places.reset(token)


def _find(masks: Mapping[str, torch.Tensor]) -> Places | None:
    of = {owner: found for owner, mask in masks.items() if len(found := mask.flatten().nonzero().squeeze(1))}
    if not of:
        return None
    everything = torch.stack([mask.flatten() for mask in masks.values()]).any(0)
    text = (~everything).nonzero().squeeze(1)
    return Places(of, text, torch.cat([text, *of.values()]).argsort())


def with_places(checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    """A gradient checkpointing function whose recomputation, in the backward pass, knows the tokens of the forward."""

    def run(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return checkpoint(partial(copy_context().run, function), *args, **kwargs)

    return run


class RoutedLinear(nn.Module):
    """A linear layer of the language model with other weights for the tokens of each owner.

    text: the layer for all other tokens. With the form `FULL`, the tokens of an owner go through `media.<owner>`, a
    layer of the same shape. With a rank, `media.<owner>(shared(x))` is added to `text(x)` for them; the weight of
    `shared` is (rank, in), that of `media.<owner>` (out, rank).
    """

    def __init__(self, text: nn.Linear, owners: list[str], form: str | int) -> None:
        super().__init__()
        like = {"device": text.weight.device, "dtype": text.weight.dtype}
        self.text = text
        self.shared = None if form == FULL else nn.Linear(text.in_features, int(form), bias=False, **like)
        width, bias = (text.in_features, text.bias is not None) if form == FULL else (int(form), False)
        self.media = nn.ModuleDict({o: nn.Linear(width, text.out_features, bias=bias, **like) for o in owners})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = _places.get()
        if places is None:
            return self.text(x)
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) != len(places.back):
            raise RuntimeError(f"{len(rows)} rows for {len(places.back)} tokens: this layer does not see all in order.")
        if self.shared is None:
            parts = [self.media[owner](rows[place.to(x.device)]) for owner, place in places.of.items()]
            out = torch.cat([self.text(rows[places.text.to(x.device)]), *parts])[places.back.to(x.device)]
        else:
            out = self.text(rows)
            for owner, place in places.of.items():
                place = place.to(x.device)
                added = self.media[owner](self.shared(rows[place]))
                out = out.index_add(0, place, added.to(out.dtype))
        return out.view(*x.shape[:-1], out.shape[-1])


def route(decoder: Any, routed: Mapping[str, Any], owners: list[str]) -> None:
    """Replace linear layers in each layer of the decoder by routed ones; `routed` is that of the omni config.

    Raises ValueError for a name that is no linear layer there.
    """
    for name, forms in routed.items():
        for index, layer in enumerate(decoder.layers):
            form = forms[index] if isinstance(forms, list) else forms
            if form == 0:
                continue
            linear = dict(layer.named_modules()).get(name)
            if not isinstance(linear, nn.Linear):
                raise ValueError(f"routed: {name} is no linear layer in layer {index} of the language model.")
            layer.set_submodule(name, RoutedLinear(linear, owners, form))
