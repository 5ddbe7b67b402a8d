"""The description of a model, and of an adapter on it, that `mergekit-mm inspect` prints."""

from __future__ import annotations

from mergekit.common import ModelReference

from mergekit_mm.checkpoints.adapters.binding import bind_adapter, describe_adapter
from mergekit_mm.checkpoints.adapters.embedded import as_loaded
from mergekit_mm.checkpoints.checkpoint import open_checkpoint
from mergekit_mm.checkpoints.describe import describe
from mergekit_mm.checkpoints.hub import locate
from mergekit_mm.checkpoints.remote import headers_only
from mergekit_mm.checkpoints.side_files.inventory import describe_inventory, take_inventory
from mergekit_mm.errors import refused_by, system_errors
from mergekit_mm.plan.beside import own_adapter, unused_beside


def describe_model(model: str, trusted: bool = False) -> list[str]:
    """Lines of text on MODEL or MODEL+ADAPTER: roles, layout, files, the adapter's changes, unused files.

    Only headers and small files are read, and downloaded where the model is on the hub.

    trusted: whether the adapter is taken to fit the model, whatever base it names.

    Raises:
        MergeError: model or adapter cannot be found or read, or do not fit each other.
    """
    with headers_only() as options, system_errors(model):
        with refused_by("mergekit.common"):
            reference = ModelReference.parse(model)
        reference, notes = as_loaded(reference, options)
        checkpoint = open_checkpoint(str(reference.model), locate(reference.model, options))
        weights = {tensor.file for tensor in checkpoint.disk.values()}
        inventory = take_inventory(checkpoint.directory, weights)
        lines = [*describe(checkpoint), describe_inventory(inventory)]
        adaptations = {}
        if reference.lora:
            adapter = locate(reference.lora, options)
            adaptations[reference] = bind_adapter(reference, adapter, checkpoint, trusted=trusted)
            lines += describe_adapter(adaptations[reference], checkpoint)
        own, own_notes = own_adapter({reference: checkpoint}, adaptations, composed=False)
        lines += [f"  note: {note}" for note in (*notes, *checkpoint.notes, *own_notes)]
        unused = unused_beside({reference: checkpoint}, adaptations, own, inventory.files)
        return [*lines, *(f"  not used: {each}" for each in unused)]
