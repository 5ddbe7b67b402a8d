"""Requests put into batches of one kind, and the next batch prepared while the model is busy with this one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from PIL import Image

from mergekit_mm.evaluation.model.chat import MODALITIES
from mergekit_mm.evaluation.tasks.lazy_images import LazyImage


@dataclass(frozen=True)
class Asked:
    """One request: where it comes from, the prompt as the model reads it, its media in the order of the prompt."""

    where: str
    text: str
    media: Mapping[str, Sequence[Any]]
    options: str = ""  # requests with different ones do not share a batch

    @property
    def kind(self) -> tuple[str, tuple[int, ...]]:
        """What must be equal within a batch: processors take no lists in which some prompts have media."""
        return self.options, tuple(len(self.media[modality]) for modality in MODALITIES)

    @property
    def extent(self) -> int:
        """About how long it is, in letters: prompts of like length are put together, the longest first."""
        opened = (
            each for each in self.media["image"] if isinstance(each, Image.Image) and not isinstance(each, LazyImage)
        )
        pictures = (each.size for each in opened)
        return len(self.text) + sum(width * height // 200 for width, height in pictures)


def batches(asked: Sequence[Asked], size: int) -> Iterator[list[int]]:
    """Places of requests that are processed together: of one kind, of like length, the longest first."""
    order = sorted(range(len(asked)), key=lambda n: (asked[n].kind, -asked[n].extent, asked[n].text, n))
    for _, group in groupby(order, key=lambda n: asked[n].kind):
        members = list(group)
        yield from (members[at : at + size] for at in range(0, len(members), size))


def ahead(prepare: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """(item, prepare(item)) for each; the next one is prepared in a thread while the caller is busy with this one."""
    with ThreadPoolExecutor(1) as pool:
        waiting: list[tuple[Any, Any]] = []
        for item in items:
            waiting.append((item, pool.submit(prepare, item)))
            if len(waiting) > 1:
                first, future = waiting.pop(0)
                yield first, future.result()
        yield from ((item, future.result()) for item, future in waiting)
