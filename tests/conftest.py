"""One torch thread, and hypothesis examples that are the same on every machine. Seeds are stated in each test."""

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("patterning", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("patterning")
