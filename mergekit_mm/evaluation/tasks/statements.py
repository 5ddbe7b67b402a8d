"""The parts of a reply that state its answer: a box, or what follows a marker such as "the answer is"."""

import re
from collections import deque

from mergekit_mm.evaluation.tasks.replies import answer_part

_MOST = 8  # only the last statements of a reply are read, as models that loop write thousands
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_JOINS = re.compile(r"[\s$]*(?:,\s*(?:or\b|and\b)?|or\b|and\b)[\s$]*")
_EMPHASIS = re.compile(r"(?<!\w)(?:\*\*|__)|(?:\*\*|__)(?!\w)")  # emphasis of Markdown, not Python's power operator
_TO = r"(?:\s+(?:to|for|of|in|from|here|therefore|thus|then)\b[^.:=\n]{0,60}?)?(?:\s*\([^()\n]{0,30}\))?"
_VERB = r"(?<!\w)(?:is|are|was|(?:will|would|should|must|could|might|may|has\s+to|have\s+to)\s+be|equals)\b"
_IS = rf"[*_\s]*(?:{_VERB}\s*:?|:|=)"
# The words behind which an answer stands. "option B is" names an option and "options:" lists them: neither is a marker.
_MARKER = re.compile(
    rf"\b(?:(?:answer|ans\.?|choice|option)(?:\s+(?:choice|option|letter))?{_TO}{_IS}|answers(?:{_TO}\s+are\b|:))"
    r"|答案\s*(?:应该|应)?\s*(?:是|为|选|[:\uff1a])|####(?!#)",
    re.IGNORECASE,
)
# Markers that count only if the reply has none of the above.
_WEAK_MARKER = re.compile(rf"\b(?:result|solution|conclusion){_TO}{_IS}", re.IGNORECASE)
# Before and behind a marker: it is about another answer, or says that the answer is wrong.
_OF_ANOTHER = re.compile(
    r"\b(?:other|another|wrong|incorrect|false|alternative|possible|any|each|every|no|first|second|third|last)\s+$",
    re.IGNORECASE,
)
_DISMISSED = re.compile(
    r"[*_\s]*(?:(?:also|clearly|definitely|probably)\s+)?(?:wrong|incorrect|false|unknown|unclear|impossible|missing)\b",
    re.IGNORECASE,
)
# The words with which a model corrects itself; the text behind them counts before the text that they take back.
_RETRACTION = re.compile(
    r"(?<=[.!?…\n,;])\s*(?:(?:but|no|oh|hmm)\W+)?(?:wait|hold\s+on|correction|scratch\s+that|sorry|actually)\b"
    r"[^.?\n]{0,40}?\b(?:it['’]s|(?:it|that|this)\s+(?:is|should\s+be|must\s+be)|i\s+mean|i\s+meant|make\s+(?:that|it))\s+(?!not\b)",
    re.IGNORECASE,
)


def without_emphasis(text: str) -> str:
    """`text` without the ** and __ of Markdown."""
    return _EMPHASIS.sub("", text)


def statements(reply: str) -> list[str]:
    r"""The parts of `reply` that state its answer, the most authoritative first; empty if no part does.

    If the reply has a `\boxed{...}`, the only statement is the content of the last one. Otherwise each statement is the
    text from a marker ("the answer is") to the end of the reply, the last marker first. Markers of another answer ("the
    other answer is", "the answer is wrong") do not count. If the model corrects itself behind the last marker ("wait,
    it's ..."), the text behind its last correction comes first.
    """
    text = without_emphasis(answer_part(reply))
    if boxed := _last_box(text):
        return [boxed]
    for marker in (_MARKER, _WEAK_MARKER):
        last = deque((match for match in marker.finditer(text) if _is_statement(match, text)), _MOST)
        found = [text[match.end() :].strip() for match in last]
        if stated := [each for each in reversed(found) if each]:
            corrections = list(_RETRACTION.finditer(stated[0]))
            corrected = [stated[0][match.end() :].strip(" \t\n,.:;!-—") for match in corrections[-1:]]
            return [each for each in corrected if each] + stated
    return []


def stated_answer(reply: str) -> str:
    """The first of the `statements` of `reply`; the whole reply, without the ** of Markdown, if there are none."""
    return next(iter(statements(reply)), "") or without_emphasis(answer_part(reply)).strip()


def _last_box(text: str) -> str:
    r"""The content of the last `\boxed{...}`, or of the last ones if a comma, "and" or "or" joins them; else empty."""
    found, end = "", 0
    for match in deque(_BOXED.finditer(text), _MOST):
        content = braced(text, match.end())
        if content.strip():
            joins = _JOINS.fullmatch(text, end, match.start()) if found else None
            found = found + joins[0] + content.strip() if joins else content.strip()
            end = match.end() + len(content) + 1
    return found


def _is_statement(match: re.Match[str], text: str) -> bool:
    before = text[max(0, match.start() - 20) : match.start()]
    return not _OF_ANOTHER.search(before) and not _DISMISSED.match(text, match.end())


def braced(text: str, start: int) -> str:
    """The text from `start`, which is behind an opening brace, to the matching closing brace or the end of `text`."""
    depth = 1
    for at in range(start, len(text)):
        depth += (text[at] == "{") - (text[at] == "}")
        if depth == 0:
            return text[start:at]
    return text[start:]
