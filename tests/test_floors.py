"""Imports point down the floors only, and never in circles."""

import ast
from pathlib import Path

import jaxaccel

ROOT = Path(jaxaccel.__file__).parent

FLOORS = [
    {"errors"},
    {"core"},
    {"transforms"},
    {"models", "data", "tasks", "optim", "distributed"},
    {"training"},
    {"compression", "deployment", "advisor"},
    {"cli", "__main__", "train", "compress", "evaluate", "predict", "export", "verify", "serve", "doctor"},
]
"""The folders and modules of the package, from the ground up. Each imports itself and what lies below it."""
BESIDE = {
    ("tasks", "data"),  # what an example's features are, and how a picture is decoded
    ("deployment", "compression"),  # a compressed model is opened as a trained one is
}
"""Which import others of their own floor. The modules of the top floor may all do so."""
FLOOR = {name: i for i, floor in enumerate(FLOORS) for name in floor}
TOP = len(FLOORS) - 1

MODULES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
    if path != ROOT / "__init__.py"
}


def imports(path):
    """Full names of our modules that a file imports, inside of functions and for type checkers too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jaxaccel":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("jaxaccel."))


def room(module):
    """The first part of a name below the package."""
    return module.split(".")[1]


def edges():
    """(importing module, imported module), without `jaxaccel` itself, which gives names alone."""
    return [(name, other) for name, path in MODULES.items() for other in imports(path) if other in MODULES]


def test_every_room_has_a_floor_and_a_purpose():
    rooms = {room(name) for name in MODULES}
    assert rooms == FLOOR.keys()
    for name, path in MODULES.items():
        assert ast.get_docstring(ast.parse(path.read_text())), f"{name} does not say what it is for"


def test_imports_point_down():
    wrong = [
        f"{name} imports {other}"
        for name, other in edges()
        if room(name) != room(other)
        and (
            FLOOR[room(other)] > FLOOR[room(name)]
            or (FLOOR[room(other)] == FLOOR[room(name)] < TOP and (room(name), room(other)) not in BESIDE)
        )
    ]
    assert not wrong


def test_no_modules_import_each_other():
    graph = {name: set() for name in MODULES}
    for name, other in edges():
        graph[name].add(other)
    while free := [name for name, needs in graph.items() if not needs & graph.keys()]:
        graph = {name: needs for name, needs in graph.items() if name not in free}
    assert not graph, f"these import each other in circles: {sorted(graph)}"


def test_models_know_nothing_of_jaxaccel():
    inside = ("jaxaccel.models.vision", "jaxaccel.models.layers")
    foreign = [
        f"{name} imports {other}"
        for name, other in edges()
        if name.startswith(inside) and not other.startswith(inside)
    ]
    assert not foreign


def test_only_interpret_touches_jax_internals():
    outside = [
        name
        for name, path in MODULES.items()
        if not name.startswith("jaxaccel.core.interpret")
        and ("jax._src" in path.read_text() or "jax.extend" in path.read_text())
    ]
    assert not outside
