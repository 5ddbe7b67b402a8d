"""One model that answers about images, audio, videos and any mix of them, composed from modules of transformers.

The host is a whole model of transformers. It does what such a model does (language model, head, loss, position ids,
masks, generation) and embeds the modalities that it owns. Guests turn the inputs of theirs into rows of embeddings (see
`donors`), which replace the embeddings of their placeholder tokens just in front of the host's language model.

Inputs are named `<modality>__<key>`, `key` being what the donor's own processor and forward call it:
`image__pixel_values`, `image__image_grid_thw`, `audio__input_features`, `audio__feature_attention_mask`.
Names without `__` are the host's own.

With `routed` in the config, tokens of a modality go through matrices of its owner in the language model (`routing`).
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin
from transformers.utils import logging

from .configuration import OmniConfig
from .donors import build_guest, build_host, guest_rows, run_guest, use_dtype
from .internals import GeneratesAsHost
from .routing import route, token_places

logger = logging.get_logger(__name__)
TOKEN_TYPES = {"image": 1, "video": 2}  # values of `mm_token_type_ids`, which hosts with M-RoPE read
MEDIA = ("pixel_values", "input_features", "input_values")  # parts of the names of the host's inputs that are media


class OmniForConditionalGeneration(GeneratesAsHost, GenerationMixin):
    """A host's language model, with the host's own towers and those of its guests.

    Names of tensors: `model.*` and `lm_head.*` as in memory in the host's class, `guests.<name>.*` as in memory in the
    inner model (`.model`) of the guest's class, whose language model is left out.
    """

    config_class = OmniConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "video", "audio", "text")
    supports_gradient_checkpointing = True

    def __init__(self, config: OmniConfig) -> None:
        super().__init__(config)
        for donor in (config.host, *config.guests.values()):
            use_dtype(donor, torch.get_default_dtype())
        host = build_host(config.host)
        # The host is not set as a submodule: its parts are this model's parts, and the state dict names them once.
        object.__setattr__(self, "_host", host)
        route(host.model.get_decoder(), config.routed, config.owners)
        self.model = host.model
        self.lm_head = host.lm_head
        width = config.get_text_config().hidden_size
        self.guests = nn.ModuleDict({name: build_guest(name, c, width) for name, c in config.guests.items()})
        self._adopt(host, self.guests.values())
        self.post_init()

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

        The cache goes in and out under transformers' name for it: `past_key_values`, from 5.24 on `cache`. Media are
        `<modality>__<key>`, see the module. With `copies` > 1 (beam search) the batch has each sample so many times in
        a row, and the inputs of guests have it once.

        Raises ValueError for a modality or a key that no donor takes, for inputs of two modalities of the host under
        one key, for placeholders and features of different numbers, and for inputs of guests without `input_ids`.
        """
        host, media = self._by_owner(kwargs)
        host |= {"position_ids": position_ids, "inputs_embeds": inputs_embeds}
        host |= {"labels": labels, "use_cache": use_cache, "logits_to_keep": logits_to_keep}
        host = self._for_host(input_ids, host)
        rows = self._rows(input_ids, attention_mask, media, copies)
        with guest_rows(rows), token_places(self._owned(input_ids, media, host)):
            return self._host(input_ids=input_ids, attention_mask=attention_mask, **host)

    def _by_owner(self, inputs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """The inputs of the host under its own names, and those of guests by modality."""
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
                raise ValueError(f"{name}: the host takes {key} for one modality at a time.")
            else:
                host[key] = value
        return host, guests

    def _for_host(self, input_ids: torch.Tensor | None, inputs: dict[str, Any]) -> dict[str, Any]:
        """The `inputs` that the host's forward takes, with the token types that M-RoPE needs."""
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
        """Types (batch, sequence) of the tokens. To the host's positions, the tokens of guests are like text."""
        types = torch.zeros_like(input_ids)
        of_guests = torch.zeros_like(input_ids, dtype=torch.bool)
        for modality, entry in self.config.modalities.items():
            here = input_ids == entry["token_id"]
            if entry["owner"] == "host":
                types[here] = TOKEN_TYPES.get(modality, 0)
            else:
                of_guests |= here
        if given is None or given.shape != types.shape:  # assisted generation adds tokens without types
            return types
        return torch.where(of_guests, 0, given)

    def _rows(
        self, input_ids: torch.Tensor | None, mask: Any, media: dict[str, dict[str, Any]], copies: int
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Where the tokens of guests are (batch, sequence), and their embeddings (batch, sequence, hidden)."""
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
        """Owner -> where its tokens are (batch, sequence), if layers are routed.

        A placeholder token without an input is text. guests: the modalities of the guests' inputs; host: the names of
        the host's inputs.
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

    def generate(self, inputs: torch.Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """As `GenerationMixin.generate`, with media as in `forward`.

        A `prefill_chunk_size` is not followed, because guests embed whole prompts. The answers are the same.
        """
        host, media = self._by_owner(kwargs)
        host = self._for_host(inputs if inputs is not None else kwargs.get("input_ids"), host)
        flat = {f"{modality}__{key}": value for modality, found in media.items() for key, value in found.items()}
        with self._whole_prefill(host):
            return super().generate(inputs, *args, **host, **flat)

    @contextlib.contextmanager
    def _whole_prefill(self, options: dict[str, Any]) -> Iterator[None]:
        """While open, no generation config asks for a prefill in chunks; such a size is taken out of `options`."""
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

    # ----------------------------------------------------------------------------------------- the host's own state

    def train(self, mode: bool = True) -> OmniForConditionalGeneration:
        self._host.training = mode
        return super().train(mode)

    def get_decoder(self) -> Any:
        return self._host.model.get_decoder()

    def get_output_embeddings(self) -> Any:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        self.lm_head = self._host.lm_head = new_embeddings

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """As `PreTrainedModel.save_pretrained`, with the names of tensors in memory: there is no older layout."""
        kwargs.setdefault("save_original_format", False)
        super().save_pretrained(save_directory, **kwargs)
