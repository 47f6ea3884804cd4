"""Whole runs of several variants and seeds, one after another, and a table of what they reached.

    python -m tuning.trials FOLDER --ablation --seeds 101 102 --minutes 10
    python -m tuning.trials FOLDER --variant pong --variant slow:learning_rate=1e-4,n_step=3
    python -m tuning.trials --table FOLDER

Runs that FOLDER holds already are skipped, so an interrupted series goes on where it was. Judge no
setting by one seed, and report none of the seeds that chose it.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from common import command_line
from common.errors import INTERRUPTED, UserError
from tuning.results import Run, keep, runs_in, table
from tuning.variants import ABLATION, Variant

LAUNCH = Path(__file__).parent.parent / "launch.py"
ENDING_SECONDS = 120.0  # for the greedy games and the last checkpoint
LAST_LINES = 15
UNFINISHED = ".unfinished"  # the run that is going on; no variant can be named so


def main(words: list[str]) -> int:
    parser = flag_parser("trials", __doc__ or "", minutes=10.0)
    parser.add_argument("--ablation", action="store_true", help="every variant of variants.py")
    return series(words, parser, run_missing, table)


def series(
    words: list[str],
    parser: argparse.ArgumentParser,
    run: Callable[[Path, Sequence[Variant], Sequence[int], float], None],
    shown: Callable[[Sequence[Run]], str],
) -> int:
    """A tool that runs what its folder lacks and shows what that holds. -> exit code."""
    given = parser.parse_args(words)
    try:
        if not given.table:
            variants = [Variant.parse(text) for text in given.variant]
            variants += ABLATION if "ablation" in given and given.ablation else []
            run(given.folder, variants or ABLATION[:1], given.seeds, given.minutes)
    except UserError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on with what is missing.", file=sys.stderr)
        return INTERRUPTED
    print(shown(runs_in(given.folder)))
    return 0


def flag_parser(name: str, about: str, minutes: float) -> argparse.ArgumentParser:
    description, _, rest = about.partition("\n")
    parser = argparse.ArgumentParser(
        prog=f"tuning.{name}",
        description=description,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="where results are kept")
    parser.add_argument("--table", action="store_true", help="only print the table of FOLDER")
    variant = "name:setting=value,... (default: the preset pong as it is)"
    parser.add_argument("--variant", action="append", default=[], help=variant)
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102], help="(101 102)")
    limit = f"limit of each run ({minutes:g})"
    parser.add_argument("--minutes", type=float, default=minutes, help=limit)
    return parser


def run_missing(
    folder: Path, variants: Sequence[Variant], seeds: Sequence[int], minutes: float
) -> None:
    """Raises ConfigError before the first run when a setting of any variant is wrong."""
    check(variants)
    for variant, seed in missing(folder, variants, seeds):
        print(f"{variant.name}, seed {seed}", flush=True)
        run_dir = folder / UNFINISHED
        shutil.rmtree(run_dir, ignore_errors=True)
        flags = [*variant.flags(), "--seed", str(seed), "--max-minutes", str(minutes)]
        if trouble := train(flags, run_dir, 60 * minutes + ENDING_SECONDS):
            print(f"It failed and will be tried again next time:\n{trouble}", flush=True)
        else:
            keep(run_dir, place(folder, variant, seed))
        shutil.rmtree(run_dir, ignore_errors=True)


def check(variants: Sequence[Variant]) -> None:
    """Raises ConfigError when a setting of any variant is wrong."""
    for variant in variants:
        command_line.parse(variant.flags())


def missing(
    folder: Path, variants: Sequence[Variant], seeds: Sequence[int]
) -> list[tuple[Variant, int]]:
    """What has no result yet; seed by seed, so that a drift of the machine hits all variants."""
    every = [(variant, seed) for seed in seeds for variant in variants]
    return [pair for pair in every if not (place(folder, *pair) / "result.json").exists()]


def place(folder: Path, variant: Variant, seed: int) -> Path:
    return folder / variant.name / f"seed-{seed}"


def train(
    flags: list[str], run_dir: Path, seconds: float, environment: dict[str, str] | None = None
) -> str:
    """One `launch.py` run into run_dir. -> what went wrong, with its last lines, or ''.

    seconds: after so many it is ended by force.
    """
    run_dir.mkdir(parents=True)
    command = [sys.executable, str(LAUNCH), *flags, "--run-dir", str(run_dir)]
    return logged(command, run_dir / "console.log", seconds, environment)


def logged(
    command: list[str], log: Path, seconds: float, environment: dict[str, str] | None = None
) -> str:
    """One process, all that it says into log. -> as `train`."""
    with log.open("w") as console:
        try:
            process = subprocess.run(
                command,
                stdout=console,
                stderr=subprocess.STDOUT,
                env=environment,
                timeout=seconds,
            )
            trouble = f"exit code {process.returncode}" if process.returncode else ""
        except subprocess.TimeoutExpired:
            trouble = f"still running after {seconds:.0f} s"
    return last_lines(trouble, log) if trouble else ""


def last_lines(trouble: str, log: Path) -> str:
    return "\n".join([trouble, *log.read_text().splitlines()[-LAST_LINES:]])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
