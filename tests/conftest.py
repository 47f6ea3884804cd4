"""For every test: one thread for torch, since two cores serve processes here, not threads; no limit
to the time that one of hypothesis' examples takes; and nothing left of the test before.
"""

import os
import signal
from collections.abc import Iterator

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")


@pytest.fixture(autouse=True)
def process_as_it_was() -> Iterator[None]:
    """launch.main and what it calls set handlers and environment for the rest of a process."""
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    environment = dict(os.environ)
    torch.manual_seed(0)
    yield
    torch.set_flush_denormal(False)  # hypothesis wants every number there is
    for signum, handler in handlers.items():
        signal.signal(signum, handler)
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
