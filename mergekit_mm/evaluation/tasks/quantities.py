r"""The numbers in a text, however they are written.

These are digits with separators of thousands (commas, blanks, LaTeX), decimals, signs, fractions (`3/4`, `1 1/2`, `½`,
`\frac`), powers of ten, percents, and number words ("twenty-four", "two thousand and seven", "three quarters", "a
dozen").
"""

import math
import re
import unicodedata
from dataclasses import dataclass


@dataclass(frozen=True)
class Quantity:
    """A number in a text.

    value: the number without its percent sign or "million"; scaled: with it. start, end: its place in the text.
    """

    value: float
    scaled: float
    start: int
    end: int

    def equals(self, reference: float, digits: int) -> bool:
        """Whether value or scaled value equal `reference` when rounded to `digits` decimal digits."""
        return any(round(each, digits) == round(reference, digits) for each in (self.value, self.scaled))


_POWER_OF_UNIT = re.compile(r"(?<![A-Za-z])([kcdm]?m|in|ft|s|units?|met(?:er|re)s?)(\}?)\s*\^\s*\{?-?\d\}?")
_THOUSANDS = re.compile(r"(?<=\d)(?:,|\{,\}|,?\\[,!;]|'|’)(?=\d{3}(?!\d))")  # a comma, also in LaTeX
_BLANKS = re.compile(r"(?<![\d.,/])([1-9]\d{0,2})((?: \d{3})+)(?![\d/]|[.,]\d{4}|,\d)")
_POWER_OF_NUMBER = re.compile(r"(?<=\d)[⁺⁻]?[²³¹⁰⁴-⁹]+")
_SUPERSCRIPTS = re.compile(r"[⁺⁻]?[²³¹⁰⁴-⁹]+")
_VULGAR = re.compile(r"(?<=\d)(?=[¼-¾⅐-⅞])")
_TEXT_COMMAND = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mbox|operatorname)\s*\{([^{}]*)\}")
_NOISE = re.compile(r"\\left|\\right|\\displaystyle|\\[()]|\\ |\\quad|\$|~")
_DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree|\\circ")

_ONES = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_TEENS = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_WORDS = {"zero": 0} | {word: at for at, word in enumerate([*_ONES, *_TEENS], 1)}
_WORDS |= {word: 10 * at for at, word in enumerate(_TENS, 2)} | {"a": 1, "an": 1}
_SCALES = {"hundred": 1e2, "thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12, "dozen": 12}
_SCALES |= {"k": 1e3, "m": 1e6, "bn": 1e9}
_PARTS = {
    "half": 2,
    "halves": 2,
    "third": 3,
    "quarter": 4,
    "fourth": 4,
    "fifth": 5,
    "sixth": 6,
    "eighth": 8,
    "tenth": 10,
}

_ONE = "|".join(_ONES)
_SMALL = rf"(?:(?:{'|'.join(_TENS)})(?:[\s-]+(?:{_ONE})\b)?|{'|'.join(_TEENS)}|{_ONE}|zero)"
_GROUP = rf"(?:(?:{_ONE}|a)[\s-]+hundred(?:(?:\s+and)?[\s-]+{_SMALL}\b)?|{_SMALL})"
_LARGE = rf"(?:{_GROUP}|an?)[\s-]+(?:thousand|million|billion|trillion)(?:(?:,|\s+and)?[\s-]+{_GROUP}\b)*"
_PART = r"(?:half|halves|(?:quarter|third|fourth|fifth|sixth|eighth|tenth)s?)"
_SAID = (
    rf"(?P<said>(?:{_LARGE}|(?:{_SMALL}|a)[\s-]+dozen|(?:{_ONE}|an?)[\s-]+{_PART}|half|{_GROUP})"
    rf"(?P<more>\s+point(?:\s+(?:{_ONE}|zero)\b)+)?)\b"
)
_D = r"(?:\d+(?:\.\d+)?|\.\d+)"
_WRITTEN = (
    rf"(?:(?P<whole>\d+)\s*(?:\s(?P<a>\d+)\s*/\s*(?P<b>\d+)|\\[dt]?frac\s*\{{(?P<c>\d+)\}}\s*\{{(?P<d>\d+)\}})"
    rf"|(?P<e>{_D})\s*/\s*(?P<f>{_D})(?!\s*/)|\\[dt]?frac\s*\{{\s*(?P<g>-?{_D})\s*\}}\s*\{{\s*(?P<h>{_D})\s*\}}"
    r"|\\[dt]?frac\s*(?P<i>\d)\s*(?P<j>\d)"
    rf"|(?P<number>{_D})(?:[eE](?P<exponent>[-+]?\d+)(?!\w)|\s*(?:x|×|\*|·|\\times|\\cdot)\s*10\s*\^\s*\{{?\s*(?P<ten>[-+]?\d+)\s*\}}?)?"
    r"(?![dD]\b))"
)
_SUFFIX = (
    r"(?P<half>\s+and\s+(?:a|one)\s+half\b)?(?:\s*(?P<percent>\\?%|percent\b|per\s+cent\b)"
    r"|(?P<letter>[kK]|M|bn)\b|\s*(?P<scale>hundred|thousand|million|billion|trillion|dozen)\b)?"
)
# A number may follow a letter of Chinese, Japanese or Korean, which are written without blanks, but no other letter.
_BEGINS = r"(?<!\.)(?<![^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af])"
_QUANTITY = re.compile(
    rf"{_BEGINS}(?P<sign>(?:minus|negative)\s+|[-+]\s?(?=[\d.\\]))?(?:{_WRITTEN}|{_SAID}){_SUFFIX}", re.IGNORECASE
)
_PRONOUN_BEFORE = re.compile(
    r"\b(?:the|this|that|which|each|every|any|no|another|correct|right|other|other)\s+$", re.IGNORECASE
)
_PRONOUN_AFTER = re.compile(r"\s+(?:of|on|in|with|is|can|side|another|that|who)\b", re.IGNORECASE)


def without_powers(text: str) -> str:
    """`text` with "cm^2" as "cm"."""
    return _POWER_OF_UNIT.sub(r"\1\2 ", text)


def joined(text: str) -> str:
    r"""`text` without separators of thousands: 1,000, 1{,}000, 1\,000."""
    return _THOUSANDS.sub("", text)


def plain(text: str) -> str:
    """`text` with its numbers in one form: no separators of thousands, "-" as minus, no LaTeX around them."""
    text = _POWER_OF_NUMBER.sub(lambda match: "^" + match[0], _VULGAR.sub(" ", text))
    text = re.sub(r"\^[⁺⁻]?[²³¹⁰⁴-⁹]+", lambda match: unicodedata.normalize("NFKC", match[0]), text)
    text = unicodedata.normalize("NFKC", _SUPERSCRIPTS.sub(" ", text))
    text = text.replace("\u2212", "-").replace("\u2044", "/").replace("\u2010", "-").replace("\u2011", "-")
    text = re.sub(r"(?<![\w.)\]}\s])[–—](?=\.?\d)|(?<=\s)[–—](?=\.?\d)", "-", text)
    text = _NOISE.sub(" ", _DEGREES.sub("°", _TEXT_COMMAND.sub(r" \1 ", joined(without_powers(text)))))
    return _BLANKS.sub(lambda match: match[0].replace(" ", ""), text)


def quantities(text: str) -> list[Quantity]:
    """The numbers of a text that `plain` returned, in order. "one" as a pronoun is no number."""
    return [found for match in _QUANTITY.finditer(text) if (found := _quantity(match, text)) is not None]


def _quantity(match: re.Match[str], text: str) -> Quantity | None:
    value = _said(match) if match["said"] else _written(match)
    if value is None or not math.isfinite(value):
        return None
    if match[0].lower() == "one" and (
        _PRONOUN_BEFORE.search(text[max(0, match.start() - 12) : match.start()])
        or _PRONOUN_AFTER.match(text, match.end())
    ):
        return None
    if match["half"]:
        value += 0.5
    if match["sign"] and match["sign"].strip().lower() in ("-", "minus", "negative"):
        value = -value
    scale = _SCALES.get((match["letter"] or match["scale"] or "").lower(), 1.0)
    if match["percent"]:
        scale = 0.01
    elif match["scale"] and match["scale"].lower() in ("hundred", "dozen"):
        value, scale = value * scale, 1.0
    return Quantity(value, value * scale, match.start(), match.end())


def _written(match: re.Match[str]) -> float | None:
    if match["number"] is not None:
        return float(f"{match['number']}e{match['exponent'] or match['ten'] or 0}")
    above, below = next((match[a], match[b]) for a, b in ("ab", "cd", "ef", "gh", "ij") if match[a] is not None)
    if float(below) == 0:
        return None
    return float(match["whole"] or 0) + float(above) / float(below)


def _said(match: re.Match[str]) -> float:
    more = match["more"] or ""
    words = re.split(r"[\s,-]+", match["said"][: len(match["said"]) - len(more)].lower())
    total = group = 0.0
    for word in words:
        if word in _WORDS:
            group += _WORDS[word]
        elif word == "hundred" or word == "dozen":
            group = (group or 1) * _SCALES[word]
        elif word in _SCALES:
            total, group = total + (group or 1) * _SCALES[word], 0.0
        elif (part := _PARTS.get(word) or _PARTS.get(word.removesuffix("s"))) is not None:
            group = (group or 1) / part
    decimals = "".join(str(_WORDS[each.lower()]) for each in more.split()[1:])  # after "point"
    return total + group + float(f"0.{decimals}0")
