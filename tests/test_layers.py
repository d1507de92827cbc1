"""Who may import what, and what may stand where (the rules of the layout), read from the source.

Arrows point down: cli -> daemon -> api -> service -> engine -> store -> model -> errors.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

CHECKOUT: Final = Path(__file__).parent.parent
MODULES: Final = sorted(
    str(path.relative_to(CHECKOUT)) for part in ("voldriverd", "drivers") for path in (CHECKOUT / part).rglob("*.py")
)

WORDS: Final = {"driver", "errors", "model", "names"}
MAY_IMPORT: Final = {
    "errors": set[str](),
    "kernel": set[str](),
    "driver": {"errors"},
    "drivers": {"driver", "errors", "kernel"},
    "names": {"errors"},
    "toml": {"errors", "names"},
    "config": {"errors", "names", "toml"},
    "model": {"driver", "errors"},
    "store": {"driver", "errors", "kernel", "model"},
    "backup": {"driver", "errors", "kernel", "model"},
    "engine": WORDS | {"backup", "kernel", "store"},
    "locks": {"errors"},
    "threads": set[str](),
    "stalls": set[str](),
    "logs": {"errors"},
    "journal": {"logs"},
    "verbs": {"logs", "names"},
    "runner": WORDS | {"logs", "threads", "verbs"},
    "usages": WORDS | {"engine", "runner"},
    "jobs": {"errors"},
    "backups": WORDS | {"backup", "engine", "jobs", "locks", "logs", "threads", "runner", "store", "verbs"},
    "arrivals": WORDS | {"engine", "jobs", "locks", "threads", "runner"},
    "restores": WORDS | {"arrivals", "backup", "engine", "jobs"},
    "imports": WORDS | {"arrivals", "engine", "jobs"},
    "service": WORDS
    | {"backups", "engine", "imports", "jobs", "locks", "logs", "restores", "runner", "stalls", "store", "usages"}
    | {"verbs"},
    "health": WORDS | {"engine", "kernel", "runner"},
    "worker": WORDS | {"engine", "service"},
    "metrics": WORDS | {"engine", "jobs", "journal", "logs", "service", "store", "usages", "verbs"},
    "api": WORDS | {"engine", "logs", "metrics", "runner", "service", "verbs"},
    "sockets": {"errors", "kernel"},
    "supervisor": {"errors", "kernel", "sockets"},
    "greeting": {"config"},
    "embedded": {"config", "driver", "errors", "kernel", "names"},
    "doctor": WORDS | {"config", "embedded", "engine", "kernel", "store"},
    "daemon": WORDS
    | {"api", "config", "drivers", "embedded", "engine", "greeting", "kernel", "service", "sockets", "store"}
    | {"health", "supervisor", "worker"},
    "cli": WORDS | {"config", "doctor", "daemon", "journal", "kernel", "logs"},
}
"""What each part may import besides itself. A part that is not here has no place yet: give it one."""

ASYNC: Final = {
    "api",
    "backups",
    "metrics",
    "arrivals",
    "restores",
    "imports",
    "service",
    "locks",
    "stalls",
    "threads",
    "runner",
    "supervisor",
    "usages",
    "worker",
    "daemon",
}
"""The async face: the service with its locks, threads and clock, and what serves."""
HTTP: Final = {"api"}
SQL: Final = {"store"}
PROCESSES: Final = "voldriverd/kernel/run.py"

FUNCTION_MAX: Final = 70
MODULE_MAX: Final = 350
LONG: Final = {
    "drivers/btrfs.py": "the whole contract in one class",
    "drivers/loop.py": "the whole contract in one class",
    "voldriverd/api/rancher/schemas.py": "one table of all types",
    "voldriverd/backups.py": "one method for each verb, of backups and of targets",
    "voldriverd/config.py": "each key once with its default, its rule and its line in effective()",
    "voldriverd/daemon.py": "puts every part in its place, each once",
    "voldriverd/engine/backups.py": "a backup from its first row to its last: no state of it is elsewhere",
    "voldriverd/model.py": "every row once, and what each offers",
    "voldriverd/names.py": "everything a user may type, and the refusals that all of it shares",
    "voldriverd/service.py": "one method for each verb",
    "voldriverd/store/__init__.py": "one method for each question",
}
"""Modules that may be over the limit, each with its reason."""

_SQL: Final = re.compile(
    r"\s*(SELECT\s.*\sFROM|INSERT\s.*INTO|UPDATE\s\w+\sSET|DELETE\sFROM|CREATE\sTABLE|PRAGMA)\s", re.DOTALL
)
_STARTS: Final = re.compile(r"(exec[lv]|spawn[lv]|posix_spawn|popen|system|fork|startfile)")


def part_of(module: str) -> str:
    """Return the part of the layout that a file belongs to: `store` for voldriverd/store/rows.py."""
    first, *rest = Path(module).with_suffix("").parts
    return first if first == "drivers" or rest == ["__init__"] else rest[0]


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield every module and name that is imported, dotted."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_parts(tree: ast.AST) -> set[str]:
    """Return the parts of the project that are imported."""
    dotted = [name.split(".") for name in imported(tree)]
    inside = {words[1] for words in dotted if words[0] == "voldriverd" and len(words) > 1}
    return (inside | {words[0] for words in dotted if words[0] == "drivers"}) - {"__version__"}


def faults(module: str, source: str) -> Iterator[str]:
    """Yield what a module does that is not its business."""
    tree = ast.parse(source)
    part = part_of(module)
    if part == "voldriverd":
        yield from (f"the package imports {name}" for name in own_parts(tree))
        return
    if part not in MAY_IMPORT:
        yield f"{part} has no place in MAY_IMPORT"
        return
    yield from (f"{part} imports {name}" for name in own_parts(tree) - MAY_IMPORT[part] - {part})
    libraries = {name.split(".")[0] for name in imported(tree)}
    if part not in SQL and (libraries & {"sqlite3"} or has_sql(tree)):
        yield "it speaks SQL"
    if part not in ASYNC and (libraries & {"asyncio"} or is_async(tree)):
        yield "it is async"
    if part not in HTTP | {"daemon"} and "aiohttp" in libraries:
        yield "it speaks HTTP"
    if part not in HTTP and has_status(tree):
        yield "it knows HTTP status codes"
    if module != PROCESSES and (libraries & {"subprocess", "multiprocessing", "pty"} or starts_processes(tree)):
        yield "it starts processes"


def has_sql(tree: ast.AST) -> bool:
    texts = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return any(_SQL.match(text) for text in texts)


def is_async(tree: ast.AST) -> bool:
    kinds = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
    return any(isinstance(node, kinds) for node in ast.walk(tree))


def has_status(tree: ast.AST) -> bool:
    keywords = (node for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "status")
    numbers = (isinstance(word.value, ast.Constant) and isinstance(word.value.value, int) for word in keywords)
    return any(numbers) or any(name.endswith("HTTPStatus") for name in imported(tree))


def starts_processes(tree: ast.AST) -> bool:
    attributes = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return any(
        isinstance(node.value, ast.Name) and node.value.id == "os" and _STARTS.match(node.attr) for node in attributes
    )


@pytest.mark.parametrize("module", MODULES)
def test_a_module_keeps_to_its_layer(module: str) -> None:
    assert list(faults(module, (CHECKOUT / module).read_text())) == []


@pytest.mark.parametrize("module", MODULES)
def test_no_function_is_longer_than_a_screen_and_a_half(module: str) -> None:
    tree = ast.parse((CHECKOUT / module).read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert {name: length for name, length in lengths.items() if length > FUNCTION_MAX} == {}


def test_a_long_module_has_a_reason() -> None:
    lengths = {module: len((CHECKOUT / module).read_text().splitlines()) for module in MODULES}
    assert {name: length for name, length in lengths.items() if length > MODULE_MAX and name not in LONG} == {}


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("voldriverd/store/rows.py", "from voldriverd import engine", "store imports engine"),
        ("voldriverd/store/rows.py", "from voldriverd.engine.trees import x", "store imports engine"),
        ("voldriverd/engine/trees.py", "import voldriverd.api.docker", "engine imports api"),
        ("voldriverd/engine/trees.py", "def f():\n    import drivers", "engine imports drivers"),
        ("voldriverd/engine/trees.py", "from drivers.btrfs import Btrfs", "engine imports drivers"),
        ("voldriverd/kernel/fs.py", "from voldriverd import errors", "kernel imports errors"),
        ("drivers/loop.py", "from voldriverd import model", "drivers imports model"),
        ("voldriverd/__init__.py", "from voldriverd import model", "the package imports model"),
        ("voldriverd/helper.py", "", "helper has no place in MAY_IMPORT"),
        ("voldriverd/engine/trees.py", "import sqlite3", "it speaks SQL"),
        ("voldriverd/engine/trees.py", "x = 'SELECT a FROM b'", "it speaks SQL"),
        ("voldriverd/engine/trees.py", "import asyncio", "it is async"),
        ("voldriverd/cli/client.py", "async def f(): pass", "it is async"),
        ("voldriverd/cli/client.py", "from aiohttp import web", "it speaks HTTP"),
        ("voldriverd/daemon.py", "f(status=500)", "it knows HTTP status codes"),
        ("voldriverd/cli/client.py", "from http import HTTPStatus", "it knows HTTP status codes"),
        ("voldriverd/kernel/loop.py", "import subprocess", "it starts processes"),
        ("drivers/loop.py", "import os\nos.execvp('x', [])", "it starts processes"),
    ],
)
def test_a_breach_is_seen(module: str, source: str, fault: str) -> None:
    assert list(faults(module, source)) == [fault]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "voldriverd/store/rows.py",
            "from voldriverd import model\nfrom voldriverd.store import schema\nimport sqlite3",
        ),
        ("voldriverd/daemon.py", "import drivers\nimport asyncio\nfrom aiohttp import web"),
        ("voldriverd/cli/daemon.py", "import voldriverd\nvoldriverd.__version__"),
        ("voldriverd/kernel/run.py", "import subprocess"),
        ("drivers/__init__.py", "from drivers.loop import Loop"),
    ],
)
def test_what_is_allowed_is_no_breach(module: str, source: str) -> None:
    assert list(faults(module, source)) == []
