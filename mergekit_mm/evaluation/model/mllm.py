"""The lm-eval model `mllm`: any multimodal model of transformers, with images, sounds and videos in one request.

Requests without media go the way of lm-eval's `hf`, whose loading and options this model has too.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import (
    configure_pad_token,
    normalize_gen_kwargs,
    postprocess_generated_text,
    resolve_max_length,
)
from lm_eval.models.utils_hf import stop_sequences_criteria
from tqdm import tqdm

from mergekit_mm.errors import EvaluationError
from mergekit_mm.evaluation.model import internvl
from mergekit_mm.evaluation.model.batching import Asked, ahead, batches
from mergekit_mm.evaluation.model.chat import Part, Writer, Written
from mergekit_mm.evaluation.model.completion import complete
from mergekit_mm.evaluation.model.inputs import Reader, pixel_limits
from mergekit_mm.evaluation.model.likelihood import continued, logits_of_ends
from mergekit_mm.evaluation.model.replies import with_pictures
from mergekit_mm.evaluation.model.run import Run, completed_scores, forget_stand_ins, where
from mergekit_mm.evaluation.model.sounds import Window
from mergekit_mm.evaluation.tasks.missing import check as missing_policy

LOG = logging.getLogger(__name__)
AUTO_CLASSES = (
    transformers.AutoModelForMultimodalLM,
    transformers.AutoModelForImageTextToText,
    transformers.AutoModelForSeq2SeqLM,  # some that hear
    transformers.AutoModelForCausalLM,
)
# A prompt is read in both directions at once: the answer that is scored would be read along with it.
_NOT_CAUSAL = {"paligemma"}


class MLLM(HFLM):
    """Arguments of `--model_args`, besides those of `hf` (dtype, peft, trust_remote_code, max_length, ...):

    pretrained: a directory or a hub id of anything that `AutoModelForMultimodalLM` loads.
    processor: where the processor is, if not there.
    chat_template: `auto` (the processor's, if it has one), `none`, or a file. It is applied to prompts with media,
        unless lm-eval has done so (`--apply_chat_template`); prompts of text-only tasks are left to lm-eval.
    system_prompt: its first turn.
    min_pixels, max_pixels: of a picture, for processors that have such limits.
    images_kwargs, videos_kwargs, audio_kwargs: dicts of what else the processor is told (`--model_args` as JSON).
    num_frames, fps, max_frames: of every video, in the place of what the task says: how many frames of it, or how many
        a second are taken, evenly, and at most how many.
    long_audio: what is done with a sound that is longer than the processor hears: `error` (before the run), `cut`, or
        `chunk`, which gives it as several sounds.
    missing: what is done with documents of which a medium cannot be read, or is refused by the processor: `error`
        (before the run), `skip` or `wrong`; see `evaluation.missing`.
    think_end_token: the text, or the number of the token, that ends thoughts, which are taken off the answer.
    skip_special_tokens: whether answers are without them.
    device: by default a GPU if there is one. device_map: as in transformers, to split a model over several.
    """

    MULTIMODAL = True
    _model: Any
    _saved_processor: dict[str, Any] | None = None
    _internvl: dict[str, Any] | None = None  # the config of a checkpoint in InternVL's original form

    def __init__(
        self,
        pretrained: Any,
        processor: Any = None,
        chat_template: str = "auto",
        system_prompt: str | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        images_kwargs: dict[str, Any] | None = None,
        videos_kwargs: dict[str, Any] | None = None,
        audio_kwargs: dict[str, Any] | None = None,
        num_frames: int | None = None,
        fps: float | None = None,
        max_frames: int | None = None,
        long_audio: str = "error",
        missing: str = "error",
        skip_special_tokens: bool = True,
        device: str | None = None,
        device_map: Any = None,
        batch_size: int | str | None = 1,
        **kwargs: Any,
    ) -> None:
        self.missing = missing_policy(missing)
        if not str(batch_size).isdigit():
            raise EvaluationError(
                f"batch_size is {batch_size!r}: mllm takes a number, as media differ too much in size"
            )
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        if isinstance(device_map, str) and (device_map not in ("auto", "balanced", "sequential") or not accelerator):
            device, device_map = ("cpu" if not accelerator else device_map), None  # one device
        if device_map is not None:
            kwargs |= {"parallelize": True, "device_map": device_map}
        device = device or (accelerator.type if accelerator else "cpu")
        super().__init__(pretrained, tokenizer=processor, device=device, batch_size=batch_size, **kwargs)
        self.model.generation_config.max_new_tokens = None  # the task says
        self.skip_special_tokens = skip_special_tokens
        self.completed = complete(self.processor, self.model, self._saved_processor)
        if self.completed:
            LOG.warning(f"The processor does not know {self.completed}: taken from the model.")
        options = {"image": images_kwargs or {}, "video": videos_kwargs or {}, "audio": audio_kwargs or {}}
        options["image"] = {**pixel_limits(self.processor, min_pixels, max_pixels), **options["image"]}
        writer = Writer(
            self.processor, self.config, self._template(chat_template), system_prompt, self.chat_template_args
        )
        frames = {"num_frames": num_frames, "fps": fps, "max_frames": max_frames}
        self.reader = Reader(self.processor, writer, options, frames, Window(long_audio))
        self.run = Run(self)
        self.cache_hook: Any = self.run.answers

    # ---------------------------------------------------------------------------------------------------- loading

    def _get_config(self, pretrained: str, **kwargs: Any) -> None:
        where = {key: kwargs[key] for key in ("revision", "subfolder") if kwargs.get(key)}
        self._internvl = internvl.original_config(pretrained, **where)
        if self._internvl is not None:
            processor = internvl.processor_of(pretrained, self._internvl, where, kwargs.get("trust_remote_code"))
            self._config = internvl.config_of(self._internvl, processor.image_token_id)
            self._internvl_processor, self.AUTO_MODEL_CLASS = processor, internvl.Loader(self._config)
            return
        super()._get_config(pretrained, **kwargs)
        own = getattr(self._config, "auto_map", None) or {}
        fits = [auto for auto in AUTO_CLASSES if type(self._config) in auto._model_mapping or auto.__name__ in own]
        if not fits:
            known = f"transformers {transformers.__version__}"
            raise EvaluationError(f"{pretrained}: {known} has no language model of type {self._config.model_type!r}")
        self.AUTO_MODEL_CLASS = fits[0]

    def _get_backend(self, config: Any, **_: Any) -> None:
        self.backend = "seq2seq" if config.is_encoder_decoder else "causal"
        if self.AUTO_MODEL_CLASS is None:  # the model came as an object
            self.AUTO_MODEL_CLASS = AUTO_CLASSES[0]

    def _create_tokenizer(
        self, pretrained: Any, tokenizer: Any, revision: str | None = "main", subfolder: str | None = "", **kwargs: Any
    ) -> None:
        self.processor = tokenizer
        if tokenizer is None and self._internvl is not None:
            self.processor = self._internvl_processor
        elif tokenizer is None or isinstance(tokenizer, str):
            place = tokenizer or (pretrained if isinstance(pretrained, str) else self.model.name_or_path)
            more = {"subfolder": subfolder} if subfolder else {}
            trusted = kwargs.get("trust_remote_code")
            self._saved_processor = _in_file(place, {"revision": revision, **more})
            self.processor = transformers.AutoProcessor.from_pretrained(
                place, revision=revision, trust_remote_code=trusted, **more
            )
        if getattr(self.processor, "tokenizer", None) is None:
            raise EvaluationError(
                f"{pretrained} has no processor, only a {type(self.processor).__name__}: name one by processor=, or if "
                "it is a text LLM, evaluate it by --model hf. Of models with code of their own and no processor, "
                "`mllm` runs InternVL's (model_type internvl_chat)"
            )
        configure_pad_token(self.processor.tokenizer, self.config)
        # prompts are encoded in a thread of their own, and a tokenizer must not change in one while another uses it
        self.tokenizer = copy.deepcopy(self.processor.tokenizer)

    def _create_model(self, pretrained: str, peft: str | None = None, **kwargs: Any) -> None:
        if peft and self._internvl is not None:
            raise EvaluationError(
                f"{pretrained} is an InternVL in its original form, and is evaluated in that of transformers, in which "
                "adapters have other names: merge the adapter into the model first"
            )
        super()._create_model(pretrained, **kwargs)
        model = self._model
        if self._internvl is not None:
            model.generation_config.eos_token_id = internvl.reply_ends(self.processor)
        if peft:  # hf would first cut the embeddings to the tokenizer's size
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, peft)
        self._model = getattr(model, "thinker", model)  # of a model that speaks: what answers in text

    def _template(self, chat_template: str) -> str | None:
        if chat_template == "none":
            return None
        if chat_template != "auto":
            return Path(chat_template).expanduser().read_text(encoding="utf-8")
        found = getattr(self.processor, "chat_template", None) or getattr(self.tokenizer, "chat_template", None)
        return found.get("default") if isinstance(found, dict) else found

    @property
    def max_length(self) -> int:
        if self._max_length:
            return int(self._max_length)
        return resolve_max_length(self.model.config.get_text_config(), self.tokenizer, default=self._DEFAULT_MAX_LENGTH)

    # ----------------------------------------------------------------------------------------------- chat template

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        turns = [(turn["role"], turn["content"]) for turn in chat_history]
        system = self.reader.writer.system_prompt
        if system:  # before what lm-eval writes there: --system_instruction, a task's description
            said = turns.pop(0)[1] if turns[0][0] == "system" else ""
            turns.insert(0, ("system", f"{system}\n\n{said}" if said else system))
        words: list[tuple[str, list[Part]]] = [(role, [("text", text)]) for role, text in turns]
        written = Written(self.reader.writer.chat(words, add_generation_prompt))
        written.turns, written.add_generation_prompt = turns, add_generation_prompt
        return written

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self.reader.writer.template if chat_template else None

    # -------------------------------------------------------------------------------------------------- generation

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        with self.run.kept():
            return self._answered(requests, self._generate_with_media, super().generate_until, disable_tqdm)

    def _answered(self, requests: list[Any], with_media: Any, without: Any, disable_tqdm: bool) -> list[Any]:
        """The answers of `with_media` and `without`, each to its requests: a run has those of all its tasks."""
        has_media = [len(request.args) == 3 for request in requests]
        if requests and requests[0].request_type == "loglikelihood":  # of an answer on its own, without its question
            has_media = [has and request.args[0] != "" for request, has in zip(requests, has_media, strict=True)]
        shown = [request for request, has in zip(requests, has_media, strict=True) if has]
        self.reader.check((request.task_name, request.args[2]) for request in shown)
        unanswered = self.run.examine(shown)
        rest = [request for request, has in zip(requests, has_media, strict=True) if not has]
        plain = [replace(request, arguments=request.args[:2]) for request in rest]
        able = [request for n, request in enumerate(shown) if n not in unanswered]
        found = iter(with_media(able, disable_tqdm))
        told = iter([unanswered[n] if n in unanswered else next(found) for n in range(len(shown))])
        answers = told, iter(without(plain, disable_tqdm) if plain else ())
        self.run.tell()
        return [next(answers[0] if has else answers[1]) for has in has_media]

    def _read(self, requests: list[Any]) -> tuple[list[Asked], list[Any]]:
        """The requests as the model reads them, and the arguments under which lm-eval keeps their answers."""
        asked, keys = [], [request.args for request in requests]
        for request in requests:
            context, how, media = request.args
            options = json.dumps(how, sort_keys=True) if isinstance(how, dict) else ""
            asked.append(self.reader.read(context, media, where(request), options))
        for request, one in zip(requests, asked, strict=True):
            if isinstance(request.args[0], Written):  # the log of samples has what the model reads
                request.arguments = (one.text, *request.args[1:])
        self.reader.note_times(asked)
        return asked, keys

    def _generate_with_media(self, requests: list[Any], disable_tqdm: bool) -> list[str]:
        asked, keys = self._read(requests)
        answers = [""] * len(asked)
        for places, inputs in self._inputs(asked, "left", "Running generate_until requests with media", disable_tqdm):
            options = requests[places[0]].args[1]
            for n, answer in zip(places, self._generate([asked[n] for n in places], inputs, options), strict=True):
                answers[n] = answer
                self.cache_hook.add_partial("generate_until", keys[n], answer)
        return answers

    def _inputs(self, asked: Sequence[Asked], padding_side: str, told: str, disable_tqdm: bool) -> Any:
        def encoded(places: list[int]) -> Any:
            return self.reader.encode_apart([asked[n] for n in places], padding_side)

        with tqdm(total=len(asked), desc=told, disable=disable_tqdm or self.rank != 0 or not asked) as bar:
            for places, parts in ahead(encoded, batches(asked, int(self.batch_size))):
                for within, inputs in parts:
                    yield [places[at] for at in within], inputs.to(self.device, self.model.dtype)
                bar.update(len(places))

    def _generate(self, asked: list[Asked], inputs: Any, options: dict[str, Any]) -> list[str]:
        kwargs: dict[str, Any] = dict(normalize_gen_kwargs(options, self.max_gen_toks))
        until, new_tokens = kwargs.pop("until"), kwargs.pop("max_gen_toks")
        if not kwargs["do_sample"]:
            for unused in ("temperature", "top_p", "top_k"):
                kwargs.pop(unused, None)
        prompt = inputs["input_ids"]
        self._check_length(asked, inputs, new_tokens)
        if until:
            kwargs["stopping_criteria"] = stop_sequences_criteria(self.tokenizer, until, prompt.shape[1], len(asked))
        with torch.inference_mode(), self._autocast():
            said = self.model.generate(
                **inputs, max_new_tokens=new_tokens, pad_token_id=self.tokenizer.pad_token_id, **kwargs
            )
        if torch.equal(said[:, : prompt.shape[1]], prompt):
            said = said[:, prompt.shape[1] :]
        elif self.backend == "seq2seq":  # the answer alone, after a start token
            said = said[:, 1:]
        for row, one in zip(said.tolist(), asked, strict=True):
            self.run.count_reply(one.where, self._is_cut(row, until, new_tokens))
        replies = [self._decoded(row, until) for row in said.tolist()]
        return with_pictures(replies, asked, inputs, self.reader, self.config)

    def _decoded(self, tokens: list[int], until: list[str]) -> str:
        return self._answer(tokens[: self._end(tokens)], until)

    def _end(self, tokens: list[int]) -> int:
        """Where a reply's end-of-text token is; the number of its tokens if it has none."""
        ends = self.model.generation_config.eos_token_id
        ends = {self.eot_token_id, *(ends if isinstance(ends, list) else [ends])}
        return next((at for at, token in enumerate(tokens) if token in ends), len(tokens))

    def _answer(self, tokens: list[int], until: list[str]) -> str:
        """The text of a reply's tokens, without thoughts that end in `think_end_token` (a text or a token), as `hf`."""
        end = self.think_end_token
        thoughts = [at for at, token in enumerate(tokens) if token == end]
        tokens = tokens[thoughts[-1] + 1 :] if thoughts else tokens
        said = self.tokenizer.decode(tokens, skip_special_tokens=self.skip_special_tokens)
        said = said.lstrip() if isinstance(end, int) else said
        return postprocess_generated_text(said, until, end if isinstance(end, str) else None)

    def _is_cut(self, tokens: list[int], until: list[str], new_tokens: int) -> bool:
        """Whether a reply was still going on when its tokens were used up."""
        if len(tokens) < new_tokens or self._end(tokens) < len(tokens):
            return False
        said = self.tokenizer.decode(tokens) if until else ""
        return not any(stop and stop in said for stop in until)

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **generation_kwargs: Any) -> Any:
        """As `hf`; that its replies were cut is counted here."""
        made = super()._model_generate(context, max_length, stop, **generation_kwargs)
        before = context.shape[1] if self.backend == "causal" else 0
        for row in made.tolist():
            self.run.count_reply("text-only tasks", self._is_cut(row[before:], stop, max_length - context.shape[1]))
        return made

    def _check_length(self, asked: list[Asked], inputs: Any, new_tokens: int) -> None:
        lengths = inputs["attention_mask"].sum(-1).tolist()
        longest, one = max(zip(lengths, (one.where for one in asked), strict=True))
        if longest + new_tokens > self.max_length:
            raise EvaluationError(
                f"{one}: a prompt of {longest} tokens, media included, and {new_tokens} new ones exceed the model's "
                f"{self.max_length}. Nothing is cut off: make media smaller (max_pixels, images_kwargs, num_frames), "
                "ask for fewer tokens (--gen_kwargs max_gen_toks=...), or set max_length"
            )

    def _autocast(self) -> Any:
        dtype = self.mixed_precision_dtype
        return torch.autocast(device_type=self.device.type, dtype=dtype, enabled=dtype is not None)

    # ------------------------------------------------------------------------------------------------- likelihoods

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        with self.run.kept():
            return self._answered(requests, self._score_with_media, super().loglikelihood, disable_tqdm)

    def _score_with_media(self, requests: list[Any], disable_tqdm: bool) -> list[tuple[float, bool]]:
        """One forward for all choices of a document that differ in their last token only."""
        if requests and (self.backend == "seq2seq" or self.config.model_type in _NOT_CAUSAL):
            raise EvaluationError(
                f"{requests[0].task_name}: likelihoods of answers about media are not computed for "
                f"{self.config.model_type!r}, which reads a prompt in both directions. Use tasks of generate_until"
            )
        asked: dict[Any, Asked] = {}
        members: dict[Any, list[tuple[int, tuple[int, ...]]]] = {}
        read, arguments = self._read(requests)
        for n, (one, (context, continuation, media)) in enumerate(zip(read, arguments, strict=True)):
            ours = self.reader.writer.template is not None and not isinstance(context, Written)
            scored = continued(self.tokenizer, one.text, continuation, ours)
            key = id(media), scored.ids[:-1], scored.length
            asked.setdefault(key, replace(one, text=scored.text))
            members.setdefault(key, []).append((n, scored.ids[-scored.length :]))
        rows, keys = list(asked.values()), list(asked)
        scores = [(0.0, False)] * len(requests)
        told = "Running loglikelihood requests with media"
        for places, inputs in self._inputs(rows, "right", told, disable_tqdm):
            self._check_length([rows[at] for at in places], inputs, 0)
            with torch.inference_mode(), self._autocast():
                found = logits_of_ends(self.model, inputs, [members[keys[at]][0][1] for at in places])
            for at, logits in zip(places, found, strict=True):
                likely = logits.float().log_softmax(-1)
                for n, ids in members[keys[at]]:
                    target = torch.tensor(ids, device=likely.device)
                    total = likely.gather(1, target[:, None]).sum().item()
                    scores[n] = total, bool((likely.argmax(-1) == target).all())
                    self.cache_hook.add_partial("loglikelihood", arguments[n], scores[n])
        return scores

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        if media := next((request for request in requests if len(request.args) > 1), None):
            raise EvaluationError(f"{media.task_name}: a perplexity of a text with media is not defined")
        with self.run.kept():
            return super().loglikelihood_rolling(requests, disable_tqdm)

    def set_cache_hook(self, cache_hook: Any) -> None:
        """As `hf`. What stood for answers in an earlier run is forgotten: the media may be there now."""
        super().set_cache_hook(cache_hook)
        forget_stand_ins(cache_hook.dbdict)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """As `hf`, which gathers the scores of all processes. Some metrics are those of some documents only, such as
        of a kind of question, and lm-eval looks for every metric of the first process in all others."""
        gathered: list[Any] | None = super().gather_object(obj, dst)
        return gathered if gathered is None else completed_scores(gathered)

    def get_model_info(self) -> dict[str, Any]:
        """What `hf` tells, and what decides how media and prompts reach the model."""
        writer = self.reader.writer
        generation = {k: v for k, v in self.model.generation_config.to_diff_dict().items() if not k.startswith("_")}
        return {
            **super().get_model_info(),
            "model_device": str(self.device),
            "processor": type(self.processor).__name__,
            "processor_options": {m: given for m, given in self.reader.options.items() if given},
            "chat_template": writer.template,
            "system_prompt": writer.system_prompt,
            "attn_implementation": self.model.config._attn_implementation,
            "generation_config": generation,
            **({"processor_completed": self.completed} if self.completed else {}),
            **self.run.facts(),
        }


def _in_file(place: str, where: dict[str, Any]) -> dict[str, Any] | None:
    """A processor's settings as its file has them, or None: there is no such file."""
    try:
        return dict(transformers.ProcessorMixin.get_processor_dict(place, **where)[0])
    except OSError:
        return None
