"""The accumulator against brute force: every episode length, n, ending and chunk length."""

import numpy as np
import pytest

from actors.accumulator import Accumulator
from common.config import STACK
from common.errors import ConfigError
from common.messages import Chunk, Spec, decode_chunk, encode_chunk
from tests.builders import stamp_of, stamped

GAMMA = 0.9


def play(spec: Spec, length: int, ending: str) -> list[Chunk]:
    """An episode whose step i sees frame i + 1, takes action i % 5, earns i + 1."""
    accumulator = Accumulator(spec)
    accumulator.begin(stamped(1))
    chunks = []
    for i in range(length):
        last = i == length - 1
        chunks += accumulator.append(
            i % 5,
            float(i + 1),
            stamped(i + 2),
            terminated=last and ending == "terminated",
            truncated=last and ending == "truncated",
            policy_version=i,
        )
    return chunks


def expected(i: int, length: int, n: int, ending: str) -> tuple[float, float, int]:
    """n-step return, discount and span of step i, straight from the definition."""
    span = min(n, length - i)
    n_step_return = sum(GAMMA**k * (i + k + 1) for k in range(span))
    reaches_end = i + span == length
    discount = 0.0 if ending == "terminated" and reaches_end else GAMMA**span
    return n_step_return, discount, span


@pytest.mark.parametrize("ending", ["terminated", "truncated"])
@pytest.mark.parametrize("chunk_transitions", [1, 3, 4, 64])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_every_step_becomes_one_transition_as_defined(
    n: int, chunk_transitions: int, ending: str
) -> None:
    spec = Spec(5, n, GAMMA, chunk_transitions)
    for length in range(1, 3 * n + 1):
        step = 0
        for chunk in play(spec, length, ending):
            for i, t in enumerate(chunk.transitions):
                n_step_return, discount, span = expected(step, length, n, ending)
                assert t["action"] == step % 5
                assert t["span"] == span
                assert t["n_step_return"] == pytest.approx(n_step_return, rel=1e-6)
                assert t["discount"] == np.float32(discount)
                obs = [stamp_of(f) for f in chunk.frames[i : i + STACK]]
                following = [stamp_of(f) for f in chunk.frames[i + span : i + span + STACK]]
                assert obs == [max(0, step + 1 - k) for k in range(STACK - 1, -1, -1)]
                assert following == [max(0, step + span + 1 - k) for k in (3, 2, 1, 0)]
                step += 1
        assert step == length


def test_a_long_episode_is_cut_into_full_chunks_that_the_decoder_accepts() -> None:
    spec = Spec(5, 3, GAMMA, 8)
    chunks = play(spec, 50, "terminated")
    assert [len(c) for c in chunks] == [8] * 6 + [2]
    for chunk in chunks:
        decoded = decode_chunk(memoryview(encode_chunk(1, 1, chunk)), spec)
        assert (decoded.frames == chunk.frames).all()
        assert (decoded.transitions == chunk.transitions).all()


def test_a_chunk_is_stamped_with_the_weights_of_its_first_action() -> None:
    chunks = play(Spec(5, 1, GAMMA, 4), 8, "truncated")
    assert [c.policy_version for c in chunks] == [0, 4]


def test_an_unfinished_episode_goes_on_after_saving_and_loading() -> None:
    spec = Spec(5, 3, GAMMA, 4)
    straight, interrupted = Accumulator(spec), Accumulator(spec)
    for accumulator in (straight, interrupted):
        accumulator.begin(stamped(1))
    produced: list[list[Chunk]] = [[], []]
    for i in range(20):
        resumed = Accumulator(spec)
        resumed.load_state_dict(interrupted.state_dict())
        interrupted = resumed
        for accumulator, out in zip((straight, interrupted), produced, strict=True):
            out += accumulator.append(i % 5, float(i), stamped(i + 2), i == 19, False, i)
    for a, b in zip(*produced, strict=True):
        assert encode_chunk(1, 1, a) == encode_chunk(1, 1, b)


@pytest.mark.parametrize("reward", [600_000.0, -600_000.0])
def test_returns_that_are_too_large_to_learn_from_are_refused(reward: float) -> None:
    def play_three_steps(n: int) -> int:
        accumulator = Accumulator(Spec(5, n, GAMMA, 2))
        accumulator.begin(stamped(1))
        steps = [(0, reward, stamped(i), False, i == 3, 0) for i in range(1, 4)]
        return sum(len(chunk) for step in steps for chunk in accumulator.append(*step))

    assert play_three_steps(n=1) == 3
    with pytest.raises(ConfigError, match=r"rewards of 2 step\(s\) add up to 1\.14e\+06"):
        play_three_steps(n=2)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
def test_a_return_that_is_no_number_is_refused() -> None:
    accumulator = Accumulator(Spec(5, 2, GAMMA, 1))
    accumulator.begin(stamped(1))
    accumulator.append(0, 1e39, stamped(2), False, False, 0)  # infinite as a float32
    with pytest.raises(ConfigError, match="add up to nan"):
        for _ in range(2):
            accumulator.append(0, -1e39, stamped(3), False, False, 0)
