"""`--since COMMIT` leaves out slow tests of what has not changed, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).resolve().parents[1] / "conftest.py"
SOME = """
import pytest

@pytest.mark.slow(of=("one", "shared"))
def test_one(): pass

@pytest.mark.slow(of=("two.py",))
def test_two(): pass

@pytest.mark.slow
def test_of_everything(): pass

def test_quick(): pass
"""
GIT = ("git", "-c", "user.name=a", "-c", "user.email=a@example.org")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("CMakeLists.txt", "constraints.txt", "pyproject.toml", "one/a/kernel.cpp", "shared/b.py", "two.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\nmarkers = ["slow"]\n')
    (tmp_path / "tests").mkdir()
    shutil.copy(CONFTEST, tmp_path / "tests")
    (tmp_path / "tests" / "test_some.py").write_text(SOME)
    subprocess.run([*GIT, "init", "-q"], cwd=tmp_path, check=True)
    commit(tmp_path)
    return tmp_path


def commit(checkout: Path) -> None:
    subprocess.run([*GIT, "add", "."], cwd=checkout, check=True)
    subprocess.run([*GIT, "commit", "-q", "--message=all"], cwd=checkout, check=True)


def passed(checkout: Path, since: str = "HEAD") -> set[str]:
    """Return the tests that ran."""
    command = [sys.executable, "-m", "pytest", "-rpA", "-p", "no:cacheprovider", "--since", since, "tests"]
    run = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return {line.rpartition("::")[2] for line in run.stdout.splitlines() if line.startswith("PASSED ")}


@pytest.mark.slow(of=("tests/conftest.py",))
def test_only_slow_tests_of_what_changed_run(checkout: Path) -> None:
    always = {"test_of_everything", "test_quick"}
    assert passed(checkout) == always
    (checkout / "one" / "a" / "kernel.cpp").write_text("int one;")
    commit(checkout)
    assert passed(checkout, since="HEAD~1") == always | {"test_one"}
    (checkout / "constraints.txt").write_text("torch==2.13.0")
    assert passed(checkout) == always | {"test_one", "test_two"}


def test_a_change_of_its_own_file_runs_it(checkout: Path) -> None:
    (checkout / "tests" / "test_some.py").write_text(SOME.replace("def test_two(): pass", "def test_two(): assert 1"))
    assert passed(checkout) == {"test_one", "test_two", "test_of_everything", "test_quick"}


@pytest.mark.parametrize(
    ("spoil", "since", "message"),
    [
        (
            lambda checkout: (checkout / "two.py").unlink(),
            "HEAD",
            "test_two is about two.py, which is not in the checkout",
        ),
        (lambda checkout: None, "abcdef", "give a commit of this checkout"),
    ],
    ids=["a file that is gone", "no commit"],
)
def test_what_cannot_be_compared_is_an_error(checkout: Path, spoil, since: str, message: str) -> None:
    spoil(checkout)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--since", since, "tests"]
    run = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    assert run.returncode == 4
    assert message in run.stderr
