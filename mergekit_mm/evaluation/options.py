"""Multiple choice: which option a reply names, and the score of AVQA."""

import re
from collections.abc import Sequence
from string import ascii_uppercase

from mergekit_mm.evaluation.reading import tail


def read_option(reply: str, choices: Sequence[str]) -> str | None:
    """The letter of the one option that `reply` names, or None.

    In this order: the reply is an option's text; the stated answer is a letter, or starts with a capital letter and a
    mark; exactly one capital option letter stands alone; exactly one option's text occurs; equal but for signs.
    """
    letters = ascii_uppercase[: len(choices)]
    stated = tail(reply)
    named = _by_equal_text(reply, choices) or _by_letter(stated, letters)
    for text in (stated, reply):
        named = named or _by_lone_letter(text, letters)
    for text in (stated, reply):
        named = named or _by_contained_text(text, choices)
    return named or _by_bare_text(stated, choices)


def _only(found: Sequence[str]) -> str | None:
    return found[0] if len(found) == 1 else None


def _by_equal_text(reply: str, choices: Sequence[str]) -> str | None:
    text = reply.strip().lower()
    same = [letter for letter, choice in zip(ascii_uppercase, choices, strict=False) if choice.strip().lower() == text]
    return _only(same) if len(text) > 1 else None  # one character is a letter first


def _by_letter(stated: str, letters: str) -> str | None:
    alone = re.fullmatch(r"[\W_]*([A-Za-z])[\W_]*", stated)
    leading = re.match(r"[\W_]*([A-Z])[)\].:,]", stated)
    match = alone or leading
    letter = match[1].upper() if match else None
    return letter if letter and letter in letters else None


def _by_lone_letter(text: str, letters: str) -> str | None:
    """ "A" before a lower-case word is an article, unless that word is "or" or "and". ASCII: as in "答案是B"."""
    found = re.findall(r"(?<![\w'])(?!A\s+(?!or\b|and\b)[a-z])([A-Z])(?![\w'])", text, re.ASCII)
    return _only(sorted({letter for letter in found if letter in letters}))


def _by_contained_text(text: str, choices: Sequence[str]) -> str | None:
    """Longer options first, and cut out where they occur: "dark red" does not name "red" as well."""
    rest, found = text.lower(), []
    for letter, choice in sorted(zip(ascii_uppercase, choices, strict=False), key=lambda pair: -len(pair[1])):
        wanted = choice.strip().lower()
        whole = re.compile(rf"(?<![\w.]){re.escape(wanted)}(?!\w|\.\d)")
        if wanted and whole.search(rest):
            found.append(letter)
            rest = whole.sub("\n", rest)
    return _only(found)


def _by_bare_text(stated: str, choices: Sequence[str]) -> str | None:
    wanted = _bare(stated)
    same = [letter for letter, choice in zip(ascii_uppercase, choices, strict=False) if _bare(choice) == wanted]
    return _only(same) if wanted else None


def _bare(text: str) -> str:
    return re.sub(r"[^\w.\-]", "", text).strip(".").lower()


def strict_option(reply: str, choices: Sequence[str]) -> str | None:
    """VLMEvalKit's rule without a judge: one option letter among the words, else one option's text in the reply."""
    letters = ascii_uppercase[: len(choices)]
    words = set(re.sub(r"[.()\[\],:;!*#{}]", " ", reply).split())
    named = [letter for letter in letters if letter in words]
    if len(named) == 1 or (not named and "Z" in words):  # a lone Z: the model refused
        return _only(named)
    lower = reply.lower()
    return _only([letter for letter, choice in zip(letters, choices, strict=True) if choice.lower() in lower])


def option_letter(reference: str, choices: Sequence[str], letter_first: bool = False) -> str:
    """The letter of a reference that is given as an option's text or as a letter. ValueError if it is neither.

    `letter_first`: the data give letters, and options may be letters too, in any order.
    """
    letter = reference.strip().upper()
    is_letter = len(letter) == 1 and letter in ascii_uppercase[: len(choices)]
    if reference in choices and not (letter_first and is_letter):
        return ascii_uppercase[list(choices).index(reference)]
    if not is_letter:
        raise ValueError(
            f"the reference {reference!r} is neither one of the options {list(choices)} nor a letter of one"
        )
    return letter


def avqa_score(prediction: str, reference: str, *, choices: Sequence[str] | None = None, **_: object) -> float:
    """1 if the reply names the option `reference` (a letter).

    With `choices` the reply is read by `read_option`. Without, the rule of the peers' script: the reply's first
    character is the letter (ModelCompose, `eval_avqa.py`; case counts, blanks are not stripped).
    """
    if not isinstance(prediction, str):
        return 0.0
    if choices:
        return float(read_option(prediction, choices) == option_letter(reference, choices))
    return float(prediction[:1] == reference)
