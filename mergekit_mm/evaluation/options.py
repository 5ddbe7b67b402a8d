"""Multiple choice: which option a reply names, and the score of AVQA."""

import re
from collections.abc import Sequence
from itertools import pairwise
from string import ascii_uppercase

from mergekit_mm.evaluation.quantities import plain, quantities
from mergekit_mm.evaluation.reading import stated_number
from mergekit_mm.evaluation.replies import answer_part
from mergekit_mm.evaluation.statements import refuses, sentences, statements, telling, without_emphasis, without_reason

# A capital letter on its own, with what may stand around it. "A" and "I" before a lower-case word are words, unless the
# word goes on about an option. A letter behind a number is a unit (25 C). ASCII: as in "答案是B".
_ABOUT = r"(?:or|and|is|was|because|since|as|but|not|nor|looks|seems|fits|matches)\b"
_LETTER = rf"(?<![\w'’°])(?<!\d )(?![AI]\s+(?!{_ABOUT})[a-z])(?!I['’])([A-Z])(?![\w'’]|-\w|\s*=)"
_LONE = re.compile(_LETTER, re.ASCII)
# Letters that name points and sides of a figure, or other things than an option.
_NAMED_THINGS = re.compile(
    r"(?:\b(?:angles?|points?|vertex|vertices|sides?|lines?|segments?|circles?|arcs?|planes?|cent(?:er|re)|nodes?|at|from|to"
    r"|between|vitamin|type|figure|panel|person|object|city|team|curve|graph|variable)|[∠△])\s*$",
    re.IGNORECASE,
)
_FULL_WIDTH = {at: at - 0xFEE0 for at in range(0xFF01, 0xFF5F)}  # to ASCII
_GROUP = r"\(?[A-Z]\)?(?:(?:\s*,\s*|\s*/\s*|\s*,?\s+(?:and|or|nor)\s+)\(?[A-Z]\)?){0,9}"
_NEGATED = re.compile(
    rf"(?:\b(?:[Nn]ot|[Nn]ever)|n['’]t)\s+(?:choose|pick|select|say|go\s+with)\s+(?:[Oo]ption\s+)?{_GROUP}(?![\w'’])"
    rf"|\b(?:[Nn]ot|[Nn]either|[Nn]or|[Rr]ather\s+than|[Ii]nstead\s+of|isn['’]t|excluding|except)\s+"
    rf"(?:an?\s+|the\s+)?(?:[Oo]ptions?\s+|[Cc]hoices?\s+)?{_GROUP}(?![\w'’])"
    rf"|(?<![\w'’])(?:[Oo]ptions?\s+|[Cc]hoices?\s+)?{_GROUP}\s+(?:(?:is|are|was|were|seems?|looks?)\s+(?:all\s+|both\s+|clearly\s+)?"
    r"(?:not|wrong|incorrect|false|too|ruled\s+out|eliminated|impossible|invalid)\b|isn['’]t|aren['’]t|can(?:not|['’]t)\b|does(?:n['’]t|\s+not)\b)",
    re.ASCII,
)
_OPENING = re.compile(
    r"[\W_]*(?:(?:definitely|clearly|probably|likely|simply|most\s+likely|it\s+is|it['’]s|option|choice|answer|letter)[\W_]+)*"
    r"([A-Za-z])(?=([\s)\]}.:,;*\"'”’—/&|-]|$))",
    re.IGNORECASE | re.ASCII,
)
_ALTERNATIVE = re.compile(
    r"[)\]*\"']*(?:\s*[,/&]\s*(?:and\s+|or\s+)?|\s*,?\s+(?:and|or)\s+|\s+)[(\[*\"']*([A-Z])(?![\w'’])", re.ASCII
)
_ENDS = re.compile(
    r"[)\]}*\"'”’]*\s*(?:$|\n|[.,:;!)\]—]|-\s|\((?![A-Z]\))|\b(?:because|since|as|is\s+(?:the\s+)?(?:correct|right|best|true|my|most|answer)|for|due)\b)",
    re.ASCII,
)
_CORRECT = re.compile(
    r"(?:must\s+be|should\s+be|would\s+be|is|seems(?:\s+to\s+be)?|appears(?:\s+to\s+be)?)\s+(?:the\s+|therefore\s+|thus\s+|definitely\s+)?"
    r"(?:only\s+|most\s+)?(?:correct|right|best|true|answer|likely|appropriate)\b"
)
_NAMES_CORRECT = re.compile(rf"{_LETTER}[)\]*\"']*\s+{_CORRECT.pattern}", re.ASCII)
_CHOOSES = re.compile(
    r"\b(?:choose|chose|pick|picked|select|selected|go\s+with|going\s+with|guess|opt\s+for|vote\s+for|answer|say)\s+"
    r"(?:(?:option|choice|answer|letter)\s+)?[(\[*\"'“]*([A-Z])(?![\w'’]|\s+(?!because|since|as\b|for\b|is\b)[a-z])",
    re.ASCII,
)
_CONCLUDES = re.compile(
    r"\b(?:[Ss]o|[Tt]hus|[Tt]herefore|[Hh]ence)\b[\s,:]+(?:(?:it\s+is|it\s+must\s+be|it['’]s|option|choice)\s+)?"
    r"[(\[*\"']*([A-Z])[)\]*\"'.!]*\s*$",
    re.ASCII,
)
_NOT_BEFORE = re.compile(r"\b(?:not|n['’]t|never|neither|nor|cannot)\b[^.\n]*$", re.IGNORECASE)
_LISTED = re.compile(r"(?:^|\n)[ \t]*\(?([A-Z])[).:][ \t]+\S[^\n]*")


def read_option(reply: str, choices: Sequence[str]) -> str | None:
    """The letter of the one option that `reply` names, or None.

    In this order: the reply is an option's text; what it states behind a marker ("the answer is"), the last statement
    first; what it begins with; its last line; "B is correct", "I choose B"; exactly one capital option letter that
    stands alone; exactly one option's text; the option of the number that it states. Options that it rules out, and a
    list of all options, do not count; of several options none does.
    """
    text = answer_part(reply).translate(_FULL_WIDTH)
    if named := _by_equal_text(text, choices):
        return named
    text = without_listing(without_emphasis(text), choices)
    reader = _Reader(choices)
    for statement in statements(text):
        found = reader.statement(statement)
        if found is not None:
            return found or None
    return reader.whole(text)


def is_bare_option(reply: str, choices: Sequence[str]) -> bool:
    """Whether `reply` is nothing but an option's letter or text."""
    text = without_emphasis(answer_part(reply)).strip()
    alone = re.fullmatch(r"[\W_]*([A-Z])[\W_]*", text)
    return bool(alone and alone[1] in ascii_uppercase[: len(choices)]) or _by_equal_text(text, choices) is not None


class _Reader:
    """Reads what may name one of `choices`: its letter, None for nothing, "" for several options at once."""

    def __init__(self, choices: Sequence[str]) -> None:
        self.choices = choices
        self.letters = ascii_uppercase[: len(choices)]
        texts = "|".join(re.escape(text) for each in choices if len(text := each.strip()) > 1 or text.isdigit())
        self._denied = re.compile(
            rf"(?<![\w.])(?:not|isn['’]t)\s+(?:(?:an?|the)\s+)?(?:{texts})(?!\w|\.\d)"
            rf"|(?<![\w.])(?:{texts})\s+(?:is|are)\s+(?:not|wrong|incorrect|false|too)\b"
            if texts
            else r"(?!)",
            re.IGNORECASE,
        )

    def without_denied(self, text: str) -> str:
        """`text` without the options that it rules out: "not A", "C and D are wrong", "5 cm is too short"."""
        return self._denied.sub(" ", _NEGATED.sub(" ", text))

    def statement(self, text: str) -> str | None:
        """Of what follows a marker."""
        text = self.without_denied(text)
        if (found := self.opening(text)) is not None:
            return found
        for part in (*sentences(text)[:1], text):
            part = without_reason(part)
            found = self.lone_letter(part) or self.contained_text(part) or self.number(part) or self.bare_text(part)
            if found is not None:
                return found
        return None

    def whole(self, text: str) -> str | None:
        """Of a reply without markers."""
        text = self.without_denied(text).strip()
        lines = [line.strip() for line in text.split("\n") if re.search(r"\w", line)]
        if not lines:
            return None
        if len({found for line in lines if (found := self.alone(line))}) > 1 and all(map(self.alone, lines)):
            return None
        if (found := self.opening(lines[0], strict=True)) is not None:
            return found or None
        if len(lines) > 1 and (found := self.alone(lines[-1])):
            return found
        if (concluded := _CONCLUDES.search(text)) and concluded[1] in self.letters:
            return concluded[1]
        for pattern in (_NAMES_CORRECT, _CHOOSES):
            named = [match for match in pattern.finditer(text) if match[1] in self.letters]
            named = [
                match for match in named if not _NOT_BEFORE.search(text[max(0, match.start() - 40) : match.start()])
            ]
            if named:
                return named[-1][1]
        stated = " ".join(telling(text)) if refuses(text) else text
        for part in (stated, "\n".join(lines)) if stated else ():
            if (
                found := self.lone_letter(part)
                or self.contained_text(without_reason(part))
                or self.contained_text(part)
            ):
                return found
        return self.number(text) or self.bare_text(text)

    def opening(self, text: str, strict: bool = False) -> str | None:
        """The option that `text` begins with. `strict`: only if it then ends, stops or goes on with a reason."""
        match = _OPENING.match(text)
        if match and (letter := match[1].upper()) in self.letters and self._is_letter(text, match, strict):
            own = re.escape(self.choices[self.letters.index(letter)].strip())
            named = re.compile(rf"[\W_]*{own}(?!\w)[.]?", re.IGNORECASE).match(text, match.end(1)) if own else None
            other = _ALTERNATIVE.match(text, named.end() if named else match.end(1))
            return "" if other and other[1] in self.letters and other[1] != letter else letter
        body = text.lstrip("\"'“*([ \t\n$:")
        for letter, choice in sorted(zip(self.letters, self.choices, strict=False), key=lambda pair: -len(pair[1])):
            wanted = choice.strip()
            if len(wanted) > 1 or wanted.isdigit():
                if not body.lower().startswith(wanted.lower()) or re.match(r"\w|\.\d", body[len(wanted) :]):
                    continue
                rest = body[len(wanted) :]
                if self._goes_on_with_another(rest):
                    return ""
                return letter if _ENDS.match(rest) else None
        return None

    def _goes_on_with_another(self, text: str) -> bool:
        """Whether `text`, which follows an option, joins another one to it: "or the red one" but not ", no doubt"."""
        others = "|".join(re.escape(choice.strip()) for choice in self.choices if choice.strip())
        joins = rf"\s*(?:,|/|,?\s*\b(?:or|and))\s*(?:(?:the|an?)\s+)?(?:{others})\s*(?:$|[.,;!?]|\b(?:or|and)\b)"
        return bool(re.match(joins, text, re.IGNORECASE))

    def _is_letter(self, text: str, match: re.Match[str], strict: bool) -> bool:
        """Whether the letter that a text begins with is an option's: "a dog" is none, "A. a dog" and "(a)" are."""
        after = text[match.end(1) :]
        own = self.choices[self.letters.index(match[1].upper())].strip().lower()
        if own and re.match(r"[\W_]*" + re.escape(own) + r"(?!\w)", after.lower()):
            return True
        if match[1].islower():
            return bool(
                re.fullmatch(r"[)\]}.\"'”’*:,\s]*", after) or re.match(r"[)\]]", after) or re.match(r"[.:]\s*\n", after)
            )
        if match[1] in "AI" and re.match(rf"\s+(?!{_ABOUT})[a-z]", after):
            return False
        if strict:
            return bool(_ENDS.match(after) or re.match(r"\s*[)\]]", after) or _ALTERNATIVE.match(after))
        return not re.match(r"['’]|-\w", after)

    def alone(self, line: str) -> str | None:
        """The option that is all of a line, but for words such as "so" and "therefore"."""
        line = re.sub(r"^(?:so|thus|therefore|hence|i\s+choose)\b[\s,:]*", "", line, flags=re.IGNORECASE)
        match = re.fullmatch(r"[\W_]*(?:(?:option|choice)[\W_]*)?([A-Z])[\W_]*", line, re.ASCII)
        return match[1] if match and match[1] in self.letters else _by_equal_text(line.rstrip("."), self.choices)

    def lone_letter(self, text: str) -> str | None:
        """The one option letter that stands alone in `text`, names of points left out where others are left."""
        found = [match for match in _LONE.finditer(text) if match[1] in self.letters]
        free = [each for each in found if not _NAMED_THINGS.search(text[max(0, each.start() - 12) : each.start()])]
        return _only(sorted({match[1] for match in free}))

    def contained_text(self, text: str) -> str | None:
        """Longer options first, and cut out where they occur: "dark red" does not name "red" as well."""
        rest, found = text.lower(), []
        for letter, choice in sorted(zip(self.letters, self.choices, strict=False), key=lambda pair: -len(pair[1])):
            wanted = choice.strip().lower()
            whole = re.compile(rf"(?<![\w.\u2212-]){re.escape(wanted)}(?!\w|\.\d)")
            if len(wanted) > 1 or wanted.isdigit():
                rest, count = whole.subn("\n", rest)
                found += [letter] if count else []
        return _only(found)

    def number(self, text: str) -> str | None:
        """Of options that are numbers, the one that equals the number stated in `text`: "145 degrees" is "145°"."""
        worth = [quantities(plain(choice)) for choice in self.choices]
        if not worth or any(len(each) != 1 for each in worth) or (stated := stated_number(text)) is None:
            return None
        values = [(each[0].value, each[0].scaled) for each in worth]
        return _only(
            [at for at, each in zip(self.letters, values, strict=False) if any(stated.equals(v, 9) for v in each)]
        )

    def bare_text(self, text: str) -> str | None:
        """The option that equals `text` but for signs."""
        wanted = _bare(text)
        same = [letter for letter, choice in zip(self.letters, self.choices, strict=False) if _bare(choice) == wanted]
        return _only(same) if wanted else None


def without_listing(text: str, choices: Sequence[str]) -> str:
    """`text` without a list of all options, which some models repeat before they answer."""
    letters = ascii_uppercase[: len(choices)]
    if len(letters) > 1 and all(choice.strip() for choice in choices):
        entries = (rf"\(?{at}[).:]?\s*{re.escape(text.strip())}" for at, text in zip(letters, choices, strict=False))
        if found := re.search(r"(?<!\w)" + r"[\s,;.|]*".join(entries) + r"(?!\w)[,;.]?", text, re.IGNORECASE):
            text = text[: found.start()] + "\n" + text[found.end() :]
    listed = list(_LISTED.finditer(text))
    if len(listed) > 2 and [match[1] for match in listed] == list(ascii_uppercase[: len(listed)]):
        joined = all(not text[a.end() : b.start()].strip() for a, b in pairwise(listed))
        text = text[: listed[0].start()] + "\n" + text[listed[-1].end() :] if joined else text
    return text


def _only(found: Sequence[str]) -> str | None:
    return found[0] if len(found) == 1 else None


def _by_equal_text(reply: str, choices: Sequence[str]) -> str | None:
    text = reply.strip().lower()
    same = [letter for letter, choice in zip(ascii_uppercase, choices, strict=False) if choice.strip().lower() == text]
    return _only(same) if len(text) > 1 or text.isdigit() else None  # one character is a letter first


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
