"""The project as a whole: what its files may hold, how its modules depend on each other, what makes `.venv`."""

from __future__ import annotations

import ast
import configparser
import os
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline

ROOT = Path(__file__).resolve().parents[1]

# A wing imports only wings named before it; the ground and the face lie in `pipeline` itself.
WINGS = ("ground", "config", "data", "network", "learning", "transport", "runtime", "report", "face")
GROUND = ("errors", "seeding", "settings", "spans", "text")

MODULES = sorted(
    str(path.relative_to(ROOT / "pipeline").with_suffix(""))
    for path in (ROOT / "pipeline").glob("**/*.py")
    if path.stem != "__init__"
)

WITHOUT_TORCH = (
    *("pipeline", "pipeline.errors", "pipeline.config", "pipeline.config.recipes", "pipeline.config.cli"),
    *("launch.pipeline_train", "launch.evaluate"),
)

FORBIDDEN = {
    "a path of one machine": r"(^|[^A-Za-z0-9_.])/(work|farm)/",
    "a package index": r"index[-_]url|pypi\.org|pythonhosted\.org|download\.pytorch\.org",
}


def syntax_tree(module: str) -> ast.Module:
    return ast.parse((ROOT / "pipeline" / f"{module}.py").read_text())


def tracked_files() -> list[Path]:
    """Every file that git has, or would add."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def test_no_file_names_a_machine_or_a_package_index() -> None:
    found = []
    for path in tracked_files():
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            found += [f"{path}:{number}: {what}" for what, pattern in FORBIDDEN.items() if re.search(pattern, line)]
    assert found == []


def test_no_file_is_larger_than_500_kB() -> None:  # noqa: N802
    assert [path for path in tracked_files() if path.stat().st_size > 500_000] == []


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_does_and_what_is_public(module: str) -> None:
    tree = syntax_tree(module)
    assert ast.get_docstring(tree)
    assigned = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    assert any(isinstance(target, ast.Name) and target.id == "__all__" for target in assigned)


def wing_of(module: str) -> str:
    """The wing of a module, such as `learning/stage`."""
    wing, _, rest = module.partition("/")
    if rest:
        return wing
    return "ground" if module in GROUND else "face"


@pytest.mark.parametrize("module", MODULES)
def test_a_wing_imports_only_wings_below_it(module: str) -> None:
    imported = set()
    for node in ast.walk(syntax_tree(module)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            imported.add(node.module or "")
            if node.module == "pipeline":
                imported |= {f"pipeline.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
    own = {name.removeprefix("pipeline.").replace(".", "/") for name in imported if name.startswith("pipeline.")}
    wings = {name if name in WINGS else wing_of(name) for name in own}
    assert wings <= set(WINGS[: WINGS.index(wing_of(module)) + 1])


def test_public_names_are_there() -> None:
    assert all(getattr(pipeline, name) is not None for name in pipeline.__all__)
    assert set(pipeline.__all__) <= set(dir(pipeline)), "where completion looks for them"
    manual = pydoc.plain(pydoc.render_doc(pipeline))
    assert all(re.search(rf"^    (class )?{name}\(", manual, re.MULTILINE) for name in pipeline.__all__)


@pytest.mark.runs
@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_flags_are_answered_without_torch(module: str) -> None:
    code = f"import {module}, sys; print(*{{'torch', 'numpy', 'rich', 'matplotlib'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


def test_the_architecture_page_names_every_file_once() -> None:
    page = (ROOT / "pipeline" / "README.md").read_text()
    assert sorted(re.findall(r"^- `([\w/]+)\.py`", page, re.MULTILINE)) == MODULES


def test_the_change_log_has_this_version() -> None:
    assert f"## {pipeline.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_main_job_is_started_without_a_warning_of_torchrun() -> None:
    done = subprocess.run(["make", "--dry-run", "train"], cwd=ROOT, check=True, capture_output=True, text=True)
    assert "OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} .venv/bin/torchrun --master_port=$(tools/free-port)" in done.stdout


def find_python(folder: Path, wanted: str = "", *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run tools/find-python where only the interpreters in `folder` are on the path."""
    environment = {**os.environ, "PATH": f"{folder}:/usr/bin:/bin", "PYTHON": wanted}
    command = [str(ROOT / "tools" / "find-python"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def fake_python(folder: Path, name: str, says: str, status: int = 0) -> None:
    """An interpreter that answers every question with `says`."""
    path = folder / name
    path.write_text(f"#!/bin/sh\necho {says}\nexit {status}\n")
    path.chmod(0o755)


def test_a_python_that_fits_is_looked_for(tmp_path: Path) -> None:
    fake_python(tmp_path, "python3", "3.14 venv")
    fake_python(tmp_path, "python3.13", "", status=127)  # a shim whose version is not installed
    fake_python(tmp_path, "python3.12", "3.12 venv")
    fake_python(tmp_path, "python3.11", "3.11 venv")
    assert find_python(tmp_path).stdout == "python3.12\n"
    assert find_python(tmp_path, "", "lowest").stdout == "python3.11\n", "the lowest, too"


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ("3.10 venv", "error: Python 3.10 found; this project needs 3.11 to 3.13; install one, or name it: "),
        ("3.14 venv", "error: Python 3.14 found; this project needs 3.11 to 3.13; install one, or name it: "),
        ("3.12 bare", "error: Python 3.12 cannot make virtual environments here; install its venv package "),
        ("", "error: PYTHON is given, which does not run; this project needs Python 3.11 to 3.13; "),
    ],
)
def test_a_python_that_does_not_fit_is_refused_in_one_line(tmp_path: Path, says: str, message: str) -> None:
    fake_python(tmp_path, "given", says)
    done = find_python(tmp_path, "given")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


def test_the_lowest_versions_have_a_python_of_their_own(tmp_path: Path) -> None:
    fake_python(tmp_path, "given", "3.13 venv")  # numpy 2.0 has no wheels for it
    fake_python(tmp_path, "python3.11", "3.13 venv")
    fake_python(tmp_path, "python3.12", "3.12 venv")
    assert find_python(tmp_path, "given", "lowest").stdout == "python3.12\n"
    for name in ("python3.12", "python3"):
        fake_python(tmp_path, name, "3.13 venv")
    done = find_python(tmp_path, "given", "lowest")
    assert done.stderr.startswith("error: Python 3.13 found; the lowest versions of all packages need Python 3.11 or ")


def test_the_lowest_version_of_every_requirement_is_tried() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    asked = setup["options"]["install_requires"].split()
    asked += [
        each for each in setup["options.extras_require"]["dev"].split() if each.startswith(("hypothesis", "pytest"))
    ]
    done = subprocess.run([ROOT / "tools" / "lowest-versions"], check=True, capture_output=True, text=True)
    assert done.stdout.split() == [each.replace(">=", "==") for each in asked]
