"""Rows 1 to 4: the emulator, the wrapped game, whole actor processes."""

import functools
import itertools
from contextlib import ExitStack
from functools import partial

import numpy as np
import torch

from actors.env import SKIP, open_env
from actors.game import make_game
from actors.observations import Observations
from actors.player import Player
from actors.policy import epsilon_greedy
from benchmarks.measure import (
    AHEAD,
    ENV_STEPS,
    Form,
    Goal,
    Row,
    Side,
    Step,
    alternate,
    fastest,
    steadily,
)
from benchmarks.peers.environment import Peers
from benchmarks.worker import ROOT, Worker, versus
from common.config import Config
from common.machine import multiplies_bfloat16
from common.network import DQN, load_state_vector, network_for, state_vector
from common.policy_file import load_policy
from common.presets import make_config
from launch import learner_environment

GAME = "PongNoFrameskip-v4"
CALLS = 64  # of step() between two looks at the clock
GAMES_TRIED, OFTEN_BEST = (1, 2, 4, 8, 16), (8, 16)  # per actor; in the full and the short form
SHOWN = 100  # env steps whose observations the network is given
SCRIPTED_STEPS = 1_500  # of each game: some win or lose a whole one
IDLE_STEPS = 7
WRAPPED, ACTOR = "one wrapped Pong game, one thread", "a whole actor process"


def greedy(games: int, **overrides: object) -> Config:
    """The preset `pong`, always playing what its network prefers."""
    always = {"epsilon_start": 0.0, "epsilon_final": 0.0}
    return make_config("pong", n_actions=6, envs_per_actor=games, **always, **overrides)


def precision_here() -> str:
    """What networks calculate in on this machine."""
    return "bfloat16" if multiplies_bfloat16() else "float32"


# -- sides ----------------------------------------------------------------------------------------


def emulation_sides() -> dict[str, Side]:
    """One game, wrapped and raw, played by the same actions."""
    chosen = np.random.default_rng(0).integers(6, size=1 << 14).tolist()
    return {
        "wrapped": steadily(wrapped(itertools.cycle(chosen))),
        "raw": steadily(raw(itertools.cycle(chosen))),
    }


def wrapped(actions: "itertools.cycle[int]") -> Step:
    """What actors step, and the stack of four that they keep of it."""
    game = make_game(GAME)
    seen = Observations(1)
    seen.begin(0, game.reset(seed=0))

    def play() -> int:
        for action in itertools.islice(actions, CALLS):
            step = game.step(action)
            if step.game_over:
                seen.begin(0, game.reset())
            else:
                seen.push(0, game.frame())
        return CALLS

    return play


def raw(actions: "itertools.cycle[int]") -> Step:
    """The emulator alone: its frames, counted as env steps, and no look at any of them."""
    bare = open_env(GAME).unwrapped
    ale, codes = bare.ale, bare._action_set  # type: ignore[attr-defined]
    bare.reset(seed=0)

    def play() -> int:
        for action in itertools.islice(actions, CALLS):
            for _ in range(SKIP):
                ale.act(codes[action])
            if ale.game_over():
                ale.reset_game()
        return CALLS

    return play


def inference_sides(games: int) -> dict[str, Side]:
    """Greedy actions for what that many games have shown, in env steps."""
    torch.set_num_threads(1)
    player, rng = all_joined(greedy(games)), np.random.default_rng(0)
    shown = []
    for _ in range(SHOWN):
        player.step(0.0)
        shown.append(player.obs.copy(order="K"))
    turns = itertools.cycle(shown)

    def infer() -> int:
        epsilon_greedy(player.network, next(turns), 0.0, rng)
        return games

    return {"infer": steadily(infer)}


def games_sides(games: int) -> dict[str, Side]:
    """An actor's games alone, played as a trained policy plays them, and stacks. In env steps."""
    torch.set_num_threads(1)
    config, rng = greedy(games), np.random.default_rng(0)
    network, seen = trained(config), Observations(games)
    playing = [make_game(GAME) for _ in range(games)]

    def begin(i: int) -> None:
        seen.begin(i, playing[i].reset())

    def play_all(actions: list[int]) -> None:
        for i, (game, action) in enumerate(zip(playing, actions, strict=True)):
            if game.step(action).game_over:
                begin(i)
            else:
                seen.push(i, game.frame())

    for i in range(games):
        begin(i)
        for _ in range(IDLE_STEPS * i):  # or all games would be the same one
            playing[i].step(0)
            seen.push(i, playing[i].frame())
    starts, script = [game.state_dict() for game in playing], []
    for _ in range(SCRIPTED_STEPS):
        script.append(epsilon_greedy(network, seen.obs, 0.0, rng).tolist())
        play_all(script[-1])
    turns = itertools.count()

    def play() -> int:
        turn = next(turns) % len(script)
        if turn == 0:
            for game, start in zip(playing, starts, strict=True):
                game.load_state_dict(start)
        play_all(script[turn])
        return games

    return {"play": steadily(play)}


def trained(config: Config) -> DQN:
    """The policy that ships, for a configuration with its network."""
    network = network_for(config).for_inference()
    load_state_vector(network, trained_vector())
    return network


def trained_vector() -> np.ndarray:
    return state_vector(load_policy(ROOT / "pretrained" / "pong.safetensors").network)


def all_joined(config: Config) -> Player:
    """A player whose games have all begun, with a trained policy."""
    player = Player(config, [0])
    player.load_weights(0, trained_vector())
    while len(player.games) < config.games_per_actor:
        player.step(0.0)
    return player


def unconnected_sides(games: int) -> dict[str, Side]:
    """An actor that keeps its chunks to itself."""
    torch.set_num_threads(1)
    player = all_joined(greedy(games))

    def play() -> int:
        player.step(0.0)
        return games

    return {"play": steadily(play)}


# -- rows -----------------------------------------------------------------------------------------


def emulation(form: Form, peers: Peers) -> list[Row]:
    """Row 1: one wrapped game against the bare emulator."""
    with Worker("benchmarks.acting:emulation_sides") as games:
        seen = alternate(games.sides, form.rounds, form.seconds)
    return [Row(1, WRAPPED, ENV_STEPS, "raw `ale.act`", Goal(0.85), seen["wrapped"], seen["raw"])]


def other_games(form: Form, peers: Peers) -> list[Row]:
    """Row 2: one wrapped game against those of others."""
    others = {
        "gymnasium's wrappers": partial(peers.start, "games:gymnasium_wrappers"),
        **{
            f"ale-py AtariVectorEnv, {games} game(s)": partial(
                peers.start, "games:ale_vector", games=games
            )
            for games in (1, 4, 8)
        },
        **{
            f"EnvPool, {games} game(s)": partial(peers.start, "games:envpool_vector", games=games)
            for games in (1, 8)
        },
    }
    row = Row(2, WRAPPED, ENV_STEPS, "", AHEAD)
    with Worker("benchmarks.acting:emulation_sides") as ours:
        return versus(row, ours.sides["wrapped"], others, form)


def connected(games: int, actors: int = 1) -> Worker:
    """Real actor processes, and a learner's endpoint and replay in a process of their own."""
    return Worker(
        "benchmarks.transport:connected_sides",
        environment=learner_environment(greedy(games).resolved()),
        actors=actors,
        games=games,
    )


def tried(form: Form) -> tuple[int, ...]:
    return GAMES_TRIED if form.full else OFTEN_BEST


@functools.cache
def best_games(form: Form) -> int:
    """Games per actor at which a connected actor is fastest."""
    with ExitStack() as stack:
        actors = {games: stack.enter_context(connected(games)) for games in tried(form)}
        sides = {games: actor.sides["arrive"] for games, actor in actors.items()}
        return fastest(sides, form.seconds)


def whole_actor(form: Form, peers: Peers) -> list[Row]:
    """Row 3: an actor process against its two unavoidable parts, one after the other."""
    games = best_games(form)
    with ExitStack() as stack:
        actor = stack.enter_context(connected(games))
        alone = {
            n: stack.enter_context(Worker("benchmarks.acting:games_sides", games=n))
            for n in (1, games)
        }
        network = stack.enter_context(Worker("benchmarks.acting:inference_sides", games=games))
        sides = {"actor": actor.sides["arrive"], "inference": network.sides["infer"]}
        sides |= {f"{n} games": worker.sides["play"] for n, worker in alone.items()}
        seen = alternate(sides, form.rounds, form.seconds)

    def limits(n: int) -> list[float]:
        pairs = zip(seen[f"{n} games"], seen["inference"], strict=True)
        return [1 / (1 / game + 1 / inference) for game, inference in pairs]

    note = f"{games} games, best of {', '.join(map(str, tried(form)))}"
    one = "a game and the inference alone"
    all_of_them = f"its {games} games and the inference alone"
    return [
        Row(3, ACTOR, ENV_STEPS, one, Goal(0.92), seen["actor"], limits(1), note),
        Row(3, ACTOR, ENV_STEPS, all_of_them, None, seen["actor"], limits(games), note),
    ]


def plain_actor(form: Form, peers: Peers) -> list[Row]:
    """Row 4: an actor process against the one that anybody writes first."""
    name = "plain actor (gymnasium, batch 1, float32)"
    others = {name: partial(peers.start, "plain:actor_sides")}
    games = best_games(form)
    what = f"{ACTOR}, {precision_here()}"
    row = Row(4, what, ENV_STEPS, "", Goal(2.0), note=f"{games} games")
    with connected(games) as ours:
        return versus(row, ours.sides["arrive"], others, form)
