"""The part of a reply that answers: without the model's thoughts, and without a next question that it invents.

Every task scores this part. Reasoning models write their thoughts between tags (`<think>...</think>`, or the closing
tag alone if the chat template writes the opening one), and often put the answer between tags too. Base models go on
after the answer with the next question of a list, or with the next turn of a conversation.
"""

import re

_THOUGHTS = r"(?:think(?:ing)?|thoughts?|reason(?:ing)?|analysis|scratchpad|reflection|seed:think)"
_OPENING = re.compile(
    rf"<{_THOUGHTS}>|\[THINK\]|◁think▷|<\|begin_of_thought\|>|<\|channel>thought"
    r"|<\|channel\|>(?:analysis|commentary)[^<]*<\|message\|>",
    re.IGNORECASE,
)
_CLOSING = re.compile(
    rf"</{_THOUGHTS}>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<channel\|>|<\|channel\|>final[^<]*<\|message\|>",
    re.IGNORECASE,
)
_ANSWERS = r"(?:final[_ ]?answer|answer|conclusion)"
_ANSWER_TAG = re.compile(
    rf"(?P<opens><{_ANSWERS}>|<\|begin_of_(?:solution|box)\|>)|</{_ANSWERS}>|<\|end_of_(?:solution|box)\|>",
    re.IGNORECASE,
)
# Tokens that end or begin a turn, and placeholders of media, which stand in prompts only.
_TURN_TOKENS = (
    r"<\|(?:im_end|im_start|endoftext|end_of_text|eot_id|eom_id|end|user|assistant|system|start|return|turn"
    r"|start_header_id|end_header_id|begin_of_text|vision_start|image_pad)\|?>"
    r"|<(?:end_of_turn|start_of_turn|eos|bos|/?s|turn\||image\d*|video\d*|audio\d*)>|\[/?INST\]"
)
_ASKS = r"(?:(?:next|new|follow-up|another)\s+)?(?:question|problem|exercise|example)"
_ROLES = r"(?:user|human|system|assistant)"
_NEXT_TURN = re.compile(
    rf"{_TURN_TOKENS}"
    rf"|\n[\s#*>-]{{0,12}}(?:{_ASKS}\s*#?(?:\d*\s*\**\s*:|\d+\s*\**\s*(?:[.)]|\n|$))"
    rf"|Q\s*\d*\s*\**\s*[:.)]|{_ROLES}\s*\**\s*:)"
    rf"|\n[ \t]*(?:{_ROLES}|model)[ \t]*(?=\n|$)"
    r"|\n[ \t]*#{3,8}[ \t]*(?=\n|$)"
    r"|(?<!#)#{3,8}[ \t]*(?:human|user|instruction|question|input|problem|exercise|next)\b"
    r"|\n[ \t]*(?:问题|问|题目|用户)\s*\d*\s*[:\uff1a]"
    r"|(?<=[.!?)\w])[ \t]+(?-i:Question|Q)\s*\d*:(?=\s)"
    r"|(?-i:\b(?:USER|HUMAN|ASSISTANT):)",
    re.IGNORECASE,
)
_BEGINNING = re.compile(
    rf"(?:\s*(?:{_TURN_TOKENS}|(?:assistant|model)[ \t]*(?=\n)|(?:assistant|ASSISTANT)\s*:))+", re.IGNORECASE
)


def has_thoughts(reply: str) -> bool:
    """Whether `reply` has tags of thoughts."""
    return bool(_OPENING.search(reply) or _CLOSING.search(reply))


def answer_part(reply: str) -> str:
    """The part of `reply` that answers; the reply itself if it has no tags and no invented question.

    First, thoughts go: the text behind the last closing tag stays, or, if there is none, the text before the thoughts;
    thoughts without an end have no answer behind them. Of that text, the part between the last tags of an answer stays;
    of that part, the text before an invented question or turn. A second call changes nothing.
    """
    text = reply
    while (shorter := _once(text)) != text:
        text = shorter
    return text


def _once(text: str) -> str:
    return _before_the_next_turn(_marked(_without_thoughts(text)))


def _without_thoughts(text: str) -> str:
    ends = list(_CLOSING.finditer(text))
    opening = _OPENING.search(text)
    if not ends and not opening:
        return text
    before = text[: opening.start()] if opening and (not ends or opening.start() < ends[-1].start()) else ""
    after = text[ends[-1].end() :] if ends else ""
    if again := _OPENING.search(after):
        after = after[: again.start()]
    if after.strip():
        return after
    if before.strip() or not opening:
        return before
    marked = _ANSWER_TAG.search(text, opening.end())  # an answer within thoughts that never end
    return text[marked.start() :] if marked and marked["opens"] else ""


def _marked(text: str) -> str:
    tags = list(_ANSWER_TAG.finditer(text))
    end = len(text)
    for tag in reversed(tags):
        if tag["opens"] and (found := text[tag.end() : end]).strip():
            return found
        end = tag.start()
    return _ANSWER_TAG.sub("", text)


def _before_the_next_turn(text: str) -> str:
    if beginning := _BEGINNING.match(text):
        text = text[beginning.end() :]
    for match in _NEXT_TURN.finditer(text):
        if re.search(r"\w", text[: match.start()]):  # a reply may begin by repeating its question
            return text[: match.start()]
    return text
