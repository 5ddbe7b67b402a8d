"""Omni models as the tests load and ask them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from end_to_end import Outcome

from mergekit_mm.omni import register
from mergekit_mm.omni.modeling import OmniForConditionalGeneration

register()
TOLERANCE = 2e-5
MEDIA = {"pixel_values": "image", "image_grid_thw": "image", "pixel_values_videos": "video", "input_features": "audio"}
MEDIA |= {"feature_attention_mask": "audio", "input_features_mask": "audio"}


def as_omni(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """A donor's own inputs under the names that the omni model has for them."""
    return {f"{MEDIA[key]}__{key}" if key in MEDIA else key: value for key, value in inputs.items()}


def omni(outcome: Outcome) -> OmniForConditionalGeneration:
    model, report = transformers.AutoModelForMultimodalLM.from_pretrained(outcome.out, output_loading_info=True)
    assert not any(report.values()), report
    assert isinstance(model, OmniForConditionalGeneration)
    return model.eval()


def answers(model: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(**as_omni(inputs)).logits
    return found
