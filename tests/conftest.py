"""Before any test imports torch or transformers: no look-ups on the network, no threads that spin while they wait."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
