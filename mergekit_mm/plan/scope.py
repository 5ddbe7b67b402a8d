"""The merges that this package plans; all others are left to mergekit."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration

from mergekit_mm.methods import is_own_method

LOG = logging.getLogger(__name__)


def is_planned_here(config: MergeConfiguration, cache: str | None = None) -> bool:
    """Whether this package plans a merge. The package plans every merge

    - of a multimodal model or a speech model, or of a model that contains one;
    - of LoRA adapters by a method of this package, which merges their factors;
    - of a directory that holds an adapter too: transformers loads the model with it, mergekit would silently drop it;
    - with the parameter `composition`, which mergekit does not know;
    - of a model without a config.json: this package refuses it with a message, mergekit ends in a traceback.

    cache: the directory of `--transformers-cache`.
    """
    models = config.referenced_models()
    if any(_holds_adapter(model) for model in models):
        return True
    merges_factors = any(model.lora for model in models) and is_own_method(config.merge_method)
    if merges_factors or "composition" in (config.parameters or {}):
        return True
    raw_configs = [_raw_config(model, cache) for model in models]
    return not all(raw_configs) or any(map(_has_media, raw_configs))


def _holds_adapter(model: ModelReference) -> bool:
    """Whether the directory of a model that is named without an adapter has one."""
    return not model.lora and (Path(model.model.path).expanduser() / "adapter_config.json").is_file()


def _raw_config(model: ModelReference, cache: str | None) -> Mapping[str, Any]:
    """The model's config.json; empty if there is none on disk or on the hub."""
    try:
        path = Path(model.model.path).expanduser() / "config.json"
        if not path.is_file():
            path = Path(
                huggingface_hub.hf_hub_download(
                    model.model.path, "config.json", revision=model.model.revision, cache_dir=cache
                )
            )
        config = json.loads(path.read_text(encoding="utf-8"))
        return config if isinstance(config, dict) else {}
    except Exception as error:
        LOG.debug("no config.json for %s: %s", model, error)
        return {}


def _has_media(config: Mapping[str, Any]) -> bool:
    """Whether a raw config is that of a multimodal LLM or of a speech model, or contains the config of one."""
    # Local imports: transformers is slow to import, and commands that merge nothing need none of it.
    from mergekit_mm.checkpoints.transformers_private import media_model_types
    from mergekit_mm.omni.configuration import OmniConfig

    parts = {key: value for key, value in config.items() if key.endswith("_config") and isinstance(value, dict)}
    return (
        config.get("model_type") in {*media_model_types(), OmniConfig.model_type}
        or any(re.search(r"vision|visual|image|video|audio|speech", key) for key in parts)
        or any(key.startswith("mm_") for key in config)  # LLaVA's original code and its descendants
        or any(_has_media(part) for part in parts.values())
    )
