"""What a donor's processor makes of a medium: token ids in place of a placeholder, and tensors for its tower."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

ARGUMENT = {"image": "images", "video": "videos", "audio": "audio"}  # of transformers' processors
PER_TOKEN = ("mm_token_type_ids", "token_type_ids")  # a donor's outputs that run along input_ids

Piece = tuple[list[int], dict[str, list[int]]]  # donor's token ids of one medium, and values along them by name


def run_donor(
    donor: Any, modality: str, snippet: str, items: list[list[Any]], options: dict[str, Any]
) -> tuple[list[Piece], dict[str, Any]]:
    """One piece per medium of `items` (media of each sample), in order, and the tensors for the donor's forward.

    The donor's processor sees `snippet` for each medium and no other text. The images of a sample are processed
    together, since how they are tiled may depend on how many there are; an end of text, which no donor writes for a
    medium, tells them apart.
    """
    tokenizer = donor.tokenizer
    separator = tokenizer.eos_token
    if modality != "image" or separator is None:
        items = [[item] for sample in items for item in sample]
    texts = [(separator or "").join([snippet] * len(sample)) for sample in items]
    media = items if modality == "image" else [item for sample in items for item in sample]
    name = ARGUMENT[modality]
    given = {name: media, f"{name}_kwargs": options, "text_kwargs": {"padding": True, "add_special_tokens": False}}
    made = dict(donor(text=texts, return_tensors="pt", **given))
    ids, kept = made.pop("input_ids"), made.pop("attention_mask").bool()
    along = {key: made.pop(key) for key in PER_TOKEN if key in made}
    pieces: list[Piece] = []
    for i, mask in enumerate(kept):
        row = ids[i][mask].tolist()
        values = {key: value[i][mask].tolist() for key, value in along.items()}
        for start, end in _between(row, tokenizer.eos_token_id if len(items[i]) > 1 else None):
            pieces.append((row[start:end], {key: value[start:end] for key, value in values.items()}))
    return pieces, made


def _between(row: list[int], separator: int | None) -> list[tuple[int, int]]:
    """Start and end of what is between separators; the whole row when there is none."""
    if separator is None:
        return [(0, len(row))]
    cuts = [i for i, token in enumerate(row) if token == separator]
    return list(zip([0, *(cut + 1 for cut in cuts)], [*cuts, len(row)], strict=True))


def translation(omni: Any, donor: Any, entries: list[dict[str, Any]]) -> Callable[[int], int]:
    """Donor's token id -> omni token id, for the tokenizers `omni` and `donor`.

    Placeholders are those of `entries` ("donor_token", "token"), other tokens go by name, or by "rename". The function
    raises ValueError for a token that the omni tokenizer does not have.
    """
    known = {donor.convert_tokens_to_ids(e["donor_token"]): omni.convert_tokens_to_ids(e["token"]) for e in entries}
    rename = {old: new for entry in entries for old, new in entry.get("rename", {}).items()}

    def translate(token_id: int) -> int:
        if token_id not in known:
            token = donor.convert_ids_to_tokens(token_id)
            token = rename.get(token, token)
            found = omni.convert_tokens_to_ids(token)
            if found is None or (found == omni.unk_token_id and token != omni.unk_token):
                raise ValueError(f"The omni tokenizer has no {token!r}, which a donor's processor writes for a medium.")
            known[token_id] = int(found)
        return known[token_id]

    return translate
