"""One thread a process; property tests draw the same cases on every machine and never judge time."""

from __future__ import annotations

import hypothesis
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("unit", deadline=None, max_examples=60, derandomize=True)
hypothesis.settings.load_profile("unit")
