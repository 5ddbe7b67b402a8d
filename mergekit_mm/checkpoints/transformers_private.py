"""The parts of transformers without a public name that the rooms below `checkpoints` need, and nothing else.

They are the same in transformers 5.20 to 5.24; `pyproject.toml` allows 5.20 and later of version 5. A new version has
to pass tests/checkpoints/test_transformers_private.py, which says what each part is needed for. No other file here
imports private names of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)
from transformers.dynamic_module_utils import get_relative_imports
from transformers.initialization import no_init_weights

__all__ = [
    "Concatenate",
    "MergeModulelist",
    "Transpose",
    "WeightConverter",
    "WeightRenaming",
    "dot_natural_key",
    "get_model_conversion_mapping",
    "get_relative_imports",
    "ignored_if_missing",
    "ignored_if_unexpected",
    "media_model_types",
    "on_meta_device",
    "parsed_config",
    "processor_class",
    "processor_parts_of_auto_classes",
    "rename_source_key",
]


def on_meta_device(cls: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """A model without storage, with its tied weights tied.

    Raises:
        Exception: of any type, where the class cannot make a model of this config.
    """
    with torch.device("meta"), no_init_weights():
        model = cls(config)
    model.tie_weights()  # no_init_weights leaves them apart
    return model


def media_model_types() -> frozenset[str]:
    """The model types of all multimodal LLMs and speech models that transformers knows."""
    from transformers.models.auto import modeling_auto as tables

    return frozenset(
        {
            *tables.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
            *tables.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
            *tables.MODEL_FOR_TEXT_TO_WAVEFORM_MAPPING_NAMES,
        }
    )


def parsed_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A parsed config.json with numbers in place of the strings that stand for infinities, which JSON lacks."""
    decoded: dict[str, Any] = PreTrainedConfig._decode_special_floats(dict(raw))
    return decoded


def ignored_if_missing(model: PreTrainedModel) -> Sequence[str]:
    """Patterns of the tensors that the model's class makes itself where a checkpoint lacks them."""
    return tuple(model._keys_to_ignore_on_load_missing or ())


def ignored_if_unexpected(model: PreTrainedModel) -> Sequence[str]:
    """Patterns of the tensors that the model's class leaves out of a checkpoint without a word."""
    return tuple(model._keys_to_ignore_on_load_unexpected or ())


def processor_class(model_type: str) -> Any:
    """transformers' processor class of an architecture.

    Raises:
        KeyError: the architecture has none.
        AttributeError, ImportError: the class needs packages that are not there.
    """
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    return getattr(transformers, PROCESSOR_MAPPING_NAMES[model_type])


def processor_parts_of_auto_classes(model_type: str) -> tuple[str, ...]:
    """The parts of a processor for which transformers' auto classes have a class of an architecture."""
    from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING_NAMES
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
    from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING_NAMES

    tables: dict[str, Mapping[str, Any]] = {
        "image_processor": IMAGE_PROCESSOR_MAPPING_NAMES,
        "video_processor": VIDEO_PROCESSOR_MAPPING_NAMES,
        "feature_extractor": FEATURE_EXTRACTOR_MAPPING_NAMES,
    }
    return tuple(part for part, table in tables.items() if model_type in table)
