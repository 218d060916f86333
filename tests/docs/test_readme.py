"""Runs what README.md and docs/*.md tell people to type.

The ```python blocks of a document run in order in one namespace; of its ```bash and ```console blocks, each
``python -m jaxaccel...`` runs, in order, in one directory, as for a reader who types them all. Of ``pip install``
only the extras are checked. Trainings that name no ``--epochs`` take JAXACCEL_TEST_EPOCHS (1) of them. The line
before a block may hold ``<!-- not run: REASON -->``, or ``<!-- file: NAME -->``, which saves the block as that
file beside what runs and does not run it.
"""

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import QUICKLY
from grids import slow_but

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
DOCUMENTS = ["README.md", *(page for page in PAGES if not page.startswith("docs/api/"))]
EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
EPOCHS = float(os.environ.get("JAXACCEL_TEST_EPOCHS", "1"))
SHELL = ("bash", "console", "sh", "shell")
SECONDS = 240

# Runs in a process of its own: [[line, code], ...] on standard input, the document and the epochs as arguments.
# The code is compiled as lines of the document, so that a traceback shows them.
RUNNER = """
import dataclasses, json, sys, traceback
document, epochs = sys.argv[1], float(sys.argv[2])
blocks = json.load(sys.stdin)
if any("jaxaccel" in code for _, code in blocks):
    import jaxaccel.training.loop as module
    whole = module.train
    def shortened(recipe, **options):
        return whole(dataclasses.replace(recipe, epochs=min(recipe.epochs, epochs)), **options)
    module.train = shortened
namespace = {"__name__": "__main__"}
for line, code in blocks:
    try:
        exec(compile("\\n" * line + code, document, "exec"), namespace)
    except BaseException:
        traceback.print_exc()
        sys.exit(f"the python block at line {line} failed")
"""


class Block(NamedTuple):
    line: int
    """Of the fence that opens it, from 1."""
    language: str
    code: str
    comment: str
    """What an HTML comment on the line before it says."""


def blocks(text):
    """The fenced code blocks of a Markdown document."""
    found, opened, before = [], None, ""
    for number, line in enumerate(text.splitlines(), start=1):
        fence = re.match(r"\s*(`{3,})\s*([\w+-]*)", line)
        if opened is None and fence:
            comment = re.fullmatch(r"\s*<!--\s*(.*?)\s*-->\s*", before)
            opened = (fence[1], number, fence[2], comment[1] if comment else "", [])
        elif opened is not None and fence and not fence[2] and len(fence[1]) >= len(opened[0]):
            indent = len(line) - len(line.lstrip())
            code = "\n".join(inner[indent:] for inner in opened[4]) + "\n"
            found.append(Block(opened[1], opened[2], code, opened[3]))
            opened = None
        elif opened is not None:
            opened[4].append(line)
        before = line
    assert opened is None, f"the code block at line {opened[1]} is never closed"
    return found


def python_blocks(text):
    return [
        (block.line, block.code)
        for block in blocks(text)
        if block.language == "python" and not block.comment.startswith(("not run:", "file:"))
    ]


def commands(text):
    """(line of the block, words) of each command in the shell blocks of a document."""
    found = []
    for block in blocks(text):
        if block.language not in SHELL or block.comment.startswith(("not run:", "file:")):
            continue
        lines = block.code.replace("\\\n", " ").splitlines()
        if block.language == "console":  # the lines without a prompt are what the commands print
            lines = [line.lstrip()[2:] for line in lines if line.lstrip().startswith("$ ")]
        for line in lines:
            tokens = shlex.shlex(line, posix=True, punctuation_chars="&;|")
            tokens.whitespace_split = True
            for separator, words in itertools.groupby(tokens, lambda token: set(token) <= set("&;|")):
                if not separator:
                    found.append((block.line, list(words)))
    return found


def missing_extras(words):
    """The extras of jaxaccel that a ``pip install`` names and pyproject.toml lacks."""
    named = [re.match(r"(?:jaxaccel|\.)\[([^]]*)\]", word) for word in words]
    return {extra.strip() for match in named if match for extra in match[1].split(",")} - EXTRAS


def shortened(words):
    """(environment, words) of a command that runs jaxaccel; None for any other."""
    count = next((i for i, word in enumerate(words) if not re.match(r"\w+=", word)), len(words))
    environment = dict(word.split("=", 1) for word in words[:count])
    words = words[count:]
    if words[:2] not in (["python", "-m"], ["python3", "-m"]) or not words[2:3]:
        return None
    if words[2].split(".")[0] != "jaxaccel":
        return None
    asks = {"--epochs", "--help", "-h", "--list"} & {word.split("=")[0] for word in words}
    if words[2] == "jaxaccel.train" and not asks:
        words = [*words, "--epochs", f"{EPOCHS:g}"]
    return environment, [sys.executable, *words[1:]]


def run(words, folder, environment=None, text=None):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | (environment or {})
    environment["XLA_FLAGS"] = f"{QUICKLY} {environment.get('XLA_FLAGS', '')}"
    return subprocess.run(
        words, cwd=folder, env=environment, input=text, capture_output=True, text=True, timeout=SECONDS
    )


def save_files(text, folder):
    """Writes the blocks of a document that are files."""
    for block in blocks(text):
        if block.comment.startswith("file:"):
            (folder / block.comment.removeprefix("file:").strip()).write_text(block.code, encoding="utf-8")


def run_python(path, folder):
    """Runs the python blocks of a document; the message of the failure, or an empty text."""
    text = path.read_text(encoding="utf-8")
    save_files(text, folder)
    code = python_blocks(text)
    done = run([sys.executable, "-c", RUNNER, str(path), str(EPOCHS)], folder, text=json.dumps(code))
    return "" if done.returncode == 0 else f"{path.name}: {done.stderr.strip()}"


def run_commands(path, folder):
    """Runs the commands of a document, up to the first that fails; its message, or an empty text."""
    text = path.read_text(encoding="utf-8")
    save_files(text, folder)
    for line, words in commands(text):
        where = f"{path.name}, block at line {line}: {shlex.join(words)}"
        if "pip" in words and (missing := missing_extras(words)):
            return f"{where}\npyproject.toml has no extra {', '.join(sorted(missing))}"
        if command := shortened(words):
            done = run(command[1], folder, command[0])
            if done.returncode:
                return f"{where}\nexit code {done.returncode}\n{done.stdout}{done.stderr}"
    return ""


@pytest.mark.parametrize("name", slow_but([d for d in DOCUMENTS if d != "docs/guides/train.md"], DOCUMENTS))
def test_python_blocks(name, tmp_path):
    path = ROOT / name
    if not python_blocks(path.read_text(encoding="utf-8")):
        pytest.skip("no python block")
    failure = run_python(path, tmp_path)
    assert not failure, failure


LONG = [
    f"docs/guides/{name}.md" for name in ("accelerate", "compress", "models", "text", "train", "translation")
]
"""Their commands train in every way there is; those of README.md in the main ones."""


@pytest.mark.parametrize("name", slow_but([d for d in DOCUMENTS if d not in LONG], DOCUMENTS))
def test_commands(name, tmp_path):
    path = ROOT / name
    if not commands(path.read_text(encoding="utf-8")):
        pytest.skip("no command")
    failure = run_commands(path, tmp_path)
    assert not failure, failure


SAMPLE = """\
```bash
python -m pip install '.[test,tpu]' && python -m jaxaccel.train own.py --run here  # a comment
XLA_FLAGS=--xla_force_host_platform_device_count=2 python -m jaxaccel.train digits \\
  --mesh.data 2 --epochs 3
git clone somewhere; cd "some; where"
```
<!-- not run: takes a week -->
```bash
python -m jaxaccel.train imagenet_resnet50
```
```console
$ python -m jaxaccel.train --list
digits             Handwritten digits
```
<!-- file: own.py -->
```python
raise SystemExit("this is a file")
```
1. In a list:
   ```python
   answer = 42
   ```
```python
assert answer == 42

assert answer == 43, "a wrong answer"
```
"""


def test_what_counts_as_a_command():
    runs = [(line, shortened(words)) for line, words in commands(SAMPLE)]
    run_here = [(line, command[0], command[1][1:]) for line, command in runs if command]
    assert run_here == [
        (1, {}, ["-m", "jaxaccel.train", "own.py", "--run", "here", "--epochs", f"{EPOCHS:g}"]),
        (
            1,
            {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
            ["-m", "jaxaccel.train", "digits", "--mesh.data", "2", "--epochs", "3"],
        ),
        (11, {}, ["-m", "jaxaccel.train", "--list"]),
    ]
    assert missing_extras(["pip", "install", "jaxaccel[cuda, gpu]", "jax[tpu-v9]", ".[test]"]) == {"gpu"}


def test_a_failure_names_its_line(tmp_path):
    path = tmp_path / "sample.md"
    path.write_text(SAMPLE)
    failure = run_python(path, tmp_path)
    assert "the python block at line 23 failed" in failure
    assert f'"{path}", line 26' in failure and "a wrong answer" in failure
    path.write_text("Text.\n\n```bash\npip install 'jaxaccel[everything]'\n```\n")
    assert "block at line 3" in run_commands(path, tmp_path)
    path.write_text("```bash\npython -m jaxaccel.train digit\n```\n")
    failure = run_commands(path, tmp_path)
    assert "block at line 1" in failure and "exit code 2" in failure and "digits" in failure
