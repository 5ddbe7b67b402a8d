"""The files and folders in a model's directory that are no part of the model, known by their names.

Both inventories of a directory use these patterns: that of weights (`weight_files`) and that of side files
(`side_files.inventory`). So does the download of a model (`hub`), which leaves such files on the hub.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatch

# the model's weights once more, for other software
OTHER_FORMATS = (
    *("consolidated*", "tf_model*", "*.gguf", "*.onnx", "*.onnx_data*", "*.onnx.data", "*.msgpack", "*.h5", "*.ot"),
    *("*.tflite", "*.mlmodel"),
)
FOLDERS_OF_OTHER_FORMATS = (
    *("original", "onnx*", "gguf", "openvino*", "coreml*", "tflite", "flax", "tensorrt*", "mlx"),
)
# the state that Trainer, Accelerate, DeepSpeed and FSDP save to continue a training
TRAINING_STATE = (
    *("optimizer*", "scheduler.*", "scheduler*.pt", "scheduler*.bin", "scaler.*", "scaler*.pt", "scaler*.bin"),
    *("rng_state*", "random_states_*", "sampler*.bin", "dl_state_dict*", "custom_checkpoint_*", "training_args.*"),
    *("*_optim_states.pt", "*_model_states.pt", "pytorch_model_fsdp*", "zero_pp_rank_*", "mp_rank_*"),
    *("distrib_optim*", "*.distcp"),
)
_OTHER_LEFTOVERS = (
    *("trainer_*.json*", "zero_to_fp32.py", "latest", "latest_checkpointed_iteration.txt", "*_results.json"),
    *("events.out.tfevents*", "*.log", "nohup.out", "ema.*", "ema_*", "*_ema.*", "*-ema.*", "args.json"),
    *("logging.jsonl", "training_*.png", "*.pyc"),
)
LEFTOVER_FOLDERS = (
    *("checkpoint-*", "checkpoint_[0-9]*", "global_step*", "step_[0-9]*", "step-[0-9]*", "iter_[0-9]*"),
    *("epoch_[0-9]*", "epoch-[0-9]*", "runs", "wandb", "swanlog", "mlruns", "tensorboard", "logs", "log"),
    *("lightning_logs", "optimizer_[0-9]*", "pytorch_model_fsdp*", "ema", "ema_*", "*_ema", "__pycache__", ".*"),
)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether the name of a file or folder fits one of these patterns."""
    return any(fnmatch(name, pattern) for pattern in patterns)


def is_leftover(name: str) -> bool:
    """Whether training has left a file, at whatever depth; `optimizer.py` is code of a model."""
    is_code = name.endswith(".py") and name != "zero_to_fp32.py"
    return not is_code and matches(name, (*TRAINING_STATE, *_OTHER_LEFTOVERS))


def is_never_read(path: str) -> bool:
    """Whether a file of a repository, by its path, is another format of its weights or a leftover of its training."""
    top, slash, _ = path.partition("/")
    if slash:
        return matches(top, (*FOLDERS_OF_OTHER_FORMATS, *LEFTOVER_FOLDERS))
    return matches(path, OTHER_FORMATS) or is_leftover(path)
