"""The house's rules, read off the syntax trees: who may import whom, and what is never used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(p for room in ("common", "actors", "learner") for p in (ROOT / room).glob("*.py"))
FILES.append(ROOT / "launch.py")
ONLY_IN = {
    "msgpack": {"common/messages.py"},
    "zmq": {"common/router.py", "common/dealer.py", "common/keys.py"},
    "tensorboard": {"common/metrics.py"},
    "gymnasium": {"actors/env.py", "actors/game.py"},
    "ale_py": {"actors/env.py", "actors/game.py", "actors/screen.py"},
    "cv2": {"actors/env.py"},
    "numba": {"common/compiled.py"},
}
LIGHT = {
    "launch.py",
    *(f"common/{name}.py" for name in ("address", "command_line", "config", "console", "errors")),
    *(f"common/{name}.py" for name in ("lifeline", "machine", "presets", "run_folder")),
    *(f"common/{name}.py" for name in ("schedules", "supervisor")),
}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_run_one_way_and_libraries_stay_in_their_rooms(path: Path) -> None:
    room = path.parent.name
    for module in imports(path):
        top = module.split(".")[0]
        if room == "common":
            assert top not in ("actors", "learner", "launch"), module
        if room == "actors":
            assert top not in ("learner", "launch"), module
        if room == "learner":
            assert top not in ("actors", "launch"), module
        library = "tensorboard" if "tensorboard" in module else top
        assert name(path) in ONLY_IN.get(library, {name(path)}), module


@pytest.mark.parametrize("light", sorted(LIGHT))
def test_nothing_that_the_launch_process_needs_imports_torch_or_zmq(light: str) -> None:
    tops = {module.split(".")[0] for module in imports(ROOT / light, top_level_only=True)}
    assert not tops & {"torch", "zmq", "gymnasium", "numpy", "numba", "learner", "actors"}


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import launch", {"torch", "zmq", "numba", "cv2", "numpy"}),
        # How many actions has it? Every start waits for that.
        (
            "from actors.game import make_game; game = make_game('PongNoFrameskip-v4')",
            {"torch", "zmq", "numba", "cv2"},
        ),
        (
            "from actors.game import make_game; game = make_game('PongNoFrameskip-v4')\n"
            "game.reset(seed=1); game.step(1); game.frame()",
            {"cv2"},
        ),
    ],
)
def test_the_launch_process_starts_without_heavy_libraries(code: str, heavy: set[str]) -> None:
    code += f"; import sys; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\n", done


EXECUTE = {"pickle", "cloudpickle", "shelve", "marshal", "dill", "joblib", "yaml"}
BUILT_IN = {"eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec"}


TOOLS = sorted(p for room in ("tuning", "benchmarks") for p in (ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("path", FILES + TOOLS, ids=name)
def test_nothing_that_executes_what_it_reads_is_used(path: Path) -> None:
    assert executing(path.read_text()) == set()


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from pickle import loads", "import torch\ntorch.load(path)",
        "from torch import load", "import numpy as n\nn.load(path)", "from numpy import load as l",
        "eval(text)", "exec(text)", "builtins.eval(text)", "__import__(name)",
        "socket.recv_pyobj()", "torch.jit.load(path)", "yaml.load(text)", "from joblib import load",
        "read = torch.load", "partial(torch.load, path)",
    ],
)  # fmt: skip
def test_what_would_execute_is_found(code: str) -> None:
    assert executing(code)


def executing(code: str) -> set[str]:
    """Names in this code by which what is read could be executed."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.split(".")[0] in EXECUTE}
        elif isinstance(node, ast.ImportFrom):
            ours = (node.module or "").startswith("safetensors")
            names = {a.name for a in node.names} & {"load", "loads"} - ({"load"} if ours else set())
            found |= names | ({node.module or ""} & EXECUTE)
        elif isinstance(node, ast.Name | ast.Attribute):  # called or handed on
            used = ast.unparse(node)
            last = used.rsplit(".", 1)[-1]
            executes = used in BUILT_IN or last in ("recv_pyobj", "send_pyobj")
            if executes or ("." in used and last in ("load", "loads") and used != "json.loads"):
                found.add(used)
    return found
