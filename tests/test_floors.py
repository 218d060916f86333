"""Imports point down the floors only."""

import ast
from pathlib import Path

import jaxaccel

ROOT = Path(jaxaccel.__file__).parent

# Each floor may import itself and what lies below. A new module needs its place here.
FLOORS = [
    {
        *("errors", "options", "files", "calls", "metrics", "trees", "runtime", "launch", "peers"),
        *("numerics", "sites", "lock", "swap", "parent", "user_code", "trust", "plain"),
        *("hlo", "torch_files", "torch_pickle"),
        *("bounds", "pickles", "pickle_values", "npz_files", "safetensors_files"),
    },
    {"interpret", "arrays", "lowerings", "roofline"},
    {"augment", "models", "parallel", "data", "transforms", "compress"},
    {
        "tasks",
        "modules",
        "optim",
        "flags",
        "file_names",
        "state",
        "step",
        "teacher",
        "fuse",
        "checkpoint",
        "digests",
        "saved",
        "runlog",
        "loggers",
        "signals",
        "pretrained",
        "probe",
        "explanation",
        "replicas",
        "packed",
        "prediction",
        "evaluation",
        "facts",
    },
    {
        "recipe",
        "recipe_file",
        "recipes",
        "sweep",
        "rundir",
        "provenance",
        "curves",
        "cli",
        "pacing",
        "findings",
        "wording",
        "result",
        "agreement",
        "initial",
        "mistakes",
    },
    {"train", "loop", "trained", "evaluate", "doctor", "route", "routes", "__main__"},
]
FLOOR = {name: i for i, floor in enumerate(FLOORS) for name in floor}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jaxaccel":
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("jaxaccel."))


def files():
    return [path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py"]


def test_every_module_has_a_floor():
    names = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in files()}
    assert names <= FLOOR.keys(), f"give {sorted(names - FLOOR.keys())} a floor"


def test_imports_point_down():
    up = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files()
        for name in imports(path)
        if FLOOR[name] > FLOOR[path.relative_to(ROOT).parts[0].removesuffix(".py")]
        and path.name != "__main__.py"  # a command line stands above its package
    ]
    assert not up


def test_models_know_nothing_of_jaxaccel():
    foreign = [
        f"{path.name} imports {name}"
        for path in (ROOT / "models").glob("*.py")
        for name in imports(path)
        if name != "models"
    ]
    assert not foreign


def test_only_interpret_touches_jax_internals():
    inside = [
        str(path.relative_to(ROOT))
        for path in files()
        if path.parent.name != "interpret"
        and ("jax._src" in path.read_text() or "jax.extend" in path.read_text())
    ]
    assert not inside


def modules_imported(path):
    """Full names of our modules that a file imports, inside of functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxaccel"):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_data_has_no_import_circles():
    names = {
        path: ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "data").rglob("*.py")
    }
    graph = {name: set(modules_imported(path)) & set(names.values()) for path, name in names.items()}
    while free := [name for name, needs in graph.items() if not needs & graph.keys()]:
        graph = {name: needs for name, needs in graph.items() if name not in free}
    assert not graph, f"these import each other in circles: {sorted(graph)}"
