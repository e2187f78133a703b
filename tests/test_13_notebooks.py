"""The notebooks run, define nothing of the scripts', and what they and the README name exists."""
import ast
import json
import re
import subprocess
import sys
from functools import lru_cache

import pytest
from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SCRIPTS = sorted(ROOT.glob("0*.py")) + sorted((ROOT / "miniature").glob("*.py"))


def cells(path, kind):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def defined(source):
    return {node.name for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs_from_top_to_bottom_without_a_network(path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(path.parent)}}).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_outputs_are_whole_and_free_of_warnings_and_of_this_machine(path):
    for cell in cells(path, "code"):
        assert cell["execution_count"], "not executed"
        for output in cell["outputs"]:
            assert output["output_type"] != "error" and output.get("name") != "stderr", cell["source"]
    text = path.read_text()
    assert "/home/" not in text and str(ROOT) not in text and len(text) < 1_500_000


def test_no_notebook_defines_what_a_script_defines():
    ours = set().union(*(defined(path.read_text()) for path in SCRIPTS))
    for path in NOTEBOOKS:
        assert not ours & set().union(*(defined("".join(cell["source"])) for cell in cells(path, "code"))), path.name


def prose():
    for path in NOTEBOOKS:
        yield path, "\n".join("".join(cell["source"]) for cell in cells(path, "markdown"))
    yield ROOT / "README.md", (ROOT / "README.md").read_text()


def test_every_relative_link_leads_to_a_file():
    for path, text in prose():
        for target in re.findall(r"\]\((?!http|#)([^)#\s]+)", text):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


@lru_cache
def help_of(script):
    return subprocess.run([sys.executable, ROOT / script, "--help"], capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_every_command_that_is_named_has_its_script_and_its_flags():
    for path, text in prose():
        for script, rest in re.findall(r"python ((?:miniature/)?\w+\.py)([^`\n|]*)", text):
            for flag in re.findall(r"(--\w+)", rest.split("#")[0].split("&&")[0]):
                assert flag in help_of(script), f"{path.name}: {script} {flag}"


def test_the_numbers_of_the_readme_table_are_those_of_the_results():
    table = (ROOT / "results/miniature/table.md").read_text()
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert rows and all(row in (ROOT / "README.md").read_text() for row in rows)
