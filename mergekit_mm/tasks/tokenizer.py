"""The tokenizer section of a merge config: mergekit's builder, with facts of multimodal models that it cannot find."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mergekit.common import ModelPath, ModelReference
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions
from mergekit.tokenizer import BuildTokenizer, PermutedVocabulary, TokenizerInfo, build, embed
from mergekit.tokenizer.config import ModelTokenEmbedding, TokenEmbeddingConfig, ZeroEmbedding
from pydantic import InstanceOf

from mergekit_mm.checkpoints.checkpoint import Checkpoint
from mergekit_mm.checkpoints.hub import local_path
from mergekit_mm.checkpoints.listing import some
from mergekit_mm.checkpoints.tokenizer import load_tokenizer
from mergekit_mm.errors import MergeError, refused_by
from mergekit_mm.plan.merge_plan import MergePlan, OmniPlan
from mergekit_mm.tasks.sources import Sources

_BY_RULE = ("base", "union")  # values of a tokenizer's `source` that are no model
_BUILDING = threading.Lock()  # mergekit's builder serves the whole process


class BuildVocabulary(BuildTokenizer):
    """The output's tokenizer, from those in the directories of the inputs.

    mergekit looks for `vocab_size` where most multimodal configs do not have it, and without it leaves out tokens that
    were added to a tokenizer. Here the number of rows of the embeddings takes its place.

    Raises:
        MergeError: when run, if mergekit cannot make the tokenizer, or if tokens that the base's config names by id, as
            placeholders of media, would get other ids.
    """

    sources: InstanceOf[Sources]

    def execute(self, **_kwargs: object) -> TokenizerInfo:
        checkpoints = {model: self.sources.models[model].checkpoint for model in self.referenced_models}
        local = {m: ModelReference(model=ModelPath(path=str(c.directory))) for m, c in checkpoints.items()}
        rows = {local[m].model: c.tensors[c.embeddings].shape[0] for m, c in checkpoints.items()}
        base = self.base_model or self.referenced_models[0]
        source = self.tokenizer_source
        if source == "base" and self.add_tokens:
            source = base  # With "base", mergekit adds new tokens to its only copy, and then takes them for old ones.
        for needed in dict.fromkeys([local[base], *([local.get(source, source)] if source not in _BY_RULE else [])]):
            load_tokenizer(str(needed), needed.model.path, self.trust_remote_code, needed.model.revision)
        with (
            _known_rows(rows),
            refused_by(build.__name__, about="mergekit cannot make the tokenizer that the config asks for: "),
        ):
            info = build.build_tokenizer(
                base_model=local[base],
                referenced_models=list(dict.fromkeys(local.values())),
                tokenizer_source=local.get(source, source),
                trust_remote_code=self.trust_remote_code,
                add_tokens=list(self.add_tokens or ()),
            )
        vocabs = {model: info.original_vocabs[path] for model, path in local.items() if path in info.original_vocabs}
        new_ids = info.tokenizer.get_vocab()
        for key, token_id in _media_tokens(checkpoints[base].config):
            token = next((token for token, index in vocabs[base].items() if index == token_id), None)
            if token is not None and new_ids.get(token) != token_id:
                raise MergeError(
                    f"{key} is {token_id} in the config of {base}, its token {token!r}, which is "
                    f"{new_ids.get(token, 'not there')} in the vocabulary asked for. Let `tokenizer` have "
                    "`source: base`, or `union`."
                )
        # mergekit has no entry for tokens beyond the rows of a model's embeddings, but later needs one: -1 is no row.
        no_rows = dict.fromkeys(new_ids.values(), -1)
        permutations = {model: {**no_rows, **info.permutations[path]} for model, path in local.items()}
        return TokenizerInfo(tokenizer=info.tokenizer, permutations=permutations, original_vocabs=vocabs)


@contextmanager
def _known_rows(rows: Mapping[ModelPath, int]) -> Iterator[None]:
    """While open, mergekit's builder of tokenizers gets the number of rows of each model from `rows`."""
    with _BUILDING:
        original = build.get_vocab_size
        build.get_vocab_size = lambda path, trust_remote_code: rows[path]
        try:
            yield
        finally:
            build.get_vocab_size = original


class PermuteRows(PermutedVocabulary):
    """Rows of embeddings and heads in the order of the output's tokenizer.

    Raises:
        MergeError: when run, if the `tokens` of the config ask for a row that no model has.
    """

    def execute(
        self, tokenizer_info: TokenizerInfo, tensors: dict[ModelReference, torch.Tensor]
    ) -> dict[ModelReference, torch.Tensor]:
        with refused_by(embed.__name__, about="tokenizer: tokens: "):
            rows: dict[ModelReference, torch.Tensor] = super().execute(tokenizer_info, tensors)
        return rows


def require_token_rows(
    tokens: Mapping[str, TokenEmbeddingConfig],
    vocabulary: TokenizerInfo,
    checkpoints: Mapping[ModelReference, Checkpoint],
) -> None:
    """Check that the rows exist that the `tokens` of a config ask for; no row is read.

    Raises:
        MergeError: a row is to be taken from a model that is no input, or that lacks the token or the row.
    """
    ids = vocabulary.tokenizer.get_vocab()
    for token, setting in tokens.items():
        token_id, source = ids.get(token), setting.source
        if token_id is None or isinstance(source, ZeroEmbedding):
            continue
        if not setting.force and all(rows[token_id] >= 0 for rows in vocabulary.permutations.values()):
            continue  # Every model has a row of its own.
        about = f"tokenizer: tokens: {token}: "
        if source is None:
            raise MergeError(f"{about}it needs a `source`, as not every input has a row for it, or `force` is set.")
        model = source.model if isinstance(source, ModelTokenEmbedding) else source
        if model not in vocabulary.permutations:
            raise MergeError(f"{about}{model} is none of the inputs: {some(map(str, vocabulary.permutations))}.")
        if not isinstance(source, ModelTokenEmbedding):
            if vocabulary.permutations[model][token_id] < 0:
                raise MergeError(f"{about}{model} has no row for it.")
            continue
        checkpoint = checkpoints[model]
        rows = checkpoint.tensors[checkpoint.embeddings].shape[0]
        index = source.token_id
        if index is None and (index := vocabulary.original_vocabs[model].get(source.token)) is None:
            raise MergeError(f"{about}the tokenizer of {model} has no token {source.token!r}.")
        if not 0 <= index < rows:
            raise MergeError(f"{about}{model} has {rows} rows, and none of number {index}.")


def vocabulary_builder(config: MergeConfiguration, sources: Sources, trust_remote_code: bool) -> BuildVocabulary | None:
    """The task that makes the tokenizer of a config's tokenizer section; None if it has none."""
    section = config.tokenizer
    source = section.source if section else config.tokenizer_source
    if source is None:
        return None
    return BuildVocabulary(
        base_model=config.base_model,
        referenced_models=tuple(sources.models),
        tokenizer_source=source,
        trust_remote_code=trust_remote_code,
        add_tokens=tuple((section.tokens if section else None) or ()),
        sources=sources,
    )


def tokenizer_directory(source: object) -> list[Path]:
    """The directory of a model from which the config takes the tokenizer alone, in a list; empty if it is on the hub.

    source: the `source` of the tokenizer section; a word such as `union` gives an empty list too.
    """
    path = local_path(source.model.path) if isinstance(source, ModelReference) else None
    return [path] if path and path.is_dir() else []


def _media_tokens(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """(key, id) of tokens that stand for media, or before or after them, at any depth of a config."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _media_tokens(value)
        elif isinstance(value, int) and re.search(
            r"(image|video|vision|audio|\bbo[ia]|\beo[ia]).*_token_(id|index)$", key
        ):
            yield key, value


def planned_rows(plan: MergePlan, built: TokenizerInfo | None, options: MergeOptions) -> int | None:
    """The number of rows of the output's embeddings; None if the merge does not change the vocabulary.

    built: the vocabulary of the tokenizer section, if the config has one.

    None for an omni model too: its plan unites the vocabularies of the donors, and has the rows.

    Raises:
        MergeError: no model has a row for a token of the tokenizer section.
    """
    if isinstance(plan, OmniPlan):
        return None
    inputs, section = plan.inputs, plan.config.tokenizer
    if built is not None:
        require_token_rows((section.tokens if section else None) or {}, built, inputs.checkpoints)
        tokens = len(built.tokenizer.get_vocab())
        multiple = (section.pad_to_multiple_of if section else None) or 1
        return math.ceil(tokens / multiple) * multiple
    if not options.unsafe_truncate_embeddings:
        return None
    name = inputs.base_checkpoint.embeddings
    return min(inputs.checkpoints[m].tensors[own[name]].shape[0] for m, own in inputs.names.items() if name in own)
