"""200 broken inputs: each ends in a clear message and exit code 2, none in a traceback, and none leaves an incomplete file."""
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from engine.files import run_main

ROWS = {"solutions": [{"id": i, "problem": f"p {i}", "solution": "1. **A** a\n2. **B** \\boxed{2}", "answer": "2"} for i in range(4)],
        "train": [{"id": f"t{i}", "problem": "Solve 1", "partial": "", "action": "1. **A** b", "k": 1, "n": 2, "answer": "2"} for i in range(3)],
        "val": [{"id": "v", "problem": "Solve 2", "partial": "", "action": "1. **A** b", "k": 1, "n": 2, "answer": "2"}],
        "benchmark": [{"id": i, "problem": "Solve 1", "answer": "2"} for i in range(2)]}
NEEDED = {"solutions": ("problem", "solution"), "benchmark": ("problem", "answer"), **dict.fromkeys(("train", "val"), ("id", "problem", "action", "k", "n"))}


def text(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def broken_files():
    """(name, file, bytes or a function that puts something at the path)."""
    for file, rows in ROWS.items():
        good = text(rows).encode()
        for name, content in {
                "empty": b"", "white space": b" \n\t\n", "binary": bytes(range(256)), "zeros": b"\0" * 1000, "utf-16": text(rows).encode("utf-16"),
                "latin-1": good[:-2] + b', "x": "\xe9"}\n', "byte order marks": b"\xef\xbb\xbf" * 2 + good, "truncated": good[:-9], "a few bytes": good[:20],
                "a list": json.dumps(rows).encode(), "numbers": b"1\n2\n", "null": b"null\n", "text": b'"a"\n', "nested": b"[" * 100_000,
                "csv": b"problem,answer\n1,2\n", "single quotes": b"{'id': 1}\n", "trailing comma": good[:-2] + b",}\n", "two on a line": good[:-1] + good,
                "huge number": b'{"id": ' + b"9" * 5000 + b"}\n", "half a character": good + b'{"id": "\xf0\x9f', "a line too many": good + b"}\n",
                "list rows": b"[1]\n" + good, "empty objects": b"{}\n", "gzip": b"\x1f\x8b\x08\0" + good,
                "folder": lambda path: path.mkdir(), "missing": lambda path: None, "link to itself": lambda path: path.symlink_to(path.name),
                "link to nothing": lambda path: path.symlink_to("nowhere")}.items():
            yield f"{file} {name}", file, content
        def last(file=file, rows=rows, **changes):
            row = {**rows[-1], **changes}
            return file, text([*rows[:-1], {k: v for k, v in row.items() if v is not None}]).encode()
        for name in NEEDED[file]:
            yield f"{file} {name} missing", *last(**{name: None})
            if name != "solution":                          # a problem without a solution is dropped
                yield f"{file} {name} empty", *last(**{name: ""})
        for name in ("problem", "partial", "action", "k", "n") if file in ("train", "val") else ():
            yield from ((f"{file} {name} {value}", *last(**{name: value})) for value in ([1], {"a": 1}, 3.5, True))
    yield from ((f"{file} ids twice", file, text(ROWS[file] * 2).encode()) for file in ("solutions", "benchmark"))
    yield "train and val have a problem in common", "val", text(ROWS["train"][:1]).encode()
    yield "solutions without steps", "solutions", text([{**row, "solution": "4"} for row in ROWS["solutions"]]).encode()
    yield "solutions numbered wrongly", "solutions", text([{**row, "solution": "2. **A** a\n4. **B** b"} for row in ROWS["solutions"]]).encode()
    yield "benchmark answer unreadable", "benchmark", text([{**ROWS["benchmark"][0], "answer": "}{"}]).encode()


def broken_models():
    """(name, what breaks the model folder)."""
    def change(**changes):
        return lambda folder: (folder / "config.json").write_text(json.dumps({**json.loads((folder / "config.json").read_text()), **changes}))

    def write(file, content):
        return lambda folder: (folder / file).write_bytes(content)
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        yield f"no {file}", lambda folder, file=file: (folder / file).unlink()
        yield f"truncated {file}", lambda folder, file=file: os.truncate(folder / file, (folder / file).stat().st_size // 2)
        yield from ((f"empty {file}", write(file, b"")), (f"binary {file}", write(file, bytes(range(256)) * 9)), (f"list {file}", write(file, b"[1, 2]")))
    yield from (("unknown type", change(model_type="nothing")), ("more layers", change(num_hidden_layers=9)), ("wider", change(hidden_size=64)))
    yield from (("text for a number", change(hidden_size="wide")), ("few positions", change(max_position_embeddings=8)))
    yield from (("small vocabulary", change(vocab_size=5)), ("broken template", write("chat_template.jinja", b"{% for %}")))
    yield "template that refuses", write("chat_template.jinja", b"{{ raise_exception('no') }}")
    yield "short window", change(sliding_window=8, use_sliding_window=True, layer_types=["sliding_attention"] * 2)


FLAGS = [line.split(maxsplit=2) for line in """
    01 --num_val 0|01 --num_val 99|01 --targets x|01 --solution_column x|01 --rewrite_url http://x|03 --model ./nowhere|03 --mode x
    04 --k 0|04 --limit 0|04 --table nowhere|04 --models a=./nowhere|04 --mode x|04 --benchmarks nowhere
    02 --group_size 0|02 --group_size x|02 --prompts_per_batch -1|02 --learning_rate nan|02 --learning_rate -1|02 --learning_rate inf|02 --temperature 0
    02 --eps -1|02 --rollouts 0|02 --max_new_tokens 0|02 --max_new_tokens 99999999|02 --dtype float8|02 --device cuda:99|02 --device abacus
    02 --report_to paper|02 --method x|02 --nonsense 1|02 --shard|02 --optimizer adam8bit|02 --prompt_file nowhere.txt|02 --data nowhere
    02 --model ./nowhere|02 --sft_target x|02 --save_every 0|02 --seed -1|02 --max_grad_norm 0|02 --epochs 0|02 --decay nan
""".replace("|", "\n").strip().splitlines()]


@pytest.fixture
def folder(tmp_path, task, monkeypatch):
    """A folder with data and a model, all of them right."""
    (tmp_path / "data").mkdir()
    for name, rows in ROWS.items():
        (tmp_path / "data" / f"{name}.jsonl").write_text(text(rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def fails(segment, srl, rlvr, evaluate, folder, monkeypatch, capsys):
    """fails(script, flags): it ends with exit code 2 and a clear message on stderr, and leaves no file incomplete. Returns the message."""
    def fails(script, *flags, out="out"):
        main = {"01": segment, "02": srl, "03": rlvr, "04": evaluate}[script].main
        train = ["--data", "data", "--model", "model", "--out", out, "--device", "cpu"]
        right = {"01": ["--data", "data/solutions.jsonl", "--num_val", "1", "--out", out], "02": train, "03": train,
                 "04": ["--models", "m=model", "--benchmarks", "data/benchmark.jsonl", "--completions", out, "--results", out]}[script]
        monkeypatch.setattr("sys.argv", [script, *right, *flags])
        with pytest.raises(SystemExit) as ended:
            run_main(main)
        printed = capsys.readouterr().err
        assert ended.value.code == 2 and "Traceback" not in printed, printed
        last = printed.strip().splitlines()[-1]
        assert "For full helptext" in printed or "error: " in printed and len(last) > 20, printed      # a flag that cannot be parsed: tyro's box
        assert not [path for path in folder.rglob("*") if path.name.endswith(".tmp")] and not list(Path("out").glob("**/*.jsonl"))
        return printed
    return fails


def test_there_are_two_hundred_of_them():
    assert len(list(broken_files())) + len(list(broken_models())) + len(FLAGS) >= 200


@pytest.mark.parametrize("file, content", [pytest.param(*case, id=name) for name, *case in broken_files()])
def test_a_broken_file_ends_in_one_line_that_names_it(folder, fails, file, content):
    path = folder / "data" / f"{file}.jsonl"
    path.unlink()
    path.write_bytes(content) if isinstance(content, bytes) else content(path)
    printed = fails({"solutions": "01", "benchmark": "04"}.get(file, "02"))
    assert f"{file}.jsonl" in printed or "data:" in printed


@pytest.mark.parametrize("spoil", [pytest.param(spoil, id=name) for name, spoil in broken_models()])
def test_a_broken_model_ends_in_one_line_that_names_it(folder, fails, spoil):
    spoil(folder / "model")
    assert "model" in fails("02")


@pytest.mark.parametrize("script, flag, value", [(*case, None)[:3] for case in FLAGS])
def test_a_broken_flag_ends_in_a_message_that_names_it(fails, script, flag, value):
    printed = fails(script, flag, *([value] if value else []))
    assert flag in printed or value.split("=")[-1] in printed


def test_several_problems_are_listed_together(fails):
    printed = fails("02", "--shard", "--max_new_tokens", "99999999", "--device", "cuda:99")
    assert "--shard" in printed and "--max_new_tokens" in printed and "cuda:99" in printed


@pytest.mark.parametrize("script", ["01", "02", "03", "04"])
def test_an_output_folder_that_cannot_be_written_is_named(folder, fails, script):
    (folder / "file").write_text("")                        # a file where the folder should be: root may write everywhere else
    assert "file" in fails(script, out="file/out")


@pytest.mark.parametrize("script", ["01", "02"])
def test_a_full_disk_is_named_and_leaves_nothing_incomplete(folder, fails, script):
    disk = folder / "disk"
    disk.mkdir()
    if not shutil.which("mount") or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        (folder / "data/solutions.jsonl").write_text(text([{**row, "problem": "p" * 9000 + str(row["id"])} for row in ROWS["solutions"]]))
        printed = fails(script, out="disk/out")
        assert "disk" in printed and "free" in printed and not [path for path in disk.rglob("*") if path.is_file()]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_the_right_input_is_no_error(srl, folder, monkeypatch):
    flags = "--data data --model model --out out --device cpu --rollouts 4 --prompts_per_batch 1 --group_size 2 --max_new_tokens 2"
    monkeypatch.setattr("sys.argv", ["02", *flags.split()])
    srl.main()
    assert (folder / "out/model/model.safetensors").exists()
