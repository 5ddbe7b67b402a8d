"""lm-eval 0.4.13 learns of the model `mllm`, by its public registry; nothing is imported before `--model mllm` asks."""

NAME, TARGET = "mllm", "mergekit_mm.evaluation.model.mllm:MLLM"


def register() -> None:
    """Put `mllm` among the models, unless something else has that name."""
    from lm_eval.api.registry import model_registry

    if NAME not in model_registry:
        model_registry.register(NAME, target=TARGET)
