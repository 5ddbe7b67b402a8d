"""The processor of omni models: text is tokenized once, each modality is prepared by its own donor's processor."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import AutoProcessor, AutoTokenizer, BatchFeature, ProcessorMixin
from transformers.image_utils import load_image

from .audio import load_audio
from .expansion import ARGUMENT, run_donor, translation
from .media import by_sample, with_loaded_audio
from .templates import media_snippet, omni_template, space_after
from .video import load_video, read_by_donors

VIDEO_SAMPLING = ("num_frames", "fps", "do_sample_frames", "video_metadata")
DIRECTORY = "processors"  # of a checkpoint; each donor's processor has a folder of its own in it


class OmniProcessor(ProcessorMixin):
    """One tokenizer and one chat template over the processors of the donors.

    tokenizer: of the omni vocabulary.
    donors: owner ("host" or the name of a guest) -> the donor's processor.
    modalities: "image" | "video" | "audio" -> {"owner": ..., "token": placeholder token in the omni vocabulary}, and
        optionally
        "donor_token": the placeholder token in the donor's vocabulary; default: that of the donor's processor;
        "snippet": the text that the donor's processor expects for one input of the modality; default: the placeholder
        token with the special tokens that the donor's chat template puts around it;
        "rename": donor token -> omni token, for tokens that have another name in the omni vocabulary.
    chat_template: for messages whose content is a list of text and media; default: the host's template, extended to
        all modalities by `omni_template`.

    In a text, each image, video or audio is one placeholder token. It is replaced by the tokens that the donor's
    processor makes of the snippet.
    """

    def __init__(
        self,
        tokenizer: Any = None,
        donors: dict[str, Any] | None = None,
        modalities: dict[str, dict[str, Any]] | None = None,
        chat_template: str | None = None,
    ) -> None:
        self.donors = donors or {}
        self.modalities = {m: self._completed(m, dict(entry)) for m, entry in (modalities or {}).items()}
        if chat_template is None and tokenizer is not None:
            host = self.donors.get("host")
            own = [getattr(part, "chat_template", None) for part in (host, tokenizer)]
            media = {m: e["token"] + space_after(self.donors[e["owner"]], m) for m, e in self.modalities.items()}
            chat_template = omni_template(own, media, **tokenizer.special_tokens_map)
        super().__init__(tokenizer, chat_template=chat_template)
        for modality, entry in self.modalities.items():
            self._check_token(modality, entry["token"])

    def _completed(self, modality: str, entry: dict[str, Any]) -> dict[str, Any]:
        owner = entry["owner"]
        if modality not in ARGUMENT or owner not in self.donors:
            raise ValueError(f"{modality}: no processor of {owner!r} among {', '.join(self.donors) or 'none'}.")
        donor = self.donors[owner]
        token = entry.setdefault("donor_token", getattr(donor, f"{modality}_token", None))
        if token is None:
            raise ValueError(f"{modality}: {type(donor).__name__} of {owner!r} has no {modality}_token.")
        if "snippet" not in entry:
            entry["snippet"] = media_snippet(donor, modality, str(token))
        if donor.tokenizer.pad_token is None:  # snippets that expand to unequal lengths are padded to one batch
            donor.tokenizer.pad_token = donor.tokenizer.eos_token
        return entry

    def _check_token(self, modality: str, token: str) -> None:
        if self.tokenizer.encode(token, add_special_tokens=False) != [self.tokenizer.convert_tokens_to_ids(token)]:
            raise ValueError(f"{modality}: {token!r} is not a single token of the omni tokenizer.")

    # ---------------------------------------------------------------------------------------------------- calling

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        videos: Any = None,
        audio: Any = None,
        sampling_rate: int | None = None,
        padding: bool | str = False,
        padding_side: str | None = None,
        truncation: bool | str | None = False,
        max_length: int | None = None,
        add_special_tokens: bool = True,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """`input_ids` and `attention_mask` (batch, sequence), and the media as `<modality>__<key>`.

        Media are given singly, as a list in the order of their placeholders, or as a list per text. An image is a PIL
        image, an array, a path or a URL; a video is an array or a list of frames, a path or a URL; audio is an array of
        samples, a path or a URL. `images_kwargs`, `videos_kwargs` and `audio_kwargs` go to the donors' processors;
        `text_kwargs` may hold the arguments about text (padding, truncation, ...) instead.

        Raises ValueError when placeholders and media differ in number, when `sampling_rate` is not that of the audio
        donor, and when `max_length` would cut tokens of an image, video or audio.
        """
        if text is None or return_tensors not in (None, "pt"):
            raise ValueError("An omni processor needs text, and returns tensors of torch ('pt').")
        texts = [text] if isinstance(text, str) else list(text)
        layout: dict[str, Any] = {
            "padding": padding,
            "padding_side": padding_side,
            "truncation": truncation,
            "max_length": max_length,
            "add_special_tokens": add_special_tokens,
            **kwargs.pop("text_kwargs", {}),
        }
        ids = self.tokenizer(texts, add_special_tokens=layout.pop("add_special_tokens"))["input_ids"]
        options = self._options(sampling_rate, kwargs)
        media: dict[str, Any] = {}
        expansions: dict[int, list[tuple[list[int], dict[str, list[int]]]]] = {}
        for modality, given in (("image", images), ("video", videos), ("audio", audio)):
            if modality not in self.modalities:
                if given is not None:
                    raise ValueError(f"This model takes no {modality}, only {', '.join(self.modalities) or 'text'}.")
                continue
            token = self.modalities[modality]["token"]
            token_id = self.tokenizer.convert_tokens_to_ids(token)
            items = by_sample(modality, given, [sample.count(token_id) for sample in ids], token)
            if any(items):
                expansions[token_id], made = self._expanded(modality, [i for i in items if i], options[modality])
                media |= {f"{modality}__{key}": value for key, value in made.items()}
        return BatchFeature({**self._sequences(ids, expansions, **layout), **media})

    def _options(self, sampling_rate: int | None, kwargs: dict[str, Any]) -> dict[str, dict[str, Any]]:
        options = {modality: dict(kwargs.pop(f"{name}_kwargs", {})) for modality, name in ARGUMENT.items()}
        options["video"] |= {name: kwargs.pop(name) for name in VIDEO_SAMPLING if name in kwargs}
        if options["video"].get("num_frames") or options["video"].get("fps"):
            options["video"].setdefault("do_sample_frames", True)
        if kwargs:
            raise TypeError(
                f"OmniProcessor takes no {', '.join(kwargs)}; see images_kwargs, videos_kwargs, audio_kwargs."
            )
        if "audio" in self.modalities and (rate := getattr(self._audio_processor, "sampling_rate", None)):
            if sampling_rate not in (None, rate):
                raise ValueError(f"The audio tower hears {rate} Hz, got {sampling_rate} Hz: resample, or give files.")
            options["audio"].setdefault("sampling_rate", rate)
        return options

    def _expanded(self, modality: str, items: list[list[Any]], options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """For each input of a modality its omni token ids and the values along them; and the tensors for the tower.

        items: the inputs of each text. Values along the ids, such as token types, have one entry per id, by name.
        """
        owner = self.modalities[modality]["owner"]
        entries = [entry for entry in self.modalities.values() if entry["owner"] == owner]
        if modality == "audio":
            items = [[self._load_audio(item) for item in sample] for sample in items]
        if modality == "video":
            items, options = self._load_videos(owner, items, options)
        pieces, made = run_donor(self.donors[owner], modality, self.modalities[modality]["snippet"], items, options)
        to_omni = translation(self.tokenizer, self.donors[owner].tokenizer, entries)
        # Values along the ids are inputs of the language model, which is the host's and knows only its own.
        return [([to_omni(token) for token in ids], along if owner == "host" else {}) for ids, along in pieces], made

    def _load_audio(self, audio: Any) -> Any:
        """Audio as an array of samples, at the tower's sampling rate if it comes from a path or a URL."""
        if isinstance(audio, (str, os.PathLike)):
            return load_audio(os.fspath(audio), self._audio_processor.sampling_rate)
        return np.asarray(audio)

    def _load_videos(self, owner: str, items: list[list[Any]], options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Videos from files as frames, and the options for them: frames are sampled by the donor's own rules."""
        items = [[_frames(item) for item in sample] for sample in items]
        files = {isinstance(item, str) for sample in items for item in sample}
        if files == {False} or read_by_donors():
            return items, options
        if len(files) > 1:
            raise ValueError("video: give all videos of one call as files, or none.")
        processor = self.donors[owner].video_processor
        arguments = {name: getattr(processor, name, None) for name in processor.valid_kwargs.__annotations__} | options
        choose = partial(processor.sample_frames, **arguments) if arguments.pop("do_sample_frames", False) else None
        loaded = [[load_video(item, choose) for item in sample] for sample in items]
        metadata = [known for sample in loaded for _, known in sample]
        frames = [[video for video, _ in sample] for sample in loaded]
        return frames, {**options, "do_sample_frames": False, "video_metadata": metadata}

    def _sequences(
        self,
        ids: list[list[int]],
        expansions: Any,
        padding: Any,
        padding_side: str | None,
        truncation: Any,
        max_length: int | None,
    ) -> dict[str, Any]:
        """`input_ids`, `attention_mask` and the values along them (batch, sequence), with each placeholder expanded.

        ids: the token ids of each text. expansions: id of a placeholder token -> its `_expanded` inputs, in order.
        """
        rest = {token: iter(pieces) for token, pieces in expansions.items()}
        names = sorted({name for pieces in expansions.values() for _, values in pieces for name in values})
        rows: dict[str, list[list[int]]] = {name: [] for name in ("input_ids", *names)}
        for sample in ids:
            for row in rows.values():
                row.append([])
            for token in sample:
                piece, values = next(rest[token]) if token in rest else ([token], {})
                rows["input_ids"][-1] += piece
                for name in names:
                    rows[name][-1] += values.get(name, [0] * len(piece))
            if truncation and max_length is not None and len(rows["input_ids"][-1]) > max_length:
                kept = slice(-max_length, None) if self.tokenizer.truncation_side == "left" else slice(max_length)
                if any(token in rest for token in sample):
                    raise ValueError(f"A text with media is longer than {max_length} tokens, and cannot be cut.")
                for row in rows.values():
                    row[-1] = row[-1][kept]
        options: dict[str, Any] = {"padding_side": padding_side} if padding_side else {}
        options |= {"padding": padding, "return_attention_mask": True}
        options |= {"max_length": max_length} if padding == "max_length" else {}
        out = dict(self.tokenizer.pad({"input_ids": rows["input_ids"]}, **options))
        for name in names:
            out[name] = [_spread(row, mask) for row, mask in zip(rows[name], out["attention_mask"], strict=True)]
        lengths = {len(row) for row in out["input_ids"]}
        if len(lengths) > 1:
            raise ValueError(f"The texts have {sorted(lengths)} tokens: pass padding=True.")
        return {name: torch.tensor(row) for name, row in out.items()}

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        """As `ProcessorMixin.apply_chat_template`, but audio files are read by this package's loader."""
        if kwargs.get("tokenize") and "audio" in self.modalities:
            conversation = with_loaded_audio(conversation, self._load_audio)
        return super().apply_chat_template(conversation, *args, **kwargs)

    # --------------------------------------------------------------------------------------- what transformers asks

    @property
    def _audio_processor(self) -> Any:
        """The audio donor's feature extractor, at whose sampling rate audio files are loaded; None without audio."""
        owner = self.modalities.get("audio", {}).get("owner")
        return None if owner is None else getattr(self.donors[owner], "feature_extractor", None)

    @property
    def model_input_names(self) -> list[str]:
        return list(self.tokenizer.model_input_names)

    def to_dict(self) -> dict[str, Any]:
        extra = {"auto_map": self.auto_map} if hasattr(self, "auto_map") else {}
        return {"modalities": self.modalities, "processor_class": type(self).__name__, **extra}

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> Any:
        for owner, donor in self.donors.items():
            donor.save_pretrained(os.path.join(save_directory, DIRECTORY, owner))
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        path = os.fspath(pretrained_model_name_or_path)
        known, _ = cls.get_processor_dict(path, **kwargs)
        kwargs = {name: value for name, value in kwargs.items() if not name.startswith("_")}  # the auto classes' own
        donors = {}
        for owner in sorted({entry["owner"] for entry in known["modalities"].values()}):
            inside = os.path.join(kwargs.get("subfolder") or "", DIRECTORY, owner)
            local = os.path.isdir(path)  # else a repository of the hub, in which a folder is named by `subfolder`
            place, subfolder = (os.path.join(path, inside), "") if local else (path, inside)
            donors[owner] = AutoProcessor.from_pretrained(place, **{**kwargs, "subfolder": subfolder})
        tokenizer = AutoTokenizer.from_pretrained(path, **kwargs)
        processor = cls(tokenizer, donors, known["modalities"], chat_template=known.get("chat_template"))
        if "auto_map" in known:
            processor.auto_map = known["auto_map"]
        return processor


def _spread(row: list[int], mask: list[int]) -> list[int]:
    """`row` at the positions of `mask`, zeros at the padding."""
    values = iter(row)
    return [next(values) if kept else 0 for kept in mask]


def _frames(video: Any) -> Any:
    """A list of frames with the image files among them opened; any other video as it is."""
    if not isinstance(video, list):
        return video
    return [load_image(frame) if isinstance(frame, str) else frame for frame in video]
