"""Short answers: how one is read from a reply, and the metrics that compare it with the references."""

import ast
import math
import re
from collections.abc import Sequence

from mergekit_mm.evaluation.tasks.replies import answer_part

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_WORDS = "zero one two three four five six seven eight nine ten"
_DIGITS = {"none": "0"} | {word: str(value) for value, word in enumerate(_DIGIT_WORDS.split())}
_ARTICLES = {"a", "an", "the"}
_APOSTROPHES = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's I'd've I'm I've isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
    needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
    somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
    what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
    would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
# A word that lacks exactly one of its apostrophes gets it back. The last entry is an oddity of the official map.
_CONTRACTIONS = {
    word[:at] + word[at + 1 :]: word for word in _APOSTROPHES.split() for at, letter in enumerate(word) if letter == "'"
} | {"somebody'd": "somebodyd"}

_LABEL = re.compile(
    r"(?:\*\*|__)?(?:(?:[Tt]he\s+)?(?:[Ff]inal\s+|[Ss]hort\s+)?[Aa]nswer|ANSWER|A)\s*(?:\*\*|__)?:(?:\*\*|__)?\s*"
)
_DRESSED = re.compile(r"\*\*([^*]+)\*\*[.]?|\$?\\boxed\{(?:\\text\{)?([^{}]+)\}{1,2}\$?[.]?")
_REPEATED_QUESTION = re.compile(r"(?:Question|QUESTION|Q)\s*:[^\n]*\n\s*(?=(?:Answer|ANSWER|A)\s*:)")


def short_answer(reply: str) -> str:
    """The first line with words in `reply`, without a label ("Answer:") before it and bold type or a box around it.

    A question that the reply repeats before its label does not count. A base model often breaks the line before its
    answer and goes on after it. So the tasks have no `until: ["\\n"]`, which would leave nothing of such a reply.
    """
    text = answer_part(reply).strip()
    if repeated := _REPEATED_QUESTION.match(text):
        text = text[repeated.end() :]
    label = _LABEL.match(text)
    line = (text[label.end() :] or text if label else text).partition("\n")[0].strip()
    dressed = _DRESSED.fullmatch(line)
    return (dressed[1] or dressed[2]) if dressed else line


def normalise(text: str) -> str:
    """`text` as the official VQA script compares it: no punctuation, lower case, digits for words, no articles.

    Source: GT-Vision-Lab/VQA, as used by VizWiz and TextVQA. A punctuation mark that stands next to a blank anywhere in
    the text is deleted, and so is every mark in a text with a thousands separator; any other mark becomes a blank.
    """
    given = text.replace("\n", " ").replace("\t", " ").strip()
    thousands = re.search(r"\d,\d", given) is not None
    kept = given
    for mark in _PUNCTUATION:
        alone = thousands or mark + " " in given or " " + mark in given
        kept = kept.replace(mark, "" if alone else " ")
    kept = re.sub(r"\.(?!\d)", "", kept, count=32)  # 32: a flag passed as a count in the official script
    words = [_DIGITS.get(word, word) for word in kept.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_soft(prediction: str, reference: Sequence[str] | str, **_: object) -> float:
    """The official VQA score: the mean over the annotators of min(1, c / 3).

    c is the number of the *other* annotators who gave the prediction. With ten references, four equal ones give 1, and
    k = 1, 2, 3 of them 0.3 k. A single string stands for ten equal references. Source: Antol et al. 2015.
    """
    references = [reference] * 10 if isinstance(reference, str) else list(reference)
    if not isinstance(prediction, str) or not references:
        return 0.0
    answer = normalise(prediction)
    equal = [normalise(each) == answer for each in references]
    return sum(min(1.0, (sum(equal) - each) / 3) for each in equal) / len(equal)


def chartqa_relaxed(prediction: str, reference: str | Sequence[str], **_: object) -> float:
    """1 if two numbers differ by at most 5 % of the reference, or if two texts are equal but for case; else 0.

    "25%" is the number 0.25; a text with thousands separators, currency signs or units is no number. Of several
    references (a list, or a list written as text) the best counts. The tolerance is 5 % of the *reference* (Methani et
    al. 2020, pix2struct); the evaluation code of the OptMerge paper takes 5 % of the prediction by mistake. Years
    within 5 % count as right, which is a known weakness of the metric.
    """
    references = as_list(reference)
    if not isinstance(prediction, str):
        return 0.0
    return max((_relaxed(prediction.strip(), each.strip()) for each in references), default=0.0)


def _relaxed(prediction: str, reference: str) -> float:
    number, target = _plain_number(prediction), _plain_number(reference)
    if number is not None and target:
        return float(abs(number - target) / abs(target) <= 0.05)
    return float(prediction.lower() == reference.lower())


def _plain_number(text: str) -> float | None:
    try:
        number = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def exact_match_nopunct(prediction: str, reference: str | Sequence[str], **_: object) -> float:
    """1 if the texts are equal in lower case, without punctuation and with single blanks (GQA, OCR-VQA), else 0.

    All characters but Unicode letters, digits, underscores and blanks are punctuation: "C++ Primer" equals "C Primer".
    """
    if not isinstance(prediction, str):
        return 0.0
    references = [reference] if isinstance(reference, str) else reference
    return float(any(_bare(prediction) == _bare(each) for each in references))


def _bare(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s]", "", text.lower()).split())


def music_avqa_score(prediction: str, reference: str, **_: object) -> float:
    """1 if the texts are equal after EvalAI's rules ("acoustic guitar" = "acoustic_guitar", "2" = "two"), else 0."""
    if not isinstance(prediction, str):
        return 0.0
    return float(_evalai(prediction) == _evalai(reference))


def _evalai(text: str) -> str:
    return normalise(text.lower().replace(",", "").replace("?", "").replace("'s", " 's"))


def as_list(reference: str | Sequence[str]) -> list[str]:
    """The references as a list: `reference` is a sequence, one text, or (in some data sets) a list written as text."""
    if not isinstance(reference, str):
        return [str(each) for each in reference]
    if reference.startswith("[") and reference.endswith("]"):
        try:  # only references are read like this, never a text that a model wrote
            values = ast.literal_eval(reference)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return [reference]
        return [str(each) for each in values]
    return [reference]
