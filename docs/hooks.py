"""What MkDocs does not do by itself: links out of docs/, names of files over code, folders in nav, pages of the API.

The sources are parsed, never imported. Whatever cannot be resolved is a warning, so that ``--strict`` fails.
"""

import ast
import functools
import itertools
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

log = logging.getLogger("mkdocs.hooks.jaxaccel")
ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
OUTWARD = re.compile(r"(!?)\[([^]]*)\]\((\.\./[^)#\s]+)")
"""A link that leads upwards; in front of it ! if it is a picture."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Replaces ``folder/`` in nav by the pages of the folder, its index first."""
    config.nav = [_expand(entry) for entry in config.nav or []]
    return config


def _expand(entry: Any) -> Any:
    if isinstance(entry, dict):
        return {title: _expand(value) for title, value in entry.items()}
    if isinstance(entry, list):
        return [_expand(value) for value in entry]
    if not entry.endswith("/"):
        return entry
    pages = sorted((DOCS / entry).glob("*.md"), key=lambda page: (page.name != "index.md", page.name))
    return [page.relative_to(DOCS).as_posix() for page in pages]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pictures that pages show from outside docs/ to the site."""
    links = {
        (page, *link) for page in DOCS.rglob("*.md") for link in OUTWARD.findall(page.read_text("utf-8"))
    }
    pictures = {(page.parent / link).resolve() for page, bang, _, link in links if bang}
    for path in sorted(pictures):
        if not path.is_relative_to(DOCS):
            files.append(File.generated(config, _asset(path), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrites what GitHub shows as it is: links out of docs/, ``<!-- file: NAME -->``, ``<!-- api: MODULE -->``."""
    if page.parent is None:  # a tab of one page has nothing to navigate
        page.meta["hide"] = ["navigation", "toc"] if page.is_homepage else ["navigation"]
    source = DOCS / page.file.src_uri
    markdown = OUTWARD.sub(lambda match: _link(match, source.parent, config.repo_url), markdown)
    # A picture opens in full size; a block that is a file has its name above it.
    markdown = re.sub(r"^(!\[[^]]*\]\(([^)]+)\))$", r"[\1](\2)", markdown, flags=re.MULTILINE)
    markdown = re.sub(r"<!-- file: (\S+) -->\n(\s*```\w+)", r'\2 title="\1"', markdown)
    return re.sub(r"<!-- api: (\S+) -->", lambda match: _reference(match[1], _level(match)), markdown)


def _link(match: re.Match[str], folder: Path, repository: str) -> str:
    """A link that leads upwards: as it is within docs/, else to the picture's copy or to the file on GitHub."""
    bang, text, link = match.groups()
    path = (folder / link).resolve()
    if not path.exists():
        log.warning("a page of %s links to %s, which is not there", folder.relative_to(ROOT), link)
    elif path.is_relative_to(DOCS):
        pass
    elif bang:
        link = os.path.relpath(DOCS / _asset(path), folder)
    else:
        link = f"{repository}/{'tree' if path.is_dir() else 'blob'}/main/{path.relative_to(ROOT).as_posix()}"
    return f"{bang}[{text}]({link}"


def _asset(path: Path) -> str:
    return f"assets/{path.relative_to(ROOT).as_posix()}"


def _level(match: re.Match[str]) -> int:
    """One below the heading that a place in a page stands under."""
    headings = re.findall(r"^(#+) ", match.string[: match.start()], flags=re.MULTILINE)
    return len(headings[-1]) + 1 if headings else 2


# The reference: a table of names with the first line of their docstrings, then each of them.


def _reference(module: str, level: int) -> str:
    return _root_reference() if module == "jaxaccel" else _module_reference(module, level)


def _root_reference() -> str:
    """Every name of ``import jaxaccel as ja``, linked to the page of its home."""
    rows = []
    for name in sorted(_exported("jaxaccel"), key=lambda name: (name[0].isupper(), name.lower())):
        home = _home("jaxaccel", name)
        link = f"({name}.md)" if _file(home) else f"[{home}]"  # a namespace has a page
        rows.append((f"[`ja.{name}`]{link}", home))
    return _table(rows)


def _module_reference(module: str, level: int) -> str:
    """Docstring of a module, and its public names; without ``__all__``, also those of the root at home in it."""
    homes = dict.fromkeys(_home(module, name) for name in _exported(module))
    names = {home: home.rpartition(".")[2] for home in homes} | _short_names()
    if _listed(module) is None:
        homes |= dict.fromkeys(home for home in _short_names() if home.startswith(f"{module}."))
    homes = [home for home in homes if not _file(home)]
    if not homes:
        log.warning("%s has no public names", module)
    entries = [
        f"::: {home}\n    options: {{heading: '{names[home]}', toc_label: '{names[home]}', heading_level: {level}}}"
        for home in homes
    ]
    text = re.sub(r"::$", ":", _docstring(module), flags=re.MULTILINE)
    return "\n\n".join([text, _table([(f"[`{names[home]}`][{home}]", home) for home in homes]), *entries])


def _table(rows: list[tuple[str, str]]) -> str:
    lines = [f"| {link} | {_first_line(home)} |" for link, home in rows]
    return "\n".join(['<div class="names" markdown>', "", "| name | |", "|---|---|", *lines, "", "</div>"])


@functools.cache
def _short_names() -> dict[str, str]:
    """``ja.NAME`` of everything public at the root or in a namespace of the root, by the path of its definition."""
    names = {}
    for name in _exported("jaxaccel"):
        home = _home("jaxaccel", name)
        if _file(home):
            names |= {_home(home, inner): f"ja.{name}.{inner}" for inner in _exported(home)} | names
        else:
            names[home] = f"ja.{name}"
    return names


def _file(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    candidates = (path / "__init__.py", path.with_suffix(".py"))
    return next((candidate for candidate in candidates if candidate.exists()), None)


@functools.cache
def _tree(module: str) -> ast.Module:
    file = _file(module)
    if file is None:
        raise ValueError(f"{module} is no module of this repository")
    return ast.parse(file.read_text(encoding="utf-8"))


def _stub(module: str) -> ast.Module | None:
    """The list of public names beside a package, ``__init__.pyi``."""
    file = ROOT.joinpath(*module.split("."), "__init__.pyi")
    return ast.parse(file.read_text(encoding="utf-8")) if file.exists() else None


def _listed(module: str) -> list[str] | None:
    """The names in ``__init__.pyi`` or ``__all__``, if the module has one of them."""
    if (stub := _stub(module)) is not None:
        return [alias.name for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    for node in _tree(module).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return ast.literal_eval(node.value)
    return None


@functools.cache
def _exported(module: str) -> list[str]:
    """``__all__``; in a module without one, the public functions and classes that it defines."""
    names = _listed(module)
    if names is None:
        names = [name for name, node in _definitions(module) if ast.get_docstring(node)]
    return [name for name in names if not name.startswith("_")]


def _definitions(module: str) -> Iterator[tuple[str, Any]]:
    for node in _tree(module).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node


@functools.cache
def _home(module: str, name: str) -> str:
    """The dotted path under which a name of a module is defined."""
    stub = _stub(module)
    for node in stub.body if stub else ():
        if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}:
            home = f"{module}.{node.module}" if node.module else module
            return _home(home, name) if node.module else f"{module}.{name}"
    for node in ast.walk(_tree(module)):
        if (
            isinstance(node, ast.ImportFrom)
            and (node.module or "").startswith("jaxaccel")
            and node.module != module
        ):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _home(node.module, alias.name)
    return f"{module}.{name}"


def _docstring(path: str) -> str:
    if _file(path):
        return ast.get_docstring(_tree(path)) or ""
    module, _, name = path.rpartition(".")
    node = dict(_definitions(module)).get(name)
    if node is not None:
        return ast.get_docstring(node) or ""
    body = _tree(module).body  # a constant, with its docstring behind it
    for node, following in itertools.pairwise(body):
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        if any(getattr(target, "id", "") == name for target in targets):
            value = getattr(following, "value", None)
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                return value.value
    log.warning("%s is not found", path)
    return ""


def _first_line(path: str) -> str:
    """The first paragraph of a docstring, for a cell of a table."""
    paragraph = " ".join(_docstring(path).strip().split("\n\n")[0].split())
    return paragraph.removesuffix("::").replace("|", "\\|")
