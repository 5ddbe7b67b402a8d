"""Tensors that a merge config leaves out by name (the parameter `ignore`)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from mergekit_mm.checkpoints.checkpoint import Checkpoint
from mergekit_mm.checkpoints.listing import some
from mergekit_mm.checkpoints.matching import Match

IGNORE = "ignore"  # parameter of the whole merge


@dataclass(frozen=True)
class Ignored:
    """Patterns for parts of tensors' names, in which * stands for any characters and ? for one.

    They choose among the tensors that inputs have beyond the base. A tensor that the base has is never left out.
    """

    patterns: tuple[str, ...] = ()

    def among(self, names: Iterable[str]) -> Iterator[str]:
        """The names that fit a pattern. For tensors that have no other name on disk."""
        yield from (name for name in names if any(_fits(pattern, name) for pattern in self.patterns))

    def reason(self, checkpoint: Checkpoint, tensor: str) -> str | None:
        """Why a tensor is left out; None if no pattern fits its name in memory or one of its names on disk."""
        named = any(_is_named(pattern, checkpoint, tensor) for pattern in self.patterns)
        return f"named by `{IGNORE}`" if named else None

    def problems(self, base: Checkpoint, matches: Iterable[Match], left_out: Iterable[str] = ()) -> list[str]:
        """The problems of patterns that fit no tensor which could be left out.

        left_out: names of tensors that have been left out of adapters already.
        """
        named = list(left_out)
        beyond = [
            (match.other, name)
            for match in matches
            for name in (*match.left_over, *match.other.unknown)
            if match.composing or match.other is not base  # the base's own stay where they are
        ]
        return [
            self._problem(pattern, base, sorted({name for _, name in beyond}))
            for pattern in self.patterns
            if not any(_is_named(pattern, checkpoint, name) for checkpoint, name in beyond)
            and not any(_fits(pattern, name) for name in named)
        ]

    def _problem(self, pattern: str, base: Checkpoint, beyond: list[str]) -> str:
        about = f"  parameter {IGNORE}: {pattern!r} "
        if own := [name for name in base.tensors if _is_named(pattern, base, name)]:
            roles = sorted({base.tensors[name].role.value for name in own})
            return (
                f"{about}names tensors that {base.name} has ({some(own)}); it is for what other inputs have beyond it. "
                f"What the base has is kept as it is there by the policy `base`, for {', '.join(roles)} or in a filter."
            )
        about += "names no tensor that an input has beyond the base."
        if not beyond:
            return about + " There is none: leave the pattern out."
        parts = {".".join(name.split(".")[: depth + 1]) for name in beyond for depth in range(name.count(".") + 1)}
        close = difflib.get_close_matches(pattern, sorted(parts), n=1)
        return about + (f" Did you mean {close[0]!r}?" if close else f" These are {some(beyond)}.")


def _is_named(pattern: str, checkpoint: Checkpoint, tensor: str) -> bool:
    group = checkpoint.group_of.get(tensor)
    return any(_fits(pattern, name) for name in (tensor, *(group.disk if group else ())))


def _fits(pattern: str, name: str) -> bool:
    return fnmatchcase(name, f"*{pattern}*")
