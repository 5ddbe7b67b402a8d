"""transformers' auto classes learn of omni models, each piece when it is first needed.

Public API of transformers (`register`), called by the start-up hook. The model and the processor are heavy imports, so
they wait until such a checkpoint is loaded.
"""

from typing import Any


def register_config() -> None:
    """AutoConfig knows `mllm_omni`; making such a config registers the model and the processor."""
    from transformers import AutoConfig

    from mergekit_mm.omni import register
    from mergekit_mm.omni.configuration import OmniConfig

    AutoConfig.register(OmniConfig.model_type, OmniConfig, exist_ok=True)
    if register not in OmniConfig.before_use:
        OmniConfig.before_use.append(register)


def register_processor() -> None:
    """AutoProcessor, which may be asked before any config is made, finds the processor of omni models by its name."""
    from transformers import AutoProcessor

    from mergekit_mm.omni.configuration import OmniConfig

    AutoProcessor.register(OmniConfig, OmniProcessor, exist_ok=True)


class OmniProcessor:
    """Stands for the processor of the same name until that is loaded."""

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> Any:
        from mergekit_mm.omni import processing

        return processing.OmniProcessor.from_pretrained(*arguments, **options)
