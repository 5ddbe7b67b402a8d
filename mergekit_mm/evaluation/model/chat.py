"""How a prompt with media is rendered for a model: by its processor's chat template, or without one.

A prompt is a list of parts: ("text", words), or (modality, index), where the index counts the inputs of the modality.
Tasks write the latter as placeholders: <image>, <video>, <audio>. The model reads placeholder tokens of its own.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

from mergekit_mm.omni.templates import media_snippet

LOG = logging.getLogger(__name__)
MODALITIES = ("video", "image", "audio")  # the order of the media of a prompt without placeholders
PLACEHOLDER = re.compile(r"(\\?)<(image|video|audio)(\d*)>")
Part = tuple[str, str | int]
_Turn = tuple[str, Sequence[Part]]  # role, content
_Shape = tuple[tuple[str, tuple[str, ...]], ...]  # the role and the modalities of each turn
_Renderer = Callable[[Sequence[_Turn], bool], str]  # turns, add_generation_prompt -> text
_PROBE = "probe me"
# The roles whose content the template is given as a list of text and media, as most templates of multimodal models read
# it. The content of other roles is given as a text, with the model's placeholder tokens in it.
_LISTED: dict[str, Callable[[str], bool]] = {
    "all": lambda role: True,
    "the user": lambda role: role == "user",
    "nobody": lambda role: False,
}


class RenderedPrompt(str):
    """A chat that lm-eval had rendered (--apply_chat_template) before it said whether media belong to it.

    The text is right for a request without media, in which the words <image>, <video> and <audio> mean nothing. For a
    request with media, the `turns` (role, content) are rendered anew.
    """

    turns: Sequence[tuple[str, str]] = ()
    add_generation_prompt: bool = True


def parts_of(text: str, before: Sequence[Part] = ()) -> list[Part]:
    """`text`, split at its placeholders <image>, <video>, <audio>; <image2> is the second image wherever it stands.

    before: the parts of earlier turns, whose media come first. A placeholder after a backslash is plain words.
    """
    parts: list[Part] = []
    counts = {modality: len(indices_of(modality, before)) for modality in MODALITIES}
    words, end = "", 0
    for found in PLACEHOLDER.finditer(text):
        words += text[end : found.start()]
        escape, modality, number = found.groups()
        end = found.end()
        if escape:
            words += found[0][1:]
            continue
        parts += [("text", words), (modality, int(number) - 1 if number else counts[modality])]
        words = ""
        counts[modality] += 1
    return [part for part in [*parts, ("text", words + text[end:])] if part[1] != ""]


def indices_of(modality: str, parts: Sequence[Part]) -> list[int]:
    """The indices of the inputs of a modality that the parts show, in order."""
    return [int(what) for kind, what in parts if kind == modality]


class PromptRenderer:
    """Renders prompts for one processor.

    config: of the model. template: a chat template (Jinja), or None for none. system_prompt: the content of a first
    turn with the role "system". arguments: variables for the template.
    """

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
        self.tokens = {modality: _placeholder_token(processor, modality) for modality in MODALITIES}
        self._config = config
        self._renderers: dict[_Shape, _Renderer] = {}
        self._cached = lru_cache(maxsize=4096)(self._user_turn)  # many prompts of a task are equal

    def render(self, parts: Sequence[Part]) -> str:
        """The prompt of one user's turn: the system prompt, the parts, and the beginning of the answer's turn."""
        if self.template is None:
            before = f"{self.system_prompt}\n\n" if self.system_prompt else ""
            return before + self._as_text(parts)
        return self._cached(tuple(parts))

    def _user_turn(self, parts: tuple[Part, ...]) -> str:
        turns: list[_Turn] = [("user", parts)]
        if self.system_prompt:
            turns.insert(0, ("system", [("text", self.system_prompt)]))
        return self.render_chat(turns)

    def render_chat(self, turns: Sequence[_Turn], add_generation_prompt: bool = True) -> str:
        """Turns (role, parts) as the chat template has them; without `add_generation_prompt` the last one stays open.

        ValueError: there is no template, or it loses words of the prompt.
        """
        if self.template is None:
            raise ValueError("this model has no chat template: name a file of one by chat_template=")
        shape = tuple((role, tuple(sorted({kind for kind, _ in parts} - {"text"}))) for role, parts in turns)
        if shape not in self._renderers:
            self._renderers[shape] = self._find_renderer(shape)
        rendered = self._renderers[shape](turns, add_generation_prompt)
        for words in (str(what).strip() for _, parts in turns for kind, what in parts if kind == "text"):
            if words not in rendered:
                raise ValueError(f"the chat template loses {words!r} of the prompt; chat_template=none writes none")
        return rendered

    def _find_renderer(self, shape: _Shape) -> _Renderer:
        """The first way of using the template that loses nothing of probe turns of this shape."""
        probe: list[tuple[str, list[Part]]] = [
            (role, [*((m, 0) for m in shown), ("text", _PROBE)]) for role, shown in shape
        ]
        tokens = [self.tokens[modality] or "" for _, shown in shape for modality in shown]
        # Without media the content is tried as a text first, which is how lm-eval's `hf` and most users give it.
        order = sorted(_LISTED, key=lambda roles: roles != "nobody") if not tokens else list(_LISTED)
        for roles in order:
            renderer = partial(self._by_template, listed=_LISTED[roles])
            try:
                rendered = renderer(probe, True)
            except Exception as error:  # a template may raise errors of any type, some of them on purpose
                LOG.debug("chat template, lists for %s: %s", roles, error)
                continue
            printed = "'type'" in rendered  # a template that takes text has printed the list as Python writes it
            if rendered.count(_PROBE) == len(shape) and not printed and all(token in rendered for token in tokens):
                return renderer
        named = ", ".join(modality for _, shown in shape for modality in shown) or "text"
        LOG.warning(f"The chat template does not write prompts with {named}: they are written without it.")
        return lambda turns, _: "\n\n".join(self._as_text(parts) for _, parts in turns)

    def _by_template(self, turns: Sequence[_Turn], add_generation_prompt: bool, listed: Callable[[str], bool]) -> str:
        rendered: str = self.processor.apply_chat_template(
            [
                {"role": role, "content": [_typed(part) for part in parts] if listed(role) else self._as_text(parts)}
                for role, parts in turns
            ],
            chat_template=self.template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            **self.arguments,
        )
        return rendered

    def _as_text(self, parts: Sequence[Part]) -> str:
        return "".join(str(what) if kind == "text" else self._snippet(kind) for kind, what in parts)

    def _snippet(self, modality: str) -> str:
        """A modality's placeholder token, with the special tokens around it that the template or the config has."""
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


def _placeholder_token(processor: Any, modality: str) -> str | None:
    """The token that stands for one input of a modality in a text for this processor, if it has one."""
    entry = getattr(processor, "modalities", {}).get(modality)  # the processor of an omni model has `modalities`
    token = entry["token"] if entry else getattr(processor, f"{modality}_token", None)
    return None if token is None else str(token)
