"""Ends of a program that are not bugs: one sentence for the user, and an exit code."""

MISMATCH, AUTHENTICATION = 3, 4
# Exit codes whose sentence says it all and which no restart mends; not 1, which is a bug's too.
USER_ERRORS = frozenset({2, 3, 4, 5})
INTERRUPTED = 130  # what shells make of SIGINT
GOODBYE = 10  # of an actor that the learner has told to leave; 0 is any process's that just exits


class UserError(Exception):
    """Carries the sentence; `launch.py` prints it without a traceback."""

    exit_code = 1


class ConfigError(UserError, ValueError):
    """A setting or a file is wrong, or does not suit this machine."""

    exit_code = 2


class Mismatch(UserError):
    """What was found belongs to another game, network or version."""

    exit_code = MISMATCH


class NoCheckpoint(UserError):
    """No checkpoint of the run verifies."""

    exit_code = 5


class Refused(UserError):
    """The learner refuses this actor.

    exit_code: MISMATCH where configurations or versions differ or what it sends means nothing
    here, AUTHENTICATION where keys differ, 1 where another actor took this one's place.
    """

    def __init__(self, reason: str, exit_code: int) -> None:
        super().__init__(reason)
        self.exit_code = exit_code
