"""The files that tools and hosts read: the citation, the hooks before a commit, the forms for issues."""

from __future__ import annotations

import functools
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

import simmst

yaml = pytest.importorskip("yaml", reason="PyYAML comes with the forecast extra")

ROOT = Path(__file__).resolve().parents[2]
FORMS = sorted(path.name for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@functools.cache
def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def hooks() -> list[dict[str, Any]]:
    return [hook for repo in read(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]


def test_the_citation_agrees_with_the_package() -> None:
    citation = read("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    (version,) = re.findall(r'^version = "(.+)"$', PROJECT, re.MULTILINE)
    assert citation["version"] == version == simmst.__version__
    assert f'license = "{citation["license"]}"' in PROJECT
    assert f'description = "{citation["abstract"]}"' in PROJECT
    assert f'authors = [{{ name = "{citation["authors"][0]["name"]}" }}]' in PROJECT
    (listed,) = re.findall(r"^keywords = \[(.*)\]$", PROJECT, re.MULTILINE)
    assert citation["keywords"] == re.findall(r'"([^"]+)"', listed)


def test_the_citation_names_the_paper_as_the_readme_does() -> None:
    (paper,) = read("CITATION.cff")["references"]
    assert paper["type"] == "article"
    assert paper["authors"]
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert paper["title"] in readme


def test_a_release_in_the_citation_is_one_in_the_changelog() -> None:
    released = read("CITATION.cff").get("date-released")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    heading = re.search(rf"^## \[{re.escape(simmst.__version__)}\] - (\S+)$", changes, re.MULTILINE)
    assert str(released) == (heading[1] if heading else "None")


def test_the_hooks_use_the_tools_of_the_test_extra() -> None:
    assert {repo["repo"] for repo in read(".pre-commit-config.yaml")["repos"]} == {"local"}
    (extra,) = re.findall(r"^test = \[\n(.*?)^\]$", PROJECT, re.MULTILINE | re.DOTALL)
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    tools = {hook["entry"].split()[0] for hook in hooks() if hook["language"] == "system"}
    assert tools == {"ruff", "clang-format", "mypy"}
    for tool in tools:
        assert re.search(rf'"{tool}[>=]', extra), f"{tool} is not in the test extra"
        assert tool in pinned, f"{tool} is not in constraints.txt"
    assert {hook["language"] for hook in hooks()} == {"system", "pygrep"}


def faults(content: bytes) -> set[str]:
    """Return the hooks without a tool that refuse a text, as pre-commit applies them."""
    found = set()
    for hook in hooks():
        if hook["language"] == "pygrep":
            # pre-commit searches line by line without --multiline; the flag MULTILINE finds the same in the whole text.
            flags = re.MULTILINE | (re.DOTALL if "--multiline" in hook.get("args", ()) else 0)
            found |= {hook["id"]} if re.search(hook["entry"].encode(), content, flags) else set()
    return found


@pytest.mark.parametrize(
    ("content", "refused"),
    [
        (b"a\n\nb\n", set()),
        (b"", set()),
        (b"a \nb\n", {"trailing-whitespace"}),
        (b"a\r\nb\r\n", {"trailing-whitespace"}),
        (b"a\nb", {"end-of-file"}),
        (b"a\n\n", {"end-of-file"}),
        (b"<<<<<<< main\n", {"merge-conflict"}),
    ],
)
def test_the_hooks_refuse_faults(content: bytes, refused: set[str]) -> None:
    assert faults(content) == refused


def test_no_file_of_the_repository_has_a_fault() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("only a checkout knows which files belong to it")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = [name for name in listed.split("\0")[:-1] if (ROOT / name).is_file()]
    exclude = re.compile(read(".pre-commit-config.yaml")["exclude"])
    texts = {name: (ROOT / name).read_bytes() for name in names if not exclude.search(name)}
    faulty = {name: faults(text) for name, text in texts.items() if b"\0" not in text[:1024]}
    assert {name: found for name, found in faulty.items() if found} == {}


def test_there_are_three_forms() -> None:
    assert FORMS == ["bug.yml", "forecast.yml", "kernel.yml"]


@pytest.mark.parametrize("name", FORMS)
def test_a_form_is_one_and_asks_for_simmst_info(name: str) -> None:
    form = read(f".github/ISSUE_TEMPLATE/{name}")
    assert {"name", "description", "body"} <= form.keys()
    questions = [part for part in form["body"] if part["type"] != "markdown"]
    ids = [question["id"] for question in questions]
    assert len(ids) == len(set(ids))
    assert {question["type"] for question in questions} <= {"textarea", "input", "dropdown", "checkboxes"}
    assert all(question["attributes"]["label"] for question in questions)
    (info,) = [question for question in questions if "`simmst info`" in question["attributes"]["label"]]
    assert info["validations"] == {"required": True}


def test_the_form_of_a_kernel_knows_operators_and_backends() -> None:
    from simmst.ops.backends import BACKENDS

    form = {part["id"]: part for part in read(".github/ISSUE_TEMPLATE/kernel.yml")["body"]}
    assert set(form["backend"]["attributes"]["options"]) == set(BACKENDS)
    named = " ".join(form["operator"]["attributes"]["options"])
    operators = {path.name for path in (ROOT / "simmst" / "ops").iterdir() if (path / "library.py").exists()}
    assert operators
    assert not [operator for operator in operators if operator not in named]
