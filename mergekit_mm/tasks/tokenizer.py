"""The tokenizer section of a merge config: mergekit's builder, told what it does not find out of multimodal models."""

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

_BY_RULE = ("base", "union")  # the sources of a tokenizer that are no model
_BUILDING = threading.Lock()  # mergekit's builder serves the whole process


class BuildVocabulary(BuildTokenizer):
    """The output's tokenizer, from those in the directories of the inputs.

    mergekit looks for `vocab_size` where most multimodal configs do not have it, and without it leaves out tokens that
    were added to a tokenizer; here it is told how many rows the embeddings have.
    """

    sources: InstanceOf[Sources]

    def execute(self, **_kwargs: object) -> TokenizerInfo:
        """Raises MergeError for a tokenizer that mergekit cannot rebuild, and where the base's config would no longer
        mean its own image, video or audio tokens."""
        sources = {model: self.sources.models[model].checkpoint for model in self.referenced_models}
        local = {m: ModelReference(model=ModelPath(path=str(c.directory))) for m, c in sources.items()}
        rows = {local[m].model: c.tensors[c.embeddings].shape[0] for m, c in sources.items()}
        base = self.base_model or self.referenced_models[0]
        wanted = self.tokenizer_source
        if (
            wanted == "base" and self.add_tokens
        ):  # mergekit adds new tokens to its only copy, and then takes them for old
            wanted = base
        for needed in dict.fromkeys([local[base], *([local.get(wanted, wanted)] if wanted not in _BY_RULE else [])]):
            load_tokenizer(str(needed), needed.model.path, self.trust_remote_code, needed.model.revision)
        with (
            _telling_rows(rows),
            refused_by(build.__name__, about="mergekit cannot make the tokenizer that the config asks for: "),
        ):
            info = build.build_tokenizer(
                base_model=local[base],
                referenced_models=list(dict.fromkeys(local.values())),
                tokenizer_source=local.get(wanted, wanted),
                trust_remote_code=self.trust_remote_code,
                add_tokens=list(self.add_tokens or ()),
            )
        known = {model: info.original_vocabs[path] for model, path in local.items() if path in info.original_vocabs}
        numbers = info.tokenizer.get_vocab()
        for key, number in _media_tokens(sources[base].config):
            token = next((token for token, index in known[base].items() if index == number), None)
            if token is not None and numbers.get(token) != number:
                raise MergeError(
                    f"{key} is {number} in the config of {base}, its token {token!r}, which is "
                    f"{numbers.get(token, 'not there')} in the vocabulary asked for. Let `tokenizer` have "
                    "`source: base`, or `union`."
                )
        # of tokens beyond the rows of a model's embeddings, mergekit says nothing, and misses them later
        without = dict.fromkeys(numbers.values(), -1)
        permutations = {model: {**without, **info.permutations[path]} for model, path in local.items()}
        return TokenizerInfo(tokenizer=info.tokenizer, permutations=permutations, original_vocabs=known)


@contextmanager
def _telling_rows(rows: Mapping[ModelPath, int]) -> Iterator[None]:
    """mergekit's builder, while it is in here, gets the number of rows of each model from `rows`."""
    with _BUILDING:
        original = build.get_vocab_size
        build.get_vocab_size = lambda path, trust_remote_code: rows[path]
        try:
            yield
        finally:
            build.get_vocab_size = original


class PermuteRows(PermutedVocabulary):
    """Rows of embeddings and heads in the order of the output's tokenizer."""

    def execute(
        self, tokenizer_info: TokenizerInfo, tensors: dict[ModelReference, torch.Tensor]
    ) -> dict[ModelReference, torch.Tensor]:
        """Raises MergeError for what the `tokens` of the config ask for and no model has."""
        with refused_by(embed.__name__, about="tokenizer: tokens: "):
            rows: dict[ModelReference, torch.Tensor] = super().execute(tokenizer_info, tensors)
        return rows


def require_token_rows(
    tokens: Mapping[str, TokenEmbeddingConfig],
    vocabulary: TokenizerInfo,
    checkpoints: Mapping[ModelReference, Checkpoint],
) -> None:
    """See that the rows are there which the `tokens` of a config ask for; no row is read.

    Raises:
        MergeError: a model is no input, or lacks the token or the row that is to be taken from it.
    """
    numbers = vocabulary.tokenizer.get_vocab()
    for token, wanted in tokens.items():
        number, source = numbers.get(token), wanted.source
        if number is None or isinstance(source, ZeroEmbedding):
            continue
        if not wanted.force and all(rows[number] >= 0 for rows in vocabulary.permutations.values()):
            continue  # every model has a row of its own
        about = f"tokenizer: tokens: {token}: "
        if source is None:
            raise MergeError(f"{about}it needs a `source`, as not every input has a row for it, or `force` is set.")
        model = source.model if isinstance(source, ModelTokenEmbedding) else source
        if model not in vocabulary.permutations:
            raise MergeError(f"{about}{model} is none of the inputs: {some(map(str, vocabulary.permutations))}.")
        if not isinstance(source, ModelTokenEmbedding):
            if vocabulary.permutations[model][number] < 0:
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
    wanted = section.source if section else config.tokenizer_source
    if wanted is None:
        return None
    return BuildVocabulary(
        base_model=config.base_model,
        referenced_models=tuple(sources.models),
        tokenizer_source=wanted,
        trust_remote_code=trust_remote_code,
        add_tokens=tuple((section.tokens if section else None) or ()),
        sources=sources,
    )


def tokenizer_directory(source: object) -> list[Path]:
    """Where the tokenizer is that a config takes from a model of its own, if that is on this machine."""
    path = local_path(source.model.path) if isinstance(source, ModelReference) else None
    return [path] if path and path.is_dir() else []


def _media_tokens(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """The numbers of tokens that stand for media, or around them, at any depth of a config."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _media_tokens(value)
        elif isinstance(value, int) and re.search(
            r"(image|video|vision|audio|\bbo[ia]|\beo[ia]).*_token_(id|index)$", key
        ):
            yield key, value


def planned_rows(plan: MergePlan, vocabulary: BuildVocabulary | None, options: MergeOptions) -> int | None:
    """Rows of the output's embeddings where the merge changes the vocabulary; else None. The tokenizer is built for it.

    None for an omni model too: its plan unites the vocabularies of the donors, and has the rows.

    Raises:
        MergeError: the tokenizer that the config asks for cannot be made, or a row of it is nowhere.
    """
    if isinstance(plan, OmniPlan):
        return None
    inputs, section = plan.inputs, plan.config.tokenizer
    if vocabulary is not None:
        built = vocabulary.execute()
        require_token_rows((section.tokens if section else None) or {}, built, inputs.checkpoints)
        tokens = len(built.tokenizer.get_vocab())
        multiple = (section.pad_to_multiple_of if section else None) or 1
        return math.ceil(tokens / multiple) * multiple
    if not options.unsafe_truncate_embeddings:
        return None
    name = inputs.base_checkpoint.embeddings
    return min(inputs.checkpoints[m].tensors[own[name]].shape[0] for m, own in inputs.names.items() if name in own)
