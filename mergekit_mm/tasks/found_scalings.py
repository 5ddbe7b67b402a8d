"""The scalings that `scaling: auto` comes to, noted while tensors are merged and told by group at the end."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True, eq=False)
class FoundScalings:
    """The scaling of each tensor that was merged with `scaling: auto`. Threads may note theirs at once."""

    values: dict[str, float] = field(default_factory=dict)

    def note(self, tensor: str, scaling: float) -> None:
        """Keep the scaling of one tensor, by its name in memory."""
        self.values[tensor] = scaling

    def take(self) -> dict[str, float]:
        """What was noted since the last call: name in memory -> scaling."""
        return {tensor: self.values.pop(tensor) for tensor in list(self.values)}

    def lines(self) -> Iterator[str]:
        """A line for the tensors of each name, whatever their layer: their median scaling, and the ends."""
        groups: dict[str, list[float]] = {}
        for name in sorted(self.values):
            groups.setdefault(_NUMBER.sub("*", name), []).append(self.values[name])
        if groups:
            yield "scaling: auto came to"
        for name, values in groups.items():
            ends = f" ({min(values):.3g} to {max(values):.3g} in {len(values)} tensors)" if len(values) > 1 else ""
            yield f"  {statistics.median(values):.3g}  {name}{ends}"
