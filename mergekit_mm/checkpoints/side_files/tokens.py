"""Vocabularies of several models, id by id, read from their files without building any tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergekit_mm.checkpoints.side_files.model_files import ModelFiles

_OPAQUE = ("tekken.json", "tokenizer.model", "spiece.model")  # vocabularies that are compared by their bytes
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token", "add_bos_token", "add_eos_token")
_SHOWN = 3  # tokens in a message; thousands may differ


@dataclass(frozen=True, eq=False)
class TokenTable:
    """The vocabulary of a tokenizer."""

    tokens: Mapping[int, str]  # id -> token
    splitting: Mapping[str, str]  # section of tokenizer.json that decides how texts are split -> content


@dataclass(frozen=True)
class TokenDifference:
    """The tokens of a model that are not those of the output."""

    renamed: tuple[tuple[int, str, str], ...]  # (id, token here, token in the output)
    added: tuple[tuple[int, str], ...]  # (id, token) of ids for which the output has no token
    absent: int  # number of tokens of the output that the model lacks
    splitting: tuple[str, ...]  # sections of tokenizer.json that differ
    shared: int  # number of ids with the same token

    @property
    def is_another(self) -> bool:
        """Whether most ids mean other tokens, as in the vocabulary of another language model."""
        return len(self.renamed) > self.shared

    def described(self) -> str:
        """A part of a sentence; empty if nothing differs."""
        if self.is_another:
            return f"another vocabulary: {len(self.renamed)} of {len(self.renamed) + self.shared} ids mean other tokens"
        renamed = [f"{index} is {token!r} there, {ours!r} here" for index, token, ours in self.renamed[:_SHOWN]]
        parts = ["; ".join(renamed) + _more(self.renamed)] if renamed else []
        if self.added:
            new = ", ".join(f"{token!r} ({index})" for index, token in self.added[:_SHOWN])
            parts.append(f"new tokens {new}{_more(self.added)}")
        if self.absent:
            parts.append(f"{self.absent} tokens are missing")
        if self.splitting:
            parts.append(f"texts are split otherwise ({', '.join(self.splitting)})")
        return "; ".join(parts)


def _more(found: Sequence[object]) -> str:
    return f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""


@dataclass(eq=False)
class TokenTables:
    """The token tables of models. Files with the same bytes are parsed once."""

    _parsed: dict[str, TokenTable] = field(default_factory=dict)
    _tables: dict[tuple[str, str], TokenTable] = field(default_factory=dict)
    _digests: dict[Path, str] = field(default_factory=dict)

    def of(self, files: ModelFiles) -> TokenTable | None:
        """The table of a model; None if its vocabulary is in a format that is not read here."""
        parsed = self._vocabulary(files)
        if parsed is None:
            return None
        key, table = parsed
        more = dict(_added(files))
        known = {*table.tokens.values()} if more else set()
        more = {i: token for i, token in more.items() if i not in table.tokens and token not in known}
        if not more:
            return table
        whole = (key, json.dumps(sorted(more.items())))
        if whole not in self._tables:
            self._tables[whole] = TokenTable({**table.tokens, **more}, table.splitting)
        return self._tables[whole]

    def _vocabulary(self, files: ModelFiles) -> tuple[str, TokenTable] | None:
        for name, parse in (("tokenizer.json", _parsed_fast), ("vocab.json", _parsed_slow)):
            if name not in files.files:
                continue
            path = files.files[name]
            if path not in self._digests:
                self._digests[path] = hashlib.sha256(path.read_bytes()).hexdigest()
            digest = self._digests[path]
            if digest not in self._parsed:
                try:
                    self._parsed[digest] = parse(json.loads(path.read_bytes()))
                except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
                    if name == "tokenizer.json":
                        files.damaged.add(path)
                    continue
            return digest, self._parsed[digest]
        return None


def _parsed_fast(held: Mapping[str, Any]) -> TokenTable:
    model = held["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):  # Unigram: a token and its score
        tokens = {index: str(entry[0]) for index, entry in enumerate(vocabulary)}
    else:
        tokens = {int(index): token for token, index in vocabulary.items()}
    tokens |= {int(added["id"]): added["content"] for added in held.get("added_tokens") or ()}
    merges = model.get("merges") or ()
    if merges and not isinstance(merges[0], str):
        merges = [" ".join(pair) for pair in merges]
    sections = {name: held.get(name) for name in ("normalizer", "pre_tokenizer", "post_processor")}
    splitting = {name: json.dumps(_effective(section), sort_keys=True) for name, section in sections.items()}
    return TokenTable(tokens, {"merges": hashlib.sha256("\n".join(merges).encode()).hexdigest(), **splitting})


def _parsed_slow(held: Mapping[str, Any]) -> TokenTable:
    if not all(isinstance(index, int) for index in held.values()):
        raise ValueError("not a vocabulary")
    return TokenTable({index: token for token, index in held.items()}, {})


def _effective(section: Any) -> Any:
    """A section without the parts that have no effect on ids: offsets, and keys without a value."""
    if isinstance(section, dict):
        return {key: _effective(v) for key, v in section.items() if v is not None and key != "trim_offsets"}
    return [_effective(each) for each in section] if isinstance(section, list) else section


def _added(files: ModelFiles) -> Iterator[tuple[int, str]]:
    """(id, token) of the tokens that a tokenizer's configs add to its vocabulary."""
    for index, added in (files.json("tokenizer_config.json").get("added_tokens_decoder") or {}).items():
        if isinstance(added, dict) and str(index).isdigit():
            yield int(index), str(added.get("content"))
    for token, index in files.json("added_tokens.json").items():
        if isinstance(index, int):
            yield index, token


def token_difference(ours: TokenTable, theirs: TokenTable) -> TokenDifference | None:
    """The difference between the tokens of a model and those of the output; None if there is none."""
    if ours is theirs:
        return None
    other = sorted(theirs.tokens.items() - ours.tokens.items())
    renamed = tuple((index, token, ours.tokens[index]) for index, token in other if index in ours.tokens)
    added = tuple((index, token) for index, token in other if index not in ours.tokens)
    absent = len(ours.tokens.keys() - theirs.tokens.keys())
    splitting = tuple(name for name, how in theirs.splitting.items() if ours.splitting.get(name, how) != how)
    shared = len(ours.tokens) - absent - len(renamed)
    found = TokenDifference(renamed, added, absent, splitting, shared)
    return found if renamed or added or absent or splitting else None


def other_vocabulary_files(ours: ModelFiles, theirs: ModelFiles) -> list[str]:
    """The vocabulary files that differ in their bytes and cannot be compared token by token."""
    names = [name for name in (*_OPAQUE, *(n for n in ours.files if n.endswith(".tiktoken"))) if name in ours.files]
    return [n for n in names if n in theirs.files and not _same_bytes(ours.files[n], theirs.files[n])]


def _same_bytes(ours: Path, theirs: Path) -> bool:
    return ours.samefile(theirs) or ours.read_bytes() == theirs.read_bytes()


def special_token_differences(ours: ModelFiles, theirs: ModelFiles) -> Iterator[str]:
    """`name theirs (ours)` for the special tokens and switches that both tokenizer configs set."""
    own, other = (files.json("tokenizer_config.json") for files in (ours, theirs))
    for key in _SPECIAL:
        if key in own and key in other and _content(own[key]) != _content(other[key]):
            yield f"{key} {_content(other[key])!r} ({_content(own[key])!r})"


def _content(value: Any) -> Any:
    return value.get("content") if isinstance(value, dict) else value


def conflicts(differences: Mapping[str, TokenDifference]) -> list[tuple[int, dict[str, list[str]]]]:
    """(id, token -> models) of ids that two models use for different tokens, none of which is the output's.

    differences: model, by name -> its difference from the output.
    """
    uses: dict[int, dict[str, list[str]]] = {}
    for model, difference in differences.items():
        if difference.is_another:
            continue
        for index, token in (*((i, token) for i, token, _ in difference.renamed), *difference.added):
            uses.setdefault(index, {}).setdefault(token, []).append(model)
    return [(index, tokens) for index, tokens in sorted(uses.items()) if len(tokens) > 1]
