"""Hyperparameters of language models with which the same tensors compute otherwise, and which no shape shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from mergekit_mm.checkpoints.checkpoint import Checkpoint


@dataclass(frozen=True)
class Hyperparameters:
    """The hyperparameters of one language model; each is a tuple with one value per layer where layers differ."""

    num_attention_heads: Any
    num_key_value_heads: Any
    head_dim: Any
    hidden_act: Any
    rms_norm_eps: Any
    rope: Any  # base, type and scaling of rotary positions, without M-RoPE's division of them; None without rotary ones
    constants: Any  # factors and caps of the family's own, where they are not neutral


# With other values of these, the same tensors compute another function. The others only shift it.
_BINDING = ("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "constants")
# constants of some families (Granite, Cohere, Gemma)
_SCALES = ("embedding_multiplier", "residual_multiplier", "logits_scaling", "logit_scale")
_CAPS = ("attn_logit_softcapping", "final_logit_softcapping")


def hyperparameters(checkpoint: Checkpoint) -> Hyperparameters | None:
    """The hyperparameters of a checkpoint's language model; None for remote code."""
    if checkpoint.meta_model is None:
        return None
    layers = [vars(_of_layer(layer)) for layer in _layers(_text(checkpoint.meta_model.model.config))]
    each = {key: tuple(layer[key] for layer in layers) for key in layers[0]}
    return Hyperparameters(**{key: v[0] if all(one == v[0] for one in v) else v for key, v in each.items()})


def _text(config: PreTrainedConfig) -> PreTrainedConfig:
    return config.get_text_config(decoder=True)  # an encoder for text has a config of its own


def _layers(text: PreTrainedConfig) -> Sequence[PreTrainedConfig]:
    """The config of each layer where layers differ, as transformers refuses to read the whole then; else the whole."""
    return text.per_layer_config if getattr(text, "is_heterogeneous", False) else [text]


def _of_layer(text: PreTrainedConfig) -> Hyperparameters:
    heads = getattr(text, "num_attention_heads", 1)
    rope = getattr(text, "rope_parameters", None)
    head_dim = getattr(text, "head_dim", None) or getattr(text, "hidden_size", heads) // heads
    neutral = {**dict.fromkeys(_SCALES, 1.0), **dict.fromkeys(_CAPS, None)}
    neutral |= {"attention_multiplier": head_dim**-0.5, "query_pre_attn_scalar": head_dim}
    constants = {name: getattr(text, name, default) for name, default in neutral.items()}
    return Hyperparameters(
        heads,
        getattr(text, "num_key_value_heads", None) or heads,
        head_dim,
        getattr(text, "hidden_act", ""),
        getattr(text, "rms_norm_eps", None),
        {k: v for k, v in rope.items() if k != "type" and "mrope" not in k} if isinstance(rope, dict) else None,
        {name: value for name, value in constants.items() if value not in (None, neutral[name])},
    )


def window(checkpoint: Checkpoint) -> int | None:
    """The width of the narrowest sliding window, in tokens; None for a model without one, and for remote code."""
    if checkpoint.meta_model is None:
        return None
    text = _text(checkpoint.meta_model.model.config)
    kinds = getattr(text, "layer_types", None) or ["sliding_attention"]
    slides = getattr(text, "use_sliding_window", True) and "sliding_attention" in kinds
    widths = [getattr(layer, "sliding_window", None) for layer in _layers(text)]
    return min((width for width in widths if width is not None), default=None) if slides else None


def compare_language_models(base: Checkpoint, other: Checkpoint) -> tuple[list[str], list[str]]:
    """Hyperparameters in which two language models differ: problems of a merge of the two, and notes on it."""
    ours, theirs = hyperparameters(base), hyperparameters(other)
    problems: list[str] = []
    notes: list[str] = []
    for key, value in vars(theirs).items() if ours and theirs else ():
        if value != (own := vars(ours)[key]):
            difference = f"The language models differ: {key} {value} in {other.name}, {own} in {base.name}."
            if key in _BINDING:
                problems.append(f"  {difference}")
            else:
                notes.append(f"{difference} The output has the latter.")
    return problems, notes
