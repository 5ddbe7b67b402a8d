"""The processor of an omni model, made of its donors' processors before the merge is run."""

from __future__ import annotations

from typing import Any

from transformers import AutoProcessor

from mergekit_mm.checkpoints.checkpoint import Checkpoint
from mergekit_mm.checkpoints.side_files.inventory import take_inventory
from mergekit_mm.checkpoints.side_files.model_files import ModelFiles
from mergekit_mm.checkpoints.side_files.processors import has_processor, processor_key
from mergekit_mm.omni.configuration import OmniConfig
from mergekit_mm.omni.processing import OmniProcessor
from mergekit_mm.omni.templates import PLAIN_TEMPLATE
from mergekit_mm.plan.omni.composition import HOST, Composition


def omni_processor(omni: Composition, config: OmniConfig) -> tuple[OmniProcessor | None, list[str]]:
    """The processor, and notes on it for the user.

    None if a donor's processor cannot be loaded, or if the processors do not compose: the model is whole then, but its
    inputs have to be made by hand.
    """
    donors = {name: omni.checkpoints[model] for name, model in {HOST: omni.host, **omni.guests}.items()}
    tokenizer = omni.vocabulary.tokenizer
    processors: dict[str, Any] = {}
    notes: list[str] = []
    for name in config.owners:
        try:
            processors[name], substituted = _processor_of(donors[name], omni)
            notes += substituted
        except Exception as error:
            cause = str(error).splitlines()[0]
            return None, [f"No processor will be written, as that of {donors[name].name} cannot be loaded: {cause}"]
    modalities = {
        modality: {
            "owner": entry["owner"],
            "token": tokenizer.convert_ids_to_tokens(entry["token_id"]),
            "donor_token": omni.vocabulary.donor_token(donors[entry["owner"]].directory, entry["token_id"]),
        }
        for modality, entry in config.modalities.items()
    }
    try:
        processor = OmniProcessor(tokenizer, processors, modalities)
    except Exception as error:  # A donor's processor is not of the usual kind.
        return None, [f"No processor will be written, as those of the donors do not compose: {error}"]
    if PLAIN_TEMPLATE not in processor.chat_template:
        return processor, notes
    return processor, [
        *notes,
        f"{donors[HOST].name} has no chat template that takes text, so the output's is a plain one (USER: ... "
        "ASSISTANT:). If it was trained on another, write that into chat_template.jinja.",
    ]


def _processor_of(donor: Checkpoint, omni: Composition) -> tuple[Any, list[str]]:
    """The processor of a donor. Where it has none: the one on which the inputs of its architecture agree, with a note.

    Raises:
        Exception: the error of loading the donor's own processor, where no other can be taken.
    """
    try:
        return AutoProcessor.from_pretrained(donor.directory), []
    except Exception:
        inputs = omni.checkpoints.values()
        others = {c.directory: c for c in inputs if c.model_type == donor.model_type and c is not donor}
        having = [c for c in others.values() if has_processor(_files(c))]
        if len({processor_key(_files(c)) for c in having}) != 1 or has_processor(_files(donor)):
            raise
        processor = AutoProcessor.from_pretrained(having[0].directory)
        return processor, [f"{donor.name} has no processor; that of {having[0].name} was taken."]


def _files(checkpoint: Checkpoint) -> ModelFiles:
    files = take_inventory(checkpoint.directory).files
    return ModelFiles(checkpoint.name, checkpoint.model_type, checkpoint.config, files)
