"""Who brings what to an omni model: the host its language model, guests their towers, each modality one owner."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration

from mergekit_mm.checkpoints.checkpoint import Checkpoint
from mergekit_mm.checkpoints.roles import Role
from mergekit_mm.checkpoints.submodels import are_related
from mergekit_mm.errors import MergeError
from mergekit_mm.omni.configuration import OmniConfig
from mergekit_mm.plan.omni.vocabulary import Marker, Vocabulary, unite

HOST = "host"  # parameter of the whole merge: which model's class runs the language model
COMPOSITION = "composition"  # of the whole merge: how tokens of media go through the language model
STATIC, DAMC = "static", "damc"  # as text does; each through its own donor's matrices
MODALITIES = ("image", "video", "audio")
# the parameter that chooses a modality's owner among several donors that could serve it
CHOICE = {"image": Role.VISION_TOWER.value, "video": Role.VIDEO_TOWER.value, "audio": Role.AUDIO_TOWER.value}
_ENDS = "(start|end|bos|eos)_token_(id|index)"
_MARKER = {
    "image": rf"(vision|image)_{_ENDS}|[be]oi_token_(id|index)",
    "video": rf"(vision|video)_{_ENDS}",
    "audio": rf"audio_{_ENDS}|[be]oa_token_(id|index)",
}


@dataclass(frozen=True, eq=False)
class Composition:
    """An omni model to be made. `modalities`: modality -> the donor that serves it.

    Several donors may be of the host's or a guest's architecture: one leads, whose config and processor the output has.
    """

    host: ModelReference
    guests: Mapping[str, ModelReference]  # name -> the donor that leads
    modalities: Mapping[str, ModelReference]
    start: ModelReference  # whose language model the merge starts from; what it does with its tensors is kept
    named: frozenset[ModelReference]  # by the config, to serve a modality: their towers are taken as they are
    unties_head: bool  # the host's head is its embeddings again, but some input's is not
    vocabulary: Vocabulary
    markers: tuple[Marker, ...]

    def owner(self, modality: str) -> str:
        """`host`, or the name of a guest, as the omni config has it."""
        donor = self.modalities[modality]
        return HOST if donor == self.host else next(name for name, guest in self.guests.items() if guest == donor)

    def lead_of(self, model: ModelReference, checkpoints: Mapping[ModelReference, Checkpoint]) -> ModelReference | None:
        """The donor with whose towers and projectors a model's own are merged; None if these are not in the output."""
        leads, own = (self.host, *self.guests.values()), checkpoints[model].model_type
        lead = next((lead for lead in leads if checkpoints[lead].model_type == own), None)
        return lead if lead == model or lead not in self.named else None

    def source_model(self, tensor: str) -> ModelReference:
        """The donor whose tensor one of the output is, or is like; by its name in the output."""
        return next((lead for name, lead in self.guests.items() if tensor.startswith(f"guests.{name}.")), self.host)


def is_composed(checkpoints: Mapping[ModelReference, Checkpoint]) -> bool:
    """Whether multimodal models of different architectures are among the inputs, none of which holds all others."""
    kinds = {c.model_type: c for c in checkpoints.values() if c.is_multimodal}
    return not any(all(are_related(one, other) for other in kinds.values()) for one in kinds.values()) and bool(kinds)


def compose(config: MergeConfiguration, checkpoints: Mapping[ModelReference, Checkpoint]) -> Composition:
    """Settle host, guests and the owner of each modality, from the config where it says, else from the models.

    Raises:
        MergeError: several donors serve one modality and the config does not choose; a choice that is no donor, or
            does not serve what it is chosen for; a setting that an omni model has no use for.
    """
    donors = {model: c for model, c in checkpoints.items() if c.is_multimodal}
    _require_parts(config, donors)
    named = {m: model for m in MODALITIES if (model := _chosen(CHOICE[m], config, checkpoints)) is not None}
    for modality, model in named.items():
        if model not in donors or placeholder(modality, donors[model]) is None:
            raise MergeError(f"parameter {CHOICE[modality]}: {model} does not take {modality} inputs.")
    host = _host(config, donors, checkpoints, list(named.values()))
    candidates = (*reversed(donors), *named.values(), host)
    leads = {donors[model].model_type: model for model in candidates}  # the last one leads
    for modality, model in named.items():
        if (other := leads[donors[model].model_type]) != model:
            raise MergeError(
                f"parameter {CHOICE[modality]}: {model} and {other} are both chosen, and of one architecture "
                f"({donors[model].model_type}), which can be in an omni model once: choose one of them."
            )
    modalities: dict[str, ModelReference] = {}
    for modality in MODALITIES:
        serving = [model for model in donors if leads[donors[model].model_type] == model]
        serving = [model for model in serving if placeholder(modality, donors[model]) is not None]
        if len(serving) > 1 and modality not in named:
            raise MergeError(
                f"{_listed({m: donors[m] for m in serving})} are different multimodal architectures that both take "
                f"{modality} inputs. For an omni model choose one: `parameters: {CHOICE[modality]}: {serving[0]}`."
            )
        if serving:
            modalities[modality] = named.get(modality, serving[0])
    guests: dict[str, ModelReference] = {}
    for donor in dict.fromkeys(modalities.values()):
        if donor != host:
            guests["_".join(m for m, owner in modalities.items() if owner == donor)] = donor
    placeholders = {
        modality: (donors[model], token)
        for modality, model in modalities.items()
        if (token := placeholder(modality, donors[model])) is not None
    }
    vocabulary = unite(checkpoints[host], checkpoints.values(), placeholders)
    return Composition(
        host,
        guests,
        modalities,
        config.base_model if config.base_model in checkpoints else host,
        frozenset(named.values()),
        checkpoints[host].ties_head and not all(c.ties_head for c in checkpoints.values()),
        vocabulary,
        _markers(modalities, checkpoints, vocabulary),
    )


def _markers(
    modalities: Mapping[str, ModelReference], checkpoints: Mapping[ModelReference, Checkpoint], vocabulary: Vocabulary
) -> tuple[Marker, ...]:
    """What stands before and after a medium, as its owner's config names it (`vision_start_token_id`).

    Other models may have such a token as a reserve of their LLM, with a row that means nothing. Their heads keep their
    own rows, but tied ones, which then give such a token another logit.
    """
    found: dict[int, Marker] = {}
    for modality, owner in modalities.items():
        kind, meta_model = checkpoints[owner].model_type, checkpoints[owner].meta_model
        for key, value in vars(meta_model.model.config).items() if meta_model else ():
            if re.fullmatch(_MARKER[modality], key) and isinstance(value, int):
                united = vocabulary.id_of(checkpoints[owner].directory, value)
                others = tuple(m for m, c in checkpoints.items() if c.model_type != kind)
                if united is not None:
                    found.setdefault(united, Marker(united, owner, others))
    return tuple(found.values())


def choices(config: MergeConfiguration, checkpoints: Mapping[ModelReference, Checkpoint]) -> set[str]:
    """The top-level parameters that choose donors here, and are no policies."""
    found = {name for name in CHOICE.values() if _chosen(name, config, checkpoints) is not None}
    return found | ({HOST} & (config.parameters or {}).keys())


def is_decoupled(config: MergeConfiguration) -> bool:
    """Whether a config asks for DAMC. Raises MergeError for a composition that does not exist."""
    value = (config.parameters or {}).get(COMPOSITION, STATIC)
    if value not in (STATIC, DAMC):
        raise MergeError(f"parameter {COMPOSITION}: {value!r} is not known; choose {STATIC} | {DAMC}.")
    return bool(value == DAMC)


def _require_parts(config: MergeConfiguration, donors: Mapping[ModelReference, Checkpoint]) -> None:
    """Refuse donors that cannot be parts, and what a config asks for that no omni model has."""
    unbuilt = [c for c in donors.values() if c.meta_model is None]
    for kind, cannot in (
        ("brings its own code", [c.name for c in unbuilt if "auto_map" in c.config]),
        ("is of a type that transformers does not know here", [c.name for c in unbuilt]),
        ("is an omni model already", [c.name for c in donors.values() if c.model_type == OmniConfig.model_type]),
        ("has no decoder with embeddings of its own", [c.name for c in donors.values() if _lacks_embeddings(c)]),
    ):
        if cannot:
            raise MergeError(
                f"{_listed(donors)} are different multimodal architectures, and {', '.join(cannot)} {kind}: "
                "such a model can be merged with others of its kind, but is no part for an omni model."
            )
    for setting, instead in (
        ("tokenizer", "the vocabularies of its donors are united by themselves"),
        ("tokenizer_source", "the vocabularies of its donors are united by themselves"),
        ("chat_template", "it has its host's, over all media"),
    ):
        if getattr(config, setting):
            raise MergeError(f"{setting}: not for an omni model: {instead}. Leave it out.")


def _lacks_embeddings(donor: Checkpoint) -> bool:
    """Whether the language model is none that reads its own embeddings alone, as one of an encoder and a decoder."""
    return donor.meta_model is not None and "embed_tokens.weight" not in donor.backbone


def _chosen(
    name: str, config: MergeConfiguration, models: Mapping[ModelReference, Checkpoint]
) -> ModelReference | None:
    value = (config.parameters or {}).get(name)
    return next((model for model in models if str(model) == str(value)), None)


def _host(
    config: MergeConfiguration,
    donors: Mapping[ModelReference, Checkpoint],
    checkpoints: Mapping[ModelReference, Checkpoint],
    named: list[ModelReference],
) -> ModelReference:
    """The one the config says. Else the base if it is multimodal; else a model whose positions need its own class
    (M-RoPE), first those that are named for a modality; else the first; and in its stead a named one of its kind."""
    value = (config.parameters or {}).get(HOST)
    if value is not None:
        found = _chosen(HOST, config, checkpoints)
        if found not in donors:
            raise MergeError(f"parameter {HOST}: {value} is none of {', '.join(map(str, donors))}.")
        return found
    in_order = dict.fromkeys((*named, *donors))
    special = (m for m in in_order if re.search(r"mrope", str(donors[m].config.get("text_config", donors[m].config))))
    host = config.base_model if config.base_model in donors else next(special, next(iter(donors)))
    return next((m for m in named if donors[m].model_type == donors[host].model_type), host)


def _listed(donors: Mapping[ModelReference, Checkpoint]) -> str:
    return " and ".join(f"{model} ({donor.model_type})" for model, donor in donors.items())


def placeholder(modality: str, donor: Checkpoint) -> int | None:
    """The id of the donor's placeholder token of a modality; None if it does not take it."""
    if donor.meta_model is None:
        return None
    declared = donor.meta_model.model.input_modalities  # just "text": nothing, as PaddleOCR-VL in transformers 5.20
    if declared != "text" and modality not in declared:
        return None
    config = donor.meta_model.model.config
    found = (getattr(config, f"{modality}_token_{end}", None) for end in ("id", "index"))
    return next((token for token in found if isinstance(token, int)), None)
