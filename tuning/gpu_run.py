"""Pong on a machine with a GPU and no network: tests, all runs, or the benchmarks, a call each.

    python -m tuning.gpu_run pack FOLDER                         where a registry can be reached
    python3 -m tuning.gpu_run test OUT --packages FOLDER/packages.tar.xz        on the GPU machine
    python3 -m tuning.gpu_run run OUT --packages FOLDER/packages.tar.xz                  there too
    python3 -m tuning.gpu_run bench OUT --packages FOLDER/packages.tar.xz                and there

All three need Python, torch, numpy and numba there, nothing else, end within --minutes and print
their report. With --cpu they do the same without a GPU, to try it.

`test`: the tests that need a GPU, by estimate a minute; OUT holds report.md and what pytest said.
The one to begin with.

`run`: each run gets an equal part of what is left, or all but a minute for each of the others where
that is more, and the greedy games are played at the end, those of all runs side by side. OUT holds
report.md and, per variant and seed, metrics.csv, result.json, the configuration, the best policy,
the console's lines and TensorBoard's events, which tell where each process's time went.

`bench`: OUT holds report.md and bench.json with rows 14 to 16 of benchmarks/README.md, as many as
there was time for.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.config import MOST_GREEDY_GAMES
from common.errors import ConfigError, UserError
from common.machine import cores
from common.provenance import processor
from tuning import gpu_bench
from tuning.packages import environment_with, pack
from tuning.results import keep, runs_in, table
from tuning.trials import LAUNCH, check, logged, place, train
from tuning.variants import Variant

# A proposal: nobody has run it on a GPU yet. Played in slow motion on two CPU cores it took 906,000
# env steps, others of larger ratio or smaller batch 598,000 to 1,176,000 (docs/trials.md, "For a
# GPU"). A minute leaves some 50 s for that, 8 s are start-up. Kernel by kernel an update would keep
# a CPU thread busy for 2 to 4 ms, whatever the batch; as one graph for less. So: 250 updates/s, of
# larger batches. Should the graph make it 1,000 or more of 32, the CPU's own ratio may do better
# (--variant b32:batch_size=32,samples_per_insert=1.8,epsilon_decay_env_steps=150000).
GPU = Variant(
    "gpu",
    {
        "cuda": "true",  # and with it an actor on every core but one
        "replay_device": "cuda",  # no batch crosses the bus
        # A GPU takes 128 in the time of 32, and half as many updates may then do.
        "batch_size": "128",
        # 15 actors give some 20,000 env steps/s; 250 updates/s of 128 are 1.6 samples for each.
        # Slower learning than that slows the actors down, so the ratio is kept low.
        "samples_per_insert": "1.6",
        # The last third of a run of 1.2 million env steps, as on the CPU; 3 GB, written at the end.
        "replay_transitions": "400000",
        # 120 games at once reach the CPU's 10,000 and 120,000 before there was time to learn.
        "learning_starts_transitions": "20000",
        "epsilon_decay_env_steps": "300000",
        # 2.7 MB to 15 actors: three times a second is enough, 20 updates would make it ten.
        "publish_period_updates": "80",
        "log_period_seconds": "2",
        "checkpoint_period_seconds": "0",
    },
)
GPU_TESTS = LAUNCH.parent / "tests" / "test_on_a_gpu.py"
REPORT = "report.md"
CPU = Variant("cpu", {"actors": "1", "checkpoint_period_seconds": "0"})
EVALUATION_SECONDS, EVALUATION_SEED = 90.0, 777
ENDING_SECONDS = 60.0  # for the greedy games and the last checkpoint of a run
LATER_SECONDS = 60.0 + ENDING_SECONDS  # kept for each run to come, where that leaves more
FEWEST_SECONDS = 10.0  # a run that would get less is left out
# What a run needs is read from the disk, and tried, before the time of the first one begins.
FACTS = """
import msgpack, numpy as np, platform, safetensors, torch, torch.utils.tensorboard, zmq
from actors.game import make_game
from common.network import network_for
from common.presets import make_config
from learner.prioritized import SumTree
game = make_game("PongNoFrameskip-v4")
game.reset(seed=0)
for _ in range(10):
    game.step(0)
    game.frame()
network = network_for(make_config("pong", n_actions=6)).for_inference()
network(torch.zeros(1, 84, 84, 4, dtype=torch.uint8).permute(0, 3, 1, 2))
tree = SumTree(100)
tree.set(np.arange(100), np.ones(100))
tree.find(np.zeros(1))
gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
if torch.cuda.is_available():
    torch.nn.Conv2d(4, 16, 8, 4).cuda()(torch.zeros(1, 4, 84, 84).cuda()).sum().backward()
print(f"{gpu}, torch {torch.__version__}, Python {platform.python_version()}")
"""


def main(words: list[str]) -> int:
    given = flag_parser().parse_args(words)
    try:
        if given.verb == "pack":
            pack(given.folder, given.python)
            return 0
        base = CPU if given.cpu else GPU
        texts = given.variant if given.verb == "run" else []
        variants = [Variant.parse(text).over(base) for text in texts] or [base]
        check(variants)
        if given.verb == "run" and not 1 <= given.games <= MOST_GREEDY_GAMES:
            raise ConfigError(f"--games is {given.games}, expected 1 to {MOST_GREEDY_GAMES}.")
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
            deadline = time.monotonic() + 60 * given.minutes
            environment = environment_with(given.packages, Path(scratch, "site"))
            session = Session(given.out, Path(scratch), environment, deadline)
            session.require_gpu(given.cpu)
            if given.verb == "test":
                session.test()
            elif given.verb == "bench":
                session.bench(given.rows)
            else:
                session.run([(v, seed) for seed in given.seeds for v in variants], given.games)
            print((given.out / REPORT).read_text(), end="")
    except UserError as error:
        print(f"gpu_run: {error}", file=sys.stderr)
        return error.exit_code
    return 1 if session.troubles else 0


def flag_parser() -> argparse.ArgumentParser:
    description, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="tuning.gpu_run",
        description=description,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    packing = verbs.add_parser("pack", help="archive the packages for that machine")
    packing.add_argument("folder", type=Path, help="where the archive goes")
    packing.add_argument("--python", default="3.12", help="version there (default: 3.12)")

    def there(name: str, about: str, minutes: float = 9.5) -> argparse.ArgumentParser:
        verb = verbs.add_parser(name, help=about)
        verb.add_argument("out", type=Path, help="where the report goes")
        verb.add_argument("--packages", type=Path, required=True, help="the archive")
        limit = f"of all of it ({minutes:g})"
        verb.add_argument("--minutes", type=float, default=minutes, help=limit)
        verb.add_argument("--cpu", action="store_true", help="without a GPU")
        return verb

    there("test", "the tests that need a GPU", minutes=2.5)
    running = there("run", "train, evaluate, report")
    running.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    running.add_argument("--games", type=int, default=30, help="greedy ones, of each run (30)")
    running.add_argument("--variant", action="append", default=[], help="[name:]setting=value,...")
    measuring = there("bench", "measure, report")
    measuring.add_argument("--rows", nargs="+", default=gpu_bench.ROWS, help="in this order")
    return parser


@dataclass
class Session:
    """One call. deadline: time.monotonic() at which everything has ended."""

    out: Path
    scratch: Path
    environment: dict[str, str]
    deadline: float

    def __post_init__(self) -> None:
        self.machine = ""
        self.troubles: dict[str, str] = {}  # by run; or of the benchmarks
        self.greedy: dict[str, str] = {}  # by run, what eval said
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{self.out} cannot be the report's folder: {error}") from None
        if any(self.out.iterdir()):
            raise ConfigError(f"{self.out} is not empty: the report goes into a folder of its own.")

    def require_gpu(self, cpu: bool) -> None:
        """Raises ConfigError when there is no working torch or Numba, or no GPU where one is asked
        for."""
        command = [sys.executable, "-c", FACTS]
        try:
            facts = subprocess.run(
                command,
                env=self.environment,
                cwd=LAUNCH.parent,
                capture_output=True,
                text=True,
                timeout=max(1.0, self.left),
            )
        except subprocess.TimeoutExpired:
            raise ConfigError("What a run needs could not be tried in the time given.") from None
        if facts.returncode:
            raise ConfigError(f"What a run needs fails here: {facts.stderr.strip()[-500:]}")
        self.machine = f"{facts.stdout.strip()}, {cores()} cores ({processor()})"
        print(self.machine, flush=True)
        if "no GPU" in self.machine and not cpu:
            raise ConfigError("torch finds no GPU here; --cpu tries everything without one.")

    def test(self) -> None:
        """What must hold before anything else is worth its time."""
        # The suite makes errors of warnings, and knows those of other versions than are there.
        command = [sys.executable, "-m", "pytest", "-q", "-W", "default", str(GPU_TESTS)]
        # Nor does it know the plugins that are installed there.
        command += ["-p", "pytest_timeout"]
        environment = self.environment | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        log = self.out / "pytest.log"
        trouble = logged(command, log, self.left, environment)
        if trouble:
            self.troubles["the tests"] = trouble
        said = log.read_text().strip().splitlines()
        self.write(["# Tests that need a GPU", self.machine, said[-1] if said else "not a word"])

    def run(self, planned: list[tuple[Variant, int]], games: int) -> None:
        """Train, evaluate, and write the report after each step."""
        kept: list[Path] = []
        for i, (variant, seed) in enumerate(planned):
            later = len(planned) - i - 1
            share = (self.left - EVALUATION_SECONDS) / (later + 1) - ENDING_SECONDS
            spare = self.left - EVALUATION_SECONDS - ENDING_SECONDS - later * LATER_SECONDS
            seconds = max(share, spare)
            folder = place(self.out, variant, seed)
            if self.train(variant, seed, folder, seconds):
                kept.append(folder)
            self.report(planned)
        self.evaluate(kept, games)
        self.report(planned)

    def bench(self, rows: Sequence[str]) -> None:
        """Measure these rows until the time is up, and write the report of what there is."""
        trouble = gpu_bench.measure(rows, self.out, self.left, self.environment)
        if trouble:
            self.troubles["bench"] = trouble
        command = f"`launch.py bench {' '.join(rows)}`"
        self.write(["# Learning on a GPU", self.machine, command, gpu_bench.table(self.out)])

    @property
    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()

    def train(self, variant: Variant, seed: int, folder: Path, seconds: float) -> bool:
        """-> is there a result, in `folder`?"""
        print(f"{variant.name}, seed {seed}: at most {seconds:.0f} s", flush=True)
        if seconds < FEWEST_SECONDS:
            self.troubles[self.named(folder)] = "No time was left for it."
            return False
        run_dir = self.scratch / self.named(folder)
        flags = [*variant.flags(), "--seed", str(seed), "--max-minutes", str(seconds / 60)]
        trouble = train(flags, run_dir, seconds + ENDING_SECONDS, self.environment)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(run_dir / "console.log", folder)
        for told in ("metrics.csv", "events.out.*", "best.safetensors"):
            for path in run_dir.glob(told):  # of a run in trouble too
                shutil.copy(path, folder)
        if trouble:
            self.troubles[self.named(folder)] = trouble
        else:
            keep(run_dir, folder)
        shutil.rmtree(run_dir, ignore_errors=True)
        return not trouble

    def evaluate(self, kept: list[Path], games: int) -> None:
        """Greedy games of the best policy of each run, all runs side by side."""
        ending = ["--games", str(games), "--seed", str(EVALUATION_SEED)]
        processes = {
            folder: subprocess.Popen(
                [sys.executable, str(LAUNCH), "eval", str(folder / "best.safetensors"), *ending],
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for folder in kept
        }
        for folder, process in processes.items():
            try:
                output, _ = process.communicate(timeout=max(1.0, self.left))
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                self.troubles[self.named(folder)] = "Its greedy games did not end in time."
                continue
            if process.returncode:
                why = f"Its greedy games ended with exit code {process.returncode}.\n{output}"
                self.troubles[self.named(folder)] = why.strip()
            else:
                self.greedy[self.named(folder)] = output.strip().splitlines()[-1]

    def named(self, folder: Path) -> str:
        return folder.relative_to(self.out).as_posix()

    def report(self, planned: list[tuple[Variant, int]]) -> None:
        """OUT/report.md as far as it goes by now."""
        commands = {
            variant.name: f"- {variant.name}: `launch.py {' '.join(variant.flags())} --seed N`"
            for variant, _ in planned
        }
        greedy = [f"- {run}: {said}" for run, said in self.greedy.items()]
        parts = ["# Pong in one call", self.machine, "\n".join(commands.values())]
        parts += [table(runs_in(self.out)), "\n".join(self.speeds())]
        parts += ["\n".join(["Greedy games of the best policies:", "", *greedy])]
        self.write(parts)

    def write(self, parts: list[str]) -> None:
        """The report, and below it what went wrong."""
        troubles = [f"Trouble with {what}:\n```\n{why}\n```" for what, why in self.troubles.items()]
        (self.out / REPORT).write_text("\n\n".join([*parts, *troubles]) + "\n")

    def speeds(self) -> list[str]:
        """A line per result."""
        lines = []
        for path in sorted(self.out.rglob("result.json")):
            result = json.loads(path.read_text())
            lines.append(
                f"- {self.named(path.parent)}: {result['reason']} {result['wall_seconds']:.1f} s, "
                f"{result['env_steps_per_second']:,.0f} env steps/s, "
                f"{result['updates_per_second']:,.1f} updates/s, "
                f"{result['measured_samples_per_insert'] or 0:.2f} samples per insert, "
                f"{'captured' if result['captured_updates'] else 'kernel by kernel'}"
            )
        return lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
