"""From requests of lm-eval to the inputs of a model: marks and media matched, pictures opened, one processor call."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mergekit_mm.mllm import decoding
from mergekit_mm.mllm.batching import Asked
from mergekit_mm.mllm.chat import MODALITIES, Writer, Written, parts_of, places_of
from mergekit_mm.omni.expansion import ARGUMENT

LOG = logging.getLogger(__name__)
_PREPARES = {
    "image": ("image_processor",),
    "video": ("video_processor",),
    "audio": ("feature_extractor", "audio_processor"),
}
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
        raise ValueError(
            f"{type(part).__name__} takes neither min_pixels nor max_pixels. What it takes goes into images_kwargs: "
            + ", ".join(sorted(known))
        )
    return {
        "size": {
            "shortest_edge": min_pixels or size["shortest_edge"],
            "longest_edge": max_pixels or size["longest_edge"],
        }
    }


class Reader:
    """Requests for one processor. `options`: modality -> what else its part of the processor is told."""

    def __init__(
        self, processor: Any, writer: Writer, options: Mapping[str, Mapping[str, Any]], num_frames: int | None
    ) -> None:
        self.processor, self.writer, self.num_frames = processor, writer, num_frames
        self.parts = {modality: prepares(processor, modality) for modality in MODALITIES}
        self.options = {modality: dict(options[modality]) for modality in MODALITIES}
        for modality, given in self.options.items():
            known = getattr(getattr(self.parts[modality], "valid_kwargs", None), "__annotations__", None)
            if known is not None and (unknown := sorted(given.keys() - known)):
                name = type(self.parts[modality]).__name__
                raise ValueError(
                    f"{ARGUMENT[modality]}_kwargs: {name} takes no {', '.join(unknown)}, but "
                    + ", ".join(sorted(known))
                )
            if given and self.parts[modality] is None:
                raise ValueError(f"{ARGUMENT[modality]}_kwargs: {type(processor).__name__} takes no {modality}")

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
            raise ValueError(f"tasks bring media that this model does not take. {told}. {name} takes {able}.")

    def read(self, context: str, given: Mapping[str, Any], where: str, options: str = "") -> Asked:
        """ValueError: as many marks as media there must be, of each modality; or none at all, then media come first."""
        media = by_modality(given)
        if isinstance(context, Written):  # by lm-eval's --apply_chat_template
            found = {m: context.count(token) if (token := self.writer.tokens[m]) else len(media[m]) for m in MODALITIES}
            _compare(found, media, where, context)
            ordered = {m: _in_order(m, media[m], context.places[m], where) for m in MODALITIES}
            return Asked(where, context, ordered, options)
        parts = parts_of(context)
        if all(kind == "text" for kind, _ in parts) and any(media.values()):
            _warn_once(where, "has media and no marks such as <image> in its prompt: they are put in front of it")
            parts = [*((m, at) for m in MODALITIES for at in range(len(media[m]))), *parts]
        places = {modality: places_of(modality, parts) for modality in MODALITIES}
        _compare({modality: len(each) for modality, each in places.items()}, media, where, context)
        ordered = {modality: _in_order(modality, media[modality], each, where) for modality, each in places.items()}
        try:
            return Asked(where, self.writer.ask(parts), ordered, options)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error

    def encode(self, batch: Sequence[Asked], padding_side: str) -> Any:
        """The inputs of a batch of one kind, as tensors. ValueError says which documents the processor refused."""
        tokenizer = self.processor.tokenizer
        text: dict[str, Any] = {"padding": True, "padding_side": padding_side}
        if tokenizer.bos_token and batch[0].text.startswith(tokenizer.bos_token):
            text["add_special_tokens"] = False  # by the chat template
        given: dict[str, Any] = text if hasattr(self.processor, "donors") else {"text_kwargs": text}
        opened: dict[int, Any] = {}
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
            raise ValueError(f"{type(self.processor).__name__} refuses {named}: {error}") from error
        if not inputs["attention_mask"][:, -1 if padding_side == "left" else 0].all():
            raise ValueError(f"{type(self.processor).__name__} does not pad on the {padding_side}: use batch_size=1")
        if any(batch[0].media.values()) and not set(inputs) - _OF_TEXT:
            raise ValueError(f"{type(self.processor).__name__} makes nothing of the media of {batch[0].where}")
        return inputs

    def _arguments(self, modality: str, media: list[list[Any]]) -> dict[str, Any]:
        name, options = ARGUMENT[modality], dict(self.options[modality])
        if modality == "image":
            return {name: media, f"{name}_kwargs": options}
        flat = [each for sample in media for each in sample]
        if modality == "audio":
            return {name: flat, f"{name}_kwargs": {"sampling_rate": self.parts[modality].sampling_rate, **options}}
        options.setdefault("do_sample_frames", False)  # they are sampled
        if all(each.metadata for each in flat):
            options["video_metadata"] = [each.metadata for each in flat]
        return {name: [each.frames for each in flat], f"{name}_kwargs": options}

    def _open(self, modality: str, given: Any, where: str, opened: dict[int, Any]) -> Any:
        """A medium, decoded; once for all questions of a batch that are about it."""
        if id(given) not in opened:
            try:
                if modality == "image":
                    opened[id(given)] = decoding.picture(given)
                elif modality == "video":
                    opened[id(given)] = decoding.video(given, self.num_frames)
                else:
                    opened[id(given)] = decoding.sound(given, self.parts[modality].sampling_rate)
            except Exception as error:
                raise ValueError(f"{where}: its {modality} cannot be read: {error}") from error
        return opened[id(given)]


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
        raise ValueError(
            f"{where}: marks <{modality}> are numbered {[at + 1 for at in places]}, for {len(media)} media"
        )
    return [media[at] for at in places]


def _compare(found: Mapping[str, int], media: Mapping[str, list[Any]], where: str, context: str) -> None:
    for modality, count in found.items():
        if count != len(media[modality]):
            raise ValueError(
                f"{where}: {count} x <{modality}> in the prompt, but {len(media[modality])} media: {context!r}"
            )


_warned: set[str] = set()


def _warn_once(where: str, text: str) -> None:
    task = where.partition(",")[0]
    if task not in _warned:
        _warned.add(task)
        LOG.warning(f"{task} {text}")
