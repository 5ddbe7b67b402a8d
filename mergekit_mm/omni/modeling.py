"""One model that answers about images, sounds, videos and any mix of them, composed from modules of transformers.

The host is a whole model of transformers and does all that is its own: language model, head, loss, position ids, masks
and generation, and the media it owns. Guests turn their media into rows of embeddings (see `donors`), which take
the place of their placeholder tokens just in front of the host's language model.

Inputs are named `<modality>__<key>`, `key` being what the donor's own processor and forward call it:
`image__pixel_values`, `image__image_grid_thw`, `audio__input_features`, `audio__feature_attention_mask`.
Names without `__` are the host's own.

With `routed` in the config, tokens of a medium go through matrices of their owner's in the language model (`routing`).
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import GenerationMixin, PreTrainedModel
from transformers.utils import logging

from .configuration import OmniConfig
from .donors import build_guest, build_host, guest_rows, run_guest, use_dtype
from .routing import route, token_places, with_places

logger = logging.get_logger(__name__)
TOKEN_TYPES = {"image": 1, "video": 2}  # transformers' mm_token_type_ids, which M-RoPE hosts read
MEDIA = ("pixel_values", "input_features", "input_values")  # parts of the names that a host's own media have


class OmniForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """A host's language model, with its own and its guests' towers.

    Tensors: `model.*` and `lm_head.*` as the host's class names them in memory, `guests.<name>.*` as the inner model
    (`.model`) of the guest's class names them, without its language model.
    """

    config_class = OmniConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "video", "audio", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: OmniConfig) -> None:
        super().__init__(config)
        for donor in (config.host, *config.guests.values()):
            use_dtype(donor, torch.get_default_dtype())
        host = build_host(config.host)
        # Not a submodule: its parts are this model's parts, and only their names should be in the state dict.
        object.__setattr__(self, "_host", host)
        self._host: Any
        route(host.model.get_decoder(), config.routed, config.owners)
        self.model = host.model
        self.lm_head = host.lm_head
        self._tied_weights_keys = host._tied_weights_keys
        width = config.get_text_config().hidden_size
        self.guests = nn.ModuleDict({name: build_guest(name, c, width) for name, c in config.guests.items()})
        self._gather_from_guests()
        self.post_init()

    def _gather_from_guests(self) -> None:
        # post_init asks direct children only, and the guests are one level deeper
        for attribute in ("_no_split_modules", "_skip_keys_device_placement", "_keep_in_fp32_modules"):
            parts = [self._host, *self.guests.values()]
            setattr(self, attribute, {name for part in parts for name in getattr(part, attribute, None) or ()})

    # ------------------------------------------------------------------------------------------------- forward

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        copies: int = 1,
        **kwargs: Any,
    ) -> Any:
        """The host's output: `logits` (batch, sequence, vocabulary), its cache, and `loss` with `labels`.

        The cache goes in and out under transformers' name for it: `past_key_values`, from 5.24 on `cache`.
        Media are `<modality>__<key>`, see the module. With `copies` > 1 the batch has each sample so many times in a
        row, and guests' media once (beam search). ValueError: a modality or key nobody owns, two media of the host
        under one key, placeholders and features of different numbers, guests' media without `input_ids`.
        """
        host, media = self._by_owner(kwargs)
        host |= {"position_ids": position_ids, "inputs_embeds": inputs_embeds}
        host |= {"labels": labels, "use_cache": use_cache, "logits_to_keep": logits_to_keep}
        host = self._for_host(input_ids, host)
        rows = self._rows(input_ids, attention_mask, media, copies)
        with guest_rows(rows), token_places(self._owned(input_ids, media, host)):
            return self._host(input_ids=input_ids, attention_mask=attention_mask, **host)

    def _by_owner(self, inputs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Inputs of the host under its own names, and of guests by modality."""
        host: dict[str, Any] = {}
        guests: dict[str, dict[str, Any]] = {}
        for name, value in inputs.items():
            modality, _, key = name.rpartition("__")
            if modality and modality not in self.config.modalities:
                raise ValueError(f"{name}: this model takes {', '.join(self.config.modalities) or 'only text'}.")
            if value is None:
                continue
            if modality and self.config.modalities[modality]["owner"] != "host":
                guests.setdefault(modality, {})[key] = value
            elif key in host:
                raise ValueError(f"{name}: the host takes {key} for one kind of medium at a time.")
            else:
                host[key] = value
        return host, guests

    def _for_host(self, input_ids: torch.Tensor | None, inputs: dict[str, Any]) -> dict[str, Any]:
        """What the host's forward takes of `inputs`, with the token types that M-RoPE asks for."""
        known = inspect.signature(self._host.forward).parameters
        inputs = {key: value for key, value in inputs.items() if value is not None}
        for optional in ("mm_token_type_ids", "token_type_ids", "logits_to_keep"):
            if optional not in known:
                inputs.pop(optional, None)
        if "mm_token_type_ids" in known and input_ids is not None:
            types = self._token_types(input_ids, inputs.pop("mm_token_type_ids", None))
            inputs |= {"mm_token_type_ids": types} if types.any() else {}
        return inputs

    def _token_types(self, input_ids: torch.Tensor, given: torch.Tensor | None) -> torch.Tensor:
        """Types (batch, sequence) of the host's media; a guest's medium is like text to the host's positions."""
        types = torch.zeros_like(input_ids)
        theirs = torch.zeros_like(input_ids, dtype=torch.bool)
        for modality, entry in self.config.modalities.items():
            here = input_ids == entry["token_id"]
            if entry["owner"] == "host":
                types[here] = TOKEN_TYPES.get(modality, 0)
            else:
                theirs |= here
        if given is None or given.shape != types.shape:  # assisted generation asks about candidates as well
            return types
        return torch.where(theirs, 0, given)

    def _rows(
        self, input_ids: torch.Tensor | None, mask: Any, media: dict[str, dict[str, Any]], copies: int
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Where guests' media are (batch, sequence), and their embeddings (batch, sequence, hidden)."""
        if not media:
            return None
        if input_ids is None:
            raise ValueError(f"{', '.join(media)}: media need input_ids, which say where they are.")
        ids = input_ids[::copies]
        two_dimensional = isinstance(mask, torch.Tensor) and mask.shape == input_ids.shape
        attended = mask[::copies] if two_dimensional else torch.ones_like(ids)
        covered = torch.zeros_like(ids, dtype=torch.bool)
        rows = torch.zeros((), device=ids.device)
        for modality, inputs in media.items():
            entry = self.config.modalities[modality]
            here = ids == entry["token_id"]
            found = run_guest(self.guests[entry["owner"]], modality, here, attended, inputs)
            rows = torch.where(here.unsqueeze(-1), found, rows.to(found.device, found.dtype))
            covered |= here
        return covered.repeat_interleave(copies, 0), rows.repeat_interleave(copies, 0)

    def _owned(
        self, input_ids: torch.Tensor | None, guests: Iterable[str], host: Iterable[str]
    ) -> dict[str, torch.Tensor]:
        """Owner -> where its media are (batch, sequence), if layers are routed: a placeholder without any is text.

        guests: the modalities that come from guests; host: names of the host's inputs.
        """
        masks: dict[str, torch.Tensor] = {}
        if input_ids is None or not self.config.routed:
            return masks
        of_host = any(part in name for part in MEDIA for name in host)
        for modality, entry in self.config.modalities.items():
            owner = entry["owner"]
            if modality in guests or (owner == "host" and of_host):
                here = input_ids == entry["token_id"]
                masks[owner] = masks[owner] | here if owner in masks else here
        return masks

    # ---------------------------------------------------------------------------------------------- generation
    # Position ids, caches, slicing and beam search differ from family to family: all is asked of the host.

    def generate(self, inputs: torch.Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """As `GenerationMixin.generate`, with media as in `forward`.

        A `prefill_chunk_size` is not followed: guests' media belong to whole prompts. The answers are the same.
        """
        host, media = self._by_owner(kwargs)
        host = self._for_host(inputs if inputs is not None else kwargs.get("input_ids"), host)
        flat = {f"{modality}__{key}": value for modality, found in media.items() for key, value in found.items()}
        with self._whole_prefill(host):
            return super().generate(inputs, *args, **host, **flat)

    @contextlib.contextmanager
    def _whole_prefill(self, options: dict[str, Any]) -> Iterator[None]:
        """While open, no config asks for a prefill in chunks; what was passed as one is taken out of `options`."""
        configs = [each for each in (options.get("generation_config"), self.generation_config) if each is not None]
        before = [each.prefill_chunk_size for each in configs]
        if options.pop("prefill_chunk_size", None) or any(before):
            logger.warning_once(
                "An omni model reads a prompt at once: prefill_chunk_size only saves memory, and is off."
            )
        for each in configs:
            each.prefill_chunk_size = None
        try:
            yield
        finally:
            for each, size in zip(configs, before, strict=True):
                each.prefill_chunk_size = size

    def prepare_inputs_for_generation(self, input_ids: torch.Tensor, **kwargs: Any) -> dict[str, Any]:
        media = _pop_media(kwargs)
        prefill = kwargs.get("is_first_iteration", False) or not kwargs.get("use_cache", True)
        inputs: dict[str, Any] = self._host.prepare_inputs_for_generation(input_ids, **kwargs)
        return {**inputs, **media} if prefill else inputs

    def _expand_inputs_for_generation(  # a static method there, but not in every family
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Any = None, **kwargs: Any
    ) -> Any:
        media = _pop_media(kwargs)
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

    # ------------------------------------------------------------------------------------ keeping the host in step

    def train(self, mode: bool = True) -> OmniForConditionalGeneration:
        self._host.training = mode
        return super().train(mode)

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Any = checkpoint, **kwargs: Any
    ) -> None:
        if self.config.routed:
            gradient_checkpointing_func = with_places(gradient_checkpointing_func)
        super()._set_gradient_checkpointing(enable, gradient_checkpointing_func, **kwargs)

    def get_decoder(self) -> Any:
        return self._host.model.get_decoder()

    def get_output_embeddings(self) -> Any:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        self.lm_head = self._host.lm_head = new_embeddings

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """As ever; tensors keep their names in memory, which belong to no published layout."""
        kwargs.setdefault("save_original_format", False)
        super().save_pretrained(save_directory, **kwargs)


def _pop_media(inputs: dict[str, Any]) -> dict[str, Any]:
    """Takes guests' media (and their number of copies) out of `inputs`."""
    return {name: inputs.pop(name) for name in list(inputs) if "__" in name or name == "copies"}
