"""A zoo of tiny random-weight multimodal LLMs, in every layout their checkpoints come in.

Each family is a transformers config of a few hundred thousand parameters. `build` writes, per layout,

    <layout>/<family>/base             random init + N(0, 0.02) on every floating tensor
    <layout>/<family>/expert_{0,1,2}   base + N(0, 0.01) on every floating tensor, one seed each

with a 300-token byte-level tokenizer and marker versions of the side files of a published model. The layouts hold the
same weights under different names:

    plain   what `save_pretrained` writes for a model made from a config
    hub     the older names of published checkpoints that transformers still reads, for instance
            `vision_tower.vision_model.encoder...`; a fine-tune of such a checkpoint has them too
    memory  the names of the model's own state_dict (`save_original_format=False`)

A family lists only the layouts whose names differ. Random weights prove plumbing and arithmetic, nothing about quality.
"""

from zoo.audio import *  # noqa: F403
from zoo.building import *  # noqa: F403
from zoo.configs import *  # noqa: F403
from zoo.families import *  # noqa: F403
from zoo.inputs import *  # noqa: F403
from zoo.omni import *  # noqa: F403
from zoo.vision_grids import *  # noqa: F403
from zoo.vision_llava import *  # noqa: F403
from zoo.vision_other import *  # noqa: F403
from zoo.vision_projector import *  # noqa: F403
