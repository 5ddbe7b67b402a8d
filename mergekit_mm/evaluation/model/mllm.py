"""The lm-eval model `mllm`: any multimodal model of transformers, with images, audio and videos in one request.

Requests without media are answered by lm-eval's `hf`, whose options this model has too.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.models.utils_hf import stop_sequences_criteria
from tqdm import tqdm

from mergekit_mm.errors import EvaluationError
from mergekit_mm.evaluation.model.audio import AudioWindow
from mergekit_mm.evaluation.model.batching import PreparedRequest, batches, prefetch
from mergekit_mm.evaluation.model.chat import Part, PromptRenderer, RenderedPrompt
from mergekit_mm.evaluation.model.completion import complete
from mergekit_mm.evaluation.model.inputs import Reader, pixel_limits
from mergekit_mm.evaluation.model.likelihood import logits_of_answers, tokenize_answer
from mergekit_mm.evaluation.model.loading import MultimodalLoader
from mergekit_mm.evaluation.model.replies import with_image_sizes
from mergekit_mm.evaluation.model.run import Run, completed_scores, document_of, forget_stand_ins
from mergekit_mm.evaluation.model.thumbnails import Writer
from mergekit_mm.evaluation.tasks.missing import check as missing_policy

LOG = logging.getLogger(__name__)
# Model types that attend to a prompt in both directions: an answer after it, which is to be scored, would be seen too.
NOT_CAUSAL = {"paligemma"}


class MLLM(MultimodalLoader):
    """Arguments of `--model_args`, besides those of `hf` (dtype, peft, trust_remote_code, max_length, ...):

    pretrained: a directory or a hub id of anything that `AutoModelForMultimodalLM` loads.
    processor: a directory or a hub id of the processor, if it is elsewhere.
    chat_template: `auto` (the processor's, if it has one), `none`, or a file. The template is applied to prompts with
        media, unless lm-eval has done so (`--apply_chat_template`); prompts of text-only tasks are left to lm-eval.
    system_prompt: the content of a first turn, with the role "system".
    min_pixels, max_pixels: limits for the size of an image, for processors that have such limits.
    images_kwargs, videos_kwargs, audio_kwargs: dicts of other arguments for the processor (`--model_args` as JSON).
    num_frames, fps, max_frames: how many frames of every video are taken, evenly, or how many per second, and at most
        how many; these replace what the task says.
    long_audio: what is done with audio that is longer than the processor hears: `error` (before the run), `cut`, or
        `chunk`, which gives it as several inputs.
    missing: what is done with documents of which an input cannot be read, or is refused by the processor: `error`
        (before the run), `skip` or `wrong`; see `evaluation.tasks.missing`.
    think_end_token: the text, or the id of the token, that ends the model's thoughts, which are taken off the answer.
    skip_special_tokens: whether special tokens are left out of answers.
    thumbnails: a folder into which small copies of all media are written, for `mergekit-mm report --html`.
    device: by default a GPU if there is one. device_map: as in transformers, to split a model over several devices.
    """

    MULTIMODAL = True  # lm-eval gives requests with media to such models only

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
        thumbnails: str | None = None,
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
            device, device_map = ("cpu" if not accelerator else device_map), None  # one device for the whole model
        if device_map is not None:
            kwargs |= {"parallelize": True, "device_map": device_map}
        device = device or (accelerator.type if accelerator else "cpu")
        super().__init__(pretrained, tokenizer=processor, device=device, batch_size=batch_size, **kwargs)
        self.model.generation_config.max_new_tokens = None  # the task says how many tokens an answer may have
        self.skip_special_tokens = skip_special_tokens
        self.completed = complete(self.processor, self.model, self.saved_processor)
        if self.completed:
            LOG.warning(f"The processor does not know {self.completed}: taken from the model.")
        options = {"image": images_kwargs or {}, "video": videos_kwargs or {}, "audio": audio_kwargs or {}}
        options["image"] = {**pixel_limits(self.processor, min_pixels, max_pixels), **options["image"]}
        template = self.chat_template_of(chat_template)
        renderer = PromptRenderer(self.processor, self.config, template, system_prompt, self.chat_template_args)
        frames = {"num_frames": num_frames, "fps": fps, "max_frames": max_frames}
        self.reader = Reader(self.processor, renderer, options, frames, AudioWindow(long_audio))
        self.thumbnails = Writer(thumbnails, self.rank) if thumbnails else None
        self.run = Run(self)
        self.cache_hook: Any = self.run.answers

    # ----------------------------------------------------------------------------------------------- chat template

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """As `hf`. Whether media belong to the chat is not known yet: the result carries its turns along."""
        turns = [(turn["role"], turn["content"]) for turn in chat_history]
        system = self.reader.renderer.system_prompt
        if system:  # stands before lm-eval's own: --system_instruction and the description of the task
            of_host = turns.pop(0)[1] if turns[0][0] == "system" else ""
            turns.insert(0, ("system", f"{system}\n\n{of_host}" if of_host else system))
        words: list[tuple[str, list[Part]]] = [(role, [("text", text)]) for role, text in turns]
        prompt = RenderedPrompt(self.reader.renderer.render_chat(words, add_generation_prompt))
        prompt.turns, prompt.add_generation_prompt = turns, add_generation_prompt
        return prompt

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self.reader.renderer.template if chat_template else None

    # ---------------------------------------------------------------------------------------------------- requests

    def _answer_all(self, requests: list[Any], with_media: Any, text_only: Any, disable_tqdm: bool) -> list[Any]:
        """The answers to the requests of all tasks of a run, by `with_media` or by `text_only`, in their order."""
        has_media = [len(request.args) == 3 for request in requests]
        if requests and requests[0].request_type == "loglikelihood":  # an answer without its question is text only
            has_media = [has and request.args[0] != "" for request, has in zip(requests, has_media, strict=True)]
        multimodal = [request for request, has in zip(requests, has_media, strict=True) if has]
        plain = [
            replace(request, arguments=request.args[:2])
            for request, has in zip(requests, has_media, strict=True)
            if not has
        ]
        self.reader.check((request.task_name, request.args[2]) for request in multimodal)
        stand_ins = self.run.examine(multimodal)
        if self.thumbnails:
            self.thumbnails.add(multimodal)
        answers = iter(with_media([one for n, one in enumerate(multimodal) if n not in stand_ins], disable_tqdm))
        of_multimodal = iter([stand_ins[n] if n in stand_ins else next(answers) for n in range(len(multimodal))])
        of_plain = iter(text_only(plain, disable_tqdm) if plain else ())
        self.run.warn_of_cut_replies()
        return [next(of_multimodal if has else of_plain) for has in has_media]

    def _prepare(self, requests: list[Any]) -> tuple[list[PreparedRequest], list[Any]]:
        """The requests as the model reads them, and the arguments under which lm-eval caches their answers."""
        prepared, keys = [], [request.args for request in requests]
        for request in requests:
            context, how, media = request.args
            options = json.dumps(how, sort_keys=True) if isinstance(how, dict) else ""
            prepared.append(self.reader.read(context, media, document_of(request), options))
        for request, one in zip(requests, prepared, strict=True):
            if isinstance(request.args[0], RenderedPrompt):  # the log of samples shows the prompt as the model reads it
                request.arguments = (one.text, *request.args[1:])
        self.reader.note_times(prepared)
        return prepared, keys

    def _inputs(self, prepared: Sequence[PreparedRequest], padding_side: str, task: str, disable_tqdm: bool) -> Any:
        """Batches of requests, as their indices and their inputs on the model's device."""

        def encode(indices: list[int]) -> Any:
            return self.reader.encode_in_parts([prepared[n] for n in indices], padding_side)

        with tqdm(total=len(prepared), desc=task, disable=disable_tqdm or self.rank != 0 or not prepared) as bar:
            for indices, parts in prefetch(encode, batches(prepared, int(self.batch_size))):
                for within, inputs in parts:
                    yield [indices[at] for at in within], inputs.to(self.device, self.model.dtype)
                bar.update(len(indices))

    def _check_length(self, batch: list[PreparedRequest], inputs: Any, new_tokens: int) -> None:
        lengths = inputs["attention_mask"].sum(-1).tolist()
        longest, one = max(zip(lengths, (one.where for one in batch), strict=True))
        if longest + new_tokens > self.max_length:
            raise EvaluationError(
                f"{one}: a prompt of {longest} tokens, media included, and {new_tokens} new ones exceed the model's "
                f"{self.max_length}. Nothing is cut off: make media smaller (max_pixels, images_kwargs, num_frames), "
                "ask for fewer tokens (--gen_kwargs max_gen_toks=...), or set max_length"
            )

    def _autocast(self) -> Any:
        dtype = self.mixed_precision_dtype
        return torch.autocast(device_type=self.device.type, dtype=dtype, enabled=dtype is not None)

    # -------------------------------------------------------------------------------------------------- generation

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        with self.run.keeping_answers():
            return self._answer_all(requests, self._generate_with_media, super().generate_until, disable_tqdm)

    def _generate_with_media(self, requests: list[Any], disable_tqdm: bool) -> list[str]:
        prepared, keys = self._prepare(requests)
        answers = [""] * len(prepared)
        task = "Running generate_until requests with media"
        for indices, inputs in self._inputs(prepared, "left", task, disable_tqdm):
            options = requests[indices[0]].args[1]
            for n, answer in zip(indices, self._generate([prepared[n] for n in indices], inputs, options), strict=True):
                answers[n] = answer
                self.cache_hook.add_partial("generate_until", keys[n], answer)
        return answers

    def _generate(self, batch: list[PreparedRequest], inputs: Any, options: dict[str, Any]) -> list[str]:
        kwargs: dict[str, Any] = dict(normalize_gen_kwargs(options, self.max_gen_toks))
        until, new_tokens = kwargs.pop("until"), kwargs.pop("max_gen_toks")
        if not kwargs["do_sample"]:
            for unused in ("temperature", "top_p", "top_k"):
                kwargs.pop(unused, None)
        prompt = inputs["input_ids"]
        self._check_length(batch, inputs, new_tokens)
        if until:
            kwargs["stopping_criteria"] = stop_sequences_criteria(self.tokenizer, until, prompt.shape[1], len(batch))
        with torch.inference_mode(), self._autocast():
            generated = self.model.generate(
                **inputs, max_new_tokens=new_tokens, pad_token_id=self.tokenizer.pad_token_id, **kwargs
            )
        if torch.equal(generated[:, : prompt.shape[1]], prompt):
            generated = generated[:, prompt.shape[1] :]
        elif self.backend == "seq2seq":  # the reply alone, after a start token
            generated = generated[:, 1:]
        rows = generated.tolist()
        for row, one in zip(rows, batch, strict=True):
            self.run.count_reply(one.where, self._is_cut(row, until, new_tokens))
        replies = [self._answer(row[: self._end(row)], until) for row in rows]
        return with_image_sizes(replies, batch, inputs, self.reader, self.config)

    def _end(self, tokens: list[int]) -> int:
        """The index of the token that ends a reply; the number of its tokens if none does."""
        ends = self.model.generation_config.eos_token_id
        ends = {self.eot_token_id, *(ends if isinstance(ends, list) else [ends])}
        return next((at for at, token in enumerate(tokens) if token in ends), len(tokens))

    def _answer(self, tokens: list[int], until: list[str]) -> str:
        """The text of a reply's tokens without its thoughts, which `think_end_token` (a text or a token id) ends."""
        end = self.think_end_token
        thoughts = [at for at, token in enumerate(tokens) if token == end]
        tokens = tokens[thoughts[-1] + 1 :] if thoughts else tokens
        text = self.tokenizer.decode(tokens, skip_special_tokens=self.skip_special_tokens)
        text = text.lstrip() if isinstance(end, int) else text
        return postprocess_generated_text(text, until, end if isinstance(end, str) else None)

    def _is_cut(self, tokens: list[int], until: list[str], new_tokens: int) -> bool:
        """Whether a reply was not finished when the `new_tokens` that it may have were used up."""
        if len(tokens) < new_tokens or self._end(tokens) < len(tokens):
            return False
        text = self.tokenizer.decode(tokens) if until else ""
        return not any(stop and stop in text for stop in until)

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **generation_kwargs: Any) -> Any:
        """As `hf`, and counts the replies to text-only requests that were cut.

        A private method of HFLM, as lm-eval has it from 0.4.13 to the end of 0.4; a test compares the parameters.
        """
        generated = super()._model_generate(context, max_length, stop, **generation_kwargs)
        before = context.shape[1] if self.backend == "causal" else 0
        for row in generated.tolist():
            self.run.count_reply("text-only tasks", self._is_cut(row[before:], stop, max_length - context.shape[1]))
        return generated

    # ------------------------------------------------------------------------------------------------- likelihoods

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        with self.run.keeping_answers():
            return self._answer_all(requests, self._score_with_media, super().loglikelihood, disable_tqdm)

    def _score_with_media(self, requests: list[Any], disable_tqdm: bool) -> list[tuple[float, bool]]:
        """One forward for all choices of a document that differ in their last token only."""
        if requests and (self.backend == "seq2seq" or self.config.model_type in NOT_CAUSAL):
            raise EvaluationError(
                f"{requests[0].task_name}: likelihoods of answers about media are not computed for "
                f"{self.config.model_type!r}, which reads a prompt in both directions. Use tasks of generate_until"
            )
        forwards: dict[Any, PreparedRequest] = {}
        choices: dict[Any, list[tuple[int, tuple[int, ...]]]] = {}  # forward -> (request, ids of its answer)
        prepared, arguments = self._prepare(requests)
        for n, (one, (context, answer, media)) in enumerate(zip(prepared, arguments, strict=True)):
            ours = self.reader.renderer.template is not None and not isinstance(context, RenderedPrompt)
            scored = tokenize_answer(self.tokenizer, one.text, answer, ours)
            key = id(media), scored.ids[:-1], scored.length
            forwards.setdefault(key, replace(one, text=scored.text))
            choices.setdefault(key, []).append((n, scored.ids[-scored.length :]))
        rows, keys = list(forwards.values()), list(forwards)
        scores = [(0.0, False)] * len(requests)
        task = "Running loglikelihood requests with media"
        for indices, inputs in self._inputs(rows, "right", task, disable_tqdm):
            self._check_length([rows[at] for at in indices], inputs, 0)
            with torch.inference_mode(), self._autocast():
                found = logits_of_answers(self.model, inputs, [choices[keys[at]][0][1] for at in indices])
            for at, logits in zip(indices, found, strict=True):
                log_probabilities = logits.float().log_softmax(-1)
                for n, ids in choices[keys[at]]:
                    target = torch.tensor(ids, device=log_probabilities.device)
                    total = log_probabilities.gather(1, target[:, None]).sum().item()
                    scores[n] = total, bool((log_probabilities.argmax(-1) == target).all())
                    self.cache_hook.add_partial("loglikelihood", arguments[n], scores[n])
        return scores

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        if media := next((request for request in requests if len(request.args) > 1), None):
            raise EvaluationError(f"{media.task_name}: a perplexity of a text with media is not defined")
        with self.run.keeping_answers():
            return super().loglikelihood_rolling(requests, disable_tqdm)

    # ------------------------------------------------------------------------------------- what lm-eval asks of a run

    def set_cache_hook(self, cache_hook: Any) -> None:
        """As `hf`. Stand-ins for answers from an earlier run are forgotten, as their media may be there now."""
        super().set_cache_hook(cache_hook)
        forget_stand_ins(cache_hook.dbdict)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """As `hf`, which gathers the scores of all processes, with every metric of a process in all of them.

        lm-eval looks for the metrics of the first process in all others, and a metric of some documents alone, such as
        a kind of question, may be missing there.
        """
        gathered: list[Any] | None = super().gather_object(obj, dst)
        return gathered if gathered is None else completed_scores(gathered)

    def get_model_info(self) -> dict[str, Any]:
        """The information of `hf`, and all that decides how media and prompts reach the model."""
        renderer = self.reader.renderer
        generation = {k: v for k, v in self.model.generation_config.to_diff_dict().items() if not k.startswith("_")}
        return {
            **super().get_model_info(),
            "model_device": str(self.device),
            "processor": type(self.processor).__name__,
            "processor_options": {m: given for m, given in self.reader.options.items() if given},
            "chat_template": renderer.template,
            "system_prompt": renderer.system_prompt,
            "attn_implementation": self.attn_implementation,
            "generation_config": generation,
            **({"processor_completed": self.completed} if self.completed else {}),
            **self.run.facts(),
        }
