"""Relative links of every Markdown file and notebook: each leads to a file, and to a heading where it names one."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("benchmarks", "colab", "docs", "experiments")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
BLOB = "https://github.com/jaxaccel/jaxaccel/blob/main/"


def headings(text):
    """The anchors that GitHub and the site make of the headings of a page."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)", prose, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def broken(links, folder):
    """Those of some links that lead nowhere, seen from a folder."""
    found = []
    for link in links:
        target, _, anchor = link.partition("#")
        path = (folder / target).resolve()
        if not path.exists() or (anchor and anchor not in headings(path.read_text(encoding="utf-8"))):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_of_pages(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"[a-z]+:", link)]
    own = [link.removeprefix("#") for link in links if link.startswith("#")]
    assert set(own) <= headings(text)
    assert not broken([link for link in links if not link.startswith("#")], page.parent)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.name)
def test_links_of_notebooks(notebook):
    links = re.findall(re.escape(BLOB) + r"([^)\s\"\\]+)", notebook.read_text(encoding="utf-8"))
    assert not broken(links, ROOT)


def test_a_link_to_nowhere_is_found(tmp_path):
    (tmp_path / "page.md").write_text("# A title, long\n\n```bash\n# no heading\n```\n")
    links = ["page.md", "page.md#a-title-long", "page.md#no-heading", "gone.md"]
    assert broken(links, tmp_path) == ["page.md#no-heading", "gone.md"]
