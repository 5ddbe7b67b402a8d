"""The number, or the list, that a reply states as its answer."""

import re
from collections.abc import Sequence
from itertools import pairwise

from mergekit_mm.evaluation.tasks.quantities import Quantity, plain, quantities
from mergekit_mm.evaluation.tasks.replies import answer_part
from mergekit_mm.evaluation.tasks.sentences import sentences, telling
from mergekit_mm.evaluation.tasks.statements import statements, without_emphasis

# The words that may stand before a number at the beginning of an answer: "about", "the number is".
_FILLER = re.compile(
    r"(?:[\s\"'“”*_(\[{≈:=>]|about\b|approximately\b|approx\b\.?|roughly\b|around\b|nearly\b|exactly\b|just\b|only\b"
    r"|equal\s+to\b|equals\b|the\s+(?:number|value|year)\b|number\b|a\s+total\s+of\b|it\s+is\b|it's\b|that\s+is\b"
    r"|there\s+(?:are|is)\b|is\b|are\b|be\b|[A-Za-z∠]{1,4}\s*=|\bUS|[€£¥₹]|yes,|so,?\b|therefore,?\b|thus,?\b)*",
    re.IGNORECASE,
)
# An operator behind a number, which is then a part of a formula.
_OPERATES = re.compile(
    r"\s*(?:\+|\.\.|[√π]|[*×÷^=<>:]\s*[\w\\(.]|/\s*\w|x\s*\d|-\s*\d|\\(?:times|cdot|div|sqrt|pi)|[xyzn](?![a-z])"
    r"|(?:plus|minus|times|divided|multiplied)\b)",
    re.IGNORECASE,
)
_UNIT = r"(?:\s*[°%]|\s*[^\W\d_][\w/^.]{0,14}|\s*[€£¥]){0,2}"
# Behind a number and its unit: the answer ends there, or goes on with a reason.
_STOPS = re.compile(rf"{_UNIT}\s*(?:$|\n|[.!?;)\]}}\"'”*,(—]|-\s|\b(?:because|since|as|due|for)\b)", re.IGNORECASE)
_REASONS = re.compile(rf"{_UNIT}\s*,?\s*(?:because|since|as|which|due|given|where|for|so|\()", re.IGNORECASE)
_NAMED = r"(?:(?!total|sum|difference|result|answer)[A-Za-z]\w{0,14}(?:\([a-z]\))?\s*[=:]\s*)?"  # "x = 2, y = 3"
# Between two numbers: they belong to alternatives or a range, or to a list.
_JOINS = re.compile(
    rf"{_UNIT}\s*(?:,\s*(?:and|or)|,|、|和|或|;|\bor|\band|\bto|&|/|-|–|—|±|(?<=\s):|:(?!\s)|\.\.+|…)\s*{_NAMED}[€£¥(]?\s*",
    re.IGNORECASE,
)
_LISTS = re.compile(
    rf"{_UNIT}\s*(?:,\s*and|,|、|和|;|\band|\bas\s+well\s+as|&)(?:\s+also|\s+then)?\s*(?:(?:in|on|at|the|years?|number)\s+)*{_NAMED}"
    r"[€£¥(\"']?\s*",
    re.IGNORECASE,
)
# Words before a number that make it a label, a condition or a bound, and words behind a number that is denied.
_LABELS = re.compile(
    r"(?:figure|fig\.?|step|image|picture|panel|table|question|part|equation|line|row|column|option|choice|angle|∠|page)"
    r"\s*$",
    re.IGNORECASE,
)
_CONDITION = re.compile(r"\b(?:at|when|where|for|if|with|given|let)\s+[A-Za-z]\w?\s*=\s*$", re.IGNORECASE)
_BOUNDS = re.compile(
    r"(?:more\s+than|less\s+than|fewer\s+than|greater\s+than|larger\s+than|smaller\s+than|at\s+least|at\s+most|up\s+to"
    r"|\bnot|n't|between|over|under|above|below|[<>≤≥≠]|\\[lg]eq?)\s*$",
    re.IGNORECASE,
)
_DENIES = re.compile(rf"{_UNIT}\s+(?:is|are)\s+(?:not|wrong|incorrect|false|too)\b", re.IGNORECASE)
# Words before or behind a number to which a sentence leads.
_CUES = re.compile(
    r"(?:[=≈→:]|\\approx|\b(?:is|are|was|were|be|equals?|makes?|gives?|gave|get|gets|got|obtain|have|has|leaves|leaving|"
    r"totals?|totaling|giving|making|(?:value|total)\s+of|yields?|yielding|becomes?|means|counted|count|so|therefore|thus|hence|i\.e\.,?|namely)\b|总共有?|一共有?|等于)[\s\"'“*(€£¥,]*"
    r"(?:(?:at|about|approximately|roughly|around|nearly|exactly|only|just|equal\s+to|a\s+total\s+of)\s+)?[\s€£¥(]*$",
    re.IGNORECASE,
)
_IN_TOTAL = re.compile(r"(?:\s+\w+){0,3}?\s+(?:in\s+total|altogether|in\s+all|overall|remain)\b", re.IGNORECASE)
_BULLET = re.compile(r"^[ \t]*[-*•][ \t]+", re.MULTILINE)
_BARE = re.compile(r"[^A-Za-z]*")
_AFTER_OPERATOR = re.compile(r"(?:[√^*/×÷]|\\sqrt|\\times|\\cdot)[\s{(]*$")
_ENUMERATED = re.compile(r"^\s*[*_]*(\d{1,2})[.)](?=\s+\S)", re.MULTILINE)


def stated_number(reply: str) -> Quantity | None:
    """The number that `reply` states as its answer; None if it states none, or several.

    Behind a marker ("the answer is") it is the first number. Without a marker it is the number that the reply begins
    with, if the reply ends there or goes on with a reason; else a number of the last sentence with numbers: the only
    one, or the one that the sentence leads to ("3 + 4 = 7", "so there are 7"). Numbers of a range, a list or
    alternatives do not count.
    """
    for statement in statements(reply):
        text = plain(statement)
        first = sentences(text)[0] if sentences(text) else text
        numbered = quantities(first)
        if any(not _is_bounded(each, first) for each in numbered):
            opening = _opening(first, numbered, strict=False)
            return opening or (None if _is_joined(numbered, 0, first) else _concluding(first, numbered))
    text = plain(without_emphasis(answer_part(reply))).strip()
    enumerated = [int(each[1]) for each in _ENUMERATED.finditer(text)]
    if enumerated[:2] == [1, 2] or (enumerated == [1] and quantities(_ENUMERATED.sub("", text))):
        text = _ENUMERATED.sub("", text)
    bullets = _BULLET.findall(text)
    spoken = telling(_BULLET.sub("", text) if len(bullets) > 1 else text)
    if not spoken:
        return None
    lines = [quantities(line) for line in spoken if _BARE.fullmatch(line)]
    if len(lines) == len(spoken) and len({each[0].value for each in lines if each}) > 1:
        return None
    if len(bullets) < 2 and (found := _opening(spoken[0], quantities(spoken[0]), strict=True)):
        return found
    for sentence in reversed(spoken):
        if numbered := quantities(sentence):
            return _concluding(sentence, numbered)
    return None


def _opening(text: str, found: Sequence[Quantity], strict: bool) -> Quantity | None:
    """The number that `text` begins with. strict: the text must end there, or go on with a reason."""
    if not found or not _FILLER.fullmatch(text[: found[0].start]):
        return None
    first = found[0]
    if _OPERATES.match(text, first.end) or _is_joined(found, 0, text):
        return None
    if not strict:
        return first
    ends = _STOPS.match(text, first.end) and (len(found) == 1 or _REASONS.match(text, first.end))
    return first if ends else None


def _is_bounded(number: Quantity, text: str) -> bool:
    """Whether a number is a bound or is denied, and so is no value: "more than 5", "not 5"."""
    return bool(_BOUNDS.search(text[max(0, number.start - 20) : number.start]) or _DENIES.match(text, number.end))


def _is_joined(found: Sequence[Quantity], at: int, text: str) -> bool:
    """Whether a number belongs to a range, a list or alternatives: "3 or 4", "3-5", "3 cats and 4 dogs"."""
    gaps = [text[a.end : b.start] for a, b in pairwise(found[max(0, at - 1) : at + 2])]
    return any(_JOINS.fullmatch(gap) for gap in gaps)


def _concluding(text: str, found: Sequence[Quantity]) -> Quantity | None:
    """The number that a sentence leads to, or its only number."""
    given = [each for each in found if _CONDITION.search(text[max(0, each.start - 16) : each.start])]
    found = [each for each in found if each not in given] or found
    free = [each for each in found if not _is_bounded(each, text)]
    unlabelled = [each for each in free if not _LABELS.search(text[max(0, each.start - 12) : each.start])]
    joined = {each.start for at, each in enumerate(found) if _is_joined(found, at, text)}
    candidates = [each for each in unlabelled or free if each.start not in joined]
    if totals := [each for each in unlabelled or free if _IN_TOTAL.match(text, each.end)]:
        return totals[-1]
    if len(unlabelled or free) == 1:
        only = (unlabelled or free)[0]
        computed = _OPERATES.match(text, only.end) or _AFTER_OPERATOR.search(text[max(0, only.start - 12) : only.start])
        return None if computed or only not in candidates else only
    cued = [each for each in candidates if _CUES.search(text[max(0, each.start - 40) : each.start])]
    cued = [each for each in cued if not _OPERATES.match(text, each.end)]
    return cued[-1] if cued else None


def stated_list(reply: str) -> list[str] | None:
    """The elements, as texts, of the list that `reply` states; None if it states none.

    A list stands in brackets of any kind, or is written out: "2007 and 2008", "2, 3 and 5". A number alone is a list of
    one element.
    """
    whole = without_emphasis(answer_part(reply)).strip()
    for text in (*statements(reply), whole):
        bracketed = last_list(text) if text is whole else first_list(text)
        if found := bracketed or _numbers_by_line(text) or _enumeration(text):
            return found
    alone = stated_number(reply)
    return None if alone is None else [repr(alone.value)]


def first_list(text: str) -> list[str] | None:
    """The elements, as texts, of the first list in square brackets in `text`; None if there is none."""
    found = re.search(r"\[([^\[\]]*)\]", text)
    return _elements(found[1]) if found else None


def last_list(text: str) -> list[str] | None:
    """The elements, as texts, of the last list in square brackets in `text`; None if there is none."""
    found = re.findall(r"\[([^\[\]]*)\]", text)
    return _elements(found[-1]) if found else None


def _elements(inside: str) -> list[str]:
    found = [each.strip().strip("'\"") for each in re.split("[,;]", inside)]
    return found if len(found) > 1 else _numbers_apart(found[0])


def _numbers_apart(text: str) -> list[str]:
    """The numbers in `text` if it consists of numbers and blanks; else `text` as the only element."""
    parts = text.split()
    return parts if parts and all(re.fullmatch(r"-?\d+(?:\.\d+)?", each) for each in parts) else [text]


def _numbers_by_line(text: str) -> list[str] | None:
    """Several numbers with one number per line, behind bullets or enumeration if there are any; else None."""
    found = []
    for line in filter(str.strip, plain(text).split("\n")):
        entry = _ENUMERATED.sub("", _BULLET.sub("", line)).strip()
        numbered = quantities(entry)
        if len(numbered) != 1 or not (_BARE.fullmatch(entry) or (entry != line.strip() and numbered[0].start == 0)):
            return None
        found.append(entry[numbered[0].start : numbered[0].end])
    return found if len(found) > 1 else None


def _enumeration(text: str) -> list[str] | None:
    """The elements of a list in parentheses or braces, else of the last sentence that lists numbers; else None."""
    if round_ := re.search(r"\(([^()]*,[^()]*)\)|\\?\{([^{}]*,[^{}]*?)\\?\}", text):
        return _elements(round_[1] or round_[2])
    for sentence in reversed(telling(plain(text))):
        found = quantities(sentence)
        runs: list[list[Quantity]] = [found[:1]]
        for before, after in pairwise(found):
            if _LISTS.fullmatch(sentence[before.end : after.start]):
                runs[-1].append(after)
            else:
                runs.append([after])
        longest = max(runs, key=len)
        if len(longest) > 1:
            return [sentence[each.start : each.end] for each in longest]
    return None
