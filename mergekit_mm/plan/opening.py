"""From the models that a config names to `Inputs`: each is opened, and its tensors are matched with the output's."""

from __future__ import annotations

from collections.abc import Mapping

from mergekit.common import ModelPath, ModelReference
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions

from mergekit_mm.checkpoints.adapters.binding import Adaptation, bind_adapter
from mergekit_mm.checkpoints.checkpoint import Checkpoint, open_checkpoint, require_complete
from mergekit_mm.checkpoints.hub import locate
from mergekit_mm.checkpoints.hyperparameters import compare_language_models
from mergekit_mm.checkpoints.ignoring import Ignored
from mergekit_mm.checkpoints.listing import some
from mergekit_mm.checkpoints.matching import Match
from mergekit_mm.checkpoints.submodels import share_language_model
from mergekit_mm.checkpoints.values import same_values
from mergekit_mm.errors import MergeError
from mergekit_mm.omni.configuration import OmniConfig
from mergekit_mm.plan.beside import own_adapter, require_same_folders
from mergekit_mm.plan.inputs import Inputs, OmniInputs, is_embedded
from mergekit_mm.plan.omni.composition import Composition, compose, is_composed
from mergekit_mm.plan.omni.layout import lay_out
from mergekit_mm.plan.parameters import ignored, trusted_adapters


def models_in_order(config: MergeConfiguration) -> list[ModelReference]:
    """Every model that a config names, base first, then as listed, each once (mergekit's own list has no order)."""
    listed: list[ModelReference] = [config.base_model] if config.base_model else []
    listed += [entry.model for entry in config.models or ()]
    slices = list(config.slices or ())
    for module in (config.modules or {}).values():
        listed += [entry.model for entry in module.models or ()]
        slices += module.slices or ()
    listed += [source.model for part in slices for source in part.sources]
    return list(dict.fromkeys(listed))


def open_inputs(config: MergeConfiguration, options: MergeOptions) -> Inputs:
    """Open every input and match its tensors with the base's.

    A tensor that does not fit (one input lacks it, the output has no place for it, shapes differ) is a problem only if
    the merge asks for it. That is judged in `plan.build`, after the decisions.

    Raises:
        MergeError: inputs cannot be opened, all of which are listed; or donors do not make an omni model.
    """
    models = models_in_order(config)
    checkpoints, adaptations, problems = _open_all(models, options, trusted_adapters(config), ignored(config))
    if not problems and is_composed(checkpoints):
        for checkpoint in checkpoints.values():  # An incomplete checkpoint may be of another kind than its config says.
            require_complete(checkpoint)
        own_adapter(checkpoints, adaptations, composed=True)
        return _omni_inputs(compose(config, checkpoints), adaptations, ignored(config))
    _refuse(problems)
    base = checkpoints[models[0]]
    require_complete(base)
    keeps_vocabulary = config.tokenizer is None and config.tokenizer_source is None
    names: dict[ModelReference, Mapping[str, str]] = {}
    matches: dict[ModelReference, list[Match]] = {}
    notes = _on_other_models(checkpoints, base) if config.base_model else []
    for model, checkpoint in checkpoints.items():
        match = Match(base, checkpoint, keeps_vocabulary)
        names[model], matches[model] = match.names(), [match]
        if share_language_model(base, checkpoint):
            match.computing, differences = compare_language_models(base, checkpoint)
            notes += differences
        if not keeps_vocabulary or options.unsafe_truncate_embeddings:
            problems += _unequal_tables(checkpoint)
    all_matches = [match for of_model in matches.values() for match in of_model]
    problems += ignored(config).problems(base, all_matches, _left_out(adaptations))
    if base.unknown:
        notes.append(
            f"{base.name} holds {some(base.unknown)} that transformers' model has no place for; "
            "they are kept under their names on disk."
        )
    if any(".shared." in name for name in base.tensors) and base.model_type == OmniConfig.model_type:
        notes.append(
            f"{base.name} keeps factors for its media (composition: damc). They are merged one by one, not "
            "as products: right for fine-tunes of one such model, but for no others."
        )
    copies = _copies(base, checkpoints, names)
    tensors = {name: info for name, info in base.tensors.items() if name not in copies}
    require_same_folders(base, [c for c in checkpoints.values() if c is not base])
    own, own_notes = own_adapter(checkpoints, adaptations, composed=False)
    return Inputs(
        base=models[0],
        checkpoints=checkpoints,
        adaptations=adaptations,
        tensors=tensors,
        names=names,
        notes=[*_notes_on_files(checkpoints, adaptations), *notes, *own_notes],
        matches=matches,
        problems=problems,
        copies=copies,
        own_adapter=own,
    )


def _unequal_tables(checkpoint: Checkpoint) -> list[str]:
    """A problem if the tables of a model whose vocabulary is to be changed have different lengths; else none."""
    if len(checkpoint.vocabulary_sizes) < 2:
        return []
    tables = " and ".join(f"{size} rows in {name}" for size, name in sorted(checkpoint.vocabulary_sizes.items()))
    return [
        f"  {checkpoint.name} has embeddings and head of different lengths ({tables}), as some ids mean more than a "
        "token of text: neither a `tokenizer:` section nor --unsafe-truncate-embeddings can change them. Without "
        "these, the vocabulary is the base's."
    ]


def _left_out(adaptations: Mapping[ModelReference, Adaptation]) -> list[str]:
    """The adapters' own names of their tensors for which the models under them have no place."""
    return [name for adaptation in adaptations.values() for names in adaptation.left_out.values() for name in names]


def _copies(
    base: Checkpoint,
    checkpoints: Mapping[ModelReference, Checkpoint],
    names: Mapping[ModelReference, Mapping[str, str]],
) -> dict[str, str]:
    """Copy of a tied tensor -> the tensor it is tied to, where the base stores both and all inputs have both equal.

    Such a pair is one tensor and has to stay one, since transformers unties tensors that differ. A pair that differs in
    an input is two tensors, as it is in the model that transformers loads.
    """
    copies: dict[str, str] = {}
    if base.meta_model is None:
        return copies
    for alias in base.meta_model.aliases:
        first = base.meta_model.first_of(alias, base.tensors)
        pairs = {(checkpoints[model], own.get(alias), own.get(first)) for model, own in names.items()}
        if alias in base.tensors and alias != first and all(one == two or _equal(c, one, two) for c, one, two in pairs):
            copies[alias] = first
    return copies


def _equal(checkpoint: Checkpoint, one: str | None, two: str | None) -> bool:
    return one is not None and two is not None and same_values(checkpoint, one, two)


def _omni_inputs(
    omni: Composition, adaptations: Mapping[ModelReference, Adaptation], ignored_tensors: Ignored
) -> OmniInputs:
    """Inputs of an omni model: language models matched with the host's, towers with those of the same architecture."""
    layout = lay_out(omni, ignored_tensors, _left_out(adaptations))
    _refuse(layout.problems)
    return OmniInputs(
        base=omni.host,
        checkpoints=omni.checkpoints,
        adaptations=adaptations,
        tensors=layout.tensors,
        names=layout.names,
        notes=[*_notes_on_files(omni.checkpoints, adaptations), *layout.notes],
        matches=layout.matches,
        composition=omni,
    )


def _notes_on_files(
    checkpoints: Mapping[ModelReference, Checkpoint], adaptations: Mapping[ModelReference, Adaptation]
) -> list[str]:
    """Notes on the way in which files of the inputs were read, where that may surprise."""
    notes = [note for checkpoint in dict.fromkeys(checkpoints.values()) for note in checkpoint.notes]
    notes += [note for adaptation in adaptations.values() for note in adaptation.notes]
    for adapter in dict.fromkeys(adaptation.adapter for adaptation in adaptations.values()):
        files = dict.fromkeys(adapter.trained.values())
        notes += [f"{adapter.name}: {file} goes with it, in place of the model's own." for file in files]
    return notes


def _refuse(problems: list[str]) -> None:
    if problems:
        raise MergeError("These inputs cannot be merged:\n" + "\n".join(problems))


def _open_all(
    models: list[ModelReference], options: MergeOptions, trusted: frozenset[ModelReference], ignored_tensors: Ignored
) -> tuple[dict[ModelReference, Checkpoint], dict[ModelReference, Adaptation], list[str]]:
    """All checkpoints and adapters that can be opened, and the problems of the others."""
    opened: dict[ModelReference, Checkpoint] = {}
    adaptations: dict[ModelReference, Adaptation] = {}
    by_path: dict[ModelPath, Checkpoint | MergeError] = {}  # The model under several adapters is opened once.
    problems: list[str] = []
    for model in models:
        if model.model not in by_path:
            by_path[model.model] = _open(model.model, options)
        checkpoint = by_path[model.model]
        if isinstance(checkpoint, MergeError):
            problems.append(f"  {checkpoint}")
            continue
        opened[model] = checkpoint
        try:
            if model.lora:
                directory = locate(model.lora, options)
                adaptations[model] = bind_adapter(model, directory, checkpoint, model in trusted, ignored_tensors)
        except MergeError as error:
            problems.append(f"  {error}")
    return opened, adaptations, list(dict.fromkeys(problems))


def _on_other_models(checkpoints: Mapping[ModelReference, Checkpoint], base: Checkpoint) -> list[str]:
    """Notes on adapters of a model that has the base's architecture but is not the base."""
    return [
        f"{model.lora} is put on {model.model}, not on {base.name}: the two together are one expert, whose delta over "
        f"{base.name} is what {model.model} has beyond it and what the adapter adds."
        for model, checkpoint in checkpoints.items()
        if model.lora
        and checkpoint.directory.resolve() != base.directory.resolve()
        and checkpoint.model_type == base.model_type
        and not is_embedded(model)
    ]


def _open(model: ModelPath, options: MergeOptions) -> Checkpoint | MergeError:
    """The checkpoint of a model, or the error for which it cannot be opened: all such errors are reported together."""
    try:
        return open_checkpoint(str(model), locate(model, options), whole=False)
    except MergeError as error:
        return error
