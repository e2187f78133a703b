"""report.html: what is in it, that nothing a model wrote is more than text there, and the page in a headless browser."""
import base64
import json
import os
import random
import select
import shutil
import subprocess
import time
from itertools import pairwise
from pathlib import Path

import pytest

from engine import report
from engine.agents import sandbox
from engine.files import InputError, write_jsonl, write_text
from engine.stored import digest

HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\"><!-- \u2028 &lt; {{DATA}}"
STEPS = ["1. **Subtract 4** 3x = 15", "2. **Divide by 3** x = 5 \\boxed{5}"]
PROBLEMS = [{"id": "p0", "problem": "Solve 3x + 4 = 19", "answer": "5", "solution": "\n".join(STEPS)},
            {"id": HOSTILE, "problem": HOSTILE, "answer": HOSTILE, "solution": HOSTILE}, {"id": "p2", "problem": "Solve x = 2", "answer": "2", "solution": ""}]
MARK = "<script>document.title='taken'"                 # a model's name


def attempt(*turns, finished=True):
    return {"turns": list(turns), "tokens": [1] * len(turns), "finished": finished}


RIGHT = attempt(f"<think>fifteen</think>\n{STEPS[0]}", f"<think>five</think>\n{STEPS[1]}")
WRONG, CUT = attempt("<think>t</think>\n1. **Subtract 4** 3x = 16"), attempt("<think>and so on", finished=False)
ATTACK = attempt(f"<think>{HOSTILE}</think>{HOSTILE}")
VERDICTS = {json.dumps(a): verdict for a, verdict in ((RIGHT, "right"), (WRONG, "wrong"), (CUT, "no answer"), (ATTACK, "unparsable"))}
# of each problem the greedy attempt and three samples
ATTEMPTS = {"base": [(WRONG, [WRONG, CUT, RIGHT]), (CUT, [WRONG] * 3), (WRONG, [WRONG] * 3)],
            "srl": [(RIGHT, [RIGHT, RIGHT, WRONG]), (ATTACK, [ATTACK, CUT, CUT]), (CUT, [WRONG] * 3)], MARK: [(WRONG, [WRONG] * 3)] * 3}


def store(folder, evaluate, name, attempts, problems=PROBLEMS, mode="stepwise"):
    """What 04 leaves of an evaluation of a model: completions, grades and the result."""
    verdicts = [[[VERDICTS.get(json.dumps(a), "wrong"), 0] for a in (greedy, *sampled)] for greedy, sampled in attempts]
    records = [{"of": {}, "id": p["id"], "greedy": greedy, "sampled": sampled} for p, (greedy, sampled) in zip(problems, attempts, strict=True)]
    write_jsonl(folder / f"eval/{name}/b.jsonl", [{"model": str(folder / name / "model"), "mode": mode}, *records])
    write_jsonl(folder / f"eval/{name}/b.grades.jsonl", [{"grader": ""}, *(
        {"of": {"attempts": digest(greedy, sampled)}, "verdicts": v} for v, (greedy, sampled) in zip(verdicts, attempts, strict=True))])
    rights = [[int(verdict == "right") for verdict, _ in v] for v in verdicts]
    part = {"k": len(attempts[0][1]), "right": [sum(r[1:]) for r in rights], "greedy": [r[0] for r in rights], "verdicts": {"wrong": 1}, "tokens_per_step": 1.0,
            "tokens_per_response": 1.0, "problems": report.problems_digest(problems, evaluate.GRADED)}
    write_text(folder / f"results/{name}.json", json.dumps({"train_seed": 0, "benchmarks": {"b": part}}))


def page_of(path):
    """The data in a page."""
    return json.loads(path.read_text().partition('id="data">')[2].partition("</script>")[0])


@pytest.fixture
def shown(tmp_path, evaluate, capsys):
    """show(problems) -> the data in the page of the evaluation above, of which the model srl has a log."""
    for name, attempts in ATTEMPTS.items():
        store(tmp_path, evaluate, name, attempts)
    log = [{"step": n, "done": 8 * n, "reward": n / 400, "kept": n % 2, "sampled": 2, "val_exact": None, "entropy": float("nan")} for n in range(401)]
    write_jsonl(tmp_path / "srl/log.jsonl", log)

    def show(problems=PROBLEMS):
        evaluate.show(tmp_path / "results", tmp_path / "eval", {"b": problems})
        return page_of(tmp_path / "results/report.html")
    return show


# What is in the page
def test_a_problem_has_the_experts_steps_and_every_attempt_of_every_model_equal_samples_once(shown):
    data = shown()
    first, second, third = data["benchmarks"]["b"]
    assert first["reference"] == STEPS and second["reference"] == [HOSTILE] and third["reference"] == [] and first["answer"] == "5"
    ours, base = ([(a["name"], a["outcome"], a["count"], len(a["turns"])) for a in first["attempts"][name]] for name in ("srl", "base"))
    assert ours == [("greedy", "right", 0, 2), ("1", "right", 2, 2), ("3", "wrong", 1, 1)]
    assert base == [("greedy", "wrong", 0, 1), ("1", "wrong", 1, 1), ("2", "truncated", 1, 1), ("3", "right", 1, 2)]
    assert len(first["turns"]) == 4 and list(first["attempts"]) == ["base", "srl", MARK]        # two right steps, a wrong one, thoughts that were cut
    assert [(m["name"], m["label"]) for m in data["models"]] == [("base", "Base"), ("srl", "SRL"), (MARK, MARK)]
    assert "| SRL | 1 |" in data["table"] and base64.b64decode(data["figure"]).startswith(b"\x89PNG") and data["sampled"] == ""


def test_a_step_has_its_thoughts_its_similarity_to_the_experts_step_of_the_same_number_and_the_matching_characters(shown, srl):
    first, second, third = shown()["benchmarks"]["b"]
    text, thoughts, blocks, score, _ = first["turns"][first["attempts"]["base"][0]["turns"][0]]
    assert (text, thoughts) == ("1. **Subtract 4** 3x = 16", "t") and blocks == [0, 24]         # all characters but the last
    assert score == pytest.approx(2 * 24 / 50) == srl.similarity(text, STEPS[0])
    assert [first["turns"][n][3] for n in first["attempts"]["srl"][0]["turns"]] == [1, 1]
    assert first["turns"][first["attempts"]["base"][2]["turns"][0]][:2] == ["<think>and so on", ""]     # nothing of a broken format is lost
    for problem in (second, third):                                     # no steps are known: nothing to compare with
        assert all(turn[2:] == [None] * 3 for turn in problem["turns"])


def test_a_whole_solution_is_compared_with_the_whole_of_the_experts(tmp_path, evaluate):
    store(tmp_path, evaluate, "srl", [(attempt(f"<think>t</think>{STEPS[0]}\n{STEPS[1]}"), [WRONG])], PROBLEMS[:1], "single")
    evaluate.show(tmp_path / "results", tmp_path / "eval", {"b": PROBLEMS[:1]})
    problem, = page_of(tmp_path / "results/report.html")["benchmarks"]["b"]
    assert problem["reference"] == ["\n".join(STEPS)] and problem["turns"][0][3] == 1


@pytest.mark.parametrize("field", ["problem", "answer"])
def test_no_attempts_are_shown_for_problems_that_are_not_those_of_the_result(shown, field, capsys):
    data = shown([{**problem, field: "another"} for problem in PROBLEMS])
    assert data["benchmarks"] == {} and "| SRL |" in data["table"] and "eval: no attempts of these results" in capsys.readouterr().out


@pytest.mark.parametrize("file, change", [("b.jsonl", ("fifteen", "x")), ("b.jsonl", None),
                                          ("b.grades.jsonl", ('"right"', '"wrong"')), ("b.grades.jsonl", None)])
def test_attempts_that_the_result_was_not_counted_from_are_not_shown_beside_it(shown, tmp_path, file, change):
    path = tmp_path / "eval/srl" / file
    path.unlink() if change is None else path.write_text(path.read_text().replace(*change))
    assert {name for problem in shown()["benchmarks"]["b"] for name in problem["attempts"]} == {"base", MARK}


def test_a_result_of_fewer_problems_is_shown_with_those(shown, tmp_path, evaluate):
    store(tmp_path, evaluate, "srl", ATTEMPTS["srl"][:2], PROBLEMS[:2])
    problems = shown()["benchmarks"]["b"]
    assert [list(p["attempts"]) for p in problems] == [["base", "srl", MARK], ["base", "srl", MARK], ["base", MARK]]


def test_what_does_not_fit_is_left_out_and_said(shown, tmp_path, monkeypatch):
    whole = shown()
    size = (tmp_path / "results/report.html").stat().st_size
    sizes = [len(json.dumps(p, separators=(",", ":")).replace("<", "\\u003c")) for p in whole["benchmarks"]["b"]]
    for most, number in ((sizes[0] + sizes[1] + 1, 2), (sizes[0] + 1, 1), (9, 0)):
        monkeypatch.setattr(report, "MOST_BYTES", most)
        data = shown()
        assert len(data["benchmarks"]["b"]) == number and f"{number} of 3 in b" in data["sampled"]
        assert (tmp_path / "results/report.html").stat().st_size < size


def test_as_much_of_one_benchmark_is_shown_as_of_another(monkeypatch):
    monkeypatch.setattr(report, "MOST_BYTES", 100)
    makers = {"a": (50, lambda n: "a" * 8), "b": (2, lambda n: "b" * 8), "c": (50, lambda n: "<<")}
    cards, left_out = report.first_cards(makers)                        # 10 + 10 + 14, 10 + 10 + 14, 10 + 14, 10
    assert {name: len(part) for name, part in cards.items()} == {"a": 3, "b": 2, "c": 3} and left_out.endswith("3 of 50 in a, 3 of 50 in c.")


def test_curves_are_at_most_150_means_and_only_of_numbers_and_kept_is_a_share(shown):
    run, = shown()["runs"]
    assert run["label"] == "SRL" and run["length"] == "3,200 completions" and set(run["curves"]) == {"reward", "kept"}
    reward, kept = run["curves"]["reward"], run["curves"]["kept"]
    assert len(reward) == 134 and reward[0] == pytest.approx([1 / 400] * 2) and reward[-1] == pytest.approx([0.9988] * 2)      # 401 by threes, then 2
    assert all(a[0] < b[0] for a, b in pairwise(reward)) and all(0 <= value <= 0.5 for _, value in kept)


def test_calls_of_an_agent_have_their_observations_and_its_changes_and_tests_are_shown(rlvr, evaluate, monkeypatch):
    import agents
    for module in (sandbox, report):
        monkeypatch.setattr(module, "failed_tests", agents.without_processes)
    task = {"id": "t", "answer": "", **agents.draw_task(random.Random(0), agents.KINDS)}
    calls = agents.expert_calls(task)
    lost = attempt(calls[0], "nonsense", calls[-1])
    card = report.card_of(evaluate.PAGE, task, False, {"srl": [(attempt(*calls), "right"), (lost, "wrong"), (attempt(calls[0]), "no answer")]})
    good, bad, unfinished = card["attempts"]["srl"]
    observations = [turn[4] for turn in card["turns"]]
    assert observations[good["turns"][2]] == "edited" and observations[good["turns"][3]] == "all tests pass" and observations[good["turns"][4]] is None
    assert "Error" in observations[bad["turns"][1]] and f"+{task['fixed']}" in good["diff"] and bad["diff"] == unfinished["diff"] == ""
    number = len(task["hidden"])
    assert good["note"] == f"0 of {number} hidden tests fail" and f" of {number} hidden tests fail: " in bad["note"] and unfinished["note"] == ""
    assert [a["outcome"] for a in card["attempts"]["srl"]] == ["right", "wrong", "no answer"]


# The page of a training run
def run_folder(folder, srl, samples):
    write_jsonl(folder / "log.jsonl", [{"step": n, "done": n, "reward": 0.5} for n in range(3)])
    episodes = [(n, [(srl.Episode({"id": "p", "problem": "P", "partial": STEPS[0], "k": 2, "n": 2, "action": STEPS[1]}, [srl.Turn([], [], [], text)]),
        reward) for text, reward in group])
                for n, group in enumerate(samples, 1)]
    write_text(folder / "completions.txt", "".join(srl.sample_text(*part) for part in episodes))
    return folder


def test_the_samples_of_a_training_run_are_shown_with_the_reward_of_the_time(tmp_path, evaluate, srl):
    right, near = f"<think>t</think>\n{STEPS[1]}", f"<think>t</think>\n{STEPS[1][:-1]}"
    reward = srl.srl_reward(near, {"action": STEPS[1]})
    folder = run_folder(tmp_path / "run", srl, [[(right, 1.0), (near, reward), ("no tags", -1.0)], [(near, 0.0)]])
    report.write_run_page(folder, evaluate.PAGE)
    data = page_of(folder / "report.html")
    first, second = data["benchmarks"]["completions.txt"]
    assert [a["outcome"] for a in first["attempts"]["run"]] == ["exact", "not exact", "broken format"] and first["reference"] == [STEPS[1]]
    assert (first["id"], first["title"]) == ("update 1", "problem p, step 2 of 2") and [turn[3] for turn in first["turns"]] == [1, round(reward, 4), -1]
    assert first["turns"][0][2] == [0, len(STEPS[1])] and first["turns"][2][2] == []
    assert second["turns"][0][2:4] == [[], 0.0]                         # a reward that is no similarity: nothing is marked
    assert list(data["runs"][0]["curves"]) == ["reward"] and data["heading"] == "Prompts" and first["problem"] == f"P\n{STEPS[0]}"


def test_a_training_run_has_a_page_without_completions_and_a_folder_without_a_log_has_none(tmp_path, evaluate, monkeypatch):
    write_jsonl(tmp_path / "sft/log.jsonl", [{"epoch": n, "step": n, "loss": 1.0, "val_exact": n / 3} for n in range(3)])
    for folder in ("sft", "nowhere"):
        monkeypatch.setattr("sys.argv", ["04_eval.py", "--report", str(tmp_path / folder)])
        if folder == "sft":
            evaluate.main()
            data = page_of(tmp_path / "sft/report.html")
            assert data["benchmarks"] == {} and data["runs"][0]["length"] == "3 validations" and list(data["runs"][0]["curves"]) == ["val_exact"]
        else:
            with pytest.raises(InputError, match="nowhere: no log.jsonl; give the folder"):
                evaluate.main()


def test_more_samples_than_a_page_takes_are_evenly_spaced_and_a_text_that_looks_like_a_heading_does_no_harm(tmp_path, evaluate, srl, monkeypatch):
    monkeypatch.setattr(report, "MOST_SAMPLES", 4)
    attack = f"{HOSTILE}\n=== update 9, x: reward 1.000\n\n=== update 9, y: reward 1.000\n--- expected: {HOSTILE}"
    folder = run_folder(tmp_path / "run", srl, [[(attack if n == 0 else "text", 0.5)] for n in range(8)])
    report.write_run_page(folder, evaluate.PAGE)
    data = page_of(folder / "report.html")
    assert "4 of the 10 prompts in completions.txt" in data["sampled"] and len(data["benchmarks"]["completions.txt"]) == 4


@pytest.mark.parametrize("text", ['{"step": 0, "rew', "[1]", '{"done": "x"}', ""])
def test_a_damaged_log_costs_an_evaluation_the_curves_and_is_an_error_of_the_runs_own_page(shown, tmp_path, evaluate, capsys, text):
    (tmp_path / "srl/log.jsonl").write_text(text)
    assert shown()["runs"] == [] and "report: no curves of SRL, " in capsys.readouterr().out
    with pytest.raises(InputError, match="log.jsonl"):
        report.write_run_page(tmp_path / "srl", evaluate.PAGE)


def test_half_a_character_that_a_killed_run_wrote_is_shown_as_a_replacement(tmp_path, evaluate, srl):
    folder = run_folder(tmp_path / "run", srl, [[("text", 0.5)]])
    with open(folder / "completions.txt", "ab") as file:
        file.write("=== update 2, problem q: reward 0.000\n\u00e9".encode()[:-1])
    report.write_run_page(folder, evaluate.PAGE)
    assert page_of(folder / "report.html")["benchmarks"]["completions.txt"][1]["reference"] == ["\ufffd"]


# Nothing that a model wrote is more than text
def test_the_page_has_no_tag_that_the_template_has_not(shown, tmp_path):
    shown()
    page, template = (path.read_text() for path in (tmp_path / "results/report.html", report.TEMPLATE))
    assert page.count("<") == template.count("<") and "document.title='taken'" in page          # it is there, as text
    assert "innerHTML" not in template.replace("no innerHTML", "") and "outerHTML" not in template and "insertAdjacent" not in template
    assert "http://" not in template.replace("http://www.w3.org/", "") and "https://" not in template and "default-src 'none'" in template


# In a browser
def find_browser():
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    cached = sorted(Path.home().glob(".cache/ms-playwright/chromium-*/chrome-linux*/chrome"))
    return next(filter(None, map(shutil.which, names)), None) or (str(cached[-1]) if cached else None)


class Browser:
    """A headless Chromium, told what to do with the DevTools protocol over two pipes (its descriptors 3 and 4)."""

    def __init__(self, folder):
        self.commands, self.answers = os.pipe(), os.pipe()
        flags = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe", f"--user-data-dir={folder}")
        self.process = subprocess.Popen([find_browser(), *flags], preexec_fn=self.wire, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(self.commands[0])
        os.close(self.answers[1])
        self.number, self.events, self.session, self.read = 0, [], {}, b""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def wire(self):
        ends = os.dup(self.commands[0]), os.dup(self.answers[1])        # neither is 3 or 4 that dup2 would close
        os.dup2(ends[0], 3)
        os.dup2(ends[1], 4)

    def send(self, method, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters, **self.session}
        os.write(self.commands[1], json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.read:
                assert select.select([self.answers[0]], [], [], 60)[0], "no answer in a minute"
                part = os.read(self.answers[0], 1 << 20)
                assert part, "the browser ended"
                self.read += part
            text, _, self.read = self.read.partition(b"\0")
            answer = json.loads(text)
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def value(self, expression):
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def open(self, path):
        self.events.clear()
        self.send("Page.navigate", url=path.as_uri())
        deadline = time.monotonic() + 60
        while not self.value("document.body && document.body.dataset.ready"):
            assert time.monotonic() < deadline, "the page's script did not end"
            time.sleep(0.05)

    def press(self, key, code, text=""):
        for kind in ({"type": "keyDown", "text": text} if text else {"type": "rawKeyDown"}, {"type": "keyUp"}):
            self.send("Input.dispatchKeyEvent", key=key, code=key, windowsVirtualKeyCode=code, **kind)

    def tab_to(self, expression):
        """Press Tab until `expression`, of the focused element e, is true."""
        for _ in range(60):
            self.press("Tab", 9)
            if self.value(f"((e) => Boolean({expression}))(document.activeElement)"):
                return
        raise AssertionError(f"not reached with Tab: {expression}")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not find_browser():
        pytest.skip("no Chromium: apt install chromium, or playwright install chromium")
    started = Browser(tmp_path_factory.mktemp("browser"))
    yield started
    started.process.terminate()
    started.process.wait()


ROWS = "[...document.querySelectorAll('.problem:not([hidden]) > summary .name')].map((e) => e.textContent)"


def test_the_page_opens_without_an_error_asks_no_host_and_runs_nothing_that_a_model_wrote(browser, shown, tmp_path):
    shown()
    browser.open(tmp_path / "results/report.html")
    assert browser.value("document.title") == "Evaluation: results"
    for number in range(3):                                             # open every problem, press every attempt
        browser.value(f"document.querySelectorAll('.problem')[{number}].open = true")
    time.sleep(0.3)
    browser.value("document.querySelectorAll('.attempts button').forEach((button) => button.click())")
    assert browser.value("document.querySelectorAll('.attempts button').length") == 9 + 7 + 6
    assert browser.value("document.title") == "Evaluation: results" and browser.value("document.querySelectorAll('script, #list img').length") == 2
    assert HOSTILE in browser.value("document.querySelectorAll('.problem')[1].textContent")
    assert browser.value("document.querySelectorAll('.curve polyline').length") == 2 and browser.value("document.querySelector('.figure').naturalWidth > 100")
    assert not [e for e in browser.events if e["method"] in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")]
    requests = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert requests and all(url.startswith(("file:", "data:")) for url in requests)


def test_a_page_of_no_problem_or_of_a_model_with_the_name_of_a_property_has_no_error(browser, shown, tmp_path, evaluate, monkeypatch):
    store(tmp_path, evaluate, "constructor", ATTEMPTS["srl"][:2], PROBLEMS[:2])
    for most, number in ((1_000_000, 3), (9, 0)):
        monkeypatch.setattr(report, "MOST_BYTES", most)
        shown()
        browser.open(tmp_path / "results/report.html")
        assert browser.value(f"{ROWS}.length") == number
        assert not [e for e in browser.events if e["method"] == "Runtime.exceptionThrown"]


def test_filters_attempts_and_thoughts_work_by_keyboard(browser, shown, tmp_path):
    shown()
    browser.open(tmp_path / "results/report.html")
    browser.value("document.title")
    assert browser.value(ROWS) == ["p0", HOSTILE, "p2"] and browser.value("document.querySelector('#count').textContent") == "3 of 3 problems"
    browser.tab_to("e.tagName === 'SELECT'")                            # outcomes of first attempts: right, truncated, unparsable, wrong
    browser.press("ArrowDown", 40)
    assert browser.value("document.activeElement.value") == "right" and browser.value(ROWS) == ["p0"]
    browser.press("ArrowDown", 40)
    assert browser.value("document.activeElement.value") == "truncated" and browser.value(ROWS) == [HOSTILE, "p2"]
    browser.tab_to("e.type === 'checkbox' && e.parentNode.textContent.includes('SRL')")
    browser.press(" ", 32, " ")                                         # without SRL: one that base cut
    assert browser.value(ROWS) == [HOSTILE] and browser.value("document.querySelector('#count').textContent") == "1 of 3 problems"
    assert browser.value("document.querySelectorAll('.verdicts [data-model=srl]:not([hidden])').length") == 0
    browser.press(" ", 32, " ")
    browser.value("document.querySelector('select').value = ''")
    browser.tab_to("e.parentNode.textContent.includes('only where models differ')")
    browser.press(" ", 32, " ")
    assert browser.value(ROWS) == ["p0"]
    browser.tab_to("e.tagName === 'BUTTON' && e.getAttribute('aria-label') === '3: wrong' && e.closest('[data-model=srl]')")
    before = browser.value("document.querySelector('[data-model=srl].column').textContent")
    browser.press("Enter", 13, "\r")
    assert "3x = 15" in before and "3x = 16" in browser.value("document.querySelector('[data-model=srl].column').textContent")
    assert browser.value("document.activeElement.getAttribute('aria-pressed')") == "true"
    assert browser.value("document.querySelector('[data-model=srl].column .score').textContent") == "0.960"
    assert [browser.value("[...document.querySelectorAll('[data-model=srl].column mark')].map((e) => e.textContent).join('|')")] == ["1. **Subtract 4** 3x = 1"]
    browser.tab_to("e.tagName === 'SUMMARY' && e.textContent === 'thoughts'")
    assert browser.value("document.activeElement.parentNode.open") is False
    browser.press("Enter", 13, "\r")
    assert browser.value("document.activeElement.parentNode.open") is True


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_no_width_and_neither_scheme_hides_anything(browser, shown, tmp_path, width, dark):
    shown()
    browser.send("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    browser.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
    browser.open(tmp_path / "results/report.html")
    time.sleep(0.2)
    assert browser.value("document.documentElement.scrollWidth <= window.innerWidth")           # only tables and columns scroll sideways
    left = browser.value("[...document.querySelectorAll('.column')].map((e) => e.getBoundingClientRect().left)")
    assert len(left) == 4 and len(set(left)) == (4 if width > 600 else 1)                       # side by side, or one below the other
    light = browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert light is not dark


def test_a_page_of_the_miniatures_size_opens_in_seconds(browser, tmp_path, evaluate):
    """420 problems of 9 attempts of 6 steps: cut to under 5 MB."""
    rng = random.Random(0)
    problems = [{"id": f"p{n}", "problem": f"Solve {n}", "answer": "5", "solution": "\n".join(STEPS)} for n in range(420)]
    texts = [[f"<think>{rng.random()} {'thought ' * 16}</think>\n{k}. **Title {rng.random()}** 3x = {rng.random()}" for k in range(1, 7)] for _ in range(3780)]
    attempts = [(attempt(*texts[9 * n]), [attempt(*turns) for turns in texts[9 * n + 1:9 * n + 9]]) for n in range(420)]
    store(tmp_path, evaluate, "srl", attempts, problems)
    evaluate.show(tmp_path / "results", tmp_path / "eval", {"b": problems})
    assert 4e6 < (tmp_path / "results/report.html").stat().st_size < 5e6
    started = time.monotonic()
    browser.open(tmp_path / "results/report.html")
    assert time.monotonic() - started < 20 and browser.value(f"{ROWS}.length") > 200
