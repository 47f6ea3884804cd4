"""The two ends of a transport and the link between them, for drills to break."""

import contextlib
import itertools
import json
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Self

from common.config import Config
from common.dealer import ActorEndpoint
from common.keys import ActorKeys
from common.messages import Spec
from tests.builders import config
from tests.drills.endpoint import WEIGHTS_SIZE, numbered
from tests.running import ROOT, until

SMALL = config(samples_per_insert=1.0, window_chunks=8, samples_per_insert_tolerance=2_000.0)
SPEC = Spec.of(SMALL)

_ENDPOINT = "import sys; from tests.drills.endpoint import main; main(*sys.argv[1:])"


class RemoteLearner:
    """tests/drills/endpoint.py, running."""

    def __init__(self, folder: Path, settings: Config = SMALL, keys: str = "") -> None:
        path = folder / "endpoint.json"
        path.write_text(settings.to_json())
        self.process = subprocess.Popen(
            [sys.executable, "-c", _ENDPOINT, str(path), keys],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        self.address = self.process.stdout.readline().strip()
        self.stats: dict[str, Any] = {}
        self.most_rss = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        until(lambda: self.stats, 60)

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.stats = json.loads(line)
            self.most_rss = max(self.most_rss, self.stats["rss"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failed: object) -> None:
        self.close_input()
        try:
            code = self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._reader.join(10)
        assert self.process.stdout
        self.process.stdout.close()
        if not failed[0]:
            assert code == 0, "a chunk was lost, repeated or out of order"

    def close_input(self) -> None:
        """It stops where it stands."""
        assert self.process.stdin
        self.process.stdin.close()

    def slow_down(self, seconds_per_chunk: float) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{seconds_per_chunk}\n")
        self.process.stdin.flush()

    def taken_of(self, sender: int) -> int:
        """Chunks."""
        return int(self.stats["by_sender"].get(str(sender), 0))

    def rate(self, seconds: float) -> float:
        """Chunks per second, of all senders, for so long."""
        before, began = self.stats["chunks"], time.monotonic()
        time.sleep(seconds)
        return float(self.stats["chunks"] - before) / (time.monotonic() - began)


class HonestActor:
    """Sends numbered chunks from a thread, so many per second (0: as many as it can).

    sender: told in the chunks; another than actor_id where two lives of one actor are told apart.
    """

    def __init__(
        self,
        address: str,
        actor_id: int = 0,
        rate: float = 0.0,
        keys: ActorKeys | None = None,
        sender: int | None = None,
    ) -> None:
        self.rate, self.sent = rate, 0
        self.sender = actor_id if sender is None else sender
        self.error: BaseException | None = None
        self.endpoint = ActorEndpoint(SMALL, address, actor_id, WEIGHTS_SIZE, keys)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)
        self.endpoint.close()

    def _run(self) -> None:
        try:
            self.endpoint.handshake(30)
            began = time.monotonic()
            for number in itertools.count():
                self.endpoint.send(numbered(SPEC, self.sender, number))
                self.sent = number + 1
                while self.rate and number + 1 > self.rate * (time.monotonic() - began):
                    self.endpoint.poll()
                    time.sleep(0.002)
                if self._stop.is_set():
                    break
            until(lambda: (self.endpoint.poll(), not self.endpoint.unacknowledged)[1], 30)
        except BaseException as error:
            self.error = error

    def finish(self) -> int:
        """Send no more, wait until all is acknowledged. -> chunks sent."""
        self._stop.set()
        self._thread.join(60)
        if self.error:
            raise self.error
        assert not self._thread.is_alive(), "not everything was acknowledged"
        return self.sent


class Proxy:
    """A TCP link that can be cut, or hold back everything (hole), or only answers (deaf)."""

    def __init__(self, target: str) -> None:
        host, _, port = target.removeprefix("tcp://").rpartition(":")
        self.target = host, int(port)
        self.server = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self.server.getsockname()[1]}"
        self.hole, self.deaf = threading.Event(), threading.Event()
        self._links: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.server.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self.target)
            except OSError:
                near.close()
                continue
            self._links += [near, far]
            for a, b, stops in ((near, far, [self.hole]), (far, near, [self.hole, self.deaf])):
                threading.Thread(target=self._pump, args=(a, b, stops), daemon=True).start()

    def _pump(
        self, source: socket.socket, sink: socket.socket, stops: list[threading.Event]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                while any(stop.is_set() for stop in stops):
                    time.sleep(0.01)
                sink.sendall(data)
        for one in (source, sink):
            one.close()

    def cut(self) -> None:
        """Reset every connection."""
        links, self._links = self._links, []
        for link in links:
            with contextlib.suppress(OSError):
                link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                link.shutdown(socket.SHUT_RDWR)
                link.close()

    def close(self) -> None:
        self.hole.clear()
        self.deaf.clear()
        with contextlib.suppress(OSError):
            self.server.shutdown(socket.SHUT_RDWR)  # closing alone does not end an accept()
        self.server.close()
        self.cut()
