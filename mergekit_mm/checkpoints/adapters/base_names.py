"""Whether the model that an adapter names as its base is the model that it is put on, in all spellings of trainers.

Only whole names count: the last part of a path, or the repository whose download a cache keeps there. Models of one
name count as one model, whoever uploaded them; `Qwen2-VL-7B` and `Qwen2-VL-7B-Instruct` are two.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from mergekit_mm.checkpoints.checkpoint import Checkpoint
from mergekit_mm.checkpoints.disk import read_json, weight_files
from mergekit_mm.checkpoints.hub import local_path
from mergekit_mm.checkpoints.remote import same_content

# Endings of the names of quantized weights: `...-unsloth-bnb-4bit`, `...-GPTQ-Int4`, `...-AWQ`, `...-FP8-dynamic`,
# `...-w4a16`, `...-4bit-128g`. The pattern takes one part off at a time, as parts come in any order.
_QUANTIZED = re.compile(
    r"[-_.](unsloth|bnb|hqq|gptq|awq|autoround|quantized|quanto|int[248]|[2348]-?bit|\d+g|nf4|mlx|w\d+a\d+|gguf"
    r"|(nv|mx)?fp[48]|e4m3|dynamic|block|per-?tensor)$"
)
_SIXTEEN_BITS = re.compile(r"[-_.](bf16|fp16|16-?bit)$")  # endings of names of weights that are not quantized
_CACHED = re.compile(r"(?:^|/)(?:models--)?([^/]+)/snapshots(?:/|$)")  # caches of huggingface_hub and of ModelScope
_STEP = re.compile(r"(checkpoint|step|epoch)[-_]?\d+")  # named by the folder around it as well


@dataclass(frozen=True)
class Verdict:
    """Whether a checkpoint is the base that an adapter was trained on."""

    same: bool
    note: str | None = None  # for the user; continues "<the adapter> ..."


def is_trained_on(base: str | None, given: str, checkpoint: Checkpoint) -> Verdict:
    """Whether the base that an adapter names is a checkpoint.

    A base that is a directory of this machine has to be the checkpoint's, or to hold the same weights; any other name
    has to mean the checkpoint's. A base of the same name with quantized weights is accepted with a note.

    Args:
        base: the base as the adapter's config names it; None if it names none, which fits every checkpoint.
        given: the name that the user gave the checkpoint.
    """
    if base is None or base == given:
        return Verdict(True)
    here, there = checkpoint.directory, local_path(base)
    if (there / "config.json").is_file():
        if same_weights(here, there):
            return Verdict(True)
        if not read_json(there / "config.json").get("quantization_config"):
            return Verdict(False)
    known = {given, str(here), str(here.resolve()), str(checkpoint.config.get("_name_or_path") or "")}
    ours = {model_name(name) for name in known if name}
    name = model_name(base)
    if name in ours:
        return Verdict(True)
    full = _without(_SIXTEEN_BITS, name)
    if full in ours:
        return Verdict(True)
    if (full := _without(_QUANTIZED, full)) in ours:
        return Verdict(True, f"was trained on quantized weights ({base}); it is put on the full ones of {given}.")
    return Verdict(False)


def model_name(name: str) -> str:
    """The name of a model in lower case, of a hub id, a path of any system, or a path in a download cache."""
    path = name.replace("\\", "/").rstrip("/")
    found = _CACHED.search(path)
    parts = (found[1] if found else path).split("/")
    last = parts[-1]
    if found or last.startswith("models--"):
        last = last.split("--")[-1]
    if _STEP.fullmatch(last.lower()) and len(parts) > 1:
        last = f"{parts[-2]}/{last}"
    return last.replace("___", ".").lower()  # ModelScope's form of a dot


def _without(ending: re.Pattern[str], name: str) -> str:
    while found := ending.search(name):
        name = name[: found.start()]
    return name


def same_weights(here: Path, there: Path) -> bool:
    """Whether two directories hold the same weight files; sizes first, bytes only if these agree."""
    if here.resolve() == there.resolve():
        return True
    names = weight_files(here)
    if names != weight_files(there) or not all((place / name).is_file() for place in (here, there) for name in names):
        return False
    sizes = [[(place / name).stat().st_size for name in sorted(names)] for place in (here, there)]
    return sizes[0] == sizes[1] and all(same_content(here / name, there / name) for name in names)
