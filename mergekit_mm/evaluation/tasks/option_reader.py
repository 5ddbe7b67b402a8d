"""The option of a multiple choice that a text names: by its letter, by its text, or by a number that it equals."""

import re
from collections.abc import Sequence
from itertools import pairwise
from string import ascii_uppercase

from mergekit_mm.evaluation.tasks.quantities import plain, quantities
from mergekit_mm.evaluation.tasks.sentences import refuses, sentences, telling, without_reason
from mergekit_mm.evaluation.tasks.stated_answers import stated_number

# A capital letter that stands alone. "A" and "I" before a lower-case word are words, unless that word continues a
# sentence about an option. A letter behind a number is a unit (25 C). Word boundaries are ASCII, so that the letter in
# "答案是B" stands alone.
_ABOUT = r"(?:or|and|is|was|because|since|as|but|not|nor|looks|seems|fits|matches)\b"
_LETTER = rf"(?<![\w'’°])(?<!\d )(?![AI]\s+(?!{_ABOUT})[a-z])(?!I['’])([A-Z])(?![\w'’]|-\w|\s*=)"
_LONE = re.compile(_LETTER, re.ASCII)
# Words before a letter that names a point or a side of a figure, or another thing than an option.
_NAMED_THINGS = re.compile(
    r"(?:\b(?:angles?|points?|vertex|vertices|sides?|lines?|segments?|circles?|arcs?|planes?|cent(?:er|re)|nodes?|at|from|to"
    r"|between|vitamin|type|figure|panel|person|object|city|team|curve|graph|variable)|[∠△])\s*$",
    re.IGNORECASE,
)
_GROUP = r"\(?[A-Z]\)?(?:(?:\s*,\s*|\s*/\s*|\s*,?\s+(?:and|or|nor)\s+)\(?[A-Z]\)?){0,9}"
# Options that a text rules out.
_NEGATED = re.compile(
    rf"(?:\b(?:[Nn]ot|[Nn]ever)|n['’]t)\s+(?:choose|pick|select|say|go\s+with)\s+(?:[Oo]ption\s+)?{_GROUP}(?![\w'’])"
    rf"|\b(?:[Nn]ot|[Nn]either|[Nn]or|[Rr]ather\s+than|[Ii]nstead\s+of|isn['’]t|excluding|except)\s+"
    rf"(?:an?\s+|the\s+)?(?:[Oo]ptions?\s+|[Cc]hoices?\s+)?{_GROUP}(?![\w'’])"
    rf"|(?<![\w'’])(?:[Oo]ptions?\s+|[Cc]hoices?\s+)?{_GROUP}\s+(?:(?:is|are|was|were|seems?|looks?)\s+(?:all\s+|both\s+|clearly\s+)?"
    r"(?:not|wrong|incorrect|false|too|ruled\s+out|eliminated|impossible|invalid)\b|isn['’]t|aren['’]t|can(?:not|['’]t)\b|does(?:n['’]t|\s+not)\b)",
    re.ASCII,
)
# The beginning of a text that names an option: the letter, and the sign behind it.
_OPENING = re.compile(
    r"[\W_]*(?:(?:definitely|clearly|probably|likely|simply|most\s+likely|it\s+is|it['’]s|option|choice|answer|letter)[\W_]+)*"
    r"([A-Za-z])(?=([\s)\]}.:,;*\"'”’—/&|-]|$))",
    re.IGNORECASE | re.ASCII,
)
# Another option joined to one: ", B", "or B".
_ALTERNATIVE = re.compile(
    r"[)\]*\"']*(?:\s*[,/&]\s*(?:and\s+|or\s+)?|\s*,?\s+(?:and|or)\s+|\s+)[(\[*\"']*([A-Z])(?![\w'’])", re.ASCII
)
# The text behind an option ends there, or goes on with a reason.
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
# The end of a text that concludes with an option: "so B".
_CONCLUDES = re.compile(
    r"\b(?:[Ss]o|[Tt]hus|[Tt]herefore|[Hh]ence)\b[\s,:]+(?:(?:it\s+is|it\s+must\s+be|it['’]s|option|choice)\s+)?"
    r"[(\[*\"']*([A-Z])[)\]*\"'.!]*\s*$",
    re.ASCII,
)
# A line that judges one option to be correct: "B. blue: correct".
_JUDGED = re.compile(
    r"^[\W_]*(?:(?:[Oo]ption|[Cc]hoice)\s+)?([A-Z])\b(?![^\n]*\b(?:[Nn]ot|in|In)\s?correct)[^\n]*?[:—–(-]\s*"
    r"(?:(?:[Tt]his\s+is\s+|[Ii]s\s+)?(?:the\s+)?(?:[Cc]orrect|[Rr]ight|[Tt]rue|CORRECT|TRUE)(?:\s+(?:answer|option))?\b|✓|✔|✅)[^\w\n]*$",
    re.MULTILINE | re.ASCII,
)
# A negation in the same sentence before a match.
_NOT_BEFORE = re.compile(r"\b(?:not|n['’]t|never|neither|nor|cannot)\b[^.\n]*$", re.IGNORECASE)
# An entry in a list of options.
_LISTED = re.compile(r"(?:^|\n)[ \t]*\(?([A-Z])[).:][ \t]+\S[^\n]*")


class OptionReader:
    """Reads which of `choices` a text names.

    The methods return the letter of the option, None if they find none, and "" if they find several options joined
    ("A or B"), so that no other rule is tried.
    """

    def __init__(self, choices: Sequence[str]) -> None:
        self.choices = choices
        self.letters = ascii_uppercase[: len(choices)]
        texts = "|".join(re.escape(text) for _, text in self._longest_first())
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
        """The option that the text behind a marker ("the answer is") names."""
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
        """The option that a reply without markers names."""
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

    def judged(self, text: str) -> str | None:
        """The option of the only line that judges an option to be correct: "B. blue: correct"."""
        found = {match[1] for match in _JUDGED.finditer(text) if match[1] in self.letters}
        return only(sorted(found)) if len(found) < 2 else ""

    def opening(self, text: str, strict: bool = False) -> str | None:
        """The option that `text` begins with. strict: the text must then end, or go on with a reason."""
        by_letter = self._opening_letter(text, strict)
        return self._opening_text(text) if by_letter is None else by_letter

    def _opening_letter(self, text: str, strict: bool) -> str | None:
        match = _OPENING.match(text)
        letter = match[1].upper() if match else ""
        if not match or letter not in self.letters or not self._is_letter(text, match, strict):
            return None
        own = re.escape(self.choices[self.letters.index(letter)].strip())
        named = re.compile(rf"[\W_]*{own}(?!\w)[.]?", re.IGNORECASE).match(text, match.end(1)) if own else None
        other = _ALTERNATIVE.match(text, named.end() if named else match.end(1))
        return "" if other and other[1] in self.letters and other[1] != letter else letter

    def _opening_text(self, text: str) -> str | None:
        body = text.lstrip("\"'“*([ \t\n$:")
        for letter, wanted in self._longest_first():
            rest = body[len(wanted) :]
            if body.lower().startswith(wanted) and not re.match(r"\w|\.\d", rest):
                if self._goes_on_with_another(rest):
                    return ""
                return letter if _ENDS.match(rest) else None
        return None

    def _longest_first(self) -> list[tuple[str, str]]:
        """Letters and lower-case texts of the options, longest first, without those whose text is a single letter."""
        texts = [(at, choice.strip().lower()) for at, choice in zip(self.letters, self.choices, strict=False)]
        return sorted((each for each in texts if len(each[1]) > 1 or each[1].isdigit()), key=lambda pair: -len(pair[1]))

    def _goes_on_with_another(self, text: str) -> bool:
        """Whether `text`, which follows an option, joins another option to it: "or the red", but not ", no doubt"."""
        others = "|".join(re.escape(choice.strip()) for choice in self.choices if choice.strip())
        joins = rf"\s*(?:,|/|,?\s*\b(?:or|and))\s*(?:(?:the|an?)\s+)?(?:{others})\s*(?:$|[.,;!?]|\b(?:or|and)\b)"
        return bool(re.match(joins, text, re.IGNORECASE))

    def _is_letter(self, text: str, match: re.Match[str], strict: bool) -> bool:
        """Whether the first letter of a text is an option's letter, as in "A. a dog" and "(a)" but not in "a dog"."""
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
        """The option that makes up a whole line, but for words such as "so" and "therefore"."""
        line = re.sub(r"^(?:so|thus|therefore|hence|i\s+choose)\b[\s,:]*", "", line, flags=re.IGNORECASE)
        match = re.fullmatch(r"[\W_]*(?:(?:option|choice)[\W_]*)?([A-Z])[\W_]*", line, re.ASCII)
        return match[1] if match and match[1] in self.letters else equal_text(line.rstrip("."), self.choices)

    def lone_letter(self, text: str) -> str | None:
        """The only option letter that stands alone in `text`; letters that name points and the like do not count."""
        found = [match for match in _LONE.finditer(text) if match[1] in self.letters]
        free = [each for each in found if not _NAMED_THINGS.search(text[max(0, each.start() - 12) : each.start()])]
        return only(sorted({match[1] for match in free}))

    def contained_text(self, text: str) -> str | None:
        """The only option whose text occurs in `text`. "dark red" does not count as "red" too."""
        rest, found = text.lower(), []
        for letter, wanted in self._longest_first():
            rest, count = re.subn(rf"(?<![\w.\u2212-]){re.escape(wanted)}(?!\w|\.\d)", "\n", rest)
            found += [letter] if count else []
        return only(found)

    def number(self, text: str) -> str | None:
        """If all options are numbers, the option that equals the number stated in `text`: "145 degrees" is "145°"."""
        worth = [quantities(plain(choice)) for choice in self.choices]
        if not worth or any(len(each) != 1 for each in worth) or (stated := stated_number(text)) is None:
            return None
        values = [(each[0].value, each[0].scaled) for each in worth]
        return only(
            [at for at, each in zip(self.letters, values, strict=False) if any(stated.equals(v, 9) for v in each)]
        )

    def bare_text(self, text: str) -> str | None:
        """The option whose text equals `text` but for punctuation and blanks."""
        wanted = _bare(text)
        same = [letter for letter, choice in zip(self.letters, self.choices, strict=False) if _bare(choice) == wanted]
        return only(same) if wanted else None


def without_listing(text: str, choices: Sequence[str]) -> str:
    """`text` without a list of all options, as some models repeat it before they answer."""
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


def only(found: Sequence[str]) -> str | None:
    """The one element of `found`; None if there are more or none."""
    return found[0] if len(found) == 1 else None


def equal_text(reply: str, choices: Sequence[str]) -> str | None:
    """The letter of the only option whose text is `reply`, but for case; a reply of one letter is no option's text."""
    text = reply.strip().lower()
    same = [letter for letter, choice in zip(ascii_uppercase, choices, strict=False) if choice.strip().lower() == text]
    return only(same) if len(text) > 1 or text.isdigit() else None


def _bare(text: str) -> str:
    return re.sub(r"[^\w.\-]", "", text).strip(".").lower()
