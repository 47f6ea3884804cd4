"""The supervisor over real, tiny processes; run as a script, this file is a whole run itself."""

import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from common import supervisor
from common.errors import GOODBYE
from common.lifeline import Heartbeats
from common.supervisor import ChildSpec, Supervisor, last_words
from tests.running import ROOT, Awake, hearing_hangups

# What every child can say: `here(name)` leaves a file with its pid, `wait_for(name)` waits for one.
PRELUDE = """
import os, signal, sys, time
folder, number, incarnation = sys.argv[1], *map(int, sys.argv[2:4])
def here(name): open(f"{folder}/{name}.{os.getpid()}", "x").close()
def wait_for(name):
    while not any(f.startswith(name + ".") for f in os.listdir(folder)): time.sleep(0.01)
def forever():
    while True: time.sleep(1)
"""
SAVES = """
def save(signum, frame): here("saved"); sys.exit(130)
signal.signal(signal.SIGTERM, save); here("learner"); forever()
"""
DEAF = 'signal.signal(signal.SIGTERM, signal.SIG_IGN); here("learner"); forever()'
PLAYS = 'here(f"actor{number}-{incarnation}"); forever()'
CRASHES = 'raise RuntimeError("the game is broken")'
TIED = f"""
sys.path.insert(0, {str(ROOT)!r})
from common.lifeline import die_with_parent
die_with_parent(os.getppid())
"""
BEATS = f"""
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from common.lifeline import Heartbeats
heartbeats = Heartbeats.open(Path(folder) / "heartbeats")
def play():
    while True: heartbeats.beat(number); time.sleep(0.02)
"""


class Run:
    """A supervisor over these two programs, and what it said."""

    def __init__(self, folder: Path, learner: str, actor: str, actors: int = 1) -> None:
        self.folder, self.learner, self.actor, self.actors = folder, learner, actor, actors
        self.said: list[str] = []
        self.slots = self.learner_slot = False
        self.restarts = 0

    def spec(self, name: str, code: str, number: int, incarnation: int) -> ChildSpec:
        argv = [sys.executable, "-S", "-c", PRELUDE + code, str(self.folder)]
        beats = self.learner_slot if name == "learner" else self.slots
        slot = number if beats else None
        return ChildSpec(name, [*argv, str(number), str(incarnation)], slot)

    def go(self, **options: object) -> int:
        with closing(Heartbeats.create(self.folder / "heartbeats", self.actors + 1)) as heartbeats:
            settings: dict[str, object] = {
                "backoff_seconds": 0.02,
                "log": self.said.append,
            }
            supervisor = Supervisor(
                self.spec("learner", self.learner, self.actors, 0),
                lambda i, n: self.spec(f"actor-{i}", self.actor, i, n),
                self.actors,
                heartbeats,
                logs=self.folder / "logs",
                **(settings | options),  # type: ignore[arg-type]
            )
            assert not supervisor.learner_began
            code = supervisor.run()
            assert supervisor.alive == 0
            self.restarts = supervisor.restarts
        return code

    @property
    def text(self) -> str:
        return "\n".join(self.said)


def until(condition: Callable[[], object], seconds: float = 8.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def pids(folder: Path, name: str) -> list[int]:
    return [int(path.suffix[1:]) for path in folder.glob(f"{name}.*")]


def gone(pid: int) -> bool:
    """No such process, or only its zombie: who adopts an orphan may be slow to reap it."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


@contextmanager
def launched(folder: Path, learner: str, actor: str) -> Iterator[subprocess.Popen[str]]:
    """The supervisor in a process of its own, learner and actor both seen alive."""
    argv = [sys.executable, "-m", "tests.test_supervisor", str(folder), learner, actor]
    with hearing_hangups():
        process = subprocess.Popen(
            argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    with process as run:
        try:
            until(lambda: pids(folder, "learner") and pids(folder, "actor0-0"))
            yield run
        finally:
            run.kill()


def all_gone(folder: Path) -> bool:
    return all(gone(pid) for name in ("learner", "actor*") for pid in pids(folder, name))


def soon_all_gone(folder: Path) -> None:
    awake = Awake()
    until(lambda: all_gone(folder) or awake.look() > 2)
    assert all_gone(folder)


def output_within(run: subprocess.Popen[str], seconds: float) -> str:
    with Awake() as awake:
        output = run.communicate(timeout=30)[0]
    assert awake.seconds < seconds
    return output


def test_other_actors_start_when_the_first_has_shown_life(tmp_path: Path) -> None:
    forever = ["sleep", "60"]
    with closing(Heartbeats.create(tmp_path / "heartbeats", 3)) as heartbeats:
        supervisor = Supervisor(
            ChildSpec("learner", forever, 2),
            lambda i, n: ChildSpec(f"actor-{i}", forever, i),
            2,
            heartbeats,
            logs=tmp_path,
            log=print,
            first_actors=1,
        )
        try:
            supervisor._start(supervisor._learner)
            assert [supervisor._look(), supervisor.alive] == [None, 1]
            assert [supervisor._look(), supervisor.alive] == [None, 1]
            heartbeats.beat(0)
            assert [supervisor._look(), supervisor.alive] == [None, 2]
        finally:
            supervisor._kill_all()


def test_late_actors_start_when_they_are_called(tmp_path: Path) -> None:
    forever, called = ["sleep", "60"], False
    with closing(Heartbeats.create(tmp_path / "heartbeats", 1)) as heartbeats:
        supervisor = Supervisor(
            ChildSpec("learner", forever),
            lambda i, n: ChildSpec(f"actor-{i}", forever),
            4,
            heartbeats,
            logs=tmp_path,
            log=print,
            first_actors=1,
            late_actors=2,
            late_are_called=lambda: called,
        )
        try:
            supervisor._start(supervisor._learner)
            for alive in (1, 2, 2):  # the first, then the other; neither has heartbeats to wait for
                assert [supervisor._look(), supervisor.alive] == [None, alive]
            called = True
            for alive in (4, 4):
                assert [supervisor._look(), supervisor.alive] == [None, alive]
        finally:
            supervisor._kill_all()


@pytest.mark.parametrize("beginning", ["sys.exit(2)", "sys.exit(1)", "forever()"])
def test_other_actors_start_too_when_the_first_never_begins(tmp_path: Path, beginning: str) -> None:
    actor = f'{BEATS}\nif number == 0: {beginning}\nhere("other"); play()'
    run = Run(tmp_path, 'wait_for("other")', actor, actors=3)
    run.slots = True
    assert run.go(first_actors=1, others_wait_seconds=0.2, max_deaths=1_000) == 0


def test_the_learners_success_ends_the_run_and_its_actors(tmp_path: Path) -> None:
    run = Run(tmp_path, 'wait_for("actor0-0"); wait_for("actor1-0")', PLAYS, actors=2)
    assert run.go() == 0
    assert pids(tmp_path, "actor*") and all_gone(tmp_path)
    assert run.said == [] and run.restarts == 0


def test_a_failed_learner_gives_its_code_and_its_traceback_once(tmp_path: Path) -> None:
    code = """
try:
    raise ValueError("the loss is not a number")
except ValueError:
    import traceback; traceback.print_exc(); sys.exit(5)
"""
    run = Run(tmp_path, code, PLAYS)
    assert run.go() == 5
    assert run.text.count("ValueError: the loss is not a number") == 1
    assert "Traceback" in run.text


def test_a_killed_learner_is_named(tmp_path: Path) -> None:
    run = Run(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)", PLAYS)
    assert run.go() == 128 + signal.SIGKILL
    assert run.said == ["the learner was killed by SIGKILL"]


def test_an_actor_deaf_to_sigterm_does_not_outlive_the_run(tmp_path: Path) -> None:
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN);" + PLAYS
    with Awake() as awake:
        assert Run(tmp_path, 'wait_for("actor0-0")', deaf).go() == 0
    assert all_gone(tmp_path) and awake.seconds < 6


def test_what_a_child_has_started_dies_with_it(tmp_path: Path) -> None:
    learner = 'here("learner") if os.fork() else (here("actor-grandchild"), forever())'
    learner += '\nwait_for("actor-grandchild")'
    assert Run(tmp_path, learner, "", actors=0).go() == 0
    soon_all_gone(tmp_path)


def test_a_crashed_actor_is_replaced_by_its_next_incarnation(tmp_path: Path) -> None:
    run = Run(tmp_path, 'wait_for("actor0-1")', f"if not incarnation: {CRASHES}\n{PLAYS}")
    assert run.go() == 0
    assert run.restarts == 1
    assert "actor-0 ended with exit code 1; restarted in 0.02 s" in run.text
    assert "RuntimeError: the game is broken" in run.text


def test_a_crash_loop_gives_up_after_the_learner_has_saved(tmp_path: Path) -> None:
    run = Run(tmp_path, SAVES, f'wait_for("learner"); {CRASHES}')
    assert run.go(max_deaths=3) == 1
    assert run.restarts == 2
    assert pids(tmp_path, "saved")
    assert "giving up" in run.text
    assert run.text.count("RuntimeError: the game is broken") == 2  # at first, and at the end


def test_an_actor_that_leaves_in_peace_is_not_restarted(tmp_path: Path) -> None:
    learner = 'wait_for("actor0-0"); here("go"); time.sleep(0.3)'
    leaves = f'here(f"actor0-{{incarnation}}"); wait_for("go"); sys.exit({GOODBYE})'
    run = Run(tmp_path, learner, leaves)
    assert run.go() == 0
    assert run.restarts == 0 and len(pids(tmp_path, "actor*")) == 1


def test_an_actor_whose_game_ends_the_process_is_restarted(tmp_path: Path) -> None:
    """As C libraries may, with 0: nobody has told it to leave."""
    leaves = 'here(f"actor0-{incarnation}"); os._exit(0)'
    run = Run(tmp_path, 'wait_for("actor0-1")', leaves)
    assert run.go() == 0
    assert run.restarts >= 1 and "actor-0 ended with exit code 0; restarted" in run.text


def test_a_fatal_code_is_not_retried_and_ends_a_run_without_actors(tmp_path: Path) -> None:
    refused = 'wait_for("learner"); print("gamma differs", file=sys.stderr); sys.exit(3)'
    run = Run(tmp_path, SAVES, refused, actors=2)
    assert run.go() == 3
    assert run.restarts == 0
    assert pids(tmp_path, "saved")
    assert run.text.count("gamma differs") == 1  # two actors, one reason


def test_nobody_waits_for_late_actors_when_the_others_are_gone(tmp_path: Path) -> None:
    ends = SAVES.replace("forever()", "time.sleep(20)")
    run = Run(tmp_path, ends, 'wait_for("learner"); sys.exit(3)', actors=2)
    assert run.go(late_actors=1) == 3
    assert pids(tmp_path, "saved")


def test_a_late_actor_that_plays_is_enough(tmp_path: Path) -> None:
    actor = f'sys.exit(3) if number == 0 and wait_for("actor1-0") is None else None; {PLAYS}'
    learner = 'wait_for("actor1-0"); time.sleep(0.3)'
    run = Run(tmp_path, learner, actor, actors=2)
    assert run.go(late_actors=1, late_are_called=lambda: True) == 0


def test_a_fatal_actor_leaves_the_others_playing(tmp_path: Path) -> None:
    actor = f'here("refused") or sys.exit(3) if number else None; {PLAYS}'
    run = Run(tmp_path, 'wait_for("refused"); wait_for("actor0-0"); time.sleep(0.2)', actor, 2)
    assert run.go() == 0


def test_a_stopped_actor_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LOOK_PERIOD_SECONDS", 0.1)
    monkeypatch.setattr(supervisor, "AWAY_SECONDS", 0.25)  # a machine that pauses is excused
    freeze = "heartbeats.beat(number); os.kill(os.getpid(), signal.SIGSTOP)"
    actor = f'{BEATS}\nif not incarnation: {freeze}\nhere("actor0-1"); play()'
    run = Run(tmp_path, 'wait_for("actor0-1"); time.sleep(0.5)', actor)
    run.slots = True
    assert run.go(stall_seconds=0.4) == 0
    assert run.restarts == 1
    assert "actor-0 made no progress for" in run.text


def test_a_silent_learner_is_told_of_and_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds the run's memory: a disk that hangs must not cost it."""
    monkeypatch.setattr(supervisor, "LOOK_PERIOD_SECONDS", 0.05)
    monkeypatch.setattr(supervisor, "AWAY_SECONDS", 0.25)  # a machine that pauses is excused
    learner = f'{BEATS}\nheartbeats.beat(number); wait_for("told")'
    run = Run(tmp_path, learner, PLAYS)
    run.learner_slot = True

    def log(text: str) -> None:
        run.said.append(text)
        (tmp_path / "told.0").touch()

    assert run.go(stall_seconds=0.3, log=log) == 0
    assert len(run.said) == 1 and re.fullmatch(
        r"the learner made no progress for \d\.\d s; waiting for it", run.text
    )


def test_deaths_are_forgotten_with_time_and_what_lived_long_is_restarted_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: clock[0])

    def backoffs(*lives: tuple[float, float]) -> list[float]:
        """What an actor waits after each of its lives of so many seconds, the last ones of them
        hanging; inf once the run gives up."""
        run = Supervisor(
            ChildSpec("learner", []),
            lambda i, n: ChildSpec(f"actor-{i}", []),
            1,
            SimpleNamespace(),  # type: ignore[arg-type]  # none of these beats
            logs=tmp_path,
            log=lambda text: None,
        )
        (actor,), waits = run._actors, []
        monkeypatch.setattr(run._learner, "kill", lambda: None)
        monkeypatch.setattr(run._learner, "terminate", lambda: None)
        for seconds, hanging in lives:
            actor.started = clock[0]
            clock[0] += seconds
            actor.silence_seconds = hanging
            run._actor_left(actor, 1)
            waits.append(math.inf if run._ending is not None else actor.backoff_seconds)
        return waits

    assert backoffs(*[(1.0, 0.0)] * 5) == [0.5, 1.0, 2.0, 4.0, math.inf]
    assert backoffs(*[(9.0, 0.0)] * 5) == [0.5, 1.0, 2.0, 4.0, math.inf]
    assert backoffs(*[(14.9, 0.0)] * 6) == [0.5] * 4 + [math.inf] * 2  # five in 59.6 s
    assert backoffs(*[(15.1, 0.0)] * 9) == [0.5] * 9
    # What it takes to notice a hang is neither health nor distance.
    assert backoffs(*[(32.0, 30.0)] * 5) == [0.5, 1.0, 2.0, 4.0, math.inf]
    assert backoffs(*[(44.0, 30.0)] * 5) == [0.5] * 4 + [math.inf]
    assert backoffs(*[(46.0, 30.0)] * 9) == [0.5] * 9
    assert (
        backoffs((14.0, 0.0), (44.0, 30.0), (14.0, 0.0), (44.0, 30.0), (1.0, 0.0))[-1] == math.inf
    )
    assert backoffs(*[(14.0, 0.0)] * 4, (170.0, 30.0)) == [0.5] * 5  # it was well for long


def test_a_run_that_was_frozen_as_a_whole_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait, stall = supervisor._wait, 0.5

    def freeze_once(wakeups: int, deadline: float) -> None:
        """The look after the freeze sees an old beat whatever happens: the thaw comes after it."""
        playing = pids(tmp_path, "actor0-0")
        if not playing or pids(tmp_path, "thawed"):
            wait(wakeups, deadline)
        elif not pids(tmp_path, "frozen"):
            os.kill(playing[0], signal.SIGSTOP)
            time.sleep(2 * stall)
            (tmp_path / f"frozen.{os.getpid()}").touch()
        else:
            os.kill(playing[0], signal.SIGCONT)
            (tmp_path / f"thawed.{os.getpid()}").touch()

    monkeypatch.setattr(supervisor, "_wait", freeze_once)
    monkeypatch.setattr(supervisor, "AWAY_SECONDS", stall)
    monkeypatch.setattr(supervisor, "LOOK_PERIOD_SECONDS", 0.05)
    actor = f'{BEATS}\nheartbeats.beat(number); here("actor0-0"); play()'
    run = Run(tmp_path, 'wait_for("thawed"); time.sleep(0.3)', actor)
    run.slots = True
    assert run.go(stall_seconds=stall) == 0
    assert run.said == [] and run.restarts == 0


def test_an_actor_that_never_beats_is_replaced_until_it_is_given_up(tmp_path: Path) -> None:
    run = Run(tmp_path, SAVES, PLAYS)
    run.slots = True
    options = {"start_seconds": 0.2, "max_deaths": 2, "death_window_seconds": 0.01}
    assert run.go(**options) == 1  # though each hung start outlasts the window
    assert run.restarts == 1


def test_one_interrupt_lets_the_learner_save(tmp_path: Path) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        folder = tmp_path / number.name
        folder.mkdir()
        with launched(folder, SAVES, PLAYS) as run:
            run.send_signal(number)
            run.send_signal(number)  # at once, as `timeout` does: one request
            output = output_within(run, 8)
        assert run.returncode == 130, output
        assert pids(folder, "saved") and all_gone(folder)
        assert not os.path.lexists(folder / "heartbeats")
        assert "Traceback" not in output


def test_a_second_interrupt_kills_a_learner_that_does_not_end(tmp_path: Path) -> None:
    with launched(tmp_path, DEAF, PLAYS) as run:
        run.send_signal(signal.SIGINT)
        until(lambda: gone(pids(tmp_path, "actor0-0")[0]))
        first = time.monotonic()  # it has been heard
        until(lambda: time.monotonic() - first > 0.2)  # past what counts as the first one's echo
        run.send_signal(signal.SIGINT)
        output = output_within(run, 1)  # of the 60 s that it has to save
    assert run.returncode == 130 and all_gone(tmp_path)
    assert "a second Ctrl-C kills it" in output


@pytest.mark.parametrize(
    "numbers",
    [
        (signal.SIGTERM, signal.SIGTERM),
        (signal.SIGHUP, signal.SIGTERM),
        (signal.SIGINT, signal.SIGHUP),
        (signal.SIGTERM, signal.SIGINT),
    ],
)
def test_only_a_second_ctrl_c_is_taken_for_impatience(
    tmp_path: Path, numbers: tuple[signal.Signals, signal.Signals]
) -> None:
    """Schedulers ask twice, and a session that closes ends what its terminal has hung up on."""
    saving = """
def save(signum, frame): wait_for("asked twice"); here("saved"); sys.exit(130)
signal.signal(signal.SIGTERM, save); here("learner"); forever()
"""
    with launched(tmp_path, saving, PLAYS) as run:
        for number in numbers:
            run.send_signal(number)
            until(lambda: gone(pids(tmp_path, "actor0-0")[0]))
            heard = time.monotonic()
            until(lambda since=heard: time.monotonic() - since > 0.2)  # longer than an echo takes
        (tmp_path / f"asked twice.{os.getpid()}").touch()
        output = output_within(run, 8)
    assert run.returncode == 130, output
    assert pids(tmp_path, "saved") and all_gone(tmp_path)


def test_a_learner_interrupted_before_it_can_save_is_not_called_saved(tmp_path: Path) -> None:
    with launched(tmp_path, 'here("learner"); forever()', PLAYS) as run:
        run.send_signal(signal.SIGTERM)
        output = output_within(run, 8)
    assert run.returncode == 128 + signal.SIGTERM
    assert "the learner was killed by SIGTERM" in output


def test_a_learner_told_to_end_before_it_has_begun_is_not_called_killed(tmp_path: Path) -> None:
    run = Run(tmp_path, 'here("learner"); forever()', 'wait_for("learner"); sys.exit(4)')
    run.learner_slot = True  # and it never beats
    assert run.go() == 4
    assert "the learner was" not in run.text


def test_who_interrupts_a_learner_that_has_not_begun_need_not_do_it_twice(tmp_path: Path) -> None:
    asking = 'os.kill(os.getppid(), signal.SIGINT); here("learner"); forever()'
    run = Run(tmp_path, asking, PLAYS)
    run.learner_slot = True  # and it never beats
    assert run.go() == 130
    assert run.text == "interrupted: the learner had not begun"


def test_a_learner_that_was_done_when_it_was_told_to_end_is_not_called_interrupted(
    tmp_path: Path,
) -> None:
    done = """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
os.kill(os.getppid(), signal.SIGINT); here("learner"); forever()
"""
    assert Run(tmp_path, done, PLAYS).go() == 0


def test_a_learner_that_was_done_when_its_last_actor_failed_has_done_it(tmp_path: Path) -> None:
    done = """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
here("learner"); forever()
"""
    assert Run(tmp_path, done, 'wait_for("learner"); sys.exit(4)').go() == 0


def test_a_learner_that_does_not_save_in_time_is_killed(tmp_path: Path) -> None:
    run = Run(tmp_path, DEAF, 'wait_for("learner"); sys.exit(4)')
    assert run.go(grace_seconds=0.3) == 4
    assert "did not end within" in run.text and all_gone(tmp_path)


def test_a_learner_that_shows_life_may_save_for_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, wait = [], supervisor._wait

    def counted(wakeups: int, deadline: float) -> None:
        waits.append(deadline)
        wait(wakeups, deadline)

    monkeypatch.setattr(supervisor, "_wait", counted)
    monkeypatch.setattr(supervisor, "LOOK_PERIOD_SECONDS", 0.15)
    monkeypatch.setattr(supervisor, "AWAY_SECONDS", 0.25)  # a machine that pauses is excused
    saving = f"""
{BEATS}
def save(signum, frame):
    end = time.monotonic() + 1.5
    while time.monotonic() < end: heartbeats.beat(number); time.sleep(0.02)
    here("saved"); sys.exit(130)
signal.signal(signal.SIGTERM, save); heartbeats.beat(number); here("learner"); forever()
"""
    run = Run(tmp_path, saving, 'wait_for("learner"); sys.exit(4)')
    run.learner_slot = True
    assert run.go(grace_seconds=0.3) == 4
    assert pids(tmp_path, "saved") and "did not end within" not in run.text
    assert len(waits) < 20  # asleep meanwhile: the learner has the core


def test_once_all_is_over_nothing_interrupts_what_is_put_in_order(tmp_path: Path) -> None:
    assert Run(tmp_path, 'here("learner")', PLAYS).go() == 0
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        assert signal.getsignal(number) is signal.SIG_IGN


def test_a_child_whose_parent_died_before_it_could_be_tied_ends_at_once(tmp_path: Path) -> None:
    orphan = TIED.replace("os.getppid()", "os.getppid() + 1") + 'print("it goes on")'
    done = subprocess.run(
        [sys.executable, "-c", "import os, sys\n" + orphan], capture_output=True, timeout=30
    )
    assert (done.returncode, done.stdout) == (1, b"")


def test_children_die_with_a_killed_supervisor(tmp_path: Path) -> None:
    with launched(tmp_path, TIED + DEAF, TIED + PLAYS) as run:
        run.kill()
        soon_all_gone(tmp_path)


def test_an_error_in_the_supervisor_leaves_no_child_and_the_old_handlers(tmp_path: Path) -> None:
    run = Run(tmp_path, DEAF, PLAYS)

    def no_spec(actor_id: int, incarnation: int) -> ChildSpec:
        until(lambda: pids(tmp_path, "learner"))
        raise KeyError("no such actor")

    stops = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)
    before = [signal.getsignal(number) for number in stops]
    with closing(Heartbeats.create(tmp_path / "heartbeats", 1)) as heartbeats:
        learner = run.spec("learner", DEAF, 1, 0)
        logs = tmp_path / "logs"
        supervisor = Supervisor(learner, no_spec, 1, heartbeats, logs=logs, log=print)
        try:
            supervisor.run()
        except KeyError:
            pass
        else:
            raise AssertionError("the error was swallowed")
    assert pids(tmp_path, "learner") and all_gone(tmp_path)
    assert [signal.getsignal(number) for number in stops] == before


def test_an_actor_that_cannot_be_started_lets_the_learner_save(tmp_path: Path) -> None:
    run = Run(tmp_path, SAVES, "")
    spec = run.spec

    def no_program(name: str, code: str, number: int, incarnation: int) -> ChildSpec:
        if name == "learner":
            return spec(name, code, number, incarnation)
        until(lambda: pids(tmp_path, "learner"))
        return ChildSpec(name, [str(tmp_path / "no such program")])

    run.spec = no_program  # type: ignore[method-assign]
    assert run.go() == 1
    assert pids(tmp_path, "saved") and "no such program" in run.text


def test_a_console_that_fails_does_not_end_the_run(tmp_path: Path) -> None:
    def closed(text: str) -> None:
        raise BrokenPipeError

    run = Run(tmp_path, 'wait_for("actor0-1")', f"if not incarnation: {CRASHES}\n{PLAYS}")
    assert run.go(log=closed) == 0


def test_heartbeats_cross_from_the_child_to_the_supervisor(tmp_path: Path) -> None:
    path = tmp_path / "heartbeats"
    with closing(Heartbeats.create(path, 2)) as reader, closing(Heartbeats.open(path)) as child:
        assert reader.age_seconds(0) == reader.age_seconds(1) == math.inf
        child.beat(1)
        assert reader.age_seconds(0) == math.inf
        assert 0 <= reader.age_seconds(1) < 1
        reader.reset(1)
        assert child.age_seconds(1) == math.inf
    assert not os.path.lexists(path)


def test_heartbeats_take_no_disk(tmp_path: Path) -> None:
    """A store into a file that is mapped is a SIGBUS where a full disk cannot write in place."""
    path = tmp_path / "heartbeats"
    path.symlink_to("/proc/1/fd/gone")  # what a killed run leaves
    before = len(list(Path("/proc/self/fd").iterdir()))
    with closing(Heartbeats.create(path, 2)) as beats:
        assert path.is_symlink() and "memfd:" in str(path.readlink().readlink())
        beats.beat(0)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(
    "what", ["no memory", "no such function", "no links", "somebody else's /proc"]
)
def test_heartbeats_are_a_file_where_there_can_be_no_link(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    theirs = tmp_path / "theirs"
    theirs.write_bytes(b"not ours to write to")
    link = Path.symlink_to
    if what == "no memory":
        monkeypatch.setattr(os, "memfd_create", refused)
    elif what == "no such function":
        monkeypatch.delattr(os, "memfd_create")
    elif what == "no links":
        monkeypatch.setattr(Path, "symlink_to", refused)
    else:
        monkeypatch.setattr(Path, "symlink_to", lambda path, _: link(path, theirs))
    path = tmp_path / "heartbeats"
    with closing(Heartbeats.create(path, 2)) as reader, closing(Heartbeats.open(path)) as child:
        child.beat(1)
        assert path.is_file() and not path.is_symlink()
        assert reader.age_seconds(1) < 1
    assert not path.exists() and theirs.read_bytes() == b"not ours to write to"


def test_last_words_begin_at_the_cause_of_the_last_traceback(tmp_path: Path) -> None:
    path = tmp_path / "log"
    chain = (
        "Traceback (most recent call last):\nKeyError: 'a'\n\n"
        "The above exception was the direct cause of the following exception:\n\n"
        "Traceback (most recent call last):\nRuntimeError: b"
    )
    path.write_text(f"Traceback (most recent call last):\nOld: handled\nnoise\n{chain}\n")
    assert last_words(path) == chain
    path.write_text("\n".join(map(str, range(100))))
    assert last_words(path, lines=2) == "98\n99"


if __name__ == "__main__":
    main = Run(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
    sys.exit(main.go(log=lambda text: print(text, flush=True)))
