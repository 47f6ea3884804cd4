"""For every test: one thread for torch, since two cores serve processes here, not threads, and no
limit to the time that one of hypothesis' examples takes.
"""

import hypothesis
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")
