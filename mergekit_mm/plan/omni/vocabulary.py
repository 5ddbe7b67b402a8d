"""One vocabulary for models that descend from one LLM: the host's, and every token that only another donor has."""

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


class BoundaryToken(NamedTuple):
    """A token that the owner of a modality puts before or after its media; other models may hold it in reserve."""

    token_id: int  # in the united vocabulary
    owner: ModelReference
    untrained: tuple[ModelReference, ...]  # models that have not seen it in use


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A union of vocabularies: the host's ids stay, other donors' own tokens follow. Donors go by their directories."""

    tokenizer: PreTrainedTokenizerBase  # of the union
    donor_tokenizers: Mapping[Path, PreTrainedTokenizerBase]  # directory -> the tokenizer of the donor there
    size: int  # rows of the united embeddings
    renamed: Mapping[
        tuple[Path, str], str
    ]  # (directory, placeholder token) -> its name in the union, where that is new
    _rows: dict[tuple[Path, int], torch.Tensor] = field(default_factory=dict)  # embeddings and head share an entry

    def id_of(self, directory: Path, token_id: int) -> int | None:
        """The united id of a donor's token; None if its tokenizer has no token of that number."""
        token = self.donor_tokenizers[directory].convert_ids_to_tokens(token_id)
        return self.tokenizer.get_vocab().get(self.renamed.get((directory, token), token))

    def donor_token(self, directory: Path, united_id: int) -> str:
        """A donor's own name for a token of the united vocabulary."""
        token = str(self.tokenizer.convert_ids_to_tokens(united_id))
        return next((old for (where, old), new in self.renamed.items() if (where, new) == (directory, token)), token)

    def rows(self, directory: Path, count: int) -> torch.Tensor:
        """(size,) int64: for each united id the row of a donor's embeddings, of which there are `count`; -1 for no row.

        A row that stands for no token, such as padding of the embeddings to a round number, keeps its number.
        """
        if (directory, count) not in self._rows:
            self._rows[directory, count] = self._find_rows(directory, count)
        return self._rows[directory, count]

    def _find_rows(self, directory: Path, count: int) -> torch.Tensor:
        donor_ids, united_ids = self.donor_tokenizers[directory].get_vocab(), self.tokenizer.get_vocab()
        donor_ids |= {new: donor_ids[old] for (where, old), new in self.renamed.items() if where == directory}
        rows = torch.full((self.size,), -1)
        no_token = sorted(set(range(min(self.size, count))) - set(united_ids.values()) - set(donor_ids.values()))
        rows[no_token] = torch.tensor(no_token, dtype=rows.dtype)
        for token, index in united_ids.items():
            if donor_ids.get(token, count) < count:
                rows[index] = donor_ids[token]
        return rows


def unite(
    host: Checkpoint, donors: Iterable[Checkpoint], placeholders: Mapping[str, tuple[Checkpoint, int]]
) -> Vocabulary:
    """The union of the tokenizers of all donors; the host need not be among these.

    placeholders: modality -> the donor that serves it, and the id of its placeholder token. A placeholder that another
        donor uses for another modality, as both have it in reserve, becomes `<omni_image>` or the like.

    Raises:
        MergeError: a donor's tokenizer cannot be loaded; a donor and the host share less than half of their tokens; or
            ids are missing between those of the host, so that new tokens would get ids that are in use.
    """
    united, tokenizers = _tokenizer(host), {host.directory: _tokenizer(host)}
    hosts = tokenizers[host.directory]
    for donor in {d.directory: d for d in donors if d.directory != host.directory}.values():
        tokenizers[donor.directory] = donors_own = _tokenizer(donor)
        known, added = united.get_vocab(), donors_own.added_tokens_decoder
        missing = sorted((index, token) for token, index in donors_own.get_vocab().items() if token not in known)
        shared = hosts.get_vocab().keys() & donors_own.get_vocab().keys()
        if 2 * len(shared) < max(len(hosts), len(donors_own)):
            raise MergeError(
                f"{donor.name} and {host.name} do not share a vocabulary: of {len(donors_own)} and "
                f"{len(hosts)} tokens {len(shared)} are the same. Donors must descend from one LLM, and "
                "each needs the files of its tokenizer."
            )
        united.add_tokens([added.get(index, AddedToken(token, normalized=False)) for index, token in missing])
    renamed: dict[tuple[Path, str], str] = {}
    first_user: dict[str, Path] = {}  # placeholder token -> the directory of the donor that keeps it
    for modality, (donor, token_id) in sorted(placeholders.items(), key=lambda item: item[1][0] is not host):
        token = tokenizers[donor.directory].convert_ids_to_tokens(token_id)
        if first_user.setdefault(token, donor.directory) != donor.directory:
            renamed[donor.directory, token] = f"<omni_{modality}>"
    united.add_tokens([AddedToken(token, normalized=False, special=True) for token in renamed.values()])
    ids = united.get_vocab().values()
    if len(set(ids)) < len(ids):  # The library `tokenizers` gives a new token the number of tokens as its id.
        raise MergeError(
            f"The tokenizer of {host.name} leaves numbers out, and new tokens would get those of others. Make another "
            "donor the host (`parameters: host: <model>`), or fill the gaps with tokens of any name."
        )
    rows = host.tensors[host.backbone["embed_tokens.weight"]].shape[0]
    return Vocabulary(united, tokenizers, max(rows, max(united.get_vocab().values()) + 1), renamed)


def _tokenizer(donor: Checkpoint) -> PreTrainedTokenizerBase:
    return load_tokenizer(donor.name, donor.directory)
