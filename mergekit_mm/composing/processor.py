"""The processor of an omni model, made of those of its donors; known before the merge is run."""

from __future__ import annotations

from collections.abc import Mapping

from mergekit.common import ModelReference
from transformers import AutoProcessor

from mergekit_mm.architecture.checkpoint import Checkpoint
from mergekit_mm.composing.composition import Composition
from mergekit_mm.omni.configuration import OmniConfig
from mergekit_mm.omni.processing import OmniProcessor
from mergekit_mm.omni.templates import PLAIN_TEMPLATE


def omni_processor(
    omni: Composition, checkpoints: Mapping[ModelReference, Checkpoint], config: OmniConfig
) -> tuple[OmniProcessor | None, list[str]]:
    """The processor, and what the user should know of it. None if a donor's cannot be loaded or composed: the model is
    whole then, but its inputs have to be made by hand."""
    donors = {name: checkpoints[model] for name, model in {"host": omni.host, **omni.guests}.items()}
    tokenizer = omni.vocabulary.tokenizer
    loaded = {}
    for name in config.owners:
        try:
            loaded[name] = AutoProcessor.from_pretrained(donors[name].directory)
        except Exception as error:
            told = str(error).splitlines()[0]
            return None, [f"No processor will be written, as that of {donors[name].name} cannot be loaded: {told}"]
    modalities = {
        modality: {
            "owner": entry["owner"],
            "token": tokenizer.convert_ids_to_tokens(entry["token_id"]),
            "donor_token": omni.vocabulary.donor_token(donors[entry["owner"]].directory, entry["token_id"]),
        }
        for modality, entry in config.modalities.items()
    }
    try:
        processor = OmniProcessor(tokenizer, loaded, modalities)
    except Exception as error:  # of a donor that is no processor of the usual kind
        return None, [f"No processor will be written, as those of the donors do not compose: {error}"]
    if PLAIN_TEMPLATE not in processor.chat_template:
        return processor, []
    return processor, [
        f"{donors['host'].name} has no chat template that takes text, so the output's is a plain one (USER: ... "
        "ASSISTANT:). If it was trained on another, write that into chat_template.jinja."
    ]
