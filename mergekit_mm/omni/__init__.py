"""Omni models: one language model with the towers of several donors. This room ships inside their checkpoints.

- `configuration`: `OmniConfig`, which says who the host and the guests are, and who serves which modality
- `modeling`: `OmniForConditionalGeneration`, the model
- `donors`: the parts of the model that come from donors: the host, and the guests without their language model
- `routing`: linear layers that treat the tokens of a modality by what its owner has there (DAMC)
- `internals`: the private names of transformers that config and model need
- `processing`: `OmniProcessor`, one tokenizer and one chat template over the processors of the donors
- `expansion`: the tokens and tensors that a donor's processor makes of an image, video or audio
- `media`: images, videos and audio as users give them, brought into one form
- `audio`, `video`: the loaders of files, which evaluation uses too
- `templates`: what chat templates write for a modality, and one template for all modalities
- `export`: copies the modules above into a checkpoint

May import transformers, and torch and numpy, which transformers needs anyway; optional decoders (soundfile, PyAV) where
a file asks for them; and its own modules, relatively. Nothing else, and nothing of this package: a checkpoint is loaded
where this package is not installed.
"""

from __future__ import annotations


def register() -> None:
    """Make transformers' auto classes know `mllm_omni`. Imports transformers and torch; safe to call again."""
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor

    from .configuration import OmniConfig
    from .modeling import OmniForConditionalGeneration
    from .processing import OmniProcessor

    AutoConfig.register(OmniConfig.model_type, OmniConfig, exist_ok=True)
    AutoProcessor.register(OmniConfig, OmniProcessor, exist_ok=True)
    for auto in (AutoModelForMultimodalLM, AutoModelForImageTextToText):  # the same as in `export.AUTO_MODELS`
        auto.register(OmniConfig, OmniForConditionalGeneration, exist_ok=True)
    # With these, `save_pretrained` writes the code into a fine-tuned checkpoint too.
    OmniConfig.register_for_auto_class()
    OmniForConditionalGeneration.register_for_auto_class("AutoModelForMultimodalLM")
    OmniProcessor.register_for_auto_class()
