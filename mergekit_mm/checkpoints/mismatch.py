"""Why a checkpoint lacks tensors of its own model: most often because its config.json is another model's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

from mergekit_mm.checkpoints.roles import TOWERS, Role, classify_names

_MEDIA = (*TOWERS, Role.PROJECTOR)


def explain(model_type: str, absent: Collection[str], unknown: Collection[str], present: Iterable[str]) -> str:
    """A sentence on the cause, with a blank before it; empty where the names do not show any.

    Args:
        model_type: as config.json has it.
        absent: names in memory of tensors that the model has and the checkpoint lacks.
        unknown: names on disk of tensors that the model has no place for.
        present: names in memory of tensors that the checkpoint has.
    """
    held, lacked, found = (_media(names) for names in (unknown, absent, present))
    if held and not lacked:
        return (
            f" Its weights are those of a whole multimodal model, with {held[0]} and {len(held)} tensors of towers and "
            f"projectors, but its config.json describes a text model alone ({model_type}): put the config.json of the "
            "whole model there."
        )
    renamed = _most_common_prefixes(absent, unknown)
    if lacked and not held and not found and (renamed or any(True for _ in present)):
        return (
            f" Its weights are those of a text model alone, but its config.json describes a whole multimodal model "
            f"({model_type}): put the config.json of the text model there, or the weights of the whole model."
        )
    if renamed:
        ours, theirs = renamed
        return (
            f" It holds names that begin with {theirs or 'nothing'} where this model has {ours or 'nothing'}: its "
            "config.json is another model's, or a wrapper of training has renamed its tensors."
        )
    return ""


def _media(names: Iterable[str]) -> list[str]:
    """The tensors of towers and projectors, judged by their names."""
    return [name for name, role in classify_names(names).items() if role in _MEDIA]


def _most_common_prefixes(absent: Iterable[str], unknown: Iterable[str]) -> tuple[str, str] | None:
    """The pair of prefixes by which most absent names differ from unknown ones: `model.` and `language_model.`."""
    ends = {end: name for name in unknown for end in _ends(name)}
    pairs: Counter[tuple[str, str]] = Counter()
    for name in absent:
        end = next((end for end in _ends(name) if "." in end and end in ends), None)
        if end is not None:
            pairs[name.removesuffix(end), ends[end].removesuffix(end)] += 1
    return max(pairs, key=lambda pair: pairs[pair]) if pairs else None


def _ends(name: str) -> list[str]:
    """A name without its first parts, the longest first."""
    parts = name.split(".")
    return [".".join(parts[i:]) for i in range(len(parts))]
