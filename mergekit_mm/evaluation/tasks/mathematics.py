r"""MathVista and MATH-Vision by rules, without a judge.

Expressions are compared by math-verify if it is installed (`pip install math-verify`). Without it, and outside the main
thread, where its time limit does not work, only texts, numbers and simple fractions are compared: then `\sqrt{16}` does
not equal 4.
"""

import math
import re
import threading
from collections.abc import Sequence
from functools import cache
from typing import Any

from mergekit_mm.evaluation.tasks.options import is_bare_option, option_letter, read_option, strict_option
from mergekit_mm.evaluation.tasks.quantities import Quantity, joined, plain, quantities
from mergekit_mm.evaluation.tasks.replies import answer_part
from mergekit_mm.evaluation.tasks.sentences import sentences, without_reason
from mergekit_mm.evaluation.tasks.stated_answers import last_list, stated_list, stated_number
from mergekit_mm.evaluation.tasks.statements import stated_answer, statements, without_emphasis

_LONGEST_EXPRESSION = 400  # characters; a longer text is prose, and slow to parse
_LATEX_NOISE = re.compile(r"\\[()\[\]]|\\left|\\right|\\[,;!: ]|\\(?:text|mathrm|mathbf)\b|\^\{?\\circ\}?|[$°{}\s]")
_OPERATOR = re.compile(r"[\\^*/+%!√π<>≤≥≠±]")  # an operator beside a single number makes it a formula, not an answer
_ASIDE = re.compile(r"\s\([^()]*\)")
_COPULA = re.compile(r"\s(?:is|are|equals|=)\s")
_COEFFICIENT = re.compile(r"\d[xyz](?![a-z])")
_INTRODUCTION = re.compile(
    r"^[\s\"'*(]*(?:(?:so|thus|therefore|hence)\b,?\s*)?(?:(?:it|this|that|he|she|they|there|the\s+answer)\s*(?:'s|is|was|are)\b"
    r"|the\b|an?\b|on\b|in\b)?\s*(?:(?:the|an?|on|in)\s+)*",
    re.IGNORECASE,
)
_LATEX = re.compile(r"\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_FRACTION = re.compile(r"-?\d+/\d+|-?\\[dt]?frac\{[^{}]+\}\{[^{}]+\}")


def mathvista_score(
    prediction: str,
    reference: str,
    *,
    choices: Sequence[str] | None = None,
    question_type: str = "free_form",
    answer_type: str = "text",
    answer_option: str | None = None,
    precision: float | None = None,
    **_: object,
) -> float:
    """1 if the answer read from the reply equals the reference (MathVista), else 0.

    In a multiple choice (`question_type="multi_choice"`, or `choices` given) the option that the reply names must be
    `answer_option`, or the option whose text is `reference`. Otherwise `answer_type` decides: `integer` compares
    numbers, `float` numbers rounded to `precision` digits, `list` element by element, `text` without regard to case and
    punctuation. A number with a percent sign or a "million" counts with and without it: "5%" is 5 and 0.05, as the
    question may ask for either.
    """
    read = mathvista_answer(prediction, choices=choices, question_type=question_type, answer_type=answer_type)
    if read is None:
        return 0.0
    if _is_choice(question_type, choices):
        return float(read == (answer_option or option_letter(reference, choices or ())))
    if answer_type == "list":
        wanted = last_list(reference) or [reference]
        return float(len(read) == len(wanted) and all(map(_same_element, read, wanted)))
    if isinstance(read, Quantity):
        digits = int(float(precision)) if precision is not None and answer_type == "float" else 9
        return float(read.equals(float(reference), digits))
    return float(any(_words(each) == _words(reference) for each in _narrowed(read)))


def mathvista_answer(
    prediction: str,
    *,
    choices: Sequence[str] | None = None,
    question_type: str = "free_form",
    answer_type: str = "text",
    **_: object,
) -> Any:
    """The answer in the reply: an option's letter, a `Quantity`, a list of texts, or a text; None if there is none."""
    if not isinstance(prediction, str):
        return None
    if _is_choice(question_type, choices):
        return read_option(prediction, choices or ())
    if answer_type == "list":
        return stated_list(prediction)
    if answer_type in ("integer", "float"):
        return stated_number(prediction)
    return stated_answer(prediction) or None


def mathvista_strict(
    prediction: str,
    reference: str,
    *,
    choices: Sequence[str] | None = None,
    question_type: str = "free_form",
    answer_type: str = "text",
    answer_option: str | None = None,
    **_: object,
) -> float:
    """VLMEvalKit's score when no judge answers. As there, a correct answer of 0 counts as unread, and is wrong."""
    if not isinstance(prediction, str):
        return 0.0
    if _is_choice(question_type, choices):
        named = strict_option(prediction, choices or ())
        return float(named == (answer_option or option_letter(reference, choices or ())))
    if answer_type not in ("integer", "float"):
        return 0.0
    parse = int if answer_type == "integer" else float
    try:
        return float(parse(prediction) == parse(reference) != 0)
    except ValueError:
        return 0.0


def _is_choice(question_type: str, choices: Sequence[str] | None) -> bool:
    return bool(choices) or question_type == "multi_choice"


def is_bare(
    prediction: str, *, choices: Sequence[str] | None = None, question_type: str = "free_form", **_: object
) -> bool:
    """Whether the reply is nothing but an option's letter or text, or a number. A judge sees the others."""
    if _is_choice(question_type, choices):
        return is_bare_option(prediction, choices or ())
    text = plain(without_emphasis(answer_part(prediction))).strip()
    found = quantities(text)
    return (
        len(found) == 1
        and found[0].value == found[0].scaled
        and not re.search(r"\w", text[: found[0].start] + text[found[0].end :])
    )


def _same_element(left: str, right: str) -> bool:
    mine, theirs = quantities(plain(left)), quantities(plain(right))
    if len(mine) == 1 and len(theirs) == 1:
        return abs(mine[0].value - theirs[0].value) <= 1e-6 * max(1.0, abs(theirs[0].value))
    return _words(left) == _words(right)


def _narrowed(statement: str) -> list[str]:
    """Shorter and shorter readings of `statement`.

    They are the statement, its first line, the first sentence, the sentence without its reason, that without its
    introduction ("it is a"), and the part behind its last "is" or "equals".
    """
    line = statement.strip().partition("\n")[0]
    sentence = next(iter(sentences(line)), line)
    short = without_reason(sentence)
    bare = _INTRODUCTION.sub("", short).strip(" \t.,;:")
    said = _COPULA.split(short)[-1].strip(" \t.,;:")
    return list(dict.fromkeys(each for each in (statement, line, sentence, short, bare, said) if each))


def _words(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s.\-]", "", text.lower()).strip(" .").split())


def mathvision_score(prediction: str, reference: str, *, choices: Sequence[str] | None = None, **_: object) -> float:
    """1 if the reply names the right option, or states something equal to the reference (MATH-Vision), else 0.

    With `choices`, `reference` is the letter or the text of an option. Without choices an answer is right if it is the
    same text but for blanks, case and LaTeX commands, a number within a relative 1e-6, or an expression that
    math-verify finds equal; or if the number that the reply states is the reference.
    """
    if not isinstance(prediction, str):
        return 0.0
    if choices:
        return float(read_option(prediction, choices) == option_letter(reference, choices, letter_first=True))
    stated = next(iter(statements(prediction)), "") or stated_answer(prediction)
    return float(any(_equal(each, reference) for each in _narrowed(stated)) or _states_number(prediction, reference))


def _equal(stated: str, reference: str) -> bool:
    """Whether `stated` equals the reference as a text, as a number, or as an expression."""
    mine, wanted = _undressed(stated), _undressed(reference)
    if not mine:
        return False
    if mine == wanted:
        return True
    value, target = _value(mine), _value(wanted)
    if value is not None and target is not None:
        return abs(value - target) <= 1e-6 * abs(target)
    return any(_equal_expressions(each, reference) for each in _expressions(stated))


def _states_number(reply: str, reference: str) -> bool:
    """Whether the number that the reply states is the reference, and is not a part of a formula with another value."""
    target, found = _value(_undressed(reference)), stated_number(reply)
    if target is None or found is None or not math.isclose(found.value, target, rel_tol=1e-6):
        return False
    stated = plain(next(iter(statements(reply)), "") or stated_answer(reply))
    line = _ASIDE.sub("", without_reason(next((each for each in sentences(stated) if quantities(each)), stated)))
    numbered = quantities(line)
    rest = "".join(
        line[a:b]
        for a, b in zip([0, *(q.end for q in numbered)], [*(q.start for q in numbered), len(line)], strict=True)
    )
    return "=" in rest or not (_OPERATOR.search(rest) or _COEFFICIENT.search(line))


def _expressions(text: str) -> list[str]:
    """`text`, and an expression in it: the LaTeX that it begins with, else the last LaTeX, else the last fraction."""
    found = _LATEX.findall(text) or _FRACTION.findall(text)
    said = found[:1] if _LATEX.match(text) else found[-1:]
    return [text, *("".join(each) for each in said)]


def _undressed(text: str) -> str:
    r"""`text` in lower case without blanks, dollar signs, LaTeX sizes and degrees; `\frac{a}{b}` becomes a/b."""
    plain = re.sub(r"\\[dt]?frac\s*\{([^{}]+)\}\s*\{([^{}]+)\}", r"\1/\2", joined(text.replace("\u2212", "-")))
    return _LATEX_NOISE.sub("", plain).lower().rstrip(".")


def _value(text: str) -> float | None:
    match = re.fullmatch(r"([-+]?(?:\d+\.?\d*|\.\d+))(?:/(\d+\.?\d*))?", text)
    if match is None or (match[2] and float(match[2]) == 0):
        return None
    return float(match[1]) / float(match[2] or 1)


def _equal_expressions(prediction: str, reference: str) -> bool:
    library = _math_verify()
    if library is None or len(prediction) > _LONGEST_EXPRESSION:
        return False
    if threading.current_thread() is not threading.main_thread():
        return False
    try:
        return bool(library.verify(*(library.parse(f"${_as_latex(each)}$") for each in (reference, prediction))))
    except Exception:  # math-verify may fail in any way on a model's text, which then does not equal the reference
        return False


def _as_latex(text: str) -> str:
    r"""`text` without \( \), and with \sqrt{3} and \pi for √3 and π, which math-verify does not read."""
    bare = re.sub(r"\\[()\[\]]", "", text).strip("$. ")
    return re.sub(r"√\s*\(?(\w+)\)?", r"\\sqrt{\1}", bare).replace("π", "\\pi ")


@cache
def _math_verify() -> Any:
    try:
        import math_verify
    except ImportError:
        return None
    return math_verify
