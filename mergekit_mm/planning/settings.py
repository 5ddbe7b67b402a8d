"""What a language model does with its tensors beyond their shapes, which no header tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mergekit_mm.architecture.checkpoint import Checkpoint


@dataclass(frozen=True)
class Settings:
    """Of one language model."""

    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_act: str
    rms_norm_eps: float | None
    rope: Mapping[str, Any] | None  # base, type and scaling of rotary positions, without how M-RoPE divides them


# with another of these the same tensors are another function; the others only shift it
_BINDING = ("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act")


def settings(checkpoint: Checkpoint) -> Settings | None:
    """The settings of a checkpoint's language model; None for remote code."""
    if checkpoint.skeleton is None:
        return None
    text = checkpoint.skeleton.model.config.get_text_config()
    heads = getattr(text, "num_attention_heads", 1)
    rope = getattr(text, "rope_parameters", None)
    return Settings(
        heads,
        getattr(text, "num_key_value_heads", None) or heads,
        getattr(text, "head_dim", None) or getattr(text, "hidden_size", heads) // heads,
        getattr(text, "hidden_act", ""),
        getattr(text, "rms_norm_eps", None),
        {k: v for k, v in rope.items() if k != "type" and "mrope" not in k} if isinstance(rope, dict) else None,
    )


def told_apart(base: Checkpoint, other: Checkpoint) -> tuple[list[str], list[str]]:
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
