"""How a prompt with media is written for a model: by its processor's chat template, or without one.

A prompt is a list of parts, each ("text", words) or (modality, place of the medium among its kind).
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

from mergekit_mm.omni.templates import media_snippet

LOG = logging.getLogger(__name__)
MODALITIES = ("video", "image", "audio")  # in this order where a prompt does not say
MARK = re.compile(r"(\\?)<(image|video|audio)(\d*)>")
Part = tuple[str, str | int]
_Shape = tuple[tuple[str, tuple[str, ...]], ...]
_Turn = tuple[str, Sequence[Part]]  # role, content
_PROBE = "probe me"
# Whose content is a list of text and media, which templates of multimodal models read; that of the others is text, in
# which the model's own tokens stand for the media.
_LISTED: dict[str, Callable[[str], bool]] = {
    "all": lambda role: True,
    "the user": lambda role: role == "user",
    "nobody": lambda role: False,
}


class Written(str):
    """A chat as text, by lm-eval's --apply_chat_template, which does not say whether media belong to it.

    The text is that of a task without media, in which the words <image>, <video> and <audio> mean nothing. For a
    request with media the `turns` (role, content) are written anew.
    """

    turns: Sequence[tuple[str, str]] = ()
    add_generation_prompt: bool = True


def parts_of(text: str, before: Sequence[Part] = ()) -> list[Part]:
    """`text` at its marks <image>, <video>, <audio>; <image2> is the second image, whatever was before.

    `before`: the parts of earlier turns, whose media come first. A mark after a backslash is the words themselves.
    """
    parts: list[Part] = []
    counts = {modality: len(places_of(modality, before)) for modality in MODALITIES}
    words, end = "", 0
    for mark in MARK.finditer(text):
        words += text[end : mark.start()]
        escape, modality, number = mark.groups()
        end = mark.end()
        if escape:
            words += mark[0][1:]
            continue
        parts += [("text", words), (modality, int(number) - 1 if number else counts[modality])]
        words = ""
        counts[modality] += 1
    return [part for part in [*parts, ("text", words + text[end:])] if part[1] != ""]


def places_of(modality: str, parts: Sequence[Part]) -> list[int]:
    """Which media of a modality the parts show, in order."""
    return [int(what) for kind, what in parts if kind == modality]


class Writer:
    """Prompts for one processor. `template` is a chat template (Jinja), or None for none."""

    def __init__(
        self,
        processor: Any,
        config: Any,
        template: str | None,
        system_prompt: str | None,
        arguments: Mapping[str, Any] | None,
    ) -> None:
        self.processor = processor
        self.template = template
        self.system_prompt = system_prompt
        self.arguments = dict(arguments or {})
        self.tokens = {modality: _token(processor, modality) for modality in MODALITIES}
        self._config = config
        self._ways: dict[_Shape, Callable[..., str]] = {}
        self._asked = lru_cache(maxsize=4096)(self._chat)  # many questions of a task have the same words

    def ask(self, parts: Sequence[Part]) -> str:
        """One user's turn, with the system prompt, and what comes before the answer."""
        if self.template is None:
            before = f"{self.system_prompt}\n\n" if self.system_prompt else ""
            return before + self._plain(parts)
        return self._asked(tuple(parts))

    def _chat(self, parts: tuple[Part, ...]) -> str:
        turns: list[_Turn] = [("user", parts)]
        if self.system_prompt:
            turns.insert(0, ("system", [("text", self.system_prompt)]))
        return self.chat(turns)

    def chat(self, turns: Sequence[_Turn], add_generation_prompt: bool = True) -> str:
        """Turns (role, parts) by the chat template; without `add_generation_prompt` the last turn stays open.

        ValueError: there is no template, or it loses words of the prompt.
        """
        if self.template is None:
            raise ValueError("this model has no chat template: name a file of one by chat_template=")
        # what the template must write, but for the words: roles, and kinds of media
        shape = tuple((role, tuple(sorted({kind for kind, _ in parts} - {"text"}))) for role, parts in turns)
        if shape not in self._ways:
            self._ways[shape] = self._way(shape)
        written = self._ways[shape](turns, add_generation_prompt)
        for words in (str(what).strip() for _, parts in turns for kind, what in parts if kind == "text"):
            if words not in written:
                raise ValueError(f"the chat template loses {words!r} of the prompt; chat_template=none writes none")
        return written

    def _way(self, shape: _Shape) -> Callable[..., str]:
        """The first way of using the template that loses nothing, tried on turns of this shape."""
        probe: list[tuple[str, list[Part]]] = [
            (role, [*((m, 0) for m in shown), ("text", _PROBE)]) for role, shown in shape
        ]
        tokens = [self.tokens[modality] or "" for _, shown in shape for modality in shown]
        # content without media is a text, as lm-eval's `hf` and most users have it
        order = sorted(_LISTED, key=lambda roles: roles != "nobody") if not tokens else list(_LISTED)
        for roles in order:
            listed = _LISTED[roles]
            way = partial(self._rendered, listed=listed)
            try:
                written = way(probe, True)
            except Exception as error:  # a template may raise anything, by its own design too
                LOG.debug("chat template, lists for %s: %s", roles, error)
                continue
            printed = "'type'" in written  # a list, by a template that takes text
            if written.count(_PROBE) == len(shape) and not printed and all(token in written for token in tokens):
                return way
        named = ", ".join(modality for _, shown in shape for modality in shown) or "text"
        LOG.warning(f"The chat template does not write prompts with {named}: they are written without it.")
        return lambda turns, _: "\n\n".join(self._plain(parts) for _, parts in turns)

    def _rendered(self, turns: Sequence[_Turn], add_generation_prompt: bool, listed: Callable[[str], bool]) -> str:
        written: str = self.processor.apply_chat_template(
            [
                {"role": role, "content": [_typed(part) for part in parts] if listed(role) else self._plain(parts)}
                for role, parts in turns
            ],
            chat_template=self.template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            **self.arguments,
        )
        return written

    def _plain(self, parts: Sequence[Part]) -> str:
        return "".join(str(what) if kind == "text" else self._snippet(kind) for kind, what in parts)

    def _snippet(self, modality: str) -> str:
        """The placeholder of a modality, with the tokens that the template, or the config, puts around it."""
        token = self.tokens[modality]
        if token is None:
            raise ValueError(
                f"{type(self.processor).__name__} has no placeholder for {modality}: a template must write it"
            )
        found = media_snippet(self.processor, modality, token)
        if found != token:
            return found
        for kind in (modality, "vision") if modality != "audio" else (modality,):
            ids = [getattr(self._config, f"{kind}_{end}_token_id", None) for end in ("start", "end")]
            if None not in ids:
                start, end = self.processor.tokenizer.convert_ids_to_tokens(ids)
                return f"{start}{token}{end}"
        return token


def _typed(part: Part) -> dict[str, Any]:
    kind, what = part
    return {"type": "text", "text": what} if kind == "text" else {"type": kind}


def _token(processor: Any, modality: str) -> str | None:
    """What stands for one medium in a text that this processor takes."""
    entry = getattr(processor, "modalities", {}).get(modality)  # of an omni model
    token = entry["token"] if entry else getattr(processor, f"{modality}_token", None)
    return None if token is None else str(token)
