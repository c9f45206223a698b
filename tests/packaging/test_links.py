"""Every link of the pages leads somewhere: to a file and a heading that exist, or to a well-formed address."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("docs", "csrc", "kernels", "benchmarks", "examples", "tests")
PAGES = sorted([*ROOT.glob("*.md"), *(page for room in ROOMS for page in (ROOT / room).rglob("*.md"))])
FENCE = re.compile(r"^(`{3,}).*?^\1\s*$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\]\(([^()\s]+)(?:\s+\"[^\"]*\")?\)")
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)
SOURCES = (".py", ".md", ".toml", ".cpp", ".hpp", ".cu", ".cuh", ".cmake", ".txt", ".cff", ".yml", ".yaml")


def links(page: Path) -> list[str]:
    text = CODE.sub("", FENCE.sub("", page.read_text(encoding="utf-8")))
    return LINK.findall(text)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    headings = HEADING.findall(FENCE.sub("", page.read_text(encoding="utf-8")))
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "") for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in plain}


def problem(page: Path, link: str) -> str | None:
    parts = urlsplit(link)
    if parts.scheme:
        fine = parts.scheme == "mailto" or (parts.scheme == "https" and "." in parts.netloc)
        return None if fine else f"{link} is no address of the form https://host/..."
    target = (page.parent / parts.path).resolve() if parts.path else page
    if not target.exists():
        return f"{link}: there is no {target}"
    if parts.fragment and target.suffix == ".md" and parts.fragment not in anchors(target):
        return f"{link}: {target} has no heading #{parts.fragment}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page: Path) -> None:
    assert [found for link in links(page) if (found := problem(page, link))] == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b` heading\n\n[a](#a-b-heading) [b](#none) [c](none.md) [d](page.md#a-b-heading) [e](http://x.org) "
        "[f](https://x.org/y) `[g](h)`\n\n```sh\n[i](j)\n```\n",
        encoding="utf-8",
    )
    broken = [link for link in links(page) if problem(page, link)]
    assert broken == ["#none", "none.md", "http://x.org"]


def test_every_page_that_code_names_is_there() -> None:
    missing = []
    for room in ("simmst", "csrc", "kernels", "benchmarks", "tests", "docs", "examples", ".ci", ".github"):
        for path in sorted((ROOT / room).rglob("*")):
            if path.is_file() and (path.suffix in SOURCES or room == ".ci"):
                named = re.findall(r"\bdocs/[\w/-]+\.md\b", path.read_text(encoding="utf-8"))
                missing += [f"{path}: {name}" for name in named if not (ROOT / name).exists()]
    assert missing == []
