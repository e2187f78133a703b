"""The notebooks run, define nothing of the scripts', and what they and the README name exists."""
import ast
import json
import re

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


def test_every_script_and_flag_that_is_named_exists():
    flags = {p.name: p.read_text() for p in SCRIPTS}
    knobs = set(re.findall(r"^    (\w+): (?:str|int|float)", flags["02_srl_train.py"] + flags["03_rlvr_train.py"], re.MULTILINE))
    for path, text in prose():
        for command in re.findall(r"python ((?:miniature/)?\w+\.py)([^`\n|]*)", text):
            script, rest = command
            assert (ROOT / script).exists(), f"{path.name}: {script}"
            for flag in re.findall(r"--(\w+)", rest.split("#")[0].split("&&")[0]):
                assert flag in knobs or f'"--{flag}"' in flags[(ROOT / script).name], f"{path.name}: {script} --{flag}"


def test_the_numbers_of_the_readme_table_are_those_of_the_results():
    table = (ROOT / "results/miniature/table.md").read_text()
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert rows and all(row in (ROOT / "README.md").read_text() for row in rows)
