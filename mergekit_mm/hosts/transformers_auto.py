"""transformers' auto classes learn of omni models, by their public `register`, which the start-up hook calls.

The model and the processor are heavy, and cannot be imported while transformers itself is only half imported. So two
light classes stand for the config and the processor until an omni checkpoint is loaded.
"""

from typing import Any


def register_config() -> None:
    """Make AutoConfig know `mllm_omni`."""
    from transformers import AutoConfig

    AutoConfig.register(OmniConfig.model_type, OmniConfig, exist_ok=True)


def register_processor() -> None:
    """Make AutoProcessor, which may be asked before any config is made, know the processor of omni models by name."""
    from transformers import AutoProcessor

    AutoProcessor.register(OmniConfig, OmniProcessor, exist_ok=True)


class OmniConfig:
    """Stands for the config of the same name. Whoever makes one gets the real one; the auto classes then know all."""

    model_type = "mllm_omni"

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        return _registered_config()(*arguments, **options)

    @classmethod
    def from_dict(cls, *arguments: Any, **options: Any) -> Any:
        return _registered_config().from_dict(*arguments, **options)

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> Any:
        return _registered_config().from_pretrained(*arguments, **options)


class OmniProcessor:
    """Stands for the processor of the same name."""

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> Any:
        from mergekit_mm.omni import processing, register

        register()
        return processing.OmniProcessor.from_pretrained(*arguments, **options)


def _registered_config() -> Any:
    """The real config class, after transformers' auto classes have been told of it, its model and its processor."""
    from mergekit_mm.omni import configuration, register

    register()
    return configuration.OmniConfig
