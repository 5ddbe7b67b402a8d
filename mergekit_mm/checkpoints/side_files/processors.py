"""Processors on disk: their parts, the settings of these, and the differences between two models."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import transformers

from mergekit_mm.checkpoints.side_files.model_files import ModelFiles
from mergekit_mm.checkpoints.transformers_private import processor_class, processor_parts_of_auto_classes

# part -> the keys of processor_config.json that may hold its settings
_NESTED = {
    "image_processor": ("image_processor",),
    "video_processor": ("video_processor",),
    "feature_extractor": ("feature_extractor", "audio_processor"),
}
# part -> the files that may hold its settings otherwise, in the order in which transformers looks for them
_FILES = {
    "image_processor": ("preprocessor_config.json",),
    "video_processor": ("video_preprocessor_config.json", "preprocessor_config.json"),
    "feature_extractor": ("preprocessor_config.json",),
}
PROCESSOR_CONFIG = "processor_config.json"
PROCESSOR_FILES = (PROCESSOR_CONFIG, "preprocessor_config.json", "video_preprocessor_config.json")
_TYPE_KEYS = ("image_processor_type", "video_processor_type", "feature_extractor_type")
# keys that say how a file was written or where it came from, and have no effect on an input
_WITHOUT_EFFECT = (
    *("processor_class", "transformers_version", "_name_or_path", "auto_map", "_processor_class", "use_fast"),
    *("chat_template", "device", "return_tensors", "return_metadata", "input_data_format", "data_format", *_TYPE_KEYS),
)
_UNKNOWN = object()


def processor_parts(model_type: str) -> tuple[str, ...]:
    """The parts of an architecture's processor in transformers, without the tokenizer; none without a processor."""
    try:
        attributes = set(processor_class(model_type).get_attributes())
    except (KeyError, TypeError, AttributeError, ImportError):  # it has no processor, or one that needs other packages
        return processor_parts_of_auto_classes(model_type)
    return tuple(part for part, keys in _NESTED.items() if attributes & {*keys})


def part_settings(files: ModelFiles, part: str) -> tuple[str, Mapping[str, Any]] | None:
    """The file with the settings of a part of a processor, and the settings; None if no file has any."""
    nested = files.json(PROCESSOR_CONFIG)
    for key in _NESTED[part]:
        if isinstance(nested.get(key), dict):
            return PROCESSOR_CONFIG, nested[key]
    name = next((name for name in _FILES[part] if name in files.files), None)
    return (name, files.json(name)) if name else None


def has_processor(files: ModelFiles) -> bool:
    """Whether there is any file of a processor."""
    return any(name in files.files for name in PROCESSOR_FILES)


def setting_differences(ours: ModelFiles, theirs: ModelFiles) -> Iterator[str]:
    """`part.key theirs (ours)` for each setting that makes a processor treat the same input otherwise."""
    seen: set[tuple[str, str]] = set()
    for part in _NESTED:
        own, other = part_settings(ours, part), part_settings(theirs, part)
        if own and other and (own[0], other[0]) not in seen:
            if own[0] != PROCESSOR_CONFIG and other[0] != PROCESSOR_CONFIG:
                seen.add((own[0], other[0]))  # one file for several parts is compared once
            yield from _differences(part, own[1], other[1])
    parts = {key for keys in _NESTED.values() for key in keys}
    configs = [files.json(PROCESSOR_CONFIG) for files in (ours, theirs)]
    own_rest, other_rest = ({key: config[key] for key in config.keys() - parts} for config in configs)
    yield from _differences("processor", own_rest, other_rest)


def settings_key(settings: Mapping[str, Any]) -> str:
    """A text that is equal for settings with the same effect."""
    return repr(sorted((key, repr(_plain(value))) for key, value in _normalised(settings).items() if value is not None))


def processor_key(files: ModelFiles) -> str | None:
    """A text that is equal for processors with the same settings; None for a model without any file of a processor."""
    if not has_processor(files):
        return None
    found = [part_settings(files, part) for part in _NESTED]
    return repr([settings_key(each[1]) if each else None for each in found])


def _differences(part: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    kinds = [_class_name(settings) for settings in (ours, theirs)]
    if all(kinds) and kinds[0] != kinds[1]:
        yield f"{part} {kinds[1]} ({kinds[0]})"
    own, other = _normalised(ours), _normalised(theirs)
    for key in sorted({*own, *other}):
        values = [settings.get(key, _UNKNOWN) for settings in (own, other)]
        if _UNKNOWN in values:
            default = _default(kinds[values.index(_UNKNOWN)] or "", key)
            values = [default if value is _UNKNOWN else value for value in values]
        if _UNKNOWN not in values and not _same(values[0], values[1]):
            yield f"{part}.{key} {_short(values[1])} ({_short(values[0])})"


def _normalised(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those that have no effect, and with limits on pixels as transformers names them now."""
    found = {key: value for key, value in settings.items() if key not in _WITHOUT_EFFECT}
    least, most = found.get("min_pixels"), found.get("max_pixels")
    if least is not None and most is not None:
        found["size"] = {"shortest_edge": least, "longest_edge": most}
    size = found.get("size")
    if isinstance(size, dict) and {*size} == {"shortest_edge", "longest_edge"}:
        found |= {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
        del found["size"]
    return found


def _class_name(settings: Mapping[str, Any]) -> str | None:
    """The class of a part without the suffixes that name its implementation."""
    name = next((settings[key] for key in _TYPE_KEYS if isinstance(settings.get(key), str)), None)
    return name.removesuffix("Fast").removesuffix("Pil") if name else None


def _default(class_name: str, key: str) -> Any:
    """The value of a setting that is absent from the file of a processor of this class."""
    try:
        cls = getattr(transformers, class_name)
        value = getattr(cls, key, _UNKNOWN)
        if value is _UNKNOWN and (parameter := inspect.signature(cls.__init__).parameters.get(key)) is not None:
            value = parameter.default
    except (AttributeError, ImportError, ValueError, TypeError):
        return _UNKNOWN
    plain = value is None or isinstance(value, (bool, int, float, str, list, tuple, dict))
    return value if plain else _UNKNOWN


def _same(ours: Any, theirs: Any) -> bool:
    ours, theirs = _plain(ours), _plain(theirs)
    if isinstance(ours, dict) and isinstance(theirs, (int, float)):
        ours, theirs = theirs, ours
    if isinstance(theirs, dict) and isinstance(ours, (int, float)) and not isinstance(ours, bool):
        return all(value == ours for value in theirs.values())  # older files have one number for both edges
    return bool(ours == theirs)


def _plain(value: Any) -> Any:
    """A value with lists for tuples, numbers for enumerations, and sorted keys."""
    if isinstance(value, Mapping):
        return {key: _plain(value[key]) for key in sorted(value) if value[key] is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _short(value: Any) -> str:
    text = str(_plain(value))
    return text if len(text) <= 60 else f"{text[:57]}..."
