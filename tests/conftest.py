"""For every test: one thread for torch, since two cores serve processes here, not threads."""

import torch

torch.set_num_threads(1)
