"""The scaling study's tables, as docs/scaling.md shows them."""

from collections.abc import Sequence
from typing import Any

from benchmarks.measure import ENV_STEPS, UPDATES, shown
from benchmarks.scaling.simulation import PARTS
from benchmarks.scaling.studies import CROWDS, USUAL_GIGABITS, Row

FULL = 0.95  # a part this busy is full
COSTS = [  # name in the record, what it is, whose time
    ("actor_step", "one env step of one game", "actor, beside a busy core"),
    ("actor_step alone", "the same, the other core idle", "actor"),
    ("actor_chunk", "encode and send a chunk of 64", "actor, both threads"),
    ("actor_weights", "receive, check, load a version of the weights", "actor, both threads"),
    ("update", "update of 32, sampling and priorities included", "training, beside a busy core"),
    ("update alone", "the same, the other core idle", "training"),
    ("store", "store a chunk in the full replay", "training"),
    ("publish", "check and copy the weights for a version", "training"),
    ("router_chunk", "receive, check, acknowledge a chunk", "transport"),
    ("router_ping", "answer a small message", "transport"),
    ("router_ack", "announce a version to one actor", "transport"),
    ("router_weights", "serve one actor's request for weights", "transport"),
    ("router_encode", "encode a version, once", "transport"),
    ("io_chunk", "read a chunk from its socket", "ZeroMQ"),
    ("io_chunk with keys", "the same, decrypted", "ZeroMQ"),
    ("io_weights", "write one copy of the weights to a socket", "ZeroMQ"),
    ("io_weights with keys", "the same, encrypted", "ZeroMQ"),
    ("io_message", "read or write a small message", "ZeroMQ"),
]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def all_tables(record: dict[str, Any]) -> str:
    """record: a whole measurement, simulated."""
    done = record["simulated"]
    parts = [
        ("Measured costs", costs(record["costs"])),
        ("Real runs and the same simulated", check(done["check"])),
        (f"Limits of each part, {USUAL_GIGABITS:g} Gbit/s, env steps/s", limits(done["curve"])),
        ("Networks", crowds(done["networks"])),
        ("Five times the latency", crowds(done["latency"])),
        ("With keys", crowds(done["keys"])),
        ("Remedies", remedies(done["remedies"])),
    ]
    return "\n\n".join(f"## {title}\n\n{table}" for title, table in parts)


def costs(record: dict[str, float]) -> str:
    rows = [[what, whose, duration(record[name])] for name, what, whose in COSTS]
    chunk, weights = (f"{record[name] / 1e6:.2f} MB" for name in ("chunk_bytes", "weights_bytes"))
    rows += [["a chunk on the wire", "network, in", chunk]]
    rows += [["a copy of the weights on the wire", "network, out", weights]]
    return markdown(["what", "whose", "cost"], rows)


def duration(seconds: float) -> str:
    for unit, size in (("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= 0.1 * size or unit == "µs":
            break
    return f"{seconds / size:.3g} {unit}"


def check(rows: list[Row]) -> str:
    cells = [
        [
            f"{row['actors']:.0f}",
            "yes" if row["learning"] else "no",
            shown(row[ENV_STEPS]),
            shown(row["simulated"]),
            f"{row['error']:+.0%}",
            f"{row[UPDATES]:.1f}" if row["learning"] else "-",
            f"{row['simulated_updates']:.1f}" if row["learning"] else "-",
        ]
        for row in rows
    ]
    head = ["actors", "learning", "env steps/s, real", "simulated", "error"]
    return markdown([*head, "updates/s, real", "simulated"], cells)


def limits(rows: list[Row]) -> str:
    chosen = [row for row in rows if row["actors"] in CROWDS]
    return markdown(
        ["learner", "actors", *PARTS],
        [
            [row["learner"], f"{row['actors']:,}", *(shown(row["limits"][part]) for part in PARTS)]
            for row in chosen
        ],
    )


HEAD = ["env steps/s", "updates/s", "busy parts", "weights' age", "data's age", "sent again"]
PRICE = ["core-hours", "dollars"]


def crowds(rows: list[Row]) -> str:
    return markdown(
        ["learner", "actors", "Gbit/s", *HEAD, *PRICE],
        [
            [row["learner"], f"{row['actors']:,}", f"{row['gigabits']:g}", *outcome(row)]
            for row in rows
        ],
    )


def remedies(rows: list[Row]) -> str:
    return markdown(
        ["actors", "remedy", *HEAD, *PRICE],
        [[f"{row['actors']:,}", row["remedy"], *outcome(row)] for row in rows],
    )


def outcome(row: Row) -> list[str]:
    return [
        shown(row["env_steps_per_second"]) + ("" if settled(row) else " *"),
        f"{row['updates_per_second']:.1f}",
        busy(row["used"]),
        age(row["weights_age"]),
        age(row["data_age"]),
        f"{row['resent']:.1f}",
        *("-" if row[name] is None else shown(row[name]) for name in ("core_hours", "dollars")),
    ]


def age(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:,.0f} s"


def settled(row: Row) -> bool:
    """Samples and inserts kept their ratio while it was looked at."""
    return bool(abs(row["balance"] - 1) <= 0.05)


def busy(used: dict[str, float]) -> str:
    full = [part for part, share in used.items() if share >= FULL]
    most = max(used, key=lambda part: used[part])
    return ", ".join(full) or f"{most} {used[most]:.0%}"
