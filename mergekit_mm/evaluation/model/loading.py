"""How `mllm` loads a model: as lm-eval's `hf`, with the auto class, processor and adapter that a multimodal one needs.

The methods that begin with an underscore override private methods of `HFLM`, as lm-eval has them from 0.4.13 to the end
of 0.4. A test compares their parameters with those of the installed lm-eval.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import transformers
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import configure_pad_token, resolve_max_length

from mergekit_mm.errors import EvaluationError
from mergekit_mm.evaluation.model import internvl

# Auto class -> the models that it loads; the first one that knows a config counts.
AUTO_CLASSES = {
    transformers.AutoModelForMultimodalLM: transformers.MODEL_FOR_MULTIMODAL_LM_MAPPING,
    transformers.AutoModelForImageTextToText: transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    transformers.AutoModelForSeq2SeqLM: transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,  # some audio models
    transformers.AutoModelForCausalLM: transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
}


class MultimodalLoader(HFLM):
    """A model of transformers with its processor; `HFLM.__init__` calls the private methods in the order they stand."""

    _model: Any
    processor: Any
    saved_processor: dict[str, Any] | None = None  # the processor as its file has it, where it comes from one
    _internvl: dict[str, Any] | None = None  # the config of a checkpoint in InternVL's original form

    def _get_config(self, pretrained: str, **kwargs: Any) -> None:
        """Set `_config`, and with it the auto class that loads the model."""
        where = {key: kwargs[key] for key in ("revision", "subfolder") if kwargs.get(key)}
        self._internvl = internvl.original_config(pretrained, **where)
        if self._internvl is not None:
            processor = internvl.processor_of(pretrained, self._internvl, where, kwargs.get("trust_remote_code"))
            self._config = internvl.config_of(self._internvl, processor.image_token_id)
            self._internvl_processor, self.AUTO_MODEL_CLASS = processor, internvl.Loader(self._config)
            return
        super()._get_config(pretrained, **kwargs)
        own_code = getattr(self._config, "auto_map", None) or {}
        fitting = [
            auto for auto, known in AUTO_CLASSES.items() if type(self._config) in known or auto.__name__ in own_code
        ]
        if not fitting:
            version = f"transformers {transformers.__version__}"
            raise EvaluationError(f"{pretrained}: {version} has no language model of type {self._config.model_type!r}")
        self.AUTO_MODEL_CLASS = fitting[0]

    def _get_backend(self, config: Any, **_: Any) -> None:
        """Set `backend`: whether answers follow the prompt ("causal") or stand alone ("seq2seq")."""
        self.backend = "seq2seq" if config.is_encoder_decoder else "causal"
        if self.AUTO_MODEL_CLASS is None:  # the model came as an object, and no class has to load it
            self.AUTO_MODEL_CLASS = next(iter(AUTO_CLASSES))

    def _create_tokenizer(
        self, pretrained: Any, tokenizer: Any, revision: str | None = "main", subfolder: str | None = "", **kwargs: Any
    ) -> None:
        """Set `processor` and `tokenizer`; the argument `tokenizer` is the processor, or where it is."""
        self.processor = tokenizer
        if tokenizer is None and self._internvl is not None:
            self.processor = self._internvl_processor
        elif tokenizer is None or isinstance(tokenizer, str):
            place = tokenizer or (pretrained if isinstance(pretrained, str) else self.model.name_or_path)
            where = {"revision": revision, **({"subfolder": subfolder} if subfolder else {})}
            self.saved_processor = _saved_processor(place, where)
            self.processor = transformers.AutoProcessor.from_pretrained(
                place, trust_remote_code=kwargs.get("trust_remote_code"), **where
            )
        if getattr(self.processor, "tokenizer", None) is None:
            raise EvaluationError(
                f"{pretrained} has no processor, only a {type(self.processor).__name__}: name one by processor=, or if "
                "it is a text LLM, evaluate it by --model hf. Of models with code of their own and no processor, "
                "`mllm` runs InternVL's (model_type internvl_chat)"
            )
        configure_pad_token(self.processor.tokenizer, self.config)
        # The processor works in a thread of its own, and a tokenizer is not safe to use in two threads at once.
        self.tokenizer = copy.deepcopy(self.processor.tokenizer)

    def _create_model(self, pretrained: str, peft: str | None = None, **kwargs: Any) -> None:
        """Set `_model`."""
        if peft and self._internvl is not None:
            raise EvaluationError(
                f"{pretrained} is an InternVL in its original form, and is evaluated in that of transformers, in which "
                "adapters have other names: merge the adapter into the model first"
            )
        super()._create_model(pretrained, **kwargs)
        model = self._model
        if self._internvl is not None:
            model.generation_config.eos_token_id = internvl.reply_ends(self.processor)
        if peft:  # loaded here, since `hf` would first cut the embeddings to the size of the tokenizer
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, peft)
        self._model = getattr(model, "thinker", model)  # the part of a speaking model that answers in text

    @property
    def is_original_internvl(self) -> bool:
        """Whether the checkpoint is an InternVL in its original form, whose tensors have other names in memory."""
        return self._internvl is not None

    @property
    def max_length(self) -> int:
        """As `hf`, by the config of the language model: the longest sequence, in tokens."""
        if self._max_length:
            return int(self._max_length)
        return resolve_max_length(self.model.config.get_text_config(), self.tokenizer, default=self._DEFAULT_MAX_LENGTH)

    @property
    def attn_implementation(self) -> Any:
        """The attention implementation; transformers (5.20 to 5.24) has no public name for that of a loaded model."""
        return self.model.config._attn_implementation

    def chat_template_of(self, choice: str) -> str | None:
        """The chat template (Jinja) that `choice` means: `auto` (the processor's, if any), `none`, or a file."""
        if choice == "none":
            return None
        if choice != "auto":
            return Path(choice).expanduser().read_text(encoding="utf-8")
        found = getattr(self.processor, "chat_template", None) or getattr(self.tokenizer, "chat_template", None)
        return found.get("default") if isinstance(found, dict) else found


def _saved_processor(place: str, where: dict[str, Any]) -> dict[str, Any] | None:
    """The processor as its file has it; None if there is no such file."""
    try:
        return dict(transformers.ProcessorMixin.get_processor_dict(place, **where)[0])
    except OSError:
        return None
