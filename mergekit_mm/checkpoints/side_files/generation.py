"""Stop tokens and parameters of sampling, from generation_config.json or, where that is absent, from config.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mergekit_mm.checkpoints.side_files.model_files import ModelFiles

GENERATION_CONFIG = "generation_config.json"
_TEXT_CONFIGS = ("text_config", "llm_config", "language_config", "thinker_config")
# transformers' defaults of absent keys
_DEFAULTS: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "use_cache": True,
}
_NOT_COMPARED = ("transformers_version", "_from_model_config", "eos_token_id")  # the last has a note of its own


def stop_tokens(files: ModelFiles) -> tuple[int, ...] | None:
    """The ids that end a generated text, in ascending order; None if no file has any."""
    value = files.json(GENERATION_CONFIG).get("eos_token_id")
    if value is None:
        value = _of_config(files.config)
    if isinstance(value, int):
        return (value,)
    return tuple(sorted({each for each in value if isinstance(each, int)})) if isinstance(value, list) else None


def _of_config(config: Mapping[str, Any]) -> Any:
    if config.get("eos_token_id") is not None:
        return config["eos_token_id"]
    parts = (_of_config(config[key]) for key in _TEXT_CONFIGS if isinstance(config.get(key), Mapping))
    return next((value for value in parts if value is not None), None)


def generation_differences(ours: ModelFiles, theirs: ModelFiles) -> Iterator[str]:
    """`key theirs (ours)` for every difference but the stop tokens, where both models have a generation config."""
    if not (GENERATION_CONFIG in ours.files and GENERATION_CONFIG in theirs.files):
        return
    own, other = ours.json(GENERATION_CONFIG), theirs.json(GENERATION_CONFIG)
    for key in sorted({*own, *other} - {*_NOT_COMPARED}):
        values = [_DEFAULTS.get(key) if config.get(key) is None else config[key] for config in (own, other)]
        if values[0] != values[1]:
            yield f"{key} {values[1]} ({values[0]})"
