"""Donors taken apart: a host whose language model accepts rows from guests, guests without their language model.

Every family of transformers embeds media inside the forward of its inner model, in front of its language model, by
rules of its own: which keyword goes where, how features are packed and counted, where they are put. A guest runs that
forward as it is, and in the place of its language model an `IdentityDecoder` returns the embeddings that it is given.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    PreTrainedModel,
)
from transformers.modeling_outputs import MoeModelOutputWithPast
from transformers.utils import logging

from .configuration import placeholder_attribute

logger = logging.get_logger(__name__)

# The inputs of any decoder of transformers. A decoder with more inputs is given more than embeddings by its family:
# features for deeper layers (DeepStack), states to cross-attend to, embeddings per layer, masks by token type.
DECODER_INPUTS = {
    "self",
    "input_ids",
    "inputs_embeds",
    "attention_mask",
    "position_ids",
    "past_key_values",
    "cache",  # its name from transformers 5.24 on
    "use_cache",
    "cache_position",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "return_dict",
    "kwargs",
}

# The rows that guests put in the place of their placeholder tokens: a mask (batch, sequence) and embeddings (batch,
# sequence, hidden). They are a context variable because the host's forward, through which they pass, has no keyword for
# them.
_rows: ContextVar[tuple[torch.Tensor, torch.Tensor] | None] = ContextVar("_rows", default=None)


def donor_class(config: Any) -> type[PreTrainedModel]:
    """The class with a language model head for a donor's config. ValueError: transformers has none."""
    for name in config.architectures or ():
        found = getattr(transformers, name, None)
        if isinstance(found, type) and issubclass(found, PreTrainedModel):
            return found
    for mapping in (
        MODEL_FOR_MULTIMODAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
        MODEL_FOR_CAUSAL_LM_MAPPING,
    ):
        if type(config) in mapping:
            found = mapping[type(config)]
            return found[0] if isinstance(found, tuple) else found
    raise ValueError(f"transformers has no model with a language model head for a {config.model_type!r} config.")


def use_dtype(config: Any, dtype: torch.dtype) -> None:
    """Set the dtype in which a donor's parts are made, at any depth: its configs name the one they were saved in."""
    config.dtype = dtype
    for name in config.sub_configs:
        if (part := getattr(config, name, None)) is not None:
            use_dtype(part, dtype)


def build_host(config: Any) -> Any:
    """The donor's whole model, whose language model takes the rows that `guest_rows` sets.

    Raises ValueError for a class without `model` and `lm_head`, or whose language model is not a part of `model`.
    """
    host: Any = donor_class(config)(config)
    inner, cls = getattr(host, "model", None), type(host).__name__
    if inner is None or not isinstance(getattr(host, "lm_head", None), nn.Module):
        raise ValueError(f"{cls} cannot be the host: its parts are not `model` and `lm_head`.")
    decoder = inner.get_decoder()
    if decoder is inner and (config.get_text_config() is not config or _own_inputs(decoder)):
        raise ValueError(f"{cls} cannot be the host: guests' rows cannot be put before its language model alone.")
    decoder.register_forward_pre_hook(_take_rows, with_kwargs=True)
    return host


def _own_inputs(decoder: Any) -> list[str]:
    return sorted(set(inspect.signature(type(decoder).forward).parameters) - DECODER_INPUTS)


@contextlib.contextmanager
def guest_rows(rows: tuple[torch.Tensor, torch.Tensor] | None) -> Iterator[None]:
    """While open, `rows` (mask, embeddings) replace embeddings in the input of the host's language model."""
    token = _rows.set(rows)
    try:
        yield
    finally:
        _rows.reset(token)


def _take_rows(decoder: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """Pre-hook of the host's decoder: puts the guests' rows into the embeddings that the host's forward has made."""
    rows = _rows.get()
    if rows is None:
        return None
    mask, features = rows
    inputs = {**dict(zip(inspect.signature(decoder.forward).parameters, args, strict=False)), **kwargs}
    embeds = inputs.get("inputs_embeds")
    if embeds is None:  # a host that is a text LLM embeds inside its decoder
        embeds = decoder.get_input_embeddings()(inputs.pop("input_ids"))
    features = features.to(embeds.device, embeds.dtype)
    inputs["inputs_embeds"] = torch.where(mask.unsqueeze(-1).to(embeds.device), features, embeds)
    return (), inputs


class _NoEmbeddings(nn.Module):
    """Embeds every token as zeros, because only the rows of media are used."""

    like: torch.Tensor

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.register_buffer("like", torch.empty(0), persistent=False)  # follows the model's dtype

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*input_ids.shape, self.hidden_size, dtype=self.like.dtype, device=input_ids.device)


class IdentityDecoder(nn.Module):
    """Takes the place of a guest's language model, and returns the embeddings (batch, sequence, hidden) it is given."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = _NoEmbeddings(config.hidden_size)

    @property
    def dtype(self) -> torch.dtype:
        return self.embed_tokens.like.dtype

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.like.device

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def forward(self, inputs_embeds: torch.Tensor, attention_mask: Any = None, **_: Any) -> MoeModelOutputWithPast:
        if attention_mask is not None and not (isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 2):
            raise ValueError("this family makes attention masks of its own for media; it can only be the host.")
        return MoeModelOutputWithPast(last_hidden_state=inputs_embeds)


def build_guest(name: str, config: Any, hidden_size: int) -> Any:
    """The donor's inner model with towers and projectors, and without its language model.

    Raises ValueError for a family whose media cannot be given to another language model as rows of embeddings of
    `hidden_size`.
    """
    donor: Any = donor_class(config)(config)
    inner: Any = getattr(donor, "model", None)
    cls = type(donor).__name__
    decoder: Any = None if inner is None else inner.get_decoder()
    place = [] if inner is None else [child for child, module in inner.named_children() if module is decoder]
    if not place:
        raise ValueError(f"guest {name!r}: {cls} cannot be a guest: its language model is not a part of `model`.")
    if own := _own_inputs(decoder):
        raise ValueError(
            f"guest {name!r}: {cls} gives its language model {', '.join(own)} besides embeddings, which no "
            "other language model takes. Make it the host."
        )
    if hasattr(donor, "create_masks_for_generate"):
        raise ValueError(f"guest {name!r}: {cls} makes attention masks of its own for media. Make it the host.")
    text = config.get_text_config()
    if text.hidden_size != hidden_size:
        raise ValueError(f"guest {name!r}: its language model is {text.hidden_size} wide, the host's {hidden_size}.")
    if hasattr(inner, "get_rope_index"):
        logger.warning(f"guest {name!r}: {cls} places its media in two or three dimensions; as a guest's, one by one.")
    setattr(inner, place[0], IdentityDecoder(text))
    return inner


def run_guest(guest: Any, modality: str, here: torch.Tensor, mask: torch.Tensor, media: dict[str, Any]) -> Any:
    """Embeddings (batch, sequence, hidden) with the features of `media` where `here` (batch, sequence) is true.

    mask: the attention mask (batch, sequence). ValueError: an input that the guest does not take, or placeholders and
    features of different numbers.
    """
    known = inspect.signature(guest.forward).parameters
    unknown = sorted(set(media) - set(known))
    if unknown:
        raise ValueError(f"{modality}: {type(guest).__name__} takes no {', '.join(unknown)}.")
    if not here.any():
        raise ValueError(f"{modality}: there are inputs, and no placeholder for them in the text.")
    donor_id = getattr(guest.config, placeholder_attribute(guest.config, modality))
    ids = torch.where(here, donor_id, _ordinary_token(guest.config))
    extra = {"attention_mask": mask, "position_ids": mask.long().cumsum(-1).sub(1).clamp(min=0), "use_cache": False}
    extra = {key: value for key, value in extra.items() if key in known}  # without positions, M-RoPE would compute some
    try:
        rows = guest(input_ids=ids, return_dict=True, **extra, **media).last_hidden_state
    except ValueError as error:
        raise ValueError(f"{modality}, {int(here.sum())} placeholders: {error}") from error
    if rows.shape[:2] != ids.shape:
        raise ValueError(f"{modality}: {type(guest).__name__} made {rows.shape[1]} rows of {ids.shape[1]} tokens.")
    return rows


def _ordinary_token(config: Any) -> int:
    """The id of a token that the donor's forward treats as text."""
    taken = {value for key, value in vars(config).items() if "token" in key and isinstance(value, int)}
    return next(i for i in range(len(taken) + 1) if i not in taken)
