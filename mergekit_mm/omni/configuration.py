"""Configuration of the composed model: one host, guests that lend towers, and who serves which modality."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

from .internals import GuestsFollowAttention


class OmniConfig(GuestsFollowAttention, PreTrainedConfig):
    """The parts of an `OmniForConditionalGeneration`.

    host: config of the model (multimodal, or a text LLM) whose class runs the language model. Every token id and
        vocabulary size in it is of the omni vocabulary.
    guests: name -> config of a model of which only the towers and projectors are used, as its donor saved it: its token
        ids are those of the donor's vocabulary.
    modalities: "image" | "video" | "audio" -> {"owner": "host" or the name of a guest, "token_id": the id of that
        modality's placeholder token in the omni vocabulary}. The host's placeholder ids are set from these.
    routed: name of a linear layer inside each layer of the language model ("self_attn.q_proj") -> the weights for the
        tokens of a modality there: "full", a matrix of the modality's owner; a rank, the matrix for text plus factors
        of that rank of the owner; 0, the matrix for text. One value for all layers of the language model, or a list
        with one value per layer. By default no linear layer is named.

    Configs are given as dicts (`config.to_dict()`, with `model_type`, and `architectures` where that decides the class)
    or as objects; they are held as objects and saved as dicts.
    """

    model_type = "mllm_omni"
    sub_configs: ClassVar[dict[str, Any]] = {"host": AutoConfig}  # transformers hands dtype and attention down to it

    host: Any = None
    guests: Any = None
    modalities: Any = None
    routed: Any = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.host = None if self.host is None else as_config(self.host)
        self.guests = {name: as_config(guest) for name, guest in (self.guests or {}).items()}
        self.modalities = {modality: dict(entry) for modality, entry in (self.modalities or {}).items()}
        self.routed = dict(self.routed or {})
        for modality, entry in self.modalities.items():
            self._check(modality, entry)
            if entry["owner"] == "host":
                setattr(self.host, placeholder_attribute(self.host, modality), entry["token_id"])
        super().__post_init__(**kwargs)

    def _check(self, modality: str, entry: dict[str, Any]) -> None:
        if entry.keys() != {"owner", "token_id"}:
            raise ValueError(f"modalities: {modality!r} needs 'owner' and 'token_id', got {sorted(entry)}.")
        if entry["owner"] != "host" and entry["owner"] not in self.guests:
            known = ", ".join(["host", *self.guests])
            raise ValueError(f"modalities: the owner of {modality!r} is {entry['owner']!r}, which is none of {known}.")
        sharing = [m for m, other in self.modalities.items() if other["token_id"] == entry["token_id"]]
        if len(sharing) > 1:
            raise ValueError(f"modalities: {' and '.join(sharing)} share the placeholder {entry['token_id']}.")

    @property
    def owners(self) -> list[str]:
        """The donors that serve a modality ("host" and names of guests), sorted."""
        return sorted({entry["owner"] for entry in self.modalities.values()})

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> Any:
        """The config of the language model, which is the host's."""
        # Only the keywords that were given are passed on: some families take fewer of them.
        asked = {key: value for key, value in (("decoder", decoder), ("encoder", encoder)) if value is not None}
        return self if self.host is None else self.host.get_text_config(**asked)

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        output["guests"] = {name: guest.to_dict() for name, guest in self.guests.items()}
        if not self.routed:
            output.pop("routed", None)
        for guest in output["guests"].values():
            guest.pop("transformers_version", None)
        return output

    def to_diff_dict(self) -> dict[str, Any]:
        # A difference from defaults would drop keys without which the donors' configs are not complete.
        output = super().to_diff_dict()
        return {**output, **{key: value for key, value in self.to_dict().items() if key in ("host", "guests")}}


def as_config(config: Any) -> Any:
    """A config object from a dict with `model_type`; an object is passed through."""
    if isinstance(config, PreTrainedConfig):
        return config
    if "model_type" not in config:
        raise ValueError(f"The config of a donor needs 'model_type'; got the keys {sorted(config)[:12]}.")
    return AutoConfig.for_model(**config)


def placeholder_attribute(config: Any, modality: str) -> str:
    """The name of a config's attribute for the id of the placeholder token of `modality`."""
    for name in (f"{modality}_token_id", f"{modality}_token_index"):
        if isinstance(getattr(config, name, None), int):
            return name
    raise ValueError(f"A {config.model_type} config has no {modality}_token_id: it does not take {modality} inputs.")


def _language_model_attribute(name: str) -> property:
    """An attribute that is read from and written to the language model's config, since it must agree with that."""

    def read(self: OmniConfig) -> Any:
        text = self.get_text_config()
        return None if text is self else getattr(text, name, None)

    def write(self: OmniConfig, value: Any) -> None:
        if (text := self.get_text_config()) is not self:
            setattr(text, name, value)

    return property(read, write)


for _name in ("vocab_size", "hidden_size", "num_hidden_layers", "pad_token_id", "bos_token_id", "eos_token_id"):
    setattr(OmniConfig, _name, _language_model_attribute(_name))


def _read_tying(self: OmniConfig) -> bool:
    return bool(getattr(self.host, "tie_word_embeddings", False))


def _write_tying(self: OmniConfig, value: bool) -> None:
    if self.host is not None:
        self.host.tie_word_embeddings = value


setattr(OmniConfig, "tie_word_embeddings", property(_read_tying, _write_tying))  # noqa: B010, mypy reads the base's
