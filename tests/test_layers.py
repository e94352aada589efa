"""The architecture, read from the source: who imports whom, who may bound, who may solve."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("formulations", "verification", "lde_cvx")  # each may import itself and what stands before it
FILES = [f for layer in LAYERS for f in sorted((ROOT / layer).rglob("*.py"))]


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute, so that this walk sees every one"
            yield str(node.module)
        elif isinstance(node, ast.Call) and _name(node.func).split(".")[-1] in ("import_module", "__import__"):
            yield from (a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str))


def _name(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    if isinstance(node, ast.Call):
        return f"{_name(node.func)}()"
    return node.id if isinstance(node, ast.Name) else "?"


def tree_of(path: Path) -> ast.AST:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def backward(layer: str, names: list[str]) -> list[str]:
    above = LAYERS[LAYERS.index(layer) + 1 :]
    return [n for n in names if n.split(".")[0] in above]


def solver_calls(tree: ast.AST) -> list[int]:
    """Lines that call `Problem.solve`: a `.solve(` without positional arguments (our own solvers, and linear algebra, take the data there)

    on anything but a raw solver object, which is called `_solver`.
    """
    calls = (n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute))
    return [n.lineno for n in calls if n.func.attr == "solve" and not n.args and not _name(n.func.value).endswith("_solver")]  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_arrow_runs_back(path: Path) -> None:
    assert backward(path.relative_to(ROOT).parts[0], list(imported(tree_of(path)))) == []


CHECKER = ("checker.py", "certificate_format.py", "checking", "rechecking")


@pytest.mark.parametrize(
    "path",
    [f for f in FILES if f.parts[len(ROOT.parts) : len(ROOT.parts) + 2] in {("verification", c) for c in CHECKER}],
    ids=lambda p: p.stem,
)
def test_the_checker_uses_nothing_that_makes_certificates(path: Path) -> None:
    """Its files import one another alone, and those below `checker.py` no level above their own."""
    ours = [n.split(".") for n in imported(tree_of(path)) if n.split(".")[0] in LAYERS]
    homes = {c.removesuffix(".py") for c in CHECKER}
    assert [n for n in ours if n[0] != "verification" or n[1] not in homes] == []
    if "checking" in path.parts or path.stem == "certificate_format":
        assert [n for n in ours if n[1] in ("checker", "rechecking")] == []


def test_only_one_file_imports_the_bound_library() -> None:
    users = [f.relative_to(ROOT) for f in FILES if any(n.split(".")[0] == "auto_LiRPA" for n in imported(tree_of(f)))]
    assert [u.parts[0] for u in users] == ["verification"], users


def test_only_one_file_calls_a_solver() -> None:
    assert [str(f.relative_to(ROOT)) for f in FILES if solver_calls(tree_of(f))] == ["formulations/solve.py"]


def test_the_walk_sees_what_it_forbids() -> None:
    assert backward("formulations", list(imported(ast.parse("def f():\n    from lde_cvx.data import load")))) == ["lde_cvx.data"]
    assert backward("verification", list(imported(ast.parse("import importlib\nimportlib.import_module('lde_cvx')")))) == ["lde_cvx"]
    assert solver_calls(ast.parse("problem.solve(solver='SCS')\nnp.linalg.solve(a, b)\ncp.Problem(o).solve()")) == [1, 3]


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("lde_cvx", ("torch", "cvxpy", "auto_LiRPA", "matplotlib", "pandas")),
        ("lde_cvx.cli", ("torch", "cvxpy", "auto_LiRPA", "matplotlib", "pandas")),
        ("verification", ("torch", "cvxpy", "auto_LiRPA")),
        ("verification.checker", ("torch", "cvxpy", "clarabel", "scs", "scipy", "auto_LiRPA")),
    ],
)
def test_imports_stay_light(module: str, heavy: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("name", ["formulations", "verification"])
def test_a_package_that_shadows_ours_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import lde_cvx"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError")
    assert str(tmp_path / name) in last
