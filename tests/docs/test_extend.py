"""The diffs of docs/internals/extend.md, which add one thing of each kind, applied to a copy of the package."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from test_readme import blocks

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "internals" / "extend.md").read_text()
DIFFS = [block.code for block in blocks(PAGE) if block.language == "diff"]


def test_each_is_one_file_and_at_most_one_line():
    assert len(DIFFS) == 6
    for diff in DIFFS:
        changes = re.split(r"^(?=--- )", diff, flags=re.MULTILINE)[1:]
        new = [change for change in changes if change.startswith("--- /dev/null")]
        lines = [
            re.findall(r"^[+-](?![+-]{2} )", change, re.MULTILINE) for change in changes if change not in new
        ]
        assert len(new) == 1 and lines in ([], [["+"]]), diff


def test_they_work(tmp_path):
    shutil.copytree(ROOT / "jaxaccel", tmp_path / "jaxaccel", ignore=shutil.ignore_patterns("__pycache__"))
    for diff in DIFFS:
        subprocess.run(["git", "apply", "-p0", "-"], input=diff, text=True, cwd=tmp_path, check=True)
    check = next(block.code for block in blocks(PAGE) if block.comment == "file: check.py")
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
