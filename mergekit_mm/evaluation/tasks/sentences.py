"""The sentences of a text: which of them may state an answer, and where a sentence goes on to give its reason."""

import re

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+|。")
_REASON = re.compile(
    r"\b(?:because|since|due\s+to|given\s+that|which\s+(?:is|means|gives|makes)|as\s+(?=\S+\s+(?:is|are|has|have)\b))",
    re.IGNORECASE,
)
_NOTE = re.compile(
    r"[\s*_#>(-]*(?:note|notes|explanation|reason|reasoning|rationale|because|since|justification|verification|check"
    r"|however|here'?s\s+why)\b",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"\b(?:can(?:no|')t|cannot|unable|impossible|not\s+possible|do(?:es)?n(?:o|')t\s+know|don[o']?t\s+know|insufficient"
    r"|not\s+enough|unclear|unanswerable|not\s+visible|not\s+sure|sorry)\b",
    re.IGNORECASE,
)


def sentences(text: str) -> list[str]:
    """The sentences and lines of `text` that have words in them, in order."""
    return [each.strip() for each in _SENTENCE_END.split(text) if re.search(r"\w", each)]


def telling(text: str) -> list[str]:
    """The sentences of `text` that may state an answer: no refusals, and no notes after the first sentence."""
    found = sentences(text)
    kept = [each for at, each in enumerate(found) if not (at and _NOTE.match(each))]
    return [each for each in kept if not _REFUSAL.search(each)]


def refuses(text: str) -> bool:
    """Whether `text` has words of a refusal: "cannot", "not enough", "sorry"."""
    return bool(_REFUSAL.search(text))


def without_reason(text: str) -> str:
    """`text` up to a "because", "since" or the like; the whole text if it begins with such a word."""
    match = _REASON.search(text)
    before = text[: match.start()].rstrip(" \t\n,;:(*—-") if match else ""
    return before if re.search(r"\w", before) else text
