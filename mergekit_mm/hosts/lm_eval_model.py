"""lm-eval learns of the model `mllm`, which is imported only when `--model mllm` asks for it."""

NAME, TARGET = "mllm", "mergekit_mm.evaluation.model.mllm:MLLM"


def register() -> None:
    """Put `mllm` into lm-eval's public model registry (0.4.13 up to 0.5), unless something else has that name."""
    from lm_eval.api.registry import model_registry

    if NAME not in model_registry:
        model_registry.register(NAME, target=TARGET)
