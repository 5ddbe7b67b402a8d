"""What a language model does with its tensors beyond their shapes, which no header tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from mergekit_mm.checkpoints.checkpoint import Checkpoint


@dataclass(frozen=True)
class Settings:
    """Of one language model, or of one of its layers."""

    num_attention_heads: Any  # a number; where layers differ, as in Gemma 4, each of these is a tuple of one per layer
    num_key_value_heads: Any
    head_dim: Any
    hidden_act: Any
    rms_norm_eps: Any
    rope: Any  # base, type and scaling of rotary positions, without how M-RoPE divides them; None for none
    constants: Any  # what the family multiplies or caps with, where that does something


# with another of these the same tensors are another function; the others only shift it
_BINDING = ("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "constants")
# constants of some families (Granite, Cohere, Gemma), which others compute without
_SCALES = ("embedding_multiplier", "residual_multiplier", "logits_scaling", "logit_scale")
_CAPS = ("attn_logit_softcapping", "final_logit_softcapping")


def settings(checkpoint: Checkpoint) -> Settings | None:
    """The settings of a checkpoint's language model; None for remote code."""
    if checkpoint.meta_model is None:
        return None
    layers = [vars(_settings(layer)) for layer in _layers(_text(checkpoint.meta_model.model.config))]
    each = {key: tuple(layer[key] for layer in layers) for key in layers[0]}
    return Settings(**{key: v[0] if all(one == v[0] for one in v) else v for key, v in each.items()})


def _text(config: PreTrainedConfig) -> PreTrainedConfig:
    return config.get_text_config(decoder=True)  # a model with an encoder for text as well has two


def _layers(text: PreTrainedConfig) -> Sequence[PreTrainedConfig]:
    """The config of each layer where they differ, for which transformers refuses to read the whole; else the whole."""
    return text.per_layer_config if getattr(text, "is_heterogeneous", False) else [text]


def _settings(text: PreTrainedConfig) -> Settings:
    heads = getattr(text, "num_attention_heads", 1)
    rope = getattr(text, "rope_parameters", None)
    head_dim = getattr(text, "head_dim", None) or getattr(text, "hidden_size", heads) // heads
    neutral = {**dict.fromkeys(_SCALES, 1.0), **dict.fromkeys(_CAPS, None)}
    neutral |= {"attention_multiplier": head_dim**-0.5, "query_pre_attn_scalar": head_dim}
    constants = {name: getattr(text, name, default) for name, default in neutral.items()}
    return Settings(
        heads,
        getattr(text, "num_key_value_heads", None) or heads,
        head_dim,
        getattr(text, "hidden_act", ""),
        getattr(text, "rms_norm_eps", None),
        {k: v for k, v in rope.items() if k != "type" and "mrope" not in k} if isinstance(rope, dict) else None,
        {name: value for name, value in constants.items() if value not in (None, neutral[name])},
    )


def window(checkpoint: Checkpoint) -> int | None:
    """How many tokens back the layers with the shortest sight attend; None for all, and for remote code."""
    if checkpoint.meta_model is None:
        return None
    text = _text(checkpoint.meta_model.model.config)
    kinds = getattr(text, "layer_types", None) or ["sliding_attention"]
    slides = getattr(text, "use_sliding_window", True) and "sliding_attention" in kinds
    widths = [getattr(layer, "sliding_window", None) for layer in _layers(text)]
    return min((width for width in widths if width is not None), default=None) if slides else None


def compare_language_models(base: Checkpoint, other: Checkpoint) -> tuple[list[str], list[str]]:
    """How another language model of the same shapes computes otherwise: problems of a merge, and notes on it."""
    ours, theirs = settings(base), settings(other)
    problems: list[str] = []
    notes: list[str] = []
    for key, value in vars(theirs).items() if ours and theirs else ():
        if value != (own := vars(ours)[key]):
            told = f"The language models differ: {key} {value} in {other.name}, {own} in {base.name}."
            if key in _BINDING:
                problems.append(f"  {told}")
            else:
                notes.append(f"{told} The output has the latter.")
    return problems, notes
