"""Recipes read and written: those that come with jaxaccel, those of Python files, and ``recipe.json`` of a run."""

import ast
import dataclasses
import functools
import importlib
import json
import pkgutil
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxaccel.core.call_text import constructor_arguments, find_unreadable, path_of, render, suggest_nearest
from jaxaccel.core.options import checked
from jaxaccel.core.user_code import call, list_definitions, load_file, read_content_of
from jaxaccel.errors import UserError
from jaxaccel.training import options_json, recipes, trust
from jaxaccel.training.file_names import PACKAGES, TASKS, FileNames, check_modules
from jaxaccel.training.function_names import NAMES
from jaxaccel.training.recipe import MAY_DIFFER, Recipe

FORMAT = 1
"""Of recipe.json. 0 had no number, tasks by their bare names, and one module at most."""
RECORD = "recipe.json"
MAX_BYTES = 10_000_000
"""Of recipe.json: far more than any recipe takes."""


# ---- writing ------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Written:
    """A recipe as plain values, and what became of the code that it names."""

    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    """As JSON has them."""
    code: dict[str, bytes] = dataclasses.field(default_factory=dict)
    """Content of the Python files of one's own that it needs, by the names of their modules."""
    foreign: bool = False
    """It names code that is none of jaxaccel, Flax or Optax."""
    unreadable: list[str] = dataclasses.field(default_factory=list)
    """What of it no other process can read again, and why."""

    def function(self, function: Callable[..., Any]) -> str:
        """The text of a function."""
        self.unreadable += find_unreadable(function, NAMES)
        self._note(function)
        return render(function, NAMES)

    def kind(self, kind: type) -> str:
        """The text of a class."""
        name = next((name for name, known in TASKS.items() if known is kind), None)
        if name is None:
            self.unreadable += find_unreadable(kind, NAMES)
            self._note(kind)
        return name or path_of(kind)

    def lost(self, where: str, value: Any) -> None:
        """Takes note of a value that has no plain form."""
        self.unreadable.append(f"{where}, an object of class {type(value).__name__}")

    def _note(self, thing: Any) -> None:
        if isinstance(thing, (tuple, list, dict)):
            for inner in thing.values() if isinstance(thing, dict) else thing:
                self._note(inner)
        elif isinstance(thing, functools.partial):
            for inner in (thing.func, *thing.args, *thing.keywords.values()):
                self._note(inner)
        elif hasattr(thing, "__qualname__"):
            self.foreign |= thing.__module__.partition(".")[0] not in PACKAGES
            if (content := read_content_of(thing)) is not None:
                self.code[thing.__module__] = content
        elif callable(thing):  # a Linen module
            for inner in (
                type(thing),
                *(constructor_arguments(thing).values() if dataclasses.is_dataclass(thing) else ()),
            ):
                self._note(inner)


def write(recipe: Recipe) -> Written:
    """`recipe` as plain values, and the code that it needs."""
    written = Written()
    written.values = options_json.encode(recipe, type(recipe), written)
    return written


def to_json(options: Any) -> Any:
    """A recipe, or other options, as plain values for a file: functions as text, tuples as lists."""
    return options_json.encode(options, type(options), Written())


def warn_unreadable(recipe: Recipe) -> str:
    """What to tell when a run starts that cannot be read again, or not unasked; empty where it can."""
    written = write(recipe)
    if not written.unreadable:
        why = trust.explain_no_secret() if written.foreign else ""
        return (
            f"note: the run is not marked as your own ({why}): opening it again takes --trust" if why else ""
        )
    what = "; ".join(dict.fromkeys(written.unreadable))
    return (
        f"note: this run trains, but no other process can read it again, to train, resume, compress or teach: {what}. "
        "Put it into a module or a recipe file"
    )


# ---- reading ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A recipe, and where it came from."""

    recipe: Recipe
    about: str = ""
    """What its file says of itself."""
    source: Path | None = None
    """The Python file of one's own that made it."""
    definitions: Callable[[], Mapping[str, Any]] = dict
    """Gives the functions and classes that this file, or those kept beside a run, define. It may execute the latter."""


@checked
def load_recipe(name: str | Path, *, trust: bool = False) -> Recipe:
    """The recipe of that name, of the Python file at that path, or of the run in that directory.

    Change it with `dataclasses.replace`.

    Args:
      name: of a recipe (``digits``), or a path. A Python file is executed.
      trust: execute the code that a run names, also where somebody else, or an older version, wrote the run.

    Raises:
      UserError: there is none; the file defines no `recipe()` that returns a `Recipe`; or the run needs code that is
        not trusted, or has options that this version does not know.
    """
    return load(name, trust=trust).recipe


def load(name: str | Path, *, trust: bool = False) -> Loaded:
    """As `load_recipe`, with what is known of where it came from."""
    if (Path(name) / RECORD).is_file():
        return _of_run(Path(name), trust)
    own = str(name).endswith(".py")
    module = load_file(Path(name)) if own else import_shipped(str(name), recipes)
    made = call(module, "recipe", name)
    if not isinstance(made, Recipe):
        raise UserError(f"{name} must define recipe() -> jaxaccel.Recipe")
    about = (module.__doc__ or "").strip()
    return Loaded(made, about, Path(name), lambda: list_definitions([module])) if own else Loaded(made, about)


def list_recipes() -> dict[str, str]:
    """The recipes that come with jaxaccel and the first line of each one's docstring."""
    found = [module.name for module in pkgutil.iter_modules(recipes.__path__)]
    return {name: import_shipped(name, recipes).__doc__.strip().splitlines()[0] for name in sorted(found)}


def import_shipped(name: str, package: types.ModuleType) -> Any:
    """The module of that name in a package with a file for each recipe.

    Raises:
      UserError: there is none; it names the nearest.
    """
    known = [module.name for module in pkgutil.iter_modules(package.__path__)]
    if name not in known:
        raise UserError(f"no recipe {name!r}{suggest_nearest(name, known)} (--list shows them all)")
    return importlib.import_module(f"{package.__name__}.{name}")


def read_recipe_file(file: Path) -> tuple[dict[str, Any], bytes]:
    """What a recipe.json holds, in today's format, and its bytes.

    Raises:
      UserError: it was not written by jaxaccel, is damaged, or is of a newer format.
    """
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_BYTES)
        record = json.loads(content)
        number, recipe = record.get("format", 0), record["recipe"]
        modules = record.get("modules", []) if number else [record["module"]] if record.get("module") else []
        if not isinstance(number, int) or not isinstance(recipe, dict) or not isinstance(modules, list):
            raise ValueError("no recipe")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{file} was not written by jaxaccel, or is damaged") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error
    if number > FORMAT:
        raise UserError(
            f"{file} has format {number}, and this version reads up to {FORMAT}: upgrade jaxaccel"
        )
    check_modules(file, modules)
    return {**record, "recipe": recipe if number else upgrade(recipe, modules), "modules": modules}, content


def from_json(values: Mapping[str, Any], names: FileNames | None = None) -> Recipe:
    """The recipe that `to_json` wrote down.

    Args:
      values: plain values; what is missing takes its default.
      names: what names in them stand for; by default those of jaxaccel, Flax and Optax.

    Raises:
      UserError: a name in it stands for nothing or for code that is not trusted, or a field is unknown.
    """
    return options_json.decode(dict(values), Recipe, names or FileNames(Path(RECORD), b""))


def _of_run(directory: Path, trust: bool) -> Loaded:
    file = directory / RECORD
    record, content = read_recipe_file(file)
    names = FileNames(file, content, tuple(record["modules"]), trust)
    try:
        recipe = from_json(record["recipe"], names)
        return Loaded(recipe, _docstring(names), definitions=names.definitions)
    except UserError as error:
        raise error if str(file) in error.message else UserError(f"{file}: {error.message}") from error
    except RecursionError as error:
        raise UserError(f"{file} was not written by jaxaccel, or is damaged") from error


def _docstring(names: FileNames) -> str:
    """What the first file beside a run says of itself, which is not executed for that."""
    try:
        return next((ast.get_docstring(ast.parse(content)) or "" for content in names.kept.values()), "")
    except (UserError, SyntaxError, ValueError, RecursionError, MemoryError):
        return ""


def upgrade(values: Mapping[str, Any], modules: Sequence[str] = ()) -> dict[str, Any]:
    """The plain values of a recipe of format 0 in today's; those of today stay as they are.

    Args:
      values: as an earlier version's `to_json` gave them.
      modules: the module beside the run, where there is one.
    """
    recipe, task = dict(values), values.get("task")
    if isinstance(task, dict) and "kind" in task and "class" not in task:
        # The recipe file beside the run is the only place where a task of one's own can be.
        home = f"{modules[0]}." if modules and task["kind"] not in TASKS else ""
        recipe["task"] = {"class": f"{home}{task['kind']}", **{k: x for k, x in task.items() if k != "kind"}}
    name = recipe.get("name")
    if isinstance(name, str) and not Path(name).is_absolute() and ".." not in Path(name).parts:
        recipe["name"] = name.replace("/", "-")  # a name may not lead elsewhere any more
    return recipe


# ---- resuming -----------------------------------------------------------------------------------------------


def find_differences(now: Any, before: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted path, value now, value before) of all leaves in which two results of `to_json` differ."""
    if isinstance(now, dict) and isinstance(before, dict):
        return [
            found
            for key in dict.fromkeys((*now, *before))
            for found in find_differences(now.get(key), before.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if now == before else [(path, now, before)]


def find_changes(recipe: Recipe, before: dict[str, Any], number: int = FORMAT) -> list[tuple[str, Any, Any]]:
    """(dotted path, value now, value before) of what differs from a recipe.json and may not when a run goes on.

    Args:
      recipe: with which it is to go on.
      before: the plain values in the file, upgraded.
      number: the file's own format.
    """
    now, model = json.loads(json.dumps(to_json(recipe))), recipe.model
    if not number and isinstance(model, functools.partial) and model.args:
        # Format 0 left out what was bound by its place.
        named = functools.partial(model.func, **model.keywords) if model.keywords else model.func
        before = before | {"model": now["model"]} if before.get("model") == render(named, NAMES) else before
    free = list_free_on_resume(recipe)
    found = find_differences(now, add_defaults(before, recipe))
    return [x for x in found if not any(x[0] == path or x[0].startswith(f"{path}.") for path in free)]


def add_defaults(values: Any, like: Any) -> Any:
    """Plain values of an earlier version, with the defaults of the fields that `like` has and they lack."""
    if not isinstance(values, dict) or not options_json.is_options(like):
        return values
    found, hints = dict(values), options_json.field_types(type(like))
    for field in options_json.fields_of(type(like)):
        if field.name in values:
            found[field.name] = add_defaults(values[field.name], getattr(like, field.name))
        elif options_json.has_default(field):
            made = field.default_factory
            default = field.default if made is dataclasses.MISSING else made()
            found[field.name] = options_json.encode(default, hints[field.name], Written())
    return json.loads(json.dumps(found))


def list_free_on_resume(options: Any, prefix: str = "") -> list[str]:
    """Dotted paths of the fields of a recipe that are marked `MAY_DIFFER`."""
    found = []
    for name, declared in options_json.field_types(type(options)).items():
        if MAY_DIFFER in getattr(declared, "__metadata__", ()):
            found.append(f"{prefix}{name}")
        elif options_json.is_options(getattr(options, name)):
            found += list_free_on_resume(getattr(options, name), f"{prefix}{name}.")
    return found
