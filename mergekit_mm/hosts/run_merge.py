"""The seam in mergekit 0.1.5: `mergekit.merge.run_merge`, which every mergekit command calls to merge models.

Merges with a multimodal input, and merges of adapters by the plugin's methods, are run here; all others by mergekit, as
if the plugin were not there. (Inputs that cannot be found are reported here.)
"""

from __future__ import annotations

import functools
import json
import logging
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions

from mergekit_mm.errors import bugs_reported
from mergekit_mm.methods import is_own_method

LOG = logging.getLogger(__name__)


def install() -> None:
    """Put the plugin between mergekit's commands and `run_merge`, once."""
    import mergekit.merge  # local: the start-up hook calls this function when that module is imported

    original = mergekit.merge.run_merge
    if getattr(original, "__mergekit_mm__", False):
        return

    @functools.wraps(original)
    def run_merge(
        merge_config: MergeConfiguration, out_path: str, options: MergeOptions, config_source: str | None = None
    ) -> None:
        with bugs_reported():
            planned_here = is_planned_here(merge_config, options.transformers_cache)
            if planned_here:
                from mergekit_mm.merge import run_multimodal_merge

                run_multimodal_merge(merge_config, out_path, options, config_source)
        if not planned_here:
            original(merge_config, out_path, options, config_source)

    run_merge.__mergekit_mm__ = True  # type: ignore[attr-defined]
    # commands that were imported before have the function by its name
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "mergekit" and getattr(module, "run_merge", None) is original:
            module.run_merge = run_merge  # type: ignore[attr-defined]


def is_planned_here(config: MergeConfiguration, cache: str | None = None) -> bool:
    """Whether the plugin plans a merge: of multimodal models, or of adapters by a method that takes their factors.

    And one of directories that transformers loads with an adapter, which mergekit would leave out without a word.

    And one that asks for a composition, or whose models cannot be found: these are refused, where mergekit would not
    know of the one and end in a traceback over the other. `cache`: as `--transformers-cache`.
    """
    models = config.referenced_models()
    if any(_holds_adapter(model) for model in models):
        return True
    own = any(model.lora for model in models) and is_own_method(config.merge_method)
    if own or "composition" in (config.parameters or {}):
        return True
    found = [_raw_config(model, cache) for model in models]
    return not all(found) or any(map(_has_media, found))


def _holds_adapter(model: ModelReference) -> bool:
    return not model.lora and (Path(model.model.path).expanduser() / "adapter_config.json").is_file()


def _raw_config(model: ModelReference, cache: str | None) -> Mapping[str, Any]:
    """The model's config.json; empty if there is none to be found."""
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
    """Whether a raw config is that of a multimodal LLM or of a speech model, or contains one."""
    # local: transformers' tables of models are slow to import, and a text-only start-up need not pay for them
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
        MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
        MODEL_FOR_TEXT_TO_WAVEFORM_MAPPING_NAMES,
    )

    from mergekit_mm.omni.configuration import OmniConfig

    parts = {key: value for key, value in config.items() if key.endswith("_config") and isinstance(value, dict)}
    known = (
        *MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
        *MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
        *MODEL_FOR_TEXT_TO_WAVEFORM_MAPPING_NAMES,
    )
    return (
        config.get("model_type") in (*known, OmniConfig.model_type)
        or any(re.search(r"vision|visual|image|video|audio|speech", key) for key in parts)
        or any(key.startswith("mm_") for key in config)  # LLaVA's original code and its descendants
        or any(_has_media(part) for part in parts.values())
    )
