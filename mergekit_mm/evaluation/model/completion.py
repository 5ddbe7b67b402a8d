"""Processors of LLaVA's kind, as older versions of transformers saved them, do not know how many tokens an image takes.

The model's config and its vision tower know: the missing values are filled in, as transformers 4 did, and reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_OF_CONFIG = ("patch_size", "vision_feature_select_strategy")
_EXTRA = "num_additional_image_tokens"


def complete(processor: Any, model: Any, saved: Mapping[str, Any] | None) -> dict[str, Any]:
    """Fill in what a processor lacks to count the tokens of images, and return the values that were filled in.

    saved: the processor as it stands in its file, where it comes from one. A key that the file does not have is missing
    too, since transformers' default, no token beside the patches, is wrong for towers with a class token.
    """
    if not all(hasattr(processor, name) for name in (*_OF_CONFIG, _EXTRA)):
        return {}
    config = model.config
    known = {
        "patch_size": getattr(getattr(config, "vision_config", None), "patch_size", None),
        "vision_feature_select_strategy": getattr(config, "vision_feature_select_strategy", None),
        _EXTRA: _class_tokens(model),
    }
    lacking = [name for name in _OF_CONFIG if getattr(processor, name) is None]
    if saved is not None and _EXTRA not in saved:
        lacking.append(_EXTRA)
    filled = {name: known[name] for name in lacking if known[name] not in (None, getattr(processor, name))}
    for name, value in filled.items():
        setattr(processor, name, value)
    return filled


def _class_tokens(model: Any) -> int | None:
    """How many tokens the vision tower makes beside those of the patches: 1 for CLIP, 0 for SigLIP."""
    for module in model.modules():
        patches, positions = getattr(module, "num_patches", None), getattr(module, "num_positions", None)
        if isinstance(patches, int) and isinstance(positions, int):
            return positions - patches
    return None
