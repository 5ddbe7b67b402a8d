"""The media of a document that go to the model: `doc_to_image` and `doc_to_audio` of the tasks.

lm-eval knows pictures and sounds only, so a video travels in the list of pictures, as a mapping: `{"type": "video",
"path": ..., "num_frames": n}` or `{"type": "video", "frames": [pictures]}`, in the order of the prompt's marks. A sound
is `{"path": ...}` or `{"bytes": ...}`, not decoded. `mllm.decoding` opens them for the model `mllm`.
"""

import io
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from mergekit_mm.evaluation.tasks.lazy_images import LazyImage, UnreadableImage, flaw_of

_VIDEO_SETTINGS = ("fps", "timestamps", "num_frames", "min_frames", "max_frames")


def open_image(stored: Mapping[str, Any]) -> Image.Image:
    """A stored image as a PIL image, whose pixels are not read yet: all requests exist before the first one is run.

    stored: `bytes`, or the `path` of an image, or the path of a video with `middle_of_video`, for its middle frame. The
    file is read and closed, as the files of a data set are too many to be open at once.
    """
    if stored.get("middle_of_video"):
        path = str(stored["path"])
        return LazyImage(partial(_middle_frame, path), partial(_look_at_video, path))
    return Image.open(io.BytesIO(_content(stored)))


def _content(stored: Mapping[str, Any]) -> bytes:
    content = stored.get("bytes")
    return Path(stored["path"]).read_bytes() if content is None else content


def _middle_frame(path: str) -> Image.Image:
    from mergekit_mm.omni.video import load_frame_at  # local: it loads transformers

    return Image.fromarray(load_frame_at(path, 0.5))


def _look_at_video(path: str) -> None:
    from mergekit_mm.omni.video import video_metadata

    video_metadata(path, path)


def image_or_stand_in(stored: Mapping[str, Any]) -> Image.Image:
    """A stored image, or a stand-in for an unreadable one, from which a model can tell the reason before the run."""
    if stored.get("middle_of_video"):
        return open_image(stored)
    name = stored.get("path") or "a picture given as bytes"
    try:
        content = _content(stored)
    except OSError as error:
        return UnreadableImage(f"{name}: {error.strerror or error}")
    flaw = flaw_of(content)
    return UnreadableImage(f"{name}: {flaw}") if flaw else Image.open(io.BytesIO(content))


def images(doc: Mapping[str, Any]) -> list[Image.Image]:
    """`doc_to_image` of the image tasks: the one image of the document."""
    return [image_or_stand_in(doc["image"])]


def visuals(doc: Mapping[str, Any]) -> list[Any]:
    """`doc_to_image` of the omni tasks: the document's video, then its image, if it has them."""
    found: list[Any] = []
    if video := doc.get("video"):
        asked = {key: video[key] for key in _VIDEO_SETTINGS if video.get(key) is not None}
        if frames := video.get("frames"):
            found.append({"type": "video", "frames": [image_or_stand_in(frame) for frame in frames], **asked})
        else:
            default = {} if "fps" in asked else {"num_frames": doc.get("num_frames")}
            stored = {key: video[key] for key in ("path", "bytes") if video.get(key) is not None}
            found.append({"type": "video", **stored, **default, **asked})
    if doc.get("image"):
        found.append(image_or_stand_in(doc["image"]))
    return found


def sounds(doc: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`doc_to_audio` of the omni tasks: the document's audio, if it has any."""
    audio = doc.get("audio")
    return [{key: value for key, value in audio.items() if value is not None}] if audio else []
