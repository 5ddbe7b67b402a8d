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
class PreparedRequest:
    """A request whose prompt is rendered: the text as the model reads it, and the media in the order of that text.

    where: the document that it comes from, for messages. options: requests with different ones do not share a batch.
    """

    where: str
    text: str
    media: Mapping[str, Sequence[Any]]
    options: str = ""

    @property
    def kind(self) -> tuple[str, tuple[int, ...]]:
        """What must be equal within a batch: processors take no lists in which some prompts have media."""
        return self.options, tuple(len(self.media[modality]) for modality in MODALITIES)

    @property
    def length(self) -> int:
        """About how many characters it is worth, where 200 pixels of an image count as one. Batches are made by it."""
        opened = (
            each for each in self.media["image"] if isinstance(each, Image.Image) and not isinstance(each, LazyImage)
        )
        return len(self.text) + sum(width * height // 200 for width, height in (each.size for each in opened))


def batches(requests: Sequence[PreparedRequest], size: int) -> Iterator[list[int]]:
    """Indices of requests that are processed together: of one kind and of similar length, the longest first."""
    order = sorted(range(len(requests)), key=lambda n: (requests[n].kind, -requests[n].length, requests[n].text, n))
    for _, group in groupby(order, key=lambda n: requests[n].kind):
        members = list(group)
        yield from (members[at : at + size] for at in range(0, len(members), size))


def prefetch(prepare: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """(item, prepare(item)) for each item; the next one is prepared in a thread while the caller works on this one."""
    with ThreadPoolExecutor(1) as pool:
        waiting: list[tuple[Any, Any]] = []
        for item in items:
            waiting.append((item, pool.submit(prepare, item)))
            if len(waiting) > 1:
                first, future = waiting.pop(0)
                yield first, future.result()
        yield from ((item, future.result()) for item, future in waiting)
