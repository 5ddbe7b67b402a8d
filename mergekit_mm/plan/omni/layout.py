"""The tensors of an omni model, and which input's tensors each of them is made from, before any is read."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

from mergekit.common import ModelReference

from mergekit_mm.checkpoints.checkpoint import Checkpoint, TensorInfo
from mergekit_mm.checkpoints.hyperparameters import compare_language_models, window
from mergekit_mm.checkpoints.ignoring import Ignored
from mergekit_mm.checkpoints.listing import some
from mergekit_mm.checkpoints.matching import Match, tower_names
from mergekit_mm.checkpoints.roles import Role
from mergekit_mm.plan.omni.composition import CHOICE, Composition

HEAD = "lm_head.weight"  # of every host, see omni/donors.py


@dataclass(frozen=True)
class OmniLayout:
    """Names are those of the omni model in memory: the host's own, and `guests.<guest>.<name in its inner model>`."""

    tensors: Mapping[str, TensorInfo]
    names: Mapping[ModelReference, Mapping[str, str]]  # model -> name -> the model's own name in memory
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    matches: Mapping[ModelReference, list[Match]] = field(
        default_factory=dict
    )  # matches of the language models and of the towers


def lay_out(
    omni: Composition,
    checkpoints: Mapping[ModelReference, Checkpoint],
    ignored: Ignored,
    left_out: Collection[str] = (),
) -> OmniLayout:
    """Match every input's language model with the host's, and its towers with those of the donor they are like."""
    host = checkpoints[omni.host]
    tensors = dict(_host_tensors(omni, host))
    names: dict[ModelReference, dict[str, str]] = {}
    problems: list[str] = []
    notes: list[str] = []
    matches: dict[ModelReference, list[Match]] = {}
    for model, checkpoint in checkpoints.items():
        match = Match(host, checkpoint, keeps_vocabulary=False, composing=True)
        language = match.of_language_models()
        found = {name: own for name, own in language.items() if name in tensors}
        head = checkpoint.backbone.get(HEAD, checkpoint.backbone.get("embed_tokens.weight"))
        if omni.unties_head and head is not None:
            found[HEAD] = head
        names[model] = found
        match.computing, known = compare_language_models(checkpoints[omni.start], checkpoint)
        _judge(match, ignored)
        matches[model] = [match]
        problems += match.problems
        notes += match.notes + known
        if (theirs := window(checkpoint)) != (ours := window(host)):
            notes.append(
                f"{checkpoint.name} attends to {theirs or 'all'} tokens before one, {host.name} to {ours or 'all'}. "
                "The output has the latter."
            )
        if checkpoint.unknown:
            notes.append(
                f"{checkpoint.name} holds {some(checkpoint.unknown)} that transformers' model has no place for; "
                "they are left out."
            )
    for lead, prefix, donors in _groups(omni, checkpoints):
        brought = {_inside(own, prefix): own for own in tower_names(checkpoints[lead])}
        tensors |= {name: replace(checkpoints[lead].tensors[own], name=name) for name, own in brought.items()}
        for model in donors:
            match = Match(checkpoints[lead], checkpoints[model], keeps_vocabulary=False, composing=True)
            same = {own: own for own in brought.values()} if model == lead else match.of_towers()
            names[model] |= {name: same[own] for name, own in brought.items() if own in same}
            _judge(match, ignored)
            matches[model].append(match)
            if match.problems:
                match.problems.append(f"  Different towers cannot be merged. Choose one: {_choice(omni, lead)}.")
            problems += match.problems
            notes += match.notes
    notes += [*_unused(omni, checkpoints), *_flattened(omni, checkpoints), *_marked(omni)]
    problems += ignored.problems(host, [match for found in matches.values() for match in found], left_out)
    return OmniLayout(tensors, names, list(dict.fromkeys(problems)), notes, matches)


def _judge(match: Match, ignored: Ignored) -> None:
    """An omni model is made of whole donors: all that does not fit is a problem, but for what is named as left out."""
    match.judge(lambda _: True, lambda info: ignored.reason(match.other, info.name))


def _host_tensors(omni: Composition, host: Checkpoint) -> Iterator[tuple[str, TensorInfo]]:
    """The host's own, with a head of its own if that of any input is not its embeddings again."""
    assert host.meta_model is not None
    aliases = host.meta_model.aliases
    for name, info in host.tensors.items():
        if name not in host.unknown and aliases.get(name) not in host.tensors:  # files of old hold tied ones twice
            yield name, info
    if omni.unties_head:
        embeddings = host.tensors[host.backbone["embed_tokens.weight"]]
        yield HEAD, replace(embeddings, name=HEAD, role=Role.LM_HEAD)


def _groups(
    omni: Composition, checkpoints: Mapping[ModelReference, Checkpoint]
) -> Iterator[tuple[ModelReference, str | None, list[ModelReference]]]:
    """Host and guests, with the prefix of a guest's tensors and the donors of the same towers."""
    for guest, lead in ((None, omni.host), *omni.guests.items()):
        donors = [model for model in checkpoints if omni.lead_of(model, checkpoints) == lead]
        yield lead, guest and f"guests.{guest}.", donors


def _inside(name: str, prefix: str | None) -> str:
    return name if prefix is None else prefix + name.removeprefix("model.")


def _choice(omni: Composition, lead: ModelReference) -> str:
    served = [CHOICE[modality] for modality, donor in omni.modalities.items() if donor == lead]
    return f"`parameters: {served[0] if served else CHOICE['image']}: {lead}`"


def _flattened(omni: Composition, checkpoints: Mapping[ModelReference, Checkpoint]) -> Iterator[str]:
    for model in omni.guests.values():
        meta_model = checkpoints[model].meta_model
        if meta_model is not None and hasattr(getattr(meta_model.model, "model", None), "get_rope_index"):
            yield (
                f"{model} places its media in two or three dimensions (M-RoPE); as a guest's they are placed one by "
                f"one, like text. `parameters: host: {model}` keeps them as they were trained."
            )


def _marked(omni: Composition) -> Iterator[str]:
    for owner in dict.fromkeys(marker.owner for marker in omni.markers):
        tokens = [omni.vocabulary.tokenizer.convert_ids_to_tokens(m.token_id) for m in omni.markers if m.owner == owner]
        yield f"The embeddings of {', '.join(tokens)}, which stand around media, are those of {owner}."


def _unused(omni: Composition, checkpoints: Mapping[ModelReference, Checkpoint]) -> Iterator[str]:
    for model, checkpoint in checkpoints.items():
        if checkpoint.is_multimodal and omni.lead_of(model, checkpoints) is None:
            same = [m for m in (omni.host, *omni.guests.values()) if checkpoints[m].model_type == checkpoint.model_type]
            why = f"the config names those of {same[0]}" if same else "none of its towers serves a modality here"
            yield f"Only the language model of {model} is merged: {why}."
