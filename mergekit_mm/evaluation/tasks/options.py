"""Multiple choice: the option that a reply names, and the score of AVQA."""

import re
from collections.abc import Sequence
from string import ascii_uppercase

from mergekit_mm.evaluation.tasks.option_reader import OptionReader, equal_text, only, without_listing
from mergekit_mm.evaluation.tasks.replies import answer_part
from mergekit_mm.evaluation.tasks.statements import statements, without_emphasis

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}  # full-width characters to ASCII


def read_option(reply: str, choices: Sequence[str]) -> str | None:
    """The letter of the one option that `reply` names; None if it names none, or several.

    The first of these rules that finds an option decides: the reply is an option's text; an option behind a marker
    ("the answer is"), in the last statement first; the only line that judges an option to be correct; an option at the
    beginning of the reply; an option that makes up the last line; "B is correct" or "I choose B"; the only option
    letter that stands alone; the only option whose text occurs; the option that equals the number that the reply
    states. Options that the reply rules out, and a list of all options, do not count.
    """
    text = answer_part(reply).translate(_FULL_WIDTH)
    if named := equal_text(text, choices):
        return named
    text = without_listing(without_emphasis(text), choices)
    reader = OptionReader(choices)
    judged = reader.judged(without_emphasis(answer_part(reply)))
    for statement in statements(text):
        found = reader.statement(statement)
        if found is not None:
            return found or None
    return reader.whole(text) if judged is None else judged or None


def is_bare_option(reply: str, choices: Sequence[str]) -> bool:
    """Whether `reply` is nothing but an option's letter or text."""
    text = without_emphasis(answer_part(reply)).strip()
    alone = re.fullmatch(r"[\W_]*([A-Z])[\W_]*", text)
    return bool(alone and alone[1] in ascii_uppercase[: len(choices)]) or equal_text(text, choices) is not None


def strict_option(reply: str, choices: Sequence[str]) -> str | None:
    """VLMEvalKit's rule without a judge: the only option letter among the words, else the only option's text."""
    letters = ascii_uppercase[: len(choices)]
    words = set(re.sub(r"[.()\[\],:;!*#{}]", " ", reply).split())
    named = [letter for letter in letters if letter in words]
    if len(named) == 1 or (not named and "Z" in words):  # a Z stands for a refusal of the model
        return only(named)
    lower = reply.lower()
    return only([letter for letter, choice in zip(letters, choices, strict=True) if choice.lower() in lower])


def option_letter(reference: str, choices: Sequence[str], letter_first: bool = False) -> str:
    """The letter of a reference that is an option's text or letter.

    letter_first: a reference that could be both is a letter, as in data that give letters and have letters as options.

    ValueError: the reference is neither.
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
    """1 if the reply names the option `reference` (a letter), else 0.

    With `choices` the reply is read by `read_option`. Without choices the rule of ModelCompose's `eval_avqa.py` holds:
    the first character of the reply is the letter; case counts, and blanks are not stripped.
    """
    if not isinstance(prediction, str):
        return 0.0
    if choices:
        return float(read_option(prediction, choices) == option_letter(reference, choices))
    return float(prediction[:1] == reference)
