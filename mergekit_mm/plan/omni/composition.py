"""Which donor gives what to an omni model: the host its language model, guests their towers, each modality one owner.

The parameters `vision_tower`, `video_tower` and `audio_tower` have two meanings in the config of an omni merge. One of
the words of `policies.Policy` (`base`, `average`, `merge`) is a policy for the tensors of that role, as in any merge.
The name of a donor chooses the owner of the modality: that donor's tower is in the output, whatever other donors have.
Here the second meaning is read; `omni/build` takes these parameters out of the config before policies are read from it.
"""

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
from mergekit_mm.plan.omni.vocabulary import BoundaryToken, Vocabulary, unite

Checkpoints = Mapping[ModelReference, Checkpoint]

HOST = "host"  # parameter of the whole merge: the model whose class runs the language model
COMPOSITION = "composition"  # parameter of the whole merge: how tokens of media go through the language model
STATIC, DAMC = "static", "damc"  # its values: as tokens of text do; through the matrices of the modality's own donor
MODALITIES = ("image", "video", "audio")
# Modality -> the parameter that chooses its owner, where several donors could serve it.
OWNER_PARAMETER = {
    "image": Role.VISION_TOWER.value,
    "video": Role.VIDEO_TOWER.value,
    "audio": Role.AUDIO_TOWER.value,
}
_ENDS = "(start|end|bos|eos)_token_(id|index)"
# Modality -> the keys by which configs name the tokens before and after a medium.
_BOUNDARY_KEYS = {
    "image": rf"(vision|image)_{_ENDS}|[be]oi_token_(id|index)",
    "video": rf"(vision|video)_{_ENDS}",
    "audio": rf"audio_{_ENDS}|[be]oa_token_(id|index)",
}


@dataclass(frozen=True, eq=False)
class Composition:
    """The donors of an omni model and their parts in it.

    Host and guests are the parts: each is the one model of its architecture that gives config and processor to the
    output. Towers of other donors of that architecture can be merged into those of the part.
    """

    checkpoints: Checkpoints  # of all inputs; of a model with an adapter, that of the model alone
    host: ModelReference
    guests: Mapping[str, ModelReference]  # name of a guest in the omni config -> its model
    modalities: Mapping[str, ModelReference]  # modality -> the part that serves it
    language_base: ModelReference  # the merge of language models starts from its; the output has its norm epsilon, RoPE
    chosen: frozenset[ModelReference]  # parts that the config names as owners: their towers are taken unmerged
    vocabulary: Vocabulary
    boundary_tokens: tuple[BoundaryToken, ...]

    @property
    def parts(self) -> tuple[ModelReference, ...]:
        """The host and the guests."""
        return (self.host, *self.guests.values())

    @property
    def adds_head(self) -> bool:
        """Whether the output has a head of its own, though the host ties its head to its embeddings."""
        return self.checkpoints[self.host].ties_head and not all(c.ties_head for c in self.checkpoints.values())

    def owner(self, modality: str) -> str:
        """The name of a modality's owner in the omni config: `host`, or that of a guest."""
        donor = self.modalities[modality]
        return HOST if donor == self.host else next(name for name, guest in self.guests.items() if guest == donor)

    def part_like(self, model: ModelReference) -> ModelReference | None:
        """The part of a model's own architecture; None if no guest or host is of it."""
        own = self.checkpoints[model].model_type
        return next((part for part in self.parts if self.checkpoints[part].model_type == own), None)

    def tower_part(self, model: ModelReference) -> ModelReference | None:
        """The part into whose towers and projectors a model's are merged; None if they are not in the output."""
        part = self.part_like(model)
        return part if part == model or part not in self.chosen else None

    def part_with(self, tensor: str) -> ModelReference:
        """The part in whose layout a tensor of the output is, by its name in the output."""
        guests = self.guests.items()
        return next((guest for name, guest in guests if tensor.startswith(f"guests.{name}.")), self.host)


def is_composed(checkpoints: Checkpoints) -> bool:
    """Whether multimodal models of different architectures are among the inputs, none of which holds all others."""
    kinds = {c.model_type: c for c in checkpoints.values() if c.is_multimodal}
    return not any(all(are_related(one, other) for other in kinds.values()) for one in kinds.values()) and bool(kinds)


def compose(config: MergeConfiguration, checkpoints: Checkpoints) -> Composition:
    """Settle host, guests and the owner of each modality, from the config where it says, else from the models.

    Raises:
        MergeError: several donors serve one modality and the config does not choose; a choice that is no donor, or
            does not serve the modality it is chosen for; a setting that an omni model has no use for.
    """
    donors = {model: c for model, c in checkpoints.items() if c.is_multimodal}
    _require_parts(config, donors)
    chosen = _chosen_owners(config, checkpoints, donors)
    host = _host(config, donors, checkpoints, list(chosen.values()))
    parts = _part_of_each_type(donors, chosen, host)
    modalities = _owners(donors, parts, chosen)
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
        checkpoints=checkpoints,
        host=host,
        guests=guests,
        modalities=modalities,
        language_base=config.base_model if config.base_model in checkpoints else host,
        chosen=frozenset(chosen.values()),
        vocabulary=vocabulary,
        boundary_tokens=_boundary_tokens(modalities, checkpoints, vocabulary),
    )


def _chosen_owners(
    config: MergeConfiguration, checkpoints: Checkpoints, donors: Checkpoints
) -> dict[str, ModelReference]:
    """Modality -> the donor that the config names as its owner. MergeError if that does not serve the modality."""
    chosen: dict[str, ModelReference] = {}
    for modality, parameter in OWNER_PARAMETER.items():
        if (model := _donor_named_by(parameter, config, checkpoints)) is not None:
            chosen[modality] = model
    for modality, model in chosen.items():
        if model not in donors or placeholder(modality, donors[model]) is None:
            raise MergeError(f"parameter {OWNER_PARAMETER[modality]}: {model} does not take {modality} inputs.")
    return chosen


def _part_of_each_type(
    donors: Checkpoints, chosen: Mapping[str, ModelReference], host: ModelReference
) -> dict[str, ModelReference]:
    """`model_type` -> the donor of that architecture that is a part: the host, else a chosen one, else the first.

    Raises:
        MergeError: the config chooses two donors of one architecture.
    """
    candidates = (*reversed(donors), *chosen.values(), host)
    parts = {donors[model].model_type: model for model in candidates}  # Of several of a type, the last one remains.
    for modality, model in chosen.items():
        if (other := parts[donors[model].model_type]) != model:
            raise MergeError(
                f"parameter {OWNER_PARAMETER[modality]}: {model} and {other} are both chosen, and of one architecture "
                f"({donors[model].model_type}), which can be in an omni model once: choose one of them."
            )
    return parts


def _owners(
    donors: Checkpoints, parts: Mapping[str, ModelReference], chosen: Mapping[str, ModelReference]
) -> dict[str, ModelReference]:
    """Modality -> the part that serves it. MergeError where several could and the config chooses none."""
    owners: dict[str, ModelReference] = {}
    for modality in MODALITIES:
        serving = [model for model in donors if parts[donors[model].model_type] == model]
        serving = [model for model in serving if placeholder(modality, donors[model]) is not None]
        if len(serving) > 1 and modality not in chosen:
            raise MergeError(
                f"{_listed({m: donors[m] for m in serving})} are different multimodal architectures that both take "
                f"{modality} inputs. For an omni model choose one: `parameters: {OWNER_PARAMETER[modality]}: "
                f"{serving[0]}`."
            )
        if serving:
            owners[modality] = chosen.get(modality, serving[0])
    return owners


def _boundary_tokens(
    modalities: Mapping[str, ModelReference], checkpoints: Checkpoints, vocabulary: Vocabulary
) -> tuple[BoundaryToken, ...]:
    """The tokens before and after a medium, as its owner's config names them (`vision_start_token_id`).

    Other models may have such a token as a reserve of their LLM, with a row that means nothing. Their heads keep their
    own rows, except for heads that are tied to embeddings, which then give such a token another logit.
    """
    by_id: dict[int, BoundaryToken] = {}
    for modality, owner in modalities.items():
        kind, meta_model = checkpoints[owner].model_type, checkpoints[owner].meta_model
        for key, value in vars(meta_model.model.config).items() if meta_model else ():
            if re.fullmatch(_BOUNDARY_KEYS[modality], key) and isinstance(value, int):
                united = vocabulary.id_of(checkpoints[owner].directory, value)
                others = tuple(m for m, c in checkpoints.items() if c.model_type != kind)
                if united is not None:
                    by_id.setdefault(united, BoundaryToken(united, owner, others))
    return tuple(by_id.values())


def donor_parameters(config: MergeConfiguration, checkpoints: Checkpoints) -> set[str]:
    """The top-level parameters of a config whose value is the name of a donor, so that they are no policies."""
    parameters = {name for name in OWNER_PARAMETER.values() if _donor_named_by(name, config, checkpoints) is not None}
    return parameters | ({HOST} & (config.parameters or {}).keys())


def asks_for_damc(config: MergeConfiguration) -> bool:
    """Whether a config asks for DAMC. MergeError for a composition that does not exist."""
    value = (config.parameters or {}).get(COMPOSITION, STATIC)
    if value not in (STATIC, DAMC):
        raise MergeError(f"parameter {COMPOSITION}: {value!r} is not known; choose {STATIC} | {DAMC}.")
    return bool(value == DAMC)


def _require_parts(config: MergeConfiguration, donors: Checkpoints) -> None:
    """MergeError for donors that cannot be parts, and for settings that do not apply to an omni model."""
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
    """Whether the language model is no plain decoder with one table of embeddings, but has an encoder, for example."""
    return donor.meta_model is not None and "embed_tokens.weight" not in donor.backbone


def _donor_named_by(parameter: str, config: MergeConfiguration, checkpoints: Checkpoints) -> ModelReference | None:
    """The input whose name is the value of a parameter; None if the value is anything else, such as a policy."""
    value = (config.parameters or {}).get(parameter)
    return next((model for model in checkpoints if str(model) == str(value)), None)


def _host(
    config: MergeConfiguration,
    donors: Checkpoints,
    checkpoints: Checkpoints,
    chosen: list[ModelReference],
) -> ModelReference:
    """The host that the config names. Else the base, if that is multimodal; else a donor whose positions need its own
    class (M-RoPE), chosen owners of modalities first; else the first donor. A chosen owner of the same architecture
    takes the place of a host that the config does not name.

    Raises:
        MergeError: the config names a model that is no donor.
    """
    value = (config.parameters or {}).get(HOST)
    if value is not None:
        host = _donor_named_by(HOST, config, checkpoints)
        if host not in donors:
            raise MergeError(f"parameter {HOST}: {value} is none of {', '.join(map(str, donors))}.")
        return host
    in_order = dict.fromkeys((*chosen, *donors))
    with_mrope = (
        model for model in in_order if "mrope" in str(donors[model].config.get("text_config", donors[model].config))
    )
    host = config.base_model if config.base_model in donors else next(with_mrope, next(iter(donors)))
    return next((model for model in chosen if donors[model].model_type == donors[host].model_type), host)


def _listed(donors: Checkpoints) -> str:
    return " and ".join(f"{model} ({donor.model_type})" for model, donor in donors.items())


def placeholder(modality: str, donor: Checkpoint) -> int | None:
    """The id of a donor's placeholder token for a modality; None if the donor does not take that modality."""
    if donor.meta_model is None:
        return None
    # The string "text" declares nothing: PaddleOCR-VL has it in transformers 5.20, and takes images.
    declared = donor.meta_model.model.input_modalities
    if declared != "text" and modality not in declared:
        return None
    config = donor.meta_model.model.config
    ids = (getattr(config, f"{modality}_token_{end}", None) for end in ("id", "index"))
    return next((token_id for token_id in ids if isinstance(token_id, int)), None)
