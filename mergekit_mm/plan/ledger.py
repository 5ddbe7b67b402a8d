"""What is done with the tensors of a merge, counted while it is planned and told by role."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from mergekit.common import ModelReference

from mergekit_mm.checkpoints.roles import LANGUAGE_ROLES, Role

COPIED = "copy"  # of the only model that a module or slice lists


@dataclass(frozen=True, eq=False)
class Ledger:
    """Counts of tensors, by role."""

    done: Counter[tuple[str, str]] = field(default_factory=Counter)  # (role, policy or COPIED)
    kept: Counter[tuple[str, ModelReference]] = field(default_factory=Counter)  # (role, whose they still are)
    unused: Counter[tuple[ModelReference, Role]] = field(default_factory=Counter)  # adapted, but left out by a policy
    # (role, whose towers are taken) -> who else has some of the same kind
    overruled: dict[tuple[str, ModelReference], Sequence[ModelReference]] = field(default_factory=dict)

    def lines(self, method: str, composed: bool) -> Iterator[str]:
        """A line for each role; `composed` if the towers come to the language model from other models."""
        words = {"average": "mean of the experts", "merge": method, COPIED: "copied"}
        for role in Role:
            told = [f"{n} {words[p]}" for (r, p), n in sorted(self.done.items()) if r == role.value and p in words]
            kept = "grafted from" if composed and role not in LANGUAGE_ROLES else "kept as in"
            told += [f"{n} {kept} {whose}" for (r, whose), n in self.kept.items() if r == role.value]
            if told:
                yield f"{role.value:<15} " + "; ".join(told)

    def left_out(self) -> Iterator[str]:
        """What inputs have, and the output has not, as the config asks for it or does not ask otherwise."""
        for (model, role), count in self.unused.items():
            yield (
                f"{count} tensors of {role.value} that {model.lora} changes are left out: a policy "
                f"(`parameters: {role.value}: merge`) would merge them."
            )
        for (name, kept_model), others in self.overruled.items():
            yield (
                f"{name} is that of {kept_model}; {', '.join(map(str, others))} has one of the same kind, which is not "
                f"used. `parameters: {name}: average` would merge them, the name of a donor takes another."
            )
