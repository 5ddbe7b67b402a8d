"""The tensors of an omni model, and the inputs' tensors that each of them is made from; none is read here."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from mergekit.common import ModelReference

from mergekit_mm.checkpoints.checkpoint import TensorInfo
from mergekit_mm.checkpoints.hyperparameters import compare_language_models, window
from mergekit_mm.checkpoints.ignoring import Ignored
from mergekit_mm.checkpoints.listing import some
from mergekit_mm.checkpoints.matching import Match, tower_names
from mergekit_mm.checkpoints.roles import Role
from mergekit_mm.plan.omni.composition import OWNER_PARAMETER, Composition

HEAD = "lm_head.weight"  # the name of the head in every host: `mergekit_mm.omni.donors` makes it so


@dataclass(frozen=True)
class OmniLayout:
    """Names are those of the omni model in memory: the host's own, and `guests.<guest>.<name in its inner model>`."""

    tensors: Mapping[str, TensorInfo]
    names: Mapping[ModelReference, Mapping[str, str]]  # model -> name of an output tensor -> the model's own in memory
    matches: Mapping[ModelReference, list[Match]]  # of the model's language model, then of its towers
    problems: list[str]
    notes: list[str]


def lay_out(omni: Composition, ignored: Ignored, left_out_of_adapters: Collection[str]) -> OmniLayout:
    """Match every input's language model with the host's, and its towers with those of the part they are merged into.

    ignored: the tensors that the config leaves out. left_out_of_adapters: names of the adapters' tensors that are left
    out already; a pattern of the config may be meant for them.
    """
    checkpoints, host = omni.checkpoints, omni.checkpoints[omni.host]
    tensors = dict(_host_tensors(omni))
    names: dict[ModelReference, dict[str, str]] = {}
    problems: list[str] = []
    notes: list[str] = []
    matches: dict[ModelReference, list[Match]] = {}
    for model, checkpoint in checkpoints.items():
        match = Match(host, checkpoint, keeps_vocabulary=False, composing=True)
        language = match.of_language_models()
        names[model] = {name: own for name, own in language.items() if name in tensors}
        head = checkpoint.backbone.get(HEAD, checkpoint.backbone.get("embed_tokens.weight"))
        if omni.adds_head and head is not None:
            names[model][HEAD] = head
        match.computing, differences = compare_language_models(checkpoints[omni.language_base], checkpoint)
        _judge(match, ignored)
        matches[model] = [match]
        problems += match.problems
        notes += match.notes + differences
        if (own_window := window(checkpoint)) != (host_window := window(host)):
            notes.append(
                f"{checkpoint.name} attends to {own_window or 'all'} tokens before one, {host.name} to "
                f"{host_window or 'all'}. The output has the latter."
            )
        if checkpoint.unknown:
            notes.append(
                f"{checkpoint.name} holds {some(checkpoint.unknown)} that transformers' model has no place for; "
                "they are left out."
            )
    for part, prefix, donors in _tower_groups(omni):
        towers = {_omni_name(own, prefix): own for own in tower_names(checkpoints[part])}
        tensors |= {name: replace(checkpoints[part].tensors[own], name=name) for name, own in towers.items()}
        for model in donors:
            match = Match(checkpoints[part], checkpoints[model], keeps_vocabulary=False, composing=True)
            counterparts = {own: own for own in towers.values()} if model == part else match.of_towers()
            names[model] |= {name: counterparts[own] for name, own in towers.items() if own in counterparts}
            _judge(match, ignored)
            matches[model].append(match)
            if match.problems:
                match.problems.append(f"  Different towers cannot be merged. Choose one: {_choice(omni, part)}.")
            problems += match.problems
            notes += match.notes
    notes += [*_unused_towers(omni), *_flattened_positions(omni), *_boundary_embeddings(omni)]
    all_matches = [match for of_model in matches.values() for match in of_model]
    problems += ignored.problems(host, all_matches, left_out_of_adapters)
    return OmniLayout(tensors, names, matches, list(dict.fromkeys(problems)), notes)


def _judge(match: Match, ignored: Ignored) -> None:
    """Judge a match: as donors are used whole, every tensor that does not fit is a problem, unless it is ignored."""
    match.judge(lambda _: True, lambda info: ignored.reason(match.other, info.name))


def _host_tensors(omni: Composition) -> Iterator[tuple[str, TensorInfo]]:
    """The tensors of the host, and a head where the composition adds one; names are the host's in memory."""
    host = omni.checkpoints[omni.host]
    assert host.meta_model is not None
    aliases = host.meta_model.aliases
    for name, info in host.tensors.items():
        if name not in host.unknown and aliases.get(name) not in host.tensors:  # Old files hold tied tensors twice.
            yield name, info
    if omni.adds_head:
        embeddings = host.tensors[host.backbone["embed_tokens.weight"]]
        yield HEAD, replace(embeddings, name=HEAD, role=Role.LM_HEAD)


def _tower_groups(omni: Composition) -> Iterator[tuple[ModelReference, str | None, list[ModelReference]]]:
    """Each part, the prefix of its tensors' names (None for the host), and the donors whose towers are merged there."""
    for guest, part in ((None, omni.host), *omni.guests.items()):
        donors = [model for model in omni.checkpoints if omni.tower_part(model) == part]
        yield part, guest and f"guests.{guest}.", donors


def _omni_name(name: str, prefix: str | None) -> str:
    """The name in the omni model of a part's tensor."""
    return name if prefix is None else prefix + name.removeprefix("model.")


def _choice(omni: Composition, part: ModelReference) -> str:
    """The line of a config that chooses a part's towers."""
    served = [OWNER_PARAMETER[modality] for modality, donor in omni.modalities.items() if donor == part]
    return f"`parameters: {served[0] if served else OWNER_PARAMETER['image']}: {part}`"


def _flattened_positions(omni: Composition) -> Iterator[str]:
    """A note on each guest whose media had positions in two or three dimensions."""
    for model in omni.guests.values():
        meta_model = omni.checkpoints[model].meta_model
        if meta_model is not None and hasattr(getattr(meta_model.model, "model", None), "get_rope_index"):
            yield (
                f"{model} places its media in two or three dimensions (M-RoPE); as a guest's they are placed one by "
                f"one, like text. `parameters: host: {model}` keeps them as they were trained."
            )


def _boundary_embeddings(omni: Composition) -> Iterator[str]:
    """A note for each owner of tokens that stand before or after media."""
    owned: dict[ModelReference, list[str]] = {}
    for boundary in omni.boundary_tokens:
        token = omni.vocabulary.tokenizer.convert_ids_to_tokens(boundary.token_id)
        owned.setdefault(boundary.owner, []).append(token)
    for owner, tokens in owned.items():
        yield f"The embeddings of {', '.join(tokens)}, which stand around media, are those of {owner}."


def _unused_towers(omni: Composition) -> Iterator[str]:
    """A note on each multimodal model that has no towers in the output."""
    for model, checkpoint in omni.checkpoints.items():
        if checkpoint.is_multimodal and omni.tower_part(model) is None:
            part = omni.part_like(model)
            why = f"the config names those of {part}" if part else "none of its towers serves a modality here"
            yield f"Only the language model of {model} is merged: {why}."
