"""Images, videos and audio as users give them (single, listed, or listed per text), brought into one form."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

IMAGE_FILES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")  # a list of such files is one video


def _dimensions(item: Any) -> int:
    return item.ndim if isinstance(item, (np.ndarray, torch.Tensor)) else -1


def _is_frame(item: Any) -> bool:
    if isinstance(item, (str, os.PathLike)):
        return os.fspath(item).lower().endswith(IMAGE_FILES)
    return not isinstance(item, (list, tuple)) and _dimensions(item) in (-1, 2, 3)


def _is_image(item: Any) -> bool:
    return not isinstance(item, (list, tuple)) and _dimensions(item) != 4


def _is_video(item: Any) -> bool:
    """Whether an item is one video: a path, an array (frames, ...), or a list of frames, which may be files."""
    if isinstance(item, (list, tuple)):
        return bool(item) and all(_is_frame(frame) for frame in item)
    return _dimensions(item) != 5


def _is_audio(item: Any) -> bool:
    """Whether an item is one audio input: a path, an array (samples,), or a list of numbers."""
    if isinstance(item, (list, tuple)):
        return bool(item) and isinstance(item[0], (int, float))
    return _dimensions(item) != 2


_IS_ONE: dict[str, Callable[[Any], bool]] = {"image": _is_image, "video": _is_video, "audio": _is_audio}


def by_sample(modality: str, media: Any, wanted: list[int], token: str) -> list[list[Any]]:
    """The inputs of a modality for each text, in the order of their placeholders.

    wanted: the number of placeholder tokens (`token`) in each text.

    Raises ValueError, with both numbers, when placeholders and inputs differ in number.
    """
    is_one = _IS_ONE[modality]
    nested = isinstance(media, (list, tuple)) and not is_one(media) and len(media) == len(wanted)
    if nested and all(isinstance(part, (list, tuple)) and not is_one(part) for part in media):
        found = [_flat(part, is_one) for part in media]
        for i, (n, part) in enumerate(zip(wanted, found, strict=True)):
            _check(modality, token, n, len(part), f"sample {i}: ")
        return found
    items = [] if media is None else _flat(media, is_one)
    _check(modality, token, sum(wanted), len(items), "")
    rest = iter(items)
    return [[next(rest) for _ in range(n)] for n in wanted]


def _flat(media: Any, is_one: Callable[[Any], bool]) -> list[Any]:
    if media is None:
        return []
    return [_plain(media)] if is_one(media) else [item for part in media for item in _flat(part, is_one)]


def _plain(item: Any) -> Any:
    """An input with its paths as strings, which is what donors' processors take."""
    if isinstance(item, (list, tuple)):
        return [_plain(part) for part in item]
    return os.fspath(item) if isinstance(item, os.PathLike) else item


def _check(modality: str, token: str, placeholders: int, media: int, where: str) -> None:
    if placeholders != media:
        raise ValueError(
            f"{where}{placeholders} {modality} placeholder(s) {token!r} in the text, but {media} {modality} input(s)."
        )


def with_loaded_audio(conversation: Any, load: Callable[[Any], Any]) -> Any:
    """A conversation, or a list of conversations, with all audio in it replaced by what `load` returns for it."""
    if isinstance(conversation, (list, tuple)):
        return [with_loaded_audio(part, load) for part in conversation]
    if not isinstance(conversation, dict) or not isinstance(conversation.get("content"), (list, tuple)):
        return conversation
    return {**conversation, "content": [_loaded(part, load) for part in conversation["content"]]}


def _loaded(part: dict[str, Any], load: Callable[[Any], Any]) -> dict[str, Any]:
    found = [part[key] for key in ("audio", "path", "url") if part.get(key) is not None]
    return {"type": "audio", "audio": load(found[0])} if part.get("type") == "audio" and found else part
