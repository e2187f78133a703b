"""200 broken inputs: each ends in a clear line and exit code 2, none in a traceback, and none leaves a file half-written."""
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

ROWS = {"solutions": [{"id": i, "problem": f"p {i}", "solution": "1. **A** a\n2. **B** \\boxed{2}", "answer": "2"} for i in range(4)],
        "train": [{"id": f"t{i}", "problem": "Solve 1", "partial": "", "action": "1. **A** b", "k": 1, "n": 2, "answer": "2"} for i in range(3)],
        "val": [{"id": "v", "problem": "Solve 2", "partial": "", "action": "1. **A** b", "k": 1, "n": 2, "answer": "2"}],
        "benchmark": [{"id": i, "problem": "Solve 1", "answer": "2"} for i in range(2)]}
NEEDED = {"solutions": ("problem", "solution"), "train": ("id", "problem", "action", "k", "n"), "val": ("id", "problem", "action", "k", "n"),
          "benchmark": ("problem", "answer")}
TYPED = {"train": ("problem", "partial", "action", "k", "n"), "val": ("problem", "partial", "action", "k", "n")}
SCRIPT = {"solutions": "01", "train": "02", "val": "02", "benchmark": "04"}


def text(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def broken_files():
    """(name, file, bytes or a function that puts something at the path)."""
    for file, rows in ROWS.items():
        good = text(rows).encode()
        yield from ((f"{file} {name}", file, content) for name, content in {
            "empty": b"", "white space": b" \n\t\n", "binary": bytes(range(256)), "zeros": b"\0" * 1000, "utf-16": text(rows).encode("utf-16"),
            "latin-1": good[:-2] + b', "x": "\xe9"}\n', "byte order mark": b"\xef\xbb\xbf" + good, "cut": good[:len(good) - 9],
            "cut in the first line": good[:20],
            "a list": json.dumps(rows).encode(), "numbers": b"1\n2\n", "null": b"null\n", "text": b'"a"\n', "nested": b"[" * 100_000,
            "no json": b"problem,answer\n1,2\n",
            "single quotes": b"{'id': 1}\n", "trailing comma": good[:-2] + b",}\n", "two on a line": good[:-1] + good,
            "huge number": b'{"id": ' + b"9" * 5000 + b"}\n",
            "half a character": good + b'{"id": "\xf0\x9f', "a line too many": good + b"}\n", "list rows": b"[1]\n" + good, "empty objects": b"{}\n",
            "gzip": b"\x1f\x8b\x08\0" + good,
        }.items())
        yield f"{file} folder", file, lambda path: path.mkdir()
        yield f"{file} missing", file, lambda path: None
        yield f"{file} link to itself", file, lambda path: path.symlink_to(path.name)
        yield f"{file} link to nothing", file, lambda path: path.symlink_to("nowhere")
        for name in NEEDED[file]:
            for what, value in (("missing", None), ("empty", ""))[:1 if name == "solution" else 2]:     # a problem without a solution is dropped
                row = {**rows[-1], name: value}
                yield f"{file} {name} {what}", file, text([*rows[:-1], {k: v for k, v in row.items() if v is not None}]).encode()
        for name in TYPED.get(file, ()):
            for value in ([1], {"a": 1}, 3.5, True):
                yield f"{file} {name} {value}", file, text([*rows[:-1], {**rows[-1], name: value}]).encode()
    yield "solutions ids twice", "solutions", text(ROWS["solutions"] * 2).encode()
    yield "benchmark ids twice", "benchmark", text(ROWS["benchmark"] * 2).encode()
    yield "train and val share a problem", "val", text(ROWS["train"][:1]).encode()
    yield "solutions without steps", "solutions", text([{**row, "solution": "4"} for row in ROWS["solutions"]]).encode()
    yield "solutions numbered wrongly", "solutions", text([{**row, "solution": "2. **A** a\n4. **B** b"} for row in ROWS["solutions"]]).encode()
    yield "benchmark answer unreadable", "benchmark", text([{**ROWS["benchmark"][0], "answer": "}{"}]).encode()


def broken_models():
    """(name, what breaks the model folder)."""
    def change(file, **changes):
        return lambda folder: (folder / file).write_text(json.dumps({**json.loads((folder / file).read_text()), **changes}))
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        yield f"no {file}", lambda folder, file=file: (folder / file).unlink()
        yield f"empty {file}", lambda folder, file=file: (folder / file).write_bytes(b"")
        yield f"cut {file}", lambda folder, file=file: os.truncate(folder / file, (folder / file).stat().st_size // 2)
        yield f"binary {file}", lambda folder, file=file: (folder / file).write_bytes(bytes(range(256)) * 9)
        yield f"list {file}", lambda folder, file=file: (folder / file).write_text("[1, 2]")
    yield "unknown type", change("config.json", model_type="nothing")
    yield "more layers", change("config.json", num_hidden_layers=9)
    yield "wider", change("config.json", hidden_size=64)
    yield "text for a number", change("config.json", hidden_size="wide")
    yield "short window", change("config.json", sliding_window=8, use_sliding_window=True, layer_types=["sliding_attention"] * 2)
    yield "few positions", change("config.json", max_position_embeddings=8)
    yield "small vocabulary", change("config.json", vocab_size=5)
    yield "broken template", lambda folder: (folder / "chat_template.jinja").write_text("{% for %}")
    yield "template that refuses", lambda folder: (folder / "chat_template.jinja").write_text("{{ raise_exception('no') }}")


FLAGS = [("02", flag, value) for flag, value in [
    ("--group_size", "0"), ("--group_size", "x"), ("--prompts_per_batch", "-1"), ("--learning_rate", "nan"), ("--learning_rate", "-1"), ("--learning_rate",
    "inf"),
    ("--temperature", "0"), ("--eps", "-1"), ("--rollouts", "0"), ("--max_new_tokens", "0"), ("--max_new_tokens", "99999999"), ("--dtype", "float8"),
    ("--device", "cuda:99"), ("--device", "abacus"), ("--report_to", "paper"), ("--method", "x"), ("--nonsense", "1"), ("--shard", None), ("--optimizer",
    "adam8bit"),
    ("--prompt_file", "nowhere.txt"), ("--data", "nowhere"), ("--model", "./nowhere"), ("--sft_target", "x"), ("--save_every", "0"), ("--seed", "-1"),
    ("--max_grad_norm", "0"), ("--epochs", "0"), ("--decay", "nan")]] + [
    ("04", "--k", "0"), ("04", "--limit", "0"), ("04", "--table", "nowhere"), ("04", "--models", "a=./nowhere"), ("04", "--mode", "x"), ("04",
    "--benchmarks", "nowhere"),
    ("01", "--num_val", "0"), ("01", "--num_val", "99"), ("01", "--targets", "x"), ("01", "--solution_column", "x"), ("01", "--rewrite_url", "http://x"),
    ("03", "--model", "./nowhere"), ("03", "--mode", "x")]


@pytest.fixture
def place(tmp_path, tiny, tokenizer, monkeypatch):
    """A folder with everything whole, and a function that runs a script there and expects one clear line."""
    (tmp_path / "data").mkdir()
    for name, rows in ROWS.items():
        (tmp_path / "data" / f"{name}.jsonl").write_text(text(rows))
    tiny.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fails(modules, script, place, monkeypatch, capsys, *flags, out="out"):
    """Runs a script that has to end with exit code 2 and a clear line on stderr, and to leave no file half-written. Returns the line."""
    segment, module = modules["01"], modules[script]
    whole = {"01": ["--data", "data/solutions.jsonl", "--num_val", "1", "--out", out],
             "02": ["--data", "data", "--model", "model", "--out", out, "--device", "cpu"], "03": ["--data", "data", "--model", "model", "--out", out,
             "--device", "cpu"],
             "04": ["--models", "m=model", "--benchmarks", "data/benchmark.jsonl", "--completions", out, "--results", out]}[script]
    monkeypatch.setattr("sys.argv", [script, *whole, *flags])
    with pytest.raises(SystemExit) as ended:
        segment.run_main(module.main)
    printed = capsys.readouterr().err
    last = printed.strip().splitlines()[-1]
    assert ended.value.code == 2 and "Traceback" not in printed and "error: " in printed and len(last) > 20, printed
    assert not [path for path in place.rglob("*") if path.name.endswith(".tmp")] and not list(Path(place, "out").glob("**/*.jsonl"))
    return printed


@pytest.fixture
def modules(segment, srl, rlvr, evaluate):
    return {"01": segment, "02": srl, "03": rlvr, "04": evaluate}


def test_there_are_two_hundred_of_them():
    assert len(list(broken_files())) + len(list(broken_models())) + len(FLAGS) >= 200


@pytest.mark.parametrize("name", [name for name, *_ in broken_files()])
def test_a_broken_file_ends_in_one_line_that_names_it(modules, place, monkeypatch, capsys, name):
    _, file, content = next(case for case in broken_files() if case[0] == name)
    path = place / "data" / f"{file}.jsonl"
    path.unlink()
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    printed = fails(modules, SCRIPT[file], place, monkeypatch, capsys)
    assert f"{file}.jsonl" in printed or "data:" in printed


@pytest.mark.parametrize("name", [name for name, _ in broken_models()])
def test_a_broken_model_ends_in_one_line_that_names_it(modules, place, monkeypatch, capsys, name):
    next(spoil for case, spoil in broken_models() if case == name)(place / "model")
    assert "model" in fails(modules, "02", place, monkeypatch, capsys)


@pytest.mark.parametrize("script, flag, value", FLAGS)
def test_a_broken_flag_ends_in_one_line_that_names_it(modules, place, monkeypatch, capsys, script, flag, value):
    printed = fails(modules, script, place, monkeypatch, capsys, flag, *([value] if value else []))
    assert flag in printed or value.split("=")[-1] in printed


def test_several_problems_are_listed_together(modules, place, monkeypatch, capsys):
    printed = fails(modules, "02", place, monkeypatch, capsys, "--shard", "--max_new_tokens", "99999999", "--device", "cuda:99")
    assert "--shard" in printed and "--max_new_tokens" in printed and "cuda:99" in printed


@pytest.mark.parametrize("script", ["01", "02", "03", "04"])
def test_an_output_folder_that_cannot_be_written_is_named(modules, place, monkeypatch, capsys, script):
    (place / "file").write_text("")                        # a file where the folder should be: root may write everywhere else
    assert "file" in fails(modules, script, place, monkeypatch, capsys, out="file/out")


@pytest.mark.parametrize("script", ["01", "02"])
def test_a_full_disk_is_named_and_leaves_nothing_half_written(modules, place, monkeypatch, capsys, script):
    disk = place / "disk"
    disk.mkdir()
    if not shutil.which("mount") or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        if script == "01":
            (place / "data/solutions.jsonl").write_text(text([{**row, "problem": "p" * 9000} for row in ROWS["solutions"]]))
        printed = fails(modules, script, place, monkeypatch, capsys, out="disk/out")
        assert "disk" in printed and "free" in printed and not [path for path in disk.rglob("*") if path.is_file()]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_the_whole_input_is_no_error(modules, place, monkeypatch):
    monkeypatch.setattr("sys.argv", ["02", "--data", "data", "--model", "model", "--out", "out", "--device", "cpu", "--rollouts", "4", "--prompts_per_batch",
                                 "1",
                                     "--group_size", "2", "--max_new_tokens", "2"])
    modules["02"].main()
    assert (place / "out/model/model.safetensors").exists() and ROOT.exists()
