"""Rules that read an answer out of a reply: the part that states it, and the numbers in it."""

import re
import unicodedata

_BOXED = re.compile(r"\\boxed\s*\{")
_MARKER = re.compile(r"\b(?:answer|result|choice|option)\b[*_\s]*(?:(?:is|are)\b\s*:?|:|=)", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+(?![\w]))?")
_EMPHASIS = re.compile(r"(?<!\w)\*\*|\*\*(?!\w)")  # of Markdown, not the power of Python
_SUPERSCRIPTS = re.compile(r"[²³¹⁰⁴-⁹]+")
_POWER_OF_UNIT = re.compile(r"(?<![A-Za-z])([kcdm]?m|in|ft|s|units?|met(?:er|re)s?)(\}?)\s*\^\s*\{?-?\d\}?")
_THOUSANDS = re.compile(r"(?<=\d)(?:,|\{,\}|,?\\[,!;])(?=\d{3}(?!\d))")  # "," and its dresses in LaTeX
_NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
_WORDS = _NUMBER_WORDS.split()
_NUMBER_WORD = re.compile(rf"\b(?:{'|'.join(_WORDS)})\b", re.IGNORECASE)


def tail(reply: str) -> str:
    r"""The part of `reply` that states the answer.

    Inside the last `\boxed{...}`; else what follows the last "answer", "result", "choice" or "option" with "is", ":" or
    "="; else the whole reply. Without the ** of Markdown.
    """
    reply = _EMPHASIS.sub("", reply)
    boxes = list(_BOXED.finditer(reply))
    if boxes:
        return _braced(reply[boxes[-1].end() :]).strip()
    markers = list(_MARKER.finditer(reply))
    stated = reply[markers[-1].end() :].strip() if markers else ""
    return stated or reply.strip()


def _braced(text: str) -> str:
    depth = 1
    for at, letter in enumerate(text):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return text[:at]
    return text


def numbers(text: str) -> list[float]:
    """The numbers written in `text` with digits, in order: "1,000" is one, the 2 of "cm2" and "cm^2" is none."""
    plain = unicodedata.normalize("NFKC", _SUPERSCRIPTS.sub(" ", text)).replace("\u2212", "-")
    return [float(each) for each in _NUMBER.findall(joined(without_powers(plain)))]


def without_powers(text: str) -> str:
    """`text` with "cm^2" as "cm"."""
    return _POWER_OF_UNIT.sub(r"\1\2 ", text)


def joined(text: str) -> str:
    r"""`text` without separators of thousands: 1,000, 1{,}000, 1\,000."""
    return _THOUSANDS.sub("", text)


def last_number(text: str) -> float | None:
    """The last number of `text`; without digits, the last number word up to twenty; else None."""
    found = numbers(text)
    if found:
        return found[-1]
    words = _NUMBER_WORD.findall(text)
    return float(_WORDS.index(words[-1].lower())) if words else None


def last_list(text: str) -> list[str] | None:
    """The elements, as texts, of the last bracketed list in `text`; None without one."""
    found = re.findall(r"\[([^\[\]]*)\]", text)
    return [each.strip().strip("'\"") for each in found[-1].split(",")] if found else None
