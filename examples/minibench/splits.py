"""Splits that share no content: each word, table, font, picture and figure belongs to one of them for good."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

# Models learn from `train`, settings are chosen on `validation`, `test` is asked once at the end, and `calibration` is
# for methods that look at inputs without answers.
SHARES = {"train": 0.65, "validation": 0.12, "test": 0.15, "calibration": 0.08}
SPLITS = tuple(SHARES)


def share(contents: Iterable[str], split: str) -> list[str]:
    """The part of `contents` that belongs to a split, in an order that depends on nothing but the contents.

    Each split gets its share, rounded, and at least one. ValueError: there are fewer contents than splits.
    """
    order = sorted(set(contents), key=_hash)
    if len(order) < len(SPLITS):
        raise ValueError(f"{len(order)} contents cannot be shared by {len(SPLITS)} splits: {order}")
    sizes = {name: max(1, round(part * len(order))) for name, part in SHARES.items() if name != "train"}
    sizes = {"train": len(order) - sum(sizes.values()), **sizes}
    first = sum(sizes[name] for name in SPLITS[: SPLITS.index(split)])
    return order[first : first + sizes[split]]


def _hash(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()
