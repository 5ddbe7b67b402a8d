"""A reply with what its scorer may need to know of how the model saw the document.

lm-eval hands a scorer the document and the reply, a text. What only the model knows travels with that text, as its
attributes: through filters that pass the text on, the response cache and several processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mergekit_mm.evaluation.model.batching import Asked


class Reply(str):
    """The model's words. `family`: the `model_type` of what prepares pictures for it. `pictures`: the sizes (width,
    height) in pixels of the document's pictures as the processor made them, in order; empty where it does not tell."""

    family: str = ""
    pictures: tuple[tuple[int, int], ...] = ()


def with_pictures(replies: Sequence[str], asked: Sequence[Asked], inputs: Any, reader: Any, config: Any) -> list[str]:
    """`replies` to the prompts of a batch, each with its pictures' sizes in `inputs`.

    Processors of the Qwen-VL kind tell them: `image_grid_thw` (pictures, 3) has frames, rows and columns of patches.
    """
    grids: list[list[int]] = next((inputs[key].tolist() for key in inputs if key.endswith("image_grid_thw")), [])
    side = getattr(reader.parts["image"], "patch_size", None)
    counts = [len(one.media["image"]) for one in asked]
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
    """The `model_type`; of an omni model, that of the part that reads pictures."""
    if entry := (getattr(config, "modalities", None) or {}).get("image"):
        config = config.guests.get(entry["owner"], config.host)
    return str(config.model_type)
