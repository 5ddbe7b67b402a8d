"""What of a document goes to the model: `doc_to_image` and `doc_to_audio` of the tasks.

lm-eval knows pictures and sounds only, so a video travels in the list of pictures, as a mapping: `{"type": "video",
"path": ..., "num_frames": n}` or `{"type": "video", "frames": [pictures]}`, in the order of the prompt's marks. A sound
is `{"path": ...}` or `{"bytes": ...}`, not decoded. `mllm.decoding` opens them for the model `mllm`.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image


def open_picture(stored: Mapping[str, Any]) -> Image.Image:
    """The picture, its pixels not read yet (stock models want PIL objects; all requests exist before the first run).

    A file is read and closed: so many as a data set has could not be open at once.
    """
    return Image.open(io.BytesIO(stored.get("bytes") or Path(stored["path"]).read_bytes()))


def images(doc: Mapping[str, Any]) -> list[Image.Image]:
    """`doc_to_image` of the image tasks."""
    return [open_picture(doc["image"])]


def visuals(doc: Mapping[str, Any]) -> list[Any]:
    """`doc_to_image` of the omni tasks: the video, then the picture, where the document has them."""
    found: list[Any] = []
    if video := doc.get("video"):
        if frames := video.get("frames"):
            found.append({"type": "video", "frames": [open_picture(frame) for frame in frames]})
        else:
            found.append({"type": "video", "path": video["path"], "num_frames": doc["num_frames"]})
    if doc.get("image"):
        found.append(open_picture(doc["image"]))
    return found


def sounds(doc: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`doc_to_audio` of the omni tasks."""
    audio = doc.get("audio")
    return [{key: value for key, value in audio.items() if value is not None}] if audio else []
