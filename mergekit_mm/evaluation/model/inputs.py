"""From requests of lm-eval to the inputs of a model: marks and media matched, pictures opened, one processor call."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from mergekit_mm.errors import EvaluationError
from mergekit_mm.evaluation.model import decoding
from mergekit_mm.evaluation.model.batching import Asked
from mergekit_mm.evaluation.model.chat import MODALITIES, Part, Writer, Written, parts_of, places_of
from mergekit_mm.evaluation.model.decoding import Sampling
from mergekit_mm.evaluation.model.sounds import Window
from mergekit_mm.evaluation.model.videos import has_times
from mergekit_mm.omni.expansion import ARGUMENT

LOG = logging.getLogger(__name__)
_PREPARES = {
    "image": ("image_processor",),
    "video": ("video_processor",),
    "audio": ("feature_extractor", "audio_processor"),
}
_SAMPLING = ("num_frames", "fps", "min_frames", "max_frames")  # done here, before the processor has the frames
_OF_TEXT = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"}


def prepares(processor: Any, modality: str) -> Any:
    """The part of a processor that prepares a modality, or None: the model takes none of that."""
    if hasattr(processor, "donors"):  # of an omni model
        if modality not in processor.modalities:
            return None
        processor = processor.donors[processor.modalities[modality]["owner"]]
    return next((part for name in _PREPARES[modality] if (part := getattr(processor, name, None)) is not None), None)


def pixel_limits(processor: Any, min_pixels: int | None, max_pixels: int | None) -> dict[str, Any]:
    """`images_kwargs` that keep pictures between so many pixels. ValueError: this processor has no such limits."""
    given = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    if not any(given.values()):
        return {}
    part = prepares(processor, "image")
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
    """Which frames of videos are taken: `arguments` of the model, and `videos_kwargs`. ValueError: they disagree.

    With `do_sample_frames` the processor's own `sample_frames` chooses.
    """
    given = {key: options.get(key) for key in _SAMPLING}
    for key, value in arguments.items():
        if value is not None and given[key] not in (None, value):
            raise EvaluationError(f"{key} is {value}, and {given[key]} in videos_kwargs: name it once")
        given[key] = value if value is not None else given[key]
    if options.get("do_sample_frames") and part is not None:
        named = getattr(getattr(part, "valid_kwargs", None), "__annotations__", {})
        settings = {name: getattr(part, name, None) for name in named} | {
            k: v for k, v in given.items() if v is not None
        }
        settings |= {k: v for k, v in options.items() if k not in _SAMPLING}
        return Sampling(choose=partial(part.sample_frames, **settings))
    try:
        return Sampling(**given)
    except ValueError as error:
        raise EvaluationError(str(error)) from error


class Reader:
    """Requests for one processor. `options`: modality -> what else its part of the processor is told."""

    def __init__(
        self,
        processor: Any,
        writer: Writer,
        options: Mapping[str, Mapping[str, Any]],
        frames: Mapping[str, Any],
        window: Window,
    ) -> None:
        self.processor, self.writer, self.window = processor, writer, window
        self.parts = {modality: prepares(processor, modality) for modality in MODALITIES}
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
        self.untimed: set[str] = set()  # documents whose videos have no times, for a model that is told times
        self._told_times: bool | None = None

    def check(self, requests: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        """ValueError if any of the (task, media) has a medium that this processor does not take."""
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

    def read(self, context: str, given: Mapping[str, Any], where: str, options: str = "") -> Asked:
        """ValueError: as many marks as media there must be, of each modality; or none at all, then media come first."""
        media = by_modality(given)
        by_host = isinstance(context, Written)  # a chat of lm-eval's --apply_chat_template
        turns = list(context.turns) if isinstance(context, Written) else [("user", context)]
        parts: list[list[Part]] = []
        for _, text in turns:
            parts.append(parts_of(text, [part for turn in parts for part in turn]))
        if any(media.values()) and not any(kind != "text" for turn in parts for kind, _ in turn):
            _warn_once(where, "has media and no marks such as <image> in its prompt: they are put in front of it")
            last = max((at for at, (role, _) in enumerate(turns) if role == "user"), default=len(turns) - 1)
            parts[last] = [*((m, at) for m in MODALITIES for at in range(len(media[m]))), *parts[last]]
        every = [part for turn in parts for part in turn]
        places = {modality: places_of(modality, every) for modality in MODALITIES}
        _compare({modality: len(each) for modality, each in places.items()}, media, where, context)
        ordered = {modality: _in_order(modality, media[modality], each, where) for modality, each in places.items()}
        if any(media.values()):
            self._refuse_placeholders(every, where)
        if self.window.chunks and ordered["audio"]:
            parts, ordered["audio"] = self.window.split(parts, media["audio"])
        try:
            if by_host:
                written = list(zip((role for role, _ in turns), parts, strict=True))
                text = self.writer.chat(written, context.add_generation_prompt)  # type: ignore[attr-defined]
            else:
                text = self.writer.ask(parts[0])
            return Asked(where, text, ordered, options)
        except ValueError as error:
            raise EvaluationError(f"{where}: {error}") from error

    def _refuse_placeholders(self, parts: Sequence[Part], where: str) -> None:
        for modality, token in self.writer.tokens.items():
            if token and any(kind == "text" and token in str(what) for kind, what in parts):
                raise EvaluationError(
                    f"{where}: the prompt has the words {token!r}, which are this model's own placeholder for "
                    f"{modality}. Write them in another way, for instance with a blank in them"
                )

    def encode(self, batch: Sequence[Asked], padding_side: str) -> Any:
        """The inputs of a batch of one kind, as tensors. ValueError says which documents the processor refused."""
        return self._encoded(batch, padding_side, {})

    def encode_apart(self, batch: Sequence[Asked], padding_side: str) -> list[tuple[list[int], Any]]:
        """Places in the batch and their inputs: in several parts where the processor cannot stack the media of all.

        Many processors stack the frames of videos, or the tiles of pictures, which takes equal numbers of them.
        """
        opened: dict[int, Any] = {}
        waiting, made = _apart(range(len(batch)), lambda at: self._timed(batch[at])), []
        while waiting:
            places = waiting.pop(0)
            try:
                made.append((places, self._encoded([batch[at] for at in places], padding_side, opened)))
            except EvaluationError:
                if len(places) == 1 or not any(batch[places[0]].media.values()):
                    raise
                unlike = _apart(places, lambda at: _shapes(batch[at], opened))
                waiting = (unlike if len(unlike) > 1 else [[at] for at in places]) + waiting
        return made

    def _timed(self, one: Asked) -> bool:
        """Whether all times of its videos are known; a processor takes those of all videos or of none."""
        return all(has_times(each) for each in one.media["video"])

    def _encoded(self, batch: Sequence[Asked], padding_side: str, opened: dict[int, Any]) -> Any:
        tokenizer = self.processor.tokenizer
        text: dict[str, Any] = {"padding": True, "padding_side": padding_side}
        if tokenizer.bos_token and batch[0].text.startswith(tokenizer.bos_token):
            text["add_special_tokens"] = False  # by the chat template
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
        if any(batch[0].media.values()) and not set(inputs) - _OF_TEXT:
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
        options["do_sample_frames"] = False  # they are sampled
        if all(each.metadata for each in flat):
            options["video_metadata"] = [each.metadata for each in flat]
        return {name: [each.frames for each in flat], f"{name}_kwargs": options}

    def note_times(self, asked: Sequence[Asked]) -> None:
        """Warn of videos of which nobody says when their frames were, for a model that is told times."""
        without = [one for one in asked if one.media["video"] and not self._timed(one)]
        if without and self._is_told_times(without[0]):
            self.untimed |= {one.where for one in without}
            LOG.warning(
                f"{type(self.processor).__name__} tells the model when the frames of a video were, and of "
                f"{len(without)} documents that is not known ({without[0].where}, ...): give `fps` or `timestamps` "
                "(seconds) beside `frames`. A rate of the processor's own is taken"
            )

    def _is_told_times(self, one: Asked) -> bool:
        """Whether anything that reaches the model depends on the times of frames, tried on one document."""
        if self._told_times is None:
            made = []
            for rate in (1.0, 0.5):
                films = [{**each, "fps": rate} for each in one.media["video"]]
                made.append(self.encode([Asked(one.where, one.text, {**one.media, "video": films})], "left"))
            self._told_times = not same_inputs(*made)
        return self._told_times

    def _open(self, modality: str, given: Any, where: str, opened: dict[int, Any]) -> Any:
        """A medium, decoded; once for all questions of a batch that are about it."""
        if id(given) not in opened:
            try:
                if modality == "image":
                    opened[id(given)] = decoding.picture(given)
                elif modality == "video":
                    opened[id(given)] = decoding.video(given, sampling=self.sampling)
                else:
                    opened[id(given)] = self.window.heard(given, self.parts[modality].sampling_rate)
            except Exception as error:
                raise EvaluationError(f"{where}: its {modality} cannot be read: {error}") from error
        return opened[id(given)]


def same_inputs(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two results of a processor are the same to the model."""
    if one.keys() != other.keys():
        return False
    for key in one:
        a, b = one[key], other[key]
        tensors = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
        if not (torch.equal(a, b) if tensors else str(a) == str(b)):
            return False
    return True


def _apart(places: Iterable[int], key: Any) -> list[list[int]]:
    groups: dict[Any, list[int]] = {}
    for at in places:
        groups.setdefault(key(at), []).append(at)
    return list(groups.values())


def _shapes(one: Asked, opened: Mapping[int, Any]) -> tuple[Any, ...]:
    """What is equal where media can be stacked: the shapes of videos, the sizes of pictures, the lengths of sounds."""
    found: list[Any] = []
    for modality in MODALITIES:
        for each in (opened.get(id(given)) for given in one.media[modality]):
            found.append(getattr(getattr(each, "frames", each), "shape", None) or getattr(each, "size", None))
    return tuple(found)


def by_modality(given: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Media of a request as `evaluation.media` describes them: videos are mappings among the pictures."""
    visual, audio = given.get("visual") or [], given.get("audio") or []
    films = [each for each in visual if isinstance(each, Mapping) and each.get("type") == "video"]
    return {
        "video": films,
        "image": [each for each in visual if all(each is not film for film in films)],
        "audio": list(audio),
    }


def _in_order(modality: str, media: list[Any], places: Sequence[int], where: str) -> list[Any]:
    if sorted(places) != list(range(len(media))):
        raise EvaluationError(
            f"{where}: marks <{modality}> are numbered {[at + 1 for at in places]}, for {len(media)} media"
        )
    return [media[at] for at in places]


def _compare(found: Mapping[str, int], media: Mapping[str, list[Any]], where: str, context: str) -> None:
    for modality, count in found.items():
        if count != len(media[modality]):
            raise EvaluationError(
                f"{where}: {count} x <{modality}> in the prompt, but {len(media[modality])} media: {context!r}. "
                f"Where the prompt means the words, write \\<{modality}> with a backslash"
            )


_warned: set[str] = set()


def _warn_once(where: str, text: str) -> None:
    task = where.partition(",")[0]
    if task not in _warned:
        _warned.add(task)
        LOG.warning(f"{task} {text}")
