"""The composed omni model: one language model with the towers of several donors.

Its modules import nothing but transformers, torch, numpy and each other, so that a checkpoint can carry them (see
`export`) and load where this package is not installed.
"""

from __future__ import annotations


def register() -> None:
    """Makes transformers' auto classes know `mllm_omni`. Imports transformers and torch; safe to call again."""
    from transformers import (
        AutoConfig,
        AutoModelForImageTextToText,
        AutoModelForMultimodalLM,
        AutoProcessor,
    )

    from .configuration import OmniConfig
    from .modeling import OmniForConditionalGeneration
    from .processing import OmniProcessor

    AutoConfig.register(OmniConfig.model_type, OmniConfig, exist_ok=True)
    AutoProcessor.register(OmniConfig, OmniProcessor, exist_ok=True)
    for auto in (AutoModelForMultimodalLM, AutoModelForImageTextToText):  # as in export.AUTO_MODELS
        auto.register(OmniConfig, OmniForConditionalGeneration, exist_ok=True)
    # so that `save_pretrained` writes the code into a fine-tuned checkpoint too
    OmniConfig.register_for_auto_class()
    OmniForConditionalGeneration.register_for_auto_class("AutoModelForMultimodalLM")
    OmniProcessor.register_for_auto_class()


# Before any module here, and after `register`: importing it makes the start-up hook ask for both, which would fail if
# one of our modules were the first to import it and were itself only half imported.
import transformers.models.auto.configuration_auto  # noqa: E402, F401
