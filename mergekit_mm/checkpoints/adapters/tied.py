"""Tied tensors in an adapter: PEFT saves embeddings and head whole where either was trained, resized or adapted."""

from __future__ import annotations

from mergekit_mm.checkpoints.adapters.adapter import Adapter
from mergekit_mm.checkpoints.adapters.naming import Naming
from mergekit_mm.checkpoints.checkpoint import Checkpoint
from mergekit_mm.checkpoints.values import holds_value


def settle_ties(naming: Naming, adapter: Adapter, checkpoint: Checkpoint) -> None:
    """Take the copies of tied tensors out of an adapter's names, as far as they leave the tensors tied.

    A copy of the model's own values changes nothing. The same new values for all of the tied tensors are new values for
    the tensor that the model's files hold. All other names stay, and cannot be put on a tied model.
    """
    if checkpoint.meta_model is None:
        return
    names = naming.names
    whole = {m for m, own in names.items() if adapter.replaces(own) and not adapter.changes[own].a}
    for memory in sorted(whole):
        tied = checkpoint.meta_model.tied_to(memory)
        held = checkpoint.present(memory)
        if not tied or held is None or memory not in names:
            continue
        if holds_value(checkpoint, held, adapter.replacement(names[memory])):
            del names[memory]
        elif memory == held and whole.issuperset(tied) and _all_equal(adapter, [names.get(n) for n in (memory, *tied)]):
            naming.settled.add(memory)
            for other in tied:
                del names[other]


def _all_equal(adapter: Adapter, names: list[str | None]) -> bool:
    """Whether an adapter holds the same values whole under all of these names; not if one of them is gone."""
    first = names[0]
    return all(n is not None and first is not None and adapter.holds_the_same(first, n) for n in names)
