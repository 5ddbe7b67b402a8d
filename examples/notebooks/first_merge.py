# %% [markdown]
# # A first merge of multimodal models
#
# Three experts of a small vision-language model, one for questions about colours, one for shapes, one for yes or no,
# become one model that answers all of them. Nothing is trained: the merge takes seconds on a CPU.
#
# 1. [Install](#1.-Install)
# 2. [Which models](#2.-Which-models): put your own here
# 3. [Plan](#3.-Plan): what will be done with every tensor, and why
# 4. [Look](#4.-Look): how far the experts are apart
# 5. [Merge](#5.-Merge)
# 6. [Ask](#6.-Ask) the model about a picture
# 7. [Report](#7.-Report): base, experts and merge in one table

# %% [markdown]
# ## 1. Install
#
# On a fresh machine. In a clone in which mergekit-mm is installed, leave this cell out.

# %%
#: !git clone --depth 1 https://github.com/OWNER/mergekit-mm
#: %cd mergekit-mm
#: %pip install --quiet '.[demo]'

# %%
import html
import os
import shlex
import subprocess
import sys
from pathlib import Path

while not Path("examples/easy_vqa").is_dir() and Path.cwd().parent != Path.cwd():
    os.chdir("..")  # to the root of the clone
OUT = Path("out/first_merge")
OUT.mkdir(parents=True, exist_ok=True)


def run(command):
    """Run a command of a terminal with this Python, and print what it tells."""
    print("$", command)
    program, *words = shlex.split(command)
    module = [sys.executable, "-m", program.replace("-", "_")]
    done = subprocess.run([*module, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout[-6000:])
    done.check_returncode()


def show(thing):
    """Show a picture, or a page, where this is a notebook."""
    try:
        from IPython.display import HTML, display
    except ImportError:
        return
    if isinstance(thing, Path):
        thing = HTML(f'<iframe srcdoc="{html.escape(thing.read_text())}" width="100%" height="600"></iframe>')
    display(thing)


run("mergekit-mm doctor")

# %% [markdown]
# ## 2. Which models
#
# These lie in the clone: 0.9 million parameters each, trained on the package `easy-vqa`. For your own, write
# directories, ids of the hub, or `base+adapter` for LoRA adapters; the rest of this page goes along. Which method and
# strength: [which method, when](https://github.com/OWNER/mergekit-mm/blob/main/docs/which-method-when.md).

# %%
BASE = "examples/easy_vqa/models/base"
EXPERTS = [
    "examples/easy_vqa/models/expert_color",
    "examples/easy_vqa/models/expert_shape",
    "examples/easy_vqa/models/expert_yesno",
]
config = {
    "merge_method": "optmerge",
    "base_model": BASE,
    "models": [{"model": expert} for expert in EXPERTS],
    "parameters": {"preset": "full", "scaling": 1.0},  # `preset: lora` for experts that are adapters
    "out_dtype": "bfloat16",
}

# %% [markdown]
# ## 3. Plan
#
# The plan reads headers and small files. A merge that could not end in a model that loads is refused here.

# %%
from mergekit_mm.api import merge, plan

planned = plan(config)
print(planned)

# %% [markdown]
# Of every tensor it says what is done with it, from which inputs, and why:

# %%
merged_one = next(tensor for tensor in planned if not tensor.reason)
kept_one = next(tensor for tensor in planned if tensor.reason)
print(merged_one)
print(kept_one)

# %% [markdown]
# ## 4. Look
#
# How far each expert went from the base and in which layers, how their changes lie to each other, and what follows.

# %%
import yaml

(OUT / "merge.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
run(f"mergekit-mm inspect {OUT}/merge.yaml --html {OUT}/experts.html --quiet")
show(OUT / "experts.html")

# %% [markdown]
# ## 5. Merge
#
# The same as `mergekit-yaml merge.yaml merged` in a terminal. The output is loaded again before it gets its name.

# %%
merged = merge(config, OUT / "merged", quiet=True)
print(*sorted(path.name for path in merged.iterdir()))

# %% [markdown]
# ## 6. Ask
#
# A model that transformers loads, like any other. The picture has a colour that the base was never trained on, and one
# expert was. Put your own picture and questions here.

# %%
import easy_vqa
from PIL import Image

texts, answers, pictures = easy_vqa.get_test_questions()
number = pictures[answers.index("teal")]
PICTURE = Image.open(easy_vqa.get_test_image_paths()[number]).convert("RGB")
QUESTIONS = [text for text, of in zip(texts, pictures, strict=True) if of == number][:4]
show(PICTURE.resize((256, 256)))

# %%
import torch
from transformers import AutoModelForMultimodalLM, AutoProcessor


def ask(path, questions):
    """The answers of a model to questions about the picture."""
    processor = AutoProcessor.from_pretrained(path)
    model = AutoModelForMultimodalLM.from_pretrained(path, dtype=torch.float32)
    for question in questions:
        content = [{"type": "image", "image": PICTURE}, {"type": "text", "text": question}]
        prompt = [{"role": "user", "content": content}]
        inputs = processor.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        replied = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        yield processor.decode(replied, skip_special_tokens=True).strip()


for path in [BASE, *EXPERTS, str(merged)]:
    print(f"{Path(path).name:14}", *ask(path, QUESTIONS), sep=" | ")
print(f"{'asked':14}", *QUESTIONS, sep=" | ")

# %% [markdown]
# ## 7. Report
#
# The stock `lm_eval` with some questions of each kind; `LIMIT = None` asks all 9673 (a minute for each model on two
# cores). For models of real size the tasks of the MLLM merging benchmark are there: `TASKS = "mllm"`.

# %%
TASKS = "mllm_demo_easy_vqa"
LIMIT = 100
for path in [BASE, *EXPERTS, str(merged)]:
    limit = f"--limit {LIMIT}" if LIMIT else ""
    run(
        f"lm_eval --include_path examples/easy_vqa/tasks --model mllm --model_args pretrained={path} --tasks {TASKS} "
        f"--batch_size 256 --log_samples --output_path {OUT}/results {limit}"
    )

# %% [markdown]
# One table of all models, and a page with what each of them said to each picture: look for the questions that the merge
# lost or won.

# %%
run(
    f"mergekit-mm report {OUT}/results --out {OUT}/report --html {OUT}/answers.html "
    "--include-path examples/easy_vqa/tasks"
)
show(OUT / "answers.html")

# %% [markdown]
# To share the merge: `mergekit-mm push out/first_merge/merged ORG/NAME --report out/first_merge/report`, once you are
# logged in (`hf auth login`).
