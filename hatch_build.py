"""The readme of a distribution: README.md, with links that also lead somewhere from the page of a package index."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

# A link or an image whose target is a path in the repository.
_RELATIVE = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?!https?://|#)(?P<path>[^)\s]+)\)")


class Readme(MetadataHookInterface):
    """Fills in the field `readme`, for every build of a wheel or a source distribution."""

    def update(self, metadata: dict[str, Any]) -> None:
        repository, tag = metadata["urls"]["Repository"], f"v{metadata['version']}"

        def absolute(link: re.Match[str]) -> str:
            kind = "raw" if link["image"] else "blob"
            return f"{link['image']}[{link['text']}]({repository}/{kind}/{tag}/{link['path']})"

        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": _RELATIVE.sub(absolute, text)}
