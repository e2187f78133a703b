"""The notebooks run, define nothing that the project defines, and what they and the READMEs name exists."""
import ast
import inspect
import json
import re
import shlex
import sys
from dataclasses import fields
from importlib import import_module
from types import SimpleNamespace

import pytest
from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PICTURES = ROOT / "notebooks/pictures.py"
SCRIPTS = sorted(ROOT.glob("0*.py")) + sorted((ROOT / "miniature").glob("*.py"))
CODE = [*SCRIPTS, *ROOT.glob("engine/**/*.py")]
READMES = [ROOT / "README.md", *sorted(ROOT.glob("[emr]*/README.md"))]
README = READMES[0].read_text()
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def cells(path, kind):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def code(path):
    return ["".join(cell["source"]) for cell in cells(path, "code")] if path.suffix == ".ipynb" else []


def prose(path):
    return path.read_text() if path.suffix == ".md" else "\n\n".join("".join(cell["source"]) for cell in cells(path, "markdown"))


TEXTS = {path: prose(path) for path in [*NOTEBOOKS, *READMES]}
each_text = pytest.mark.parametrize("path", TEXTS, ids=lambda p: p.relative_to(ROOT).with_suffix("").as_posix())


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
def test_committed_outputs_are_complete_and_free_of_warnings_and_of_this_machine(path):
    check_outputs(cells(path, "code"))
    text = path.read_text()
    assert "/home/" not in text and "/tmp/" not in text and str(ROOT) not in text and len(text) < 1_500_000


@each_notebook
def test_the_source_that_a_notebook_shows_is_that_of_today(path):
    scripts = [file.read_text() for file in CODE]
    for cell in cells(path, "code"):
        if "".join(cell["source"]).startswith("source("):
            shown = "".join(cell["outputs"][0]["data"]["text/markdown"]).removeprefix("```python\n").removesuffix("\n```")
            for function in re.split(r"\n\n(?=def |@)", shown):
                assert any(function in script for script in scripts), f"{function.splitlines()[0]} has changed: execute the notebook again"


@each_notebook
def test_a_notebook_renders_on_a_static_page_with_its_equations_and_folded_answers(path):
    nbconvert = pytest.importorskip("nbconvert")
    page = nbconvert.HTMLExporter().from_filename(str(path))[0]
    for formula in re.findall(r"\$\$(.+?)\$\$", TEXTS[path], re.DOTALL):                     # reaches MathJax unchanged but for HTML's own signs
        assert re.sub(r"\s+", "", formula.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")) in re.sub(r"\s+", "", page), formula
    assert page.count("<details") == page.count("</details>") == TEXTS[path].count("<details>") >= 3


@each_notebook
def test_a_notebook_shows_source_and_pictures_in_cells_of_at_most_12_lines_and_88_columns_and_ends_with_three_experiments(path):
    assert sum(cell.startswith("source(") for cell in code(path)) >= 3 and path.read_text().count('"image/png"') >= 3
    for cell in code(path):
        assert len(cell.splitlines()) <= 12 and max(map(len, cell.splitlines())) <= 88, cell
    title, experiments = TEXTS[path].rsplit("\n## ", 1)[1].split("\n", 1)
    assert title == "Three experiments" and sum(line.startswith("|") for line in experiments.splitlines()) == 2 + 3


@each_notebook
def test_a_notebook_has_at_most_1300_words_and_its_set_up_is_one_line(path):
    assert len(TEXTS[path].split()) <= 1300 and len(code(path)[0].splitlines()) == 1


@each_notebook
def test_outputs_need_no_style_and_no_script_and_pictures_fit_a_phone(path):
    """Viewers strip both. A picture of 700 pixels with text of 11 points is readable on a screen of 390 pixels."""
    for output in sum((cell["outputs"] for cell in cells(path, "code")), []):
        data = output.get("data", {})
        assert not re.search(r"<(style|script|svg)|style=|class=", "".join(data.get("text/html", "")))
        assert "image/png" not in data or output["metadata"]["image/png"]["width"] <= 700


@each_notebook
def test_a_notebook_spells_abbreviations_out_at_first_use(path):
    for short, long in {"SRL": "supervised reinforcement learning (SRL", "SFT": "supervised fine-tuning (SFT", "KV cache": "KV cache (key-value cache",
                        "GRPO": "group relative policy optimization", "RLVR": "reinforcement learning with verifiable rewards (RLVR"}.items():
        used = re.search(rf"\b{short}\b", TEXTS[path])
        assert not used or long.lower() in TEXTS[path][:used.end() + 40].lower(), short


def defined(source):
    return {node.name for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def test_neither_a_notebook_nor_its_drawing_code_defines_what_a_script_defines():
    ours = set().union(*(defined(path.read_text()) for path in SCRIPTS))
    assert not ours & defined(PICTURES.read_text())
    for path in NOTEBOOKS:
        assert not (ours | defined(PICTURES.read_text())) & set().union(*map(defined, code(path))), path.name


def test_every_method_has_one_colour_of_its_own(evaluate):
    assert len({colour for _, colour in evaluate.METHODS.values()}) == len(evaluate.METHODS)


# Links, names, commands
@each_text
def test_every_relative_link_leads_to_a_file_or_a_heading(path):
    headings = {re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in TEXTS[path].splitlines() if line.startswith("#")}
    for target in re.findall(r"\]\((?!http)([^)\s]+)", TEXTS[path]):
        file, _, heading = target.partition("#")
        assert (path.parent / file).exists(), target
        assert not heading or file or heading in headings, target


def in_backticks(text):
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


FILE = re.compile(r"(?<![\w./-])[\w*./-]+\.(?:py|md|txt|jsonl?|png|ipynb|toml)\b|\b(?:miniature|results|runs|tests|notebooks|engine)/[\w*./-]*")


@each_text
def test_every_file_and_every_name_in_backticks_exists(path):
    files = [*CODE, PICTURES, *(ROOT / "tests").glob("*.py"), ROOT / "requirements.txt", ROOT / "requirements-test.txt"]
    words = set(re.findall(r"\w+", "".join([*code(path), *(file.read_text() for file in files)])))
    data = (ROOT / "miniature/expert.jsonl").read_text()[:100_000] + (ROOT / "results/miniature/table.md").read_text()
    folders = (ROOT, path.parent, *(ROOT / name for name in ("tests", "miniature", "engine", "results/miniature")))
    for text in in_backticks(TEXTS[path]):
        for word in FILE.findall(text):
            made_by_user = word.startswith(("runs/", "results/mine", "my")) or word in ("log.jsonl", "completions.txt")
            assert made_by_user or any(list(folder.glob(word)) for folder in folders), word
        if re.match(r"([A-Z_]+=\S+ )?(python|pip|jupyter|pytest) |[A-Z]\w* [\d(]", text):        # commands have their own test; an equation of the miniature
            continue
        for word in re.findall(r"(?<!\w)[A-Za-z_]\w{2,}", FILE.sub("", text)):
            assert word in words or word in data or word == "FOLDER_OR_HUB_NAME", f"{word} in `{text}`"


@each_text
def test_what_is_to_be_replaced_in_a_function_is_in_it(path, segment, srl, rlvr, evaluate):
    """'in `group_advantages` delete `/ (std + eps)`': the code is there."""
    for function, text in re.findall(r"in `(\w+)` (?:delete|replace|write `[^`]+` for) `([^`]+)`", TEXTS[path]):
        module = next((m for m in (segment, srl, rlvr, evaluate) if hasattr(m, function)), None)
        assert module is None or text in inspect.getsource(getattr(module, function)), (function, text)


def commands(text):
    """(script, arguments) of every `python script.py ..` in a text, joined commands each."""
    for script, rest in re.findall(r"python ((?:\w+/)?\w+\.py)((?: [^`\n|&;#]*)?)", re.sub(r"\\\n\s*", "", text)):
        yield script, *shlex.split(rest)


def all_commands():
    docstrings = (ast.get_docstring(ast.parse(path.read_text())) or "" for path in SCRIPTS)
    return sorted({command for text in [*TEXTS.values(), *docstrings] for command in commands(text)})


@pytest.mark.parametrize("command", all_commands(), ids=" ".join)
def test_every_command_is_understood_by_its_script(command, monkeypatch, capsys):
    """01 to 04 parse its flags in this process, values included; the others have each flag in their --help."""
    script, *arguments = command
    arguments = [re.sub(r"\$\w+", "0", argument) for argument in arguments]                 # a shell's loop variable
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str((ROOT / script).parent))
    module = import_module(script.split("/")[-1].removesuffix(".py"))
    if parse_flags := getattr(module, "parse_flags", None):
        def parse(*args):
            parse_flags(*args)
            raise StopIteration
        monkeypatch.setattr(module, "parse_flags", parse)
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        with pytest.raises(StopIteration):
            module.main()
        return
    monkeypatch.setattr(sys, "argv", [script, *arguments, "--help"])
    with pytest.raises(SystemExit) as end:
        module.main()
    assert end.value.code == 0, capsys.readouterr().err
    assert {argument for argument in arguments if argument.startswith("--")} <= set(re.findall(r"--[\w-]+", capsys.readouterr().out))


def test_every_flag_in_backticks_is_a_flag_of_some_script(segment, srl, rlvr, evaluate):
    known = {field.name for module in (segment, srl, rlvr, evaluate) for field in fields(module.Config)} | {"help"}
    known |= set(re.findall(r'"--(\w+)"', "".join(path.read_text() for path in [*SCRIPTS, *ROOT.glob("tests/bench*.py")])))
    for path, text in TEXTS.items():
        for part in in_backticks(text):
            flags = () if part.startswith(("pip", "jupyter")) or "torchrun" in part else re.findall(r"(?<!\S)--(?:no[-_])?(\w+)", part)
            assert set(flags) <= known, f"{path}: {part}"


def test_the_readmes_own_solutions_become_examples(tmp_path, monkeypatch, segment):
    """Its record and its ten problems through its command: two problems are held out, and every step is an example."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "miniature").mkdir()
    record = json.loads(re.search(r"```json\n(.+?)```", README, re.DOTALL)[1])
    ten = json.loads((ROOT / "miniature/ten.json").read_text())
    (tmp_path / "miniature/ten.json").write_text(json.dumps([record, *ten]))
    monkeypatch.setattr(sys, "argv", [*next(command for command in commands(README) if "miniature/ten.json" in command)])
    segment.main()
    parts = [[json.loads(line) for line in (tmp_path / f"runs/my_data/{name}.jsonl").read_text().splitlines()] for name in ("train", "val")]
    first = [e for part in parts for e in part if "2x + 6 = 10" in e["problem"]]
    actions = ["1. **Subtract 6** 2x = 4", "2. **Divide by 2** x = 2", "3. **Answer** \\boxed{2}"]
    assert [(e["k"], e["action"]) for e in first] == list(enumerate(actions, 1)) and first[0]["answer"] == "2"
    assert len(ten) == 10 and [len({e["id"] for e in part}) for part in parts] == [9, 2]


# The README's first screen and numbers
def test_the_first_screen_is_a_sentence_the_figure_the_table_and_two_commands():
    first = README.split("\n## ")[0]
    order = [first.index(mark) for mark in ("# ", "**S", "<picture>", "<!-- summary -->", "<!-- /summary -->", "python 01_segment.py", "pytest tests")]
    assert README.splitlines().index("```bash") < 25
    assert order == sorted(order) and first.count("```bash") == 2 and "--execute --inplace notebooks/*.ipynb" in README
    assert all((ROOT / file).is_file() for file in re.findall(r"-r (\S+)", README)) and len(NOTEBOOKS) == 6


def test_the_readme_has_at_most_1700_words_and_spells_abbreviations_out_at_first_use():
    assert len(README.split()) <= 1700
    text = re.sub(r"```.*?```|`[^`\n]*`", "", README, flags=re.DOTALL)
    for short, long in {"SRL": "Supervised Reinforcement Learning (SRL", "SFT": "supervised fine-tuning (SFT", "RLVR": "verifiable rewards (RLVR",
                        "GRPO": "Group Relative Policy Optimization (GRPO", "KL": "Kullback-Leibler (KL", "EOS": "end-of-sequence (EOS",
                        "LoRA": "low-rank adaptation (LoRA", "FSDP": "fully sharded data parallel (FSDP"}.items():
        assert text[:re.search(rf"\b{short}\b", text).end()].endswith(long), short


def test_every_table_and_figure_is_that_of_its_results_in_the_readmes_too(evaluate):
    """<!-- table -->: results/miniature/table.md; agents: that of results/agents; tuning: its rows; summary: rows of avg@8 on hard and long."""
    for path in (ROOT / "results").glob("*/table.md"):
        assert path.read_text().strip() == evaluate.make_table(evaluate.read_results(path.parent))[0].strip() and (path.parent / "figure.png").is_file(), path
    study, tables = import_module("study"), import_module("study_tables")
    blocks = dict(re.findall(r"<!-- (\w+) -->\n(.*?)<!-- /\1 -->", "".join(map(prose, READMES)), re.DOTALL))
    assert {"summary", "table", "agents"} <= set(blocks)
    rows = {evaluate.label(name): row for name, row in evaluate.make_table(evaluate.read_results(ROOT / "results/miniature"))[1].items()}
    for line in blocks.pop("summary").splitlines()[2:]:
        method, *numbers = line.strip("| ").split(" | ")
        assert numbers == ["{avg:.1f} [{low:.1f}, {high:.1f}]".format(**rows[method][bench]) for bench in ("hard", "long")], method
    for name, block in blocks.items():
        if name.startswith("study"):
            assert block == (ROOT / f"results/study/{name.removeprefix('study_')}.md").read_text(), f"{name}: run study.py --study --table"
            continue
        world = next((world for world in study.WORLDS if name.endswith(world)), "equations")
        table = ROOT / study.WORLDS[world]["results"] / "table.md"
        expected = tables.tuning_table(SimpleNamespace(world=world)) if name.startswith("tuning") else tables.for_readme(table.read_text())
        assert block.strip() == expected.strip(), f"{name}: run python miniature/study.py --table"


def test_what_is_tuned_is_the_run_of_the_table_with_flags_replaced_or_added():
    study = import_module("study")
    command = ("02_srl_train.py", "--method", "sft", "--learning_rate", "3e-3")
    assert study.with_flags(command, ("--learning_rate", "1e-3")) == (*command[:-1], "1e-3")
    assert study.with_flags(command, ("--eps", "0.01")) == (*command, "--eps", "0.01") and study.with_flags(command, ()) == command


def test_the_lengths_of_steps_are_counted_by_kind(tmp_path, capsys):
    attempts = [{"turns": ["<think>a</think>\n1. **Add 2 to both sides** x = 3", "<think>b</think>\n2. **Swap the sides** 3 = x"], "tokens": [30, 10]},
                {"turns": ["<think>a</think>\n1. **Add 4 to both sides** x = 5", "no step"], "tokens": [50, 2]}]
    (tmp_path / "base").mkdir()
    (tmp_path / "base/hard.jsonl").write_text("{}\n" + json.dumps({"sampled": attempts}) + "\n")
    (tmp_path / "base/hard.grades.jsonl").write_text("{}\n{}\n")
    import_module("study").write_lengths(tmp_path)
    out = capsys.readouterr().out
    assert all(row in out for row in ("| Add | 40.0 (50%) |", "| Swap | 10.0 (25%) |", "| no title | 2.0 (25%) |", "| all | 23.0 (100%) |"))
