"""A reply together with what its scorer may need to know of how the model saw the document.

lm-eval hands a scorer the document and the reply, a text. What only the model knows travels as attributes of that text:
through filters that pass the text on, the response cache and several processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mergekit_mm.evaluation.model.batching import PreparedRequest


class Reply(str):
    """The model's words.

    family: the `model_type` of the part of the model that prepares images.
    pictures: the sizes (width, height) in pixels of the document's images as the processor made them, in order; empty
        where it does not tell them. Response caches on disk hold both attributes under these names.
    """

    family: str = ""
    pictures: tuple[tuple[int, int], ...] = ()


def with_image_sizes(
    replies: Sequence[str], requests: Sequence[PreparedRequest], inputs: Any, reader: Any, config: Any
) -> list[str]:
    """`replies` to the requests of a batch, each with the sizes of its images in `inputs`.

    Processors of the Qwen-VL kind tell the sizes: `image_grid_thw` (images, 3) holds the number of frames, rows and
    columns of patches.
    """
    grids: list[list[int]] = next((inputs[key].tolist() for key in inputs if key.endswith("image_grid_thw")), [])
    side = getattr(reader.parts["image"], "patch_size", None)
    counts = [len(one.media["image"]) for one in requests]
    sizes = [(columns * side, rows * side) for _, rows, columns in grids] if isinstance(side, int) else []
    if len(sizes) != sum(counts):
        sizes = []
    made: list[str] = []
    for text, count in zip(replies, counts, strict=True):
        reply = Reply(text)
        reply.family = _family(config)
        reply.pictures, sizes = tuple(sizes[:count]), sizes[count:]
        made.append(reply)
    return made


def _family(config: Any) -> str:
    """The `model_type`; of an omni model, that of the donor whose tower sees images."""
    if entry := (getattr(config, "modalities", None) or {}).get("image"):
        config = config.guests.get(entry["owner"], config.host)
    return str(config.model_type)
