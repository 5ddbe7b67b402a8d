"""One vocabulary for models that grew from one LLM: the host's, and every token that only another donor has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from mergekit.common import ModelReference
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from mergekit_mm.checkpoints.checkpoint import Checkpoint
from mergekit_mm.checkpoints.tokenizer import load_tokenizer
from mergekit_mm.errors import MergeError


class Marker(NamedTuple):
    """A token that the owner of a modality has around its media, and that its LLM may have had in reserve."""

    token_id: int  # in the united vocabulary
    owner: ModelReference
    untrained: tuple[ModelReference, ...]  # models that have not seen it in use


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A union of vocabularies. Ids of the host stay; other donors' own tokens follow."""

    tokenizer: PreTrainedTokenizerBase
    own: Mapping[Path, PreTrainedTokenizerBase]  # each donor's tokenizer, by its directory
    size: int  # rows of the united embeddings
    renamed: Mapping[tuple[Path, str], str]  # a donor's placeholder -> its name here, where another has its own
    _rows: dict[tuple[Path, int], torch.Tensor] = field(default_factory=dict)  # embeddings and head have the same

    def id_of(self, directory: Path, token_id: int) -> int | None:
        """The united id of a donor's token; None if its tokenizer has no token of that number."""
        token = self.own[directory].convert_ids_to_tokens(token_id)
        return self.tokenizer.get_vocab().get(self.renamed.get((directory, token), token))

    def donor_token(self, directory: Path, united_id: int) -> str:
        """What a donor calls a token of the united vocabulary."""
        token = str(self.tokenizer.convert_ids_to_tokens(united_id))
        return next((old for (where, old), new in self.renamed.items() if (where, new) == (directory, token)), token)

    def rows(self, directory: Path, count: int) -> torch.Tensor:
        """(size,) for each united id the row of a donor's embeddings, -1 where the donor has none.

        A row that stands for no token, as the padding of embeddings to a round number, goes with the same number.
        """
        if (directory, count) not in self._rows:
            self._rows[directory, count] = self._find_rows(directory, count)
        return self._rows[directory, count]

    def _find_rows(self, directory: Path, count: int) -> torch.Tensor:
        theirs, named = self.own[directory].get_vocab(), self.tokenizer.get_vocab()
        theirs |= {new: theirs[old] for (where, old), new in self.renamed.items() if where == directory}
        rows = torch.full((self.size,), -1)
        unnamed = sorted(set(range(min(self.size, count))) - set(named.values()) - set(theirs.values()))
        rows[unnamed] = torch.tensor(unnamed, dtype=rows.dtype)
        for token, index in named.items():
            if theirs.get(token, count) < count:
                rows[index] = theirs[token]
        return rows


def unite(
    host: Checkpoint, donors: Iterable[Checkpoint], placeholders: Mapping[str, tuple[Checkpoint, int]]
) -> Vocabulary:
    """The union of the tokenizers of all donors, the host among them or not.

    placeholders: modality -> the donor that serves it, and the id of its placeholder. One that another donor has for
        another modality, as a reserved token of their LLM, becomes `<omni_image>` or the like.

    Raises:
        MergeError: a donor's tokenizer cannot be loaded, or most of its tokens, or of the host's, are others;
            the host's has gaps in its numbers that new tokens would not stay out of.
    """
    united, own = _tokenizer(host), {host.directory: _tokenizer(host)}
    for donor in {d.directory: d for d in donors if d.directory != host.directory}.values():
        own[donor.directory] = theirs = _tokenizer(donor)
        known, added = united.get_vocab(), theirs.added_tokens_decoder
        missing = sorted((index, token) for token, index in theirs.get_vocab().items() if token not in known)
        shared = own[host.directory].get_vocab().keys() & theirs.get_vocab().keys()
        if 2 * len(shared) < max(len(own[host.directory]), len(theirs)):
            raise MergeError(
                f"{donor.name} and {host.name} do not share a vocabulary: of {len(theirs)} and "
                f"{len(own[host.directory])} tokens {len(shared)} are the same. Donors must descend from one LLM, and "
                "each needs the files of its tokenizer."
            )
        united.add_tokens([added.get(index, AddedToken(token, normalized=False)) for index, token in missing])
    renamed: dict[tuple[Path, str], str] = {}
    taken: dict[str, Path] = {}
    for modality, (donor, token_id) in sorted(placeholders.items(), key=lambda item: item[1][0] is not host):
        token = own[donor.directory].convert_ids_to_tokens(token_id)
        if taken.setdefault(token, donor.directory) != donor.directory:
            renamed[donor.directory, token] = f"<omni_{modality}>"
    united.add_tokens([AddedToken(token, normalized=False, special=True) for token in renamed.values()])
    ids = united.get_vocab().values()
    if len(set(ids)) < len(ids):  # tokenizers counts tokens to find the next number
        raise MergeError(
            f"The tokenizer of {host.name} leaves numbers out, and new tokens would get those of others. Make another "
            "donor the host (`parameters: host: <model>`), or fill the gaps with tokens of any name."
        )
    rows = host.tensors[host.backbone["embed_tokens.weight"]].shape[0]
    return Vocabulary(united, own, max(rows, max(united.get_vocab().values()) + 1), renamed)


def _tokenizer(donor: Checkpoint) -> PreTrainedTokenizerBase:
    return load_tokenizer(donor.name, donor.directory)
