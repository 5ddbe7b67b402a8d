"""The private names of transformers that omni models need; no other module of this room uses any.

They are those of transformers 5.20 to 5.24. A test compares them with the installed transformers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig, PreTrainedModel

from .routing import with_places


class GuestsFollowAttention:
    """Part of a config: an attention implementation that is set for the model is set for its `guests` too.

    transformers hands it down to the configs that `sub_configs` names, which cannot name the values of a dict.
    """

    @property
    def _attn_implementation(self) -> Any:
        return PreTrainedConfig._attn_implementation.fget(self)

    @_attn_implementation.setter
    def _attn_implementation(self, value: Any) -> None:
        PreTrainedConfig._attn_implementation.fset(self, value)
        for guest in (self.__dict__.get("guests") or {}).values():
            guest._attn_implementation = value


class GeneratesAsHost(PreTrainedModel):
    """Part of a model: what transformers asks it about generation is passed on to its `_host`.

    Position ids, caches, slicing and beam search differ from family to family. The host is not given the inputs of
    guests, which are `<modality>__<key>` and `copies`.
    """

    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _host: Any

    def _adopt(self, host: Any, guests: Iterable[Any]) -> None:
        """Gather what `post_init` asks of direct children only; the parts of host and guests are one level deeper."""
        self._tied_weights_keys = host._tied_weights_keys
        parts = [host, *guests]
        for attribute in ("_no_split_modules", "_skip_keys_device_placement", "_keep_in_fp32_modules"):
            setattr(self, attribute, {name for part in parts for name in getattr(part, attribute, None) or ()})

    def prepare_inputs_for_generation(self, input_ids: torch.Tensor, **kwargs: Any) -> dict[str, Any]:
        media = _pop_guests_inputs(kwargs)
        prefill = kwargs.get("is_first_iteration", False) or not kwargs.get("use_cache", True)
        inputs: dict[str, Any] = self._host.prepare_inputs_for_generation(input_ids, **kwargs)
        return {**inputs, **media} if prefill else inputs

    def _expand_inputs_for_generation(  # a static method in some families, and a method in others
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Any = None, **kwargs: Any
    ) -> Any:
        media = _pop_guests_inputs(kwargs)
        ids, kwargs = self._host._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **kwargs
        )
        return ids, {**kwargs, **media, **({"copies": expand_size} if media and expand_size > 1 else {})}

    def _maybe_prepare_encoder_kwargs_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        return self._host._maybe_prepare_encoder_kwargs_for_generation(*args, **kwargs)

    def _prepare_position_ids_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        return self._host._prepare_position_ids_for_generation(*args, **kwargs)

    def _update_model_kwargs_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        return self._host._update_model_kwargs_for_generation(*args, **kwargs)

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        self._host._validate_model_kwargs({k: v for k, v in model_kwargs.items() if "__" not in k})

    def _supports_logits_to_keep(self) -> bool:
        return bool(self._host._supports_logits_to_keep())

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Any = checkpoint, **kwargs: Any
    ) -> None:
        if self.config.routed:
            gradient_checkpointing_func = with_places(gradient_checkpointing_func)
        super()._set_gradient_checkpointing(enable, gradient_checkpointing_func, **kwargs)


def _pop_guests_inputs(inputs: dict[str, Any]) -> dict[str, Any]:
    """Take the inputs of guests, and their number of copies, out of `inputs`."""
    return {name: inputs.pop(name) for name in list(inputs) if "__" in name or name == "copies"}
