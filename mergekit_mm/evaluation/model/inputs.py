"""From requests of lm-eval to the inputs of a model.

Placeholders and media are matched, the prompt is rendered, the media are decoded, and the processor is called once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from mergekit_mm.errors import EvaluationError
from mergekit_mm.evaluation.model import decoding
from mergekit_mm.evaluation.model.audio import AudioWindow
from mergekit_mm.evaluation.model.batching import PreparedRequest
from mergekit_mm.evaluation.model.chat import MODALITIES, Part, PromptRenderer, RenderedPrompt, indices_of, parts_of
from mergekit_mm.evaluation.model.decoding import Sampling
from mergekit_mm.evaluation.model.videos import has_times
from mergekit_mm.omni.expansion import ARGUMENT

LOG = logging.getLogger(__name__)
_PROCESSORS = {  # attributes of a processor that prepare a modality
    "image": ("image_processor",),
    "video": ("video_processor",),
    "audio": ("feature_extractor", "audio_processor"),
}
_SAMPLING = ("num_frames", "fps", "min_frames", "max_frames")  # followed here: the processor gets chosen frames
TEXT_KEYS = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"}  # (texts, tokens) each


def modality_processor(processor: Any, modality: str) -> Any:
    """The part of a processor that prepares a modality; None if the model does not take the modality."""
    if hasattr(processor, "donors"):  # the processor of an omni model
        if modality not in processor.modalities:
            return None
        processor = processor.donors[processor.modalities[modality]["owner"]]
    return next((part for name in _PROCESSORS[modality] if (part := getattr(processor, name, None)) is not None), None)


def pixel_limits(processor: Any, min_pixels: int | None, max_pixels: int | None) -> dict[str, Any]:
    """`images_kwargs` that keep images between so many pixels. EvaluationError: this processor has no such limits."""
    given = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    if not any(given.values()):
        return {}
    part = modality_processor(processor, "image")
    known = getattr(getattr(part, "valid_kwargs", None), "__annotations__", {})
    size = dict(getattr(part, "size", None) or {})
    if "max_pixels" not in known or not {"shortest_edge", "longest_edge"} <= size.keys():
        raise EvaluationError(
            f"{type(part).__name__} takes neither min_pixels nor max_pixels. What it takes goes into images_kwargs: "
            + ", ".join(sorted(known))
        )
    return {
        "size": {
            "shortest_edge": min_pixels or size["shortest_edge"],
            "longest_edge": max_pixels or size["longest_edge"],
        }
    }


def sampling(part: Any, options: Mapping[str, Any], **arguments: Any) -> Sampling:
    """Which frames of videos are taken, by `arguments` of the model and by `options`, which are its `videos_kwargs`.

    With the option `do_sample_frames`, the rule is `sample_frames` of `part`, the processor's part for videos.
    EvaluationError: the two disagree.
    """
    given = {key: options.get(key) for key in _SAMPLING}
    for key, value in arguments.items():
        if value is not None and given[key] not in (None, value):
            raise EvaluationError(f"{key} is {value}, and {given[key]} in videos_kwargs: name it once")
        given[key] = value if value is not None else given[key]
    if options.get("do_sample_frames") and part is not None:
        named = getattr(getattr(part, "valid_kwargs", None), "__annotations__", {})
        chosen = {name: getattr(part, name, None) for name in named}
        chosen |= {name: value for name, value in given.items() if value is not None}
        chosen |= {name: value for name, value in options.items() if name not in _SAMPLING}
        return Sampling(choose=partial(part.sample_frames, **chosen))
    try:
        return Sampling(**given)
    except ValueError as error:
        raise EvaluationError(str(error)) from error


class Reader:
    """Prepares and encodes requests for one processor.

    options: modality -> keyword arguments for its part of the processor. frames: arguments of `sampling`. window: how
    much of audio the processor hears.
    """

    def __init__(
        self,
        processor: Any,
        renderer: PromptRenderer,
        options: Mapping[str, Mapping[str, Any]],
        frames: Mapping[str, Any],
        window: AudioWindow,
    ) -> None:
        self.processor, self.renderer, self.window = processor, renderer, window
        self.parts = {modality: modality_processor(processor, modality) for modality in MODALITIES}
        self.options = {modality: dict(options[modality]) for modality in MODALITIES}
        for modality, given in self.options.items():
            known = getattr(getattr(self.parts[modality], "valid_kwargs", None), "__annotations__", None)
            ours = _SAMPLING if modality == "video" else ()
            if known is not None and (unknown := sorted(given.keys() - known - set(ours))):
                name = type(self.parts[modality]).__name__
                raise EvaluationError(
                    f"{ARGUMENT[modality]}_kwargs: {name} takes no {', '.join(unknown)}, but "
                    + ", ".join(sorted({*known, *ours}))
                )
            if given and self.parts[modality] is None:
                raise EvaluationError(f"{ARGUMENT[modality]}_kwargs: {type(processor).__name__} takes no {modality}")
        self.sampling = sampling(self.parts["video"], self.options["video"], **frames)
        self.untimed: set[str] = set()  # documents whose videos have no times, if the model is told times
        self._told_times: bool | None = None  # None: not yet tried
        self._warned_of: set[str] = set()  # tasks

    def check(self, requests: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        """EvaluationError: among the (task, media) are media of a modality that this processor does not take."""
        lacking: dict[str, set[str]] = {}
        for task, given in requests:
            for modality, media in by_modality(given).items():
                if media and self.parts[modality] is None:
                    lacking.setdefault(modality, set()).add(task)
        if lacking:
            told = "; ".join(f"{', '.join(sorted(tasks))}: {modality}" for modality, tasks in lacking.items())
            able = ", ".join(modality for modality in MODALITIES if self.parts[modality] is not None) or "no media"
            name = type(self.processor).__name__
            raise EvaluationError(f"tasks bring media that this model does not take. {told}. {name} takes {able}.")

    def read(self, context: str, given: Mapping[str, Any], where: str, options: str = "") -> PreparedRequest:
        """A request with the prompt `context` and the media `given` as lm-eval has them, of the document `where`.

        Without any placeholder in the prompt, the media are put in front of it. EvaluationError: otherwise each
        modality needs as many placeholders as inputs.
        """
        media = by_modality(given)
        turns = list(context.turns) if isinstance(context, RenderedPrompt) else [("user", context)]
        parts: list[list[Part]] = []
        for _, text in turns:
            parts.append(parts_of(text, [part for turn in parts for part in turn]))
        if any(media.values()) and not any(kind != "text" for turn in parts for kind, _ in turn):
            self._warn_of_media_without_placeholders(where)
            last = max((at for at, (role, _) in enumerate(turns) if role == "user"), default=len(turns) - 1)
            parts[last] = [*((m, at) for m in MODALITIES for at in range(len(media[m]))), *parts[last]]
        every = [part for turn in parts for part in turn]
        indices = {modality: indices_of(modality, every) for modality in MODALITIES}
        _compare({modality: len(each) for modality, each in indices.items()}, media, where, context)
        ordered = {modality: _in_order(modality, media[modality], each, where) for modality, each in indices.items()}
        if any(media.values()):
            self._refuse_placeholder_tokens(every, where)
        if self.window.chunks and ordered["audio"]:
            parts, ordered["audio"] = self.window.split(parts, media["audio"])
        try:
            if isinstance(context, RenderedPrompt):
                chat = list(zip((role for role, _ in turns), parts, strict=True))
                text = self.renderer.render_chat(chat, context.add_generation_prompt)
            else:
                text = self.renderer.render(parts[0])
            return PreparedRequest(where, text, ordered, options)
        except ValueError as error:
            raise EvaluationError(f"{where}: {error}") from error

    def _warn_of_media_without_placeholders(self, where: str) -> None:
        task = where.partition(",")[0]
        if task not in self._warned_of:
            self._warned_of.add(task)
            LOG.warning(f"{task} has media and no marks such as <image> in its prompt: they are put in front of it")

    def _refuse_placeholder_tokens(self, parts: Sequence[Part], where: str) -> None:
        for modality, token in self.renderer.tokens.items():
            if token and any(kind == "text" and token in str(what) for kind, what in parts):
                raise EvaluationError(
                    f"{where}: the prompt has the words {token!r}, which are this model's own placeholder for "
                    f"{modality}. Write them in another way, for instance with a blank in them"
                )

    def encode(self, batch: Sequence[PreparedRequest], padding_side: str) -> Any:
        """The inputs of a batch of one kind, as tensors. EvaluationError: the processor refuses these documents."""
        return self._encoded(batch, padding_side, {})

    def encode_in_parts(self, batch: Sequence[PreparedRequest], padding_side: str) -> list[tuple[list[int], Any]]:
        """The inputs of a batch, in several parts where the processor cannot stack the media of all its requests.

        Many processors stack the frames of videos or the tiles of images, of which there must then be equally many.
        Each part is its indices in the batch and its inputs.
        """
        opened: dict[int, Any] = {}
        waiting, made = _grouped(range(len(batch)), lambda at: self._has_times(batch[at])), []
        while waiting:
            part = waiting.pop(0)
            try:
                made.append((part, self._encoded([batch[at] for at in part], padding_side, opened)))
            except EvaluationError:
                if len(part) == 1 or not any(batch[part[0]].media.values()):
                    raise
                by_shape = _grouped(part, lambda at: _shapes(batch[at], opened))
                waiting = (by_shape if len(by_shape) > 1 else [[at] for at in part]) + waiting
        return made

    def _has_times(self, one: PreparedRequest) -> bool:
        """Whether the times of all its videos are known; a processor takes the times of all videos or of none."""
        return all(has_times(each) for each in one.media["video"])

    def _encoded(self, batch: Sequence[PreparedRequest], padding_side: str, opened: dict[int, Any]) -> Any:
        tokenizer = self.processor.tokenizer
        text: dict[str, Any] = {"padding": True, "padding_side": padding_side}
        if tokenizer.bos_token and batch[0].text.startswith(tokenizer.bos_token):
            text["add_special_tokens"] = False  # the chat template has written them
        given: dict[str, Any] = text if hasattr(self.processor, "donors") else {"text_kwargs": text}
        for modality in MODALITIES:
            if batch[0].media[modality]:
                media = [
                    [self._open(modality, each, one.where, opened) for each in one.media[modality]] for one in batch
                ]
                given |= self._arguments(modality, media)
        try:
            inputs = self.processor(text=[one.text for one in batch], return_tensors="pt", **given)
        except Exception as error:
            named = ", ".join(one.where for one in batch[:3]) + (", ..." if len(batch) > 3 else "")
            raise EvaluationError(f"{type(self.processor).__name__} refuses {named}: {error}") from error
        if not inputs["attention_mask"][:, -1 if padding_side == "left" else 0].all():
            raise EvaluationError(
                f"{type(self.processor).__name__} does not pad on the {padding_side}: use batch_size=1"
            )
        if any(batch[0].media.values()) and not set(inputs) - TEXT_KEYS:
            raise EvaluationError(f"{type(self.processor).__name__} makes nothing of the media of {batch[0].where}")
        return inputs

    def _arguments(self, modality: str, media: list[list[Any]]) -> dict[str, Any]:
        name, options = ARGUMENT[modality], dict(self.options[modality])
        if modality == "image":
            return {name: media, f"{name}_kwargs": options}
        flat = [each for sample in media for each in sample]
        if modality == "audio":
            return {name: flat, f"{name}_kwargs": {"sampling_rate": self.parts[modality].sampling_rate, **options}}
        options = {key: value for key, value in options.items() if key not in _SAMPLING}
        options["do_sample_frames"] = False  # the frames are already chosen
        if all(each.metadata for each in flat):
            options["video_metadata"] = [each.metadata for each in flat]
        return {name: [each.frames for each in flat], f"{name}_kwargs": options}

    def note_times(self, requests: Sequence[PreparedRequest]) -> None:
        """Warn of videos whose times nobody knows, if the model is told the times of frames."""
        without = [one for one in requests if one.media["video"] and not self._has_times(one)]
        if without and self._is_told_times(without[0]):
            self.untimed |= {one.where for one in without}
            LOG.warning(
                f"{type(self.processor).__name__} tells the model when the frames of a video were, and of "
                f"{len(without)} documents that is not known ({without[0].where}, ...): give `fps` or `timestamps` "
                "(seconds) beside `frames`. A rate of the processor's own is taken"
            )

    def _is_told_times(self, one: PreparedRequest) -> bool:
        """Whether anything that reaches the model depends on the times of frames, which is tried out on one request."""
        if self._told_times is None:
            made = []
            for rate in (1.0, 0.5):
                videos = [{**each, "fps": rate} for each in one.media["video"]]
                made.append(self.encode([replace(one, media={**one.media, "video": videos})], "left"))
            self._told_times = not same_inputs(*made)
        return self._told_times

    def _open(self, modality: str, given: Any, where: str, opened: dict[int, Any]) -> Any:
        """One input, decoded; once for all requests of a batch that share it."""
        if id(given) not in opened:
            try:
                if modality == "image":
                    opened[id(given)] = decoding.picture(given)
                elif modality == "video":
                    opened[id(given)] = decoding.video(given, sampling=self.sampling)
                else:
                    opened[id(given)] = self.window.samples(given, self.parts[modality].sampling_rate)
            except Exception as error:
                raise EvaluationError(f"{where}: its {modality} cannot be read: {error}") from error
        return opened[id(given)]


def same_inputs(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two outputs of a processor are equal, tensors bit for bit."""
    if one.keys() != other.keys():
        return False
    for key in one:
        a, b = one[key], other[key]
        tensors = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
        if not (torch.equal(a, b) if tensors else str(a) == str(b)):
            return False
    return True


def _grouped(indices: Iterable[int], key: Any) -> list[list[int]]:
    groups: dict[Any, list[int]] = {}
    for at in indices:
        groups.setdefault(key(at), []).append(at)
    return list(groups.values())


def _shapes(one: PreparedRequest, opened: Mapping[int, Any]) -> tuple[Any, ...]:
    """What must be equal for media to be stacked: the shapes of videos and of audio, the sizes of images."""
    found: list[Any] = []
    for modality in MODALITIES:
        for each in (opened.get(id(given)) for given in one.media[modality]):
            found.append(getattr(getattr(each, "frames", each), "shape", None) or getattr(each, "size", None))
    return tuple(found)


def by_modality(given: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The media of a request by modality. Videos are mappings among its images, as `evaluation.tasks.media` says."""
    visual, audio = given.get("visual") or [], given.get("audio") or []
    videos = [each for each in visual if isinstance(each, Mapping) and each.get("type") == "video"]
    return {
        "video": videos,
        "image": [each for each in visual if all(each is not video for video in videos)],
        "audio": list(audio),
    }


def _in_order(modality: str, media: list[Any], indices: Sequence[int], where: str) -> list[Any]:
    if sorted(indices) != list(range(len(media))):
        raise EvaluationError(
            f"{where}: marks <{modality}> are numbered {[at + 1 for at in indices]}, for {len(media)} media"
        )
    return [media[at] for at in indices]


def _compare(found: Mapping[str, int], media: Mapping[str, list[Any]], where: str, context: str) -> None:
    for modality, count in found.items():
        if count != len(media[modality]):
            raise EvaluationError(
                f"{where}: {count} x <{modality}> in the prompt, but {len(media[modality])} media: {context!r}. "
                f"Where the prompt means the words, write \\<{modality}> with a backslash"
            )
