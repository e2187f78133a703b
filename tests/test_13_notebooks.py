"""The notebooks run, define nothing of the scripts', and what they and the README name exists."""
import ast
import inspect
import json
import re
import shlex
import sys
from importlib import import_module
from types import SimpleNamespace

import pytest
from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SCRIPTS = sorted(ROOT.glob("0*.py")) + sorted((ROOT / "miniature").glob("*.py"))
README = (ROOT / "README.md").read_text()
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def cells(path, kind):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def prose(path):
    return README if path.suffix == ".md" else "\n\n".join("".join(cell["source"]) for cell in cells(path, "markdown"))


TEXTS = {path.name: prose(path) for path in [*NOTEBOOKS, ROOT / "README.md"]}
each_text = pytest.mark.parametrize("name", TEXTS)


def check_outputs(code_cells):
    assert [cell["execution_count"] for cell in code_cells] == list(range(1, len(code_cells) + 1)), "not executed from top to bottom"
    for cell in code_cells:
        for output in cell["outputs"]:
            assert output["output_type"] != "error" and output.get("name") != "stderr", (cell["source"], output)
            assert "Warning" not in json.dumps(output), cell["source"]


# Notebooks
@each_notebook
def test_a_notebook_runs_from_top_to_bottom_without_a_network_and_without_a_warning(path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()
    check_outputs([cell for cell in notebook.cells if cell.cell_type == "code"])


@each_notebook
def test_committed_outputs_are_whole_and_free_of_warnings_and_of_this_machine(path):
    check_outputs(cells(path, "code"))
    text = path.read_text()
    assert "/home/" not in text and "/tmp/" not in text and str(ROOT) not in text and len(text) < 1_500_000


@each_notebook
def test_a_notebook_renders_on_a_static_page_with_its_equations_and_folded_answers(path):
    nbconvert = pytest.importorskip("nbconvert")
    page = nbconvert.HTMLExporter().from_filename(str(path))[0]
    for formula in re.findall(r"\$\$(.+?)\$\$", TEXTS[path.name], re.DOTALL):                # reaches MathJax as it stands, but for HTML's own signs
        assert re.sub(r"\s+", "", formula.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")) in re.sub(r"\s+", "", page), formula
    assert page.count("<details") == page.count("</details>") == TEXTS[path.name].count("<details>") >= 3


@each_notebook
def test_a_notebook_shows_source_asks_questions_and_ends_with_three_experiments(path):
    code = "\n".join("".join(cell["source"]) for cell in cells(path, "code"))
    assert code.count("\nsource(") + code.startswith("source(") >= 3 and code.count("plt.show()") >= 3
    title, experiments = TEXTS[path.name].rsplit("\n## ", 1)[1].split("\n", 1)
    rows = [line for line in experiments.splitlines() if line.startswith("|")]
    assert title == "Three experiments" and len(rows) == 2 + 3


def defined(source):
    return {node.name for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def test_no_notebook_defines_what_a_script_defines():
    ours = set().union(*(defined(path.read_text()) for path in SCRIPTS))
    for path in NOTEBOOKS:
        assert not ours & set().union(*(defined("".join(cell["source"])) for cell in cells(path, "code"))), path.name


def test_every_method_has_one_colour_of_its_own(evaluate):
    colours = [colour for _, colour in evaluate.METHODS.values()]
    assert len(set(colours)) == len(colours)


# Links, names, commands
@each_text
def test_every_relative_link_leads_to_a_file_or_a_heading(name):
    folder = ROOT if name == "README.md" else ROOT / "notebooks"
    headings = {re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in TEXTS[name].splitlines() if line.startswith("#")}
    for target in re.findall(r"\]\((?!http)([^)\s]+)", TEXTS[name]):
        file, _, heading = target.partition("#")
        assert (folder / file).exists(), target
        assert not heading or file or heading in headings, target


def in_backticks(text):
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def source_words(name):
    """Every word in the scripts, tests and helpers, and in a notebook's own cells."""
    paths = [*SCRIPTS, *(ROOT / "tests").glob("*.py"), ROOT / "requirements.txt", ROOT / "requirements-test.txt"]
    own = "" if name == "README.md" else "".join("".join(cell["source"]) for cell in cells(ROOT / "notebooks" / name, "code"))
    return set(re.findall(r"\w+", own + "".join(path.read_text() for path in paths)))


FILE = re.compile(r"(?<![\w./-])[\w*./-]+\.(?:py|md|txt|jsonl?|png|ipynb|toml)\b|\b(?:miniature|results|runs|tests|notebooks)/[\w*./-]*")


@each_text
def test_every_file_in_backticks_exists(name):
    for code in in_backticks(TEXTS[name]):
        for word in FILE.findall(code):
            made_by_user = word.startswith(("runs/", "results/mine", "my")) or word in ("log.jsonl", "completions.txt")
            assert made_by_user or any(list(folder.glob(word)) for folder in (ROOT, ROOT / "tests", ROOT / "miniature")), word


@each_text
def test_every_name_in_backticks_stands_in_the_code(name):
    words, data = source_words(name), (ROOT / "miniature/expert.jsonl").read_text()[:100_000] + (ROOT / "results/miniature/table.md").read_text()
    for code in in_backticks(TEXTS[name]):
        if re.match(r"([A-Z_]+=\S+ )?(python|pip|jupyter|pytest) |[A-Z]\w* [\d(]", code):        # commands have their own test; an equation of the miniature
            continue
        for word in re.findall(r"(?<!\w)[A-Za-z_]\w{2,}", FILE.sub("", code)):
            assert word in words or word in data or word == "FOLDER_OR_HUB_NAME", f"{word} in `{code}`"


@each_text
def test_what_is_to_be_replaced_in_a_function_stands_in_it(name, segment, srl, rlvr, evaluate):
    """'in `group_advantages` delete `/ (std + eps)`': the code is there."""
    for function, code in re.findall(r"in `(\w+)` (?:delete|write `[^`]+` for) `([^`]+)`", TEXTS[name]):
        module = next((m for m in (segment, srl, rlvr, evaluate) if hasattr(m, function)), None)
        assert module is None or code in inspect.getsource(getattr(module, function)), (function, code)


def commands(text):
    """(script, arguments) of every `python script.py ..` in a text, joined commands each."""
    for script, rest in re.findall(r"python ((?:\w+/)?\w+\.py)((?: [^`\n|&;#]*)?)", text):
        yield script, shlex.split(rest)


def all_commands():
    named = {(script, *arguments) for text in TEXTS.values() for script, arguments in commands(text)}
    return sorted(named | {(script, *arguments) for path in SCRIPTS for script, arguments in commands(ast.get_docstring(ast.parse(path.read_text())) or "")})


@pytest.mark.parametrize("command", all_commands(), ids=" ".join)
def test_every_command_is_understood_by_its_script(command, monkeypatch, capsys):
    """Its arguments with --help behind them, in this process: values are checked as far as argparse does, every flag against the help."""
    script, *arguments = command
    assert (ROOT / script).is_file()
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str((ROOT / script).parent))
    arguments = [re.sub(r"\$\w+", "0", argument) for argument in arguments]                 # a shell's loop variable
    monkeypatch.setattr(sys, "argv", [script, *arguments, "--help"])
    with pytest.raises(SystemExit) as end:
        import_module(script.split("/")[-1].removesuffix(".py")).main()
    assert end.value.code == 0, capsys.readouterr().err
    flags = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    assert {argument for argument in arguments if argument.startswith("--")} <= flags


def test_every_flag_in_backticks_is_a_flag_of_some_script():
    scripts = "".join(path.read_text() for path in SCRIPTS)
    for name, text in TEXTS.items():
        for code in in_backticks(text):
            for flag in re.findall(r"(?<!\S)--(?:no-)?(\w+)", code) if not code.startswith(("pip", "jupyter")) else ():
                column = flag.endswith("_column") and "--{field}_column" in scripts
                assert column or re.search(rf'"--{flag}"|^ +{flag}: (str|int|float|bool) = ', scripts, re.MULTILINE), f"{name}: --{flag}"


def test_the_requirements_and_notebooks_of_the_commands_exist():
    for file in re.findall(r"-r (\S+)", README):
        assert (ROOT / file).is_file(), file
    assert "--execute --inplace notebooks/*.ipynb" in README and len(NOTEBOOKS) == 5


def test_the_readmes_own_solutions_become_examples(tmp_path, monkeypatch, capsys):
    """The line of my.jsonl, and a second of its kind to hold out, through the README's command."""
    line = json.loads(re.search(r"^```json\n(.+?)\n```", README, re.MULTILINE | re.DOTALL)[1])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.jsonl").write_text("".join(json.dumps({**line, "id": f"p{i}"}) + "\n" for i in range(3)))
    command = next(arguments for script, arguments in commands(README) if arguments[:2] == ["--data", "my.jsonl"])
    monkeypatch.setattr(sys, "argv", ["01_segment.py", *command, "--num_val", "1"])
    import_module("01_segment").main()
    train = [json.loads(line) for line in (tmp_path / "runs/my_data/train.jsonl").read_text().splitlines()]
    assert [(e["k"], e["action"]) for e in train[:2]] == [(1, "1. **Subtract 6** 2x = 4"), (2, "2. **Divide by 2** x = 2")] and train[0]["answer"] == "2"


# The README's first screen and numbers
def test_the_first_screen_is_a_sentence_the_figure_the_table_and_two_commands():
    first = README.split("\n## ")[0]
    order = [first.index(mark) for mark in ("# SRL", "**Supervised", "![", "<!-- table -->", "<!-- /table -->", "python 01_segment.py", "pytest tests")]
    assert order == sorted(order) and first.count("```bash") == 2


def test_every_marked_table_of_the_readme_is_that_of_its_results():
    """Between <!-- table --> and <!-- /table --> stands results/miniature/table.md, between those of agents that of results/agents; tuning: its rows."""
    study, blocks = import_module("study"), dict(re.findall(r"<!-- (\w+) -->\n(.*?)<!-- /\1 -->", README, re.DOTALL))
    assert {"table", "agents"} <= set(blocks)
    for name, block in blocks.items():
        world = "agents" if name.endswith("agents") else "equations"
        table = ROOT / study.WORLDS[world]["results"] / "table.md"
        expected = study.tuning_table(SimpleNamespace(world=world)) if name.startswith("tuning") else study.for_readme(table.read_text())
        assert block.strip() == expected.strip(), f"{name}: run python miniature/study.py --table"


def test_what_is_tuned_is_the_run_of_the_table_with_flags_replaced_or_added():
    study = import_module("study")
    command = ("02_srl_train.py", "--method", "sft", "--learning_rate", "3e-3")
    assert study.with_flags(command, ("--learning_rate", "1e-3")) == (*command[:-1], "1e-3")
    assert study.with_flags(command, ("--eps", "0.01")) == (*command, "--eps", "0.01") and study.with_flags(command, ()) == command


def test_the_lengths_of_steps_are_told_by_kind(tmp_path, capsys):
    attempts = [{"turns": ["<think>a</think>\n1. **Add 2 to both sides** x = 3", "<think>b</think>\n2. **Swap the sides** 3 = x"], "tokens": [30, 10]},
                {"turns": ["<think>a</think>\n1. **Add 4 to both sides** x = 5", "no step"], "tokens": [50, 2]}]
    (tmp_path / "base").mkdir()
    (tmp_path / "base/hard.jsonl").write_text("{}\n" + json.dumps({"sampled": attempts}) + "\n")
    (tmp_path / "base/hard.grades.jsonl").write_text("not read")
    import_module("study").write_lengths(tmp_path)
    out = capsys.readouterr().out
    for row in ("| Add | 40.0 (50%) |", "| Swap | 10.0 (25%) |", "| no title | 2.0 (25%) |", "| all | 23.0 (100%) |"):
        assert row in out


def test_the_table_and_the_figure_are_those_of_the_results(evaluate):
    for path in (ROOT / "results").glob("*/table.md"):
        assert path.read_text().strip() == evaluate.make_table(evaluate.read_results(path.parent))[0].strip(), path
        assert (path.parent / "figure.png").is_file()
