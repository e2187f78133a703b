"""Grading answers as they are: real references, real completions, and whatever else a model may write.

| kind | source | what was wrong | test |
|---|---|---|---|
| numbers that differ by less than 1e-15, also in tuples, sets and equations | Math-Verify issue 14 | graded equal | differ (exactly) |
| two fractions below 1/1000 | found beside it | equal within 0.05 % | differ (exactly) |
| a number's base | MATH-500 | 52_9 was right for 52_8 | differ (base), spellings (base) |
| repeating decimals, ordinals, boxes and fonts, a choice with its value | reports on graders of MATH and AMC | wrong or unparsable | spellings |
"""
import json
import os
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import pytest
from conftest import ROOT

from engine import grader
from engine.files import InputError
from engine.process import Helper

DATA = ROOT.parent / "shared/data"
SETS = {"aime24.jsonl": 30, "aime25.jsonl": 30, "amc23.jsonl": 40, "minerva_math.jsonl": 272, "math500_test.json": 500}
needs_data = pytest.mark.skipif(not DATA.exists(), reason=f"no {DATA}: real benchmarks and model outputs, which are not part of the repository")


@pytest.fixture(scope="module")
def golds(evaluate):
    return {name: [p["answer"] for p in evaluate.load_benchmark(str(DATA / "math_eval" / name))] for name in SETS}


# Real data
@needs_data
def test_every_reference_of_the_five_real_sets_can_be_read_and_is_right_against_itself(rlvr, golds):
    assert {name: len(answers) for name, answers in golds.items()} == SETS
    for answers in golds.values():
        assert [a for a in answers if rlvr.judge(f"<think>\\boxed{{0}}</think> Hence $\\boxed{{{a}}}$.", a) != "right"] == []
        assert [a for a in answers[:60] if grader.ask_grader(a, a) != "right"] == []       # not only because the texts are equal


@needs_data
def test_the_reference_of_another_problem_is_wrong_unless_it_is_the_same_number(golds):
    answers = sorted({a for group in golds.values() for a in group})
    pairs = [random.Random(0).sample(answers, 2) for _ in range(300)]
    pairs = [(a, b) for a, b in pairs if len(a) + len(b) < 40]            # long formulas take the parser seconds on a slow machine
    assert len(pairs) > 250 and [(a, b) for a, b in pairs if grader.compare(a, b) == "right"] == []


@needs_data
def test_the_grade_of_real_completions_is_the_published_one_and_more_than_1000_are_graded_a_minute(rlvr, golds):
    outputs = json.loads((DATA / "model_outputs/sample_openrouter_outputs.json").read_text())
    assert [rlvr.judge(f"<think>{r['message_thinking']}</think>\n{r['message_content']}", r["gtruth_answer"]) for r in outputs] == ["right"] * 5
    assert [rlvr.judge(r["message_content"], str(int(r["gtruth_answer"]) + 1)) for r in outputs] == ["wrong"] * 5
    answers = [a for name in ("aime24.jsonl", "amc23.jsonl", "math500_test.json") for a in golds[name]][:300]
    grader.compare.cache_clear()
    started = time.time()
    for i, a in enumerate(answers):
        rlvr.judge(f"{outputs[i % 5]['message_content']} {i}. So $\\boxed{{{a} + 1}}$.", a)
    assert len(answers) / (time.time() - started) > 1000 / 60


# Spellings: (gold, answer)
RIGHT = [
    ("4.5e33", "4.5 \\times 10^{33}"), ("1e-5", "0.00001"), ("2.88e-19", "2.88 \\times 10^{-19} \\text{ J}"), ("2e-1", "-1+2e"), ("12345", "12\\,345"),
    ("12345", "12,345"), ("5", "5."), ("5", "x = 5"), ("90", "90°"), ("90", "90^\\circ"), ("50", "50\\%"), ("\\text{(C)}", "C"), ("Evelyn", "\\text{Evelyn}"),
    ("3/2", "1\\frac{1}{2}"), ("E_{1},E_{2}", "E_1, E_2"), ("-1./3", "-\\frac{1}{3}"), ("1,2", "2, 1"), ("(1,2)", "\\left(1, 2\\right)"), ("\\frac12", "0.5"),
    ("x^2+1", "1 + x^{2}"), ("3^{1000}", "9^{500}"), ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{bmatrix} 1 \\\\ 2 \\end{bmatrix}")]
WRONG = [
    ("1e-5", "1e-4"), ("1.39e-10", "3.61e-10"), ("2.88e-19", "0"), ("11/2", "1 1/2"), ("\\frac{1}{23}", "\\frac{12}{3}"), ("\\frac{1}{3}", "0.333"),
    ("(1,2)", "(2,1)"), ("\\text{east}", "\\text{west}"), ("2/3", "\\frac{1}{3} + \\frac{2}{3}"), ("[1,2]", "(1,2]"), ("x+1", "x-1"), ("3^{1000}", "3^{1001}")]


# spellings of a gold, each right for it
SPELLINGS = {
    "\\frac{1}{2} - 2^{-101}": ["\\frac{2^{100}-1}{2^{101}}", "\\frac12(1-2^{-100})"], "1-\\frac{1}{2024^{2024}}": ["\\frac{2024^{2024}-1}{2024^{2024}}"],
    "\\frac{2018!}{2^{2018}}": ["\\frac{1009 \\cdot 2017!}{2^{2017}}"], "1+\\sqrt2+2^{-1000}": ["\\sqrt{3+2\\sqrt2}+2^{-1000}"],
    "(1-2^{-100}, 3)": ["(\\frac{2^{100}-1}{2^{100}}, 3)"], "\\frac{1}{2000}": ["0.0005"], "(1e-10, 3)": ["(10^{-10}, 3)"], "10^{20}-1": ["9" * 20],
    # base; one that is left out is the one asked for
    "52_8": ["52_{8}", "52_{\\text{eight}}", "52_\\text{eight}", "(52)_8", "\\text{52}_{8}", "52_{\\text{base }8}", "52 \\text{ (base 8)}", "52 base 8",
         "52₈", "052_8", "N = 52_8", "52"], "1A_{16}": ["\\text{1A}_{16}", "1a_{16}"], "(101_2, 3)": ["(101_{\\text{two}}, 3)"], "21": ["21_{10}"],
    "2a_{11}": ["a_{11} \\cdot 2"], "x^2_1": ["x_1^2"],
    # repeating decimals
    "\\frac13": ["0.\\overline{3}", "0.\\bar{3}", ".\\overline{3}", "0.\\overline3", "0.\\dot{3}", "x = 0.3\\overline{33}"],
    "0.\\overline{3}": ["1/3", "\\frac13"], "0.1\\overline{6}": ["\\frac16"], "\\frac{15}{7}": ["2.\\overline{142857}"],
    "-\\frac{4}{33}": ["-0.\\overline{12}"], "(0.\\overline{3}, 2)": ["(\\frac{1}{3}, 2)"], "33.\\overline{3}\\%": ["33.3333333\\%"],
    "1": ["0.\\overline{9}", "1^{\\text{st}}"],
    # ordinals
    "12": ["12^{\\text{th}}", "12^{th}", "12^{\\mathrm{th}}", "12^\\text{th}", "12\\textsuperscript{th}", "12^{\\rm th}", "12th", "\\text{12}^{\\text{th}}"],
    "23^{\\text{rd}}": ["23", "23rd", "23^{rd}"], "101": ["101^{\\text{st}}"], "2": ["2^{nd}", "2nd"],
    # boxes, fonts, colours
    "42": ["\\fbox{42}", "\\framebox{42}", "\\boxed{\\boldsymbol{42}}", "\\fbox{$42$}", "\\underline{42}", "{\\bf 42}", "\\textcolor{red}{42}",
         "\\color{red}{42}", "\\text{42}"], "-\\frac{\\sqrt2}{2}": ["\\fbox{$-\\frac{1}{\\sqrt{2}}$}", "-\\bm{\\frac{\\sqrt{2}}{2}}"],
    # a choice with its value
    "\\frac{4}{11}": ["0.\\dot{3}\\dot{6}",
        "0.\\dot 3 \\dot 6"], "\\frac{1}{7}": ["0.\\dot{1}4285\\dot{7}"], "1234.\\overline{5}": ["1{,}234.\\overline{5}", "1,234.\\overline{5}"],
    "1011_2": ["1{,}011_2"], "-\\frac{1}{2}": ["\\cos\\frac{2\\pi}{7}+\\cos\\frac{4\\pi}{7}+\\cos\\frac{6\\pi}{7}"],
    "142": ["\\framebox[2cm]{142}", "\\fcolorbox{red}{white}{142}", "\\bbox[5px]{142}"],
    "C": ["\\textbf{(C)}\\ 5", "\\text{(C) } 5", "\\mathrm{(C)}~5", "(C) 5", "{\\bf (C)} 5", "\\textbf{C.}", "C)", "\\text{(C) 5}"],
    "5": ["\\textbf{(C)}\\ 5", "\\textbf{(C)}\\enspace 5", "\\textbf{(C)}\\hspace{.05in}5", "\\textbf{(C) }5", "(C)\\ 5", "\\text{C: } 5",
        "\\textbf{(C)}\\quad 5", "\\text{(C) 5}"],
    "\\textbf{(C)}\\ 5": ["C", "5", "\\text{(C)}", "(C) 5.0"], "(2,-3)": ["\\textbf{(B)}\\ (2,-3)"], "-3": ["\\textbf{(E)}\\ -3"], "A+5": ["(A) + 5"],
    "P(A)": ["P(A)"], "A, C": ["(A), (C)"],
    "B": ["(\\text{B})\\ 12", "(\\mathrm{B}) 7", "\\text{B}: 12", "12\\ \\textbf{(B)}", "12 \\text{ (B)}", "\\text{Option B}", "\\text{The answer is B}",
        "\\text{B}.",
        "\\text{(B)\\ }\\frac13", "\\text{Answer: B}", "\\text{Choice (B)}"],
    "\\textbf{(B)}\\ 12": ["\\textbf{(B)}~12~\\text{cm}", "\\mathrm{(B)\\ }12", "12\\ \\textbf{(B)}"], "8": ["(J)\\ 8", "\\textbf{(J)}\\ 8", "(\\text{B})\\ 8"],
    # spaces, punctuation, brackets
    "5/1": ["5~\\text{cm}", "5~", "~5", "5\\ ", "5,", "$5$.", "\\text{5.}", "=5", "5\\,.", "\\frac{10}{2};"], "(1,2)": ["(1,2).", "\\bigl(1,2\\bigr)",
        "\\Big(1,2\\Big)~"],
    "\\sqrt{2}": ["\\sqrt{2},", "\\sqrt2~\\text{m}"],
    # percentages
    "66\\frac23\\%": ["66.\\overline{6}\\%", "\\frac{200}{3}\\%", "66\\frac23", "\\frac23"], "66\\frac23": ["66.\\overline{6}\\%", "66\\frac{2}{3}\\%"],
    "66.\\overline{6}\\%": ["66\\frac23\\%", "66.\\overline{6}"], "12.5\\%": ["12\\frac12\\%", "12.5", "\\frac18"], "37\\dfrac12\\%": ["37.5\\%", "37.5",
        "3/8"],
    "\\frac{5}{11}": ["0{,}\\overline{45}", "0.\\,\\overline{45}", "0. \\overline{45}", "0.{\\overline{45}}", "0.\\overline{45}_{10}", "0.(45)",
        "0.\\bar{4}\\bar{5}",
        "0.\\overline{4}\\overline{5}.", "0.4\\overline{5}\\overline{4}"],
    "243_5": ["\\left(243\\right)_5", "\\mathbf{243_5}", "\\overline{243}_5", "243_{\\rm five}", "243_{5}."],
    "101_2": ["101_{\\text{binary}}", "\\textbf{101_2}"], "7_8": ["7_{\\text{octal}}"], "121_{b+1}": ["121_{ b + 1 }", "121"],
    "3": ["{3}^{\\text{rd}}", "3{}^{\\text{rd}}", "3^{\\operatorname{rd}}"], "\\frac15": ["\\frac{1}{5}^{\\text{th}}"], "B'": ["B'"]}
# of the same kinds, answers that are wrong for a gold
DIFFERENT = {
    # exactly
    "\\frac{2^{100}-1}{2^{101}}": ["\\frac{2^{100}-1}{2^{100}}", "\\frac{2^{100}+1}{2^{101}}", "\\frac12"],
    "\\frac{2018!}{2^{2018}}": ["\\frac{2017!}{2^{2018}}"], "\\frac12(1+\\frac{1}{3^{50}})": ["\\frac12(1-\\frac{1}{3^{50}})"],
    "\\frac{2019}{2^{2019}}": ["\\frac{2020}{2^{2019}}", "0"], "\\frac{1}{2004!}": ["\\frac{1}{2006!}"], "\\sqrt2+10^{-20}": ["\\sqrt2", "\\sqrt2-10^{-20}"],
    "1-\\frac{1}{2024^{2024}}": ["1-\\frac{1}{2024^{2023}}", "1"], "\\pi+10^{-30}": ["\\pi"], "x=1-2^{-80}": ["x=1", "1-2^{-81}"],
    "1+\\sqrt2+2^{-1000}": ["\\sqrt{3+2\\sqrt2}"], "x + 2^{-100}": ["x + 2^{-99}"], "\\{2^{-100}, 1\\}": ["\\{2^{-99}, 1\\}"],
    "(1-2^{-100}, 3)": ["(1+2^{-100}, 3)"], "\\frac{1}{3000}": ["\\frac{1}{3001}"], "(1e-10, 3)": ["(2e-10, 3)", "(0, 3)"], "2^{-100}": ["2^{-100}+2^{-120}"],
    # base
    "52_8": ["52_9", "52_{16}", "42_{10}", "51_8", "51", "42", "52_{\\text{nine}}", "52 \\text{ (base 9)}", "52₉"], "101_2": ["101_3", "(101)_{3}"],
    "(52_8, 3)": ["(52_9, 3)"], "DEF_{16}": ["FED_{16}"], "1A_{16}": ["1A_{15}"], "11.01_2": ["11.01_3"], "2a_{11}": ["2a_{12}"],
    "0.\\overline{3}": ["0.3", "0.333", "3", "0.\\overline{03}"], "0.\\overline{12}": ["0.1\\overline{2}", "0.12"], "\\overline{z}": ["z"],
    "12^{\\text{th}}": ["11^{\\text{th}}", "12^2"], "x^{th}": ["x"], "42": ["\\fbox{24}", "\\bm{4}2^2"],
    "C": ["\\textbf{(D)}\\ 5", "(B)", "\\text{(A)}\\ C", "2C", "(A), (C)"], "5": ["\\textbf{(C)}\\ 6", "\\textbf{(C)}"],
    "A": ["\\text{(A)}\\ \\&\\ \\text{(B)}"], "1-2^{-61}": ["\\sum_{k=1}^{60} 2^{-k}"], "\\cos\\frac{\\pi}{7}": ["\\cos\\frac{\\pi}{7}+10^{-40}"],
    "121_{b+1}": ["121_{b+2}", "121_{b-1}", "121_b"], "110_{-2}": ["110_{-3}", "110_2"], "110_{1/2}": ["110_{1/3}"], "243_5": ["\\left(243\\right)_6",
        "\\mathbf{243_6}"],
    "B": ["B'", "B''", "\\text{Option C}", "\\text{not (B)}", "12\\ \\textbf{(C)}", "(\\text{C})\\ 12", "\\text{Answer B or C}"],
        "\\triangle A'B'C'": ["\\triangle ABC"],
    "66\\frac23\\%": ["66\\frac13\\%", "66.7\\%", "66"], "0.5": ["0.5\\%", "\\frac12\\%"], "12.5\\%": ["12.6"],
        "\\frac{5}{11}": ["0.\\overline{5}\\overline{4}", "0.(54)", "0.45"],
    "0.333": ["0.333..."], "{2}^{n}": ["2^{m}\\text{th}"], "x=5": ["5x", "=6"],
    "\\textbf{(C)}\\ 5": ["D", "\\textbf{(D)}\\ 5", "(C) 6", "6"], "e": ["(E) 7"]}


@pytest.mark.parametrize("gold, answer, verdict", [(*pair, "right") for pair in RIGHT] + [(*pair, "wrong") for pair in WRONG])
def test_another_spelling_of_the_same_answer_is_right_and_another_answer_wrong_however_similar(rlvr, gold, answer, verdict):
    assert rlvr.judge(f"\\boxed{{{answer}}}", gold) == verdict


@pytest.mark.parametrize("gold", SPELLINGS)
def test_spellings_of_bases_decimals_ordinals_boxes_and_choices_are_right(gold):
    grader.parse_gold(gold)
    assert [answer for answer in SPELLINGS[gold] if grader.compare(answer, gold) != "right"] == []


@pytest.mark.parametrize("gold", DIFFERENT)
def test_numbers_that_differ_however_little_and_other_bases_decimals_and_choices_are_not_right(gold):
    assert grader.ask_grader(gold, gold) == "right"
    assert [answer for answer in DIFFERENT[gold] if grader.compare(answer, gold) == "right"] == []


@pytest.mark.parametrize("completion", ["so \\fbox{42}.", "\\fbox{$42$}", "\\boxed{\\fbox{42}}", "first \\boxed{3}, then \\framebox{42}"])
def test_a_box_may_have_another_command(rlvr, completion):
    assert rlvr.judge(completion, "42") == "right" and rlvr.judge(completion, "43") == "wrong"


def test_a_reference_is_read_inside_a_box_and_refused_with_the_name_of_its_problem_where_it_cannot_be():
    for answer in ("(1,2)", "\\text{Monday}", "5", "x \\in [-2,7]", "2516_8"):
        grader.parse_gold(answer)
    for answer in ("", " ", "\\text{}", "{5", "5}", "(" * 20, "9" * 3000):
        with pytest.raises(InputError, match="problem 7: (answer .* cannot read|no answer)"):
            grader.parse_gold(answer, "problem 7: ")


# Hostile answers
def hostile(n):
    """n completions that parsers fear: nested, huge, unclosed, endless, broken, random."""
    rng = random.Random(0)
    latex = ["\\frac", "{", "}", "^", "_", "\\sqrt", "x", "2", "\\int", "\\begin{cases}", "\\\\", "&", "\\text", "=", "<", "\\cup", "(", "[", ","]
    inside = [
        lambda k: "{" * k + "5" + "}" * k, lambda k: f"{'(' * k}5{')' * k}", lambda k: "\\frac{1}{" * k + "5" + "}" * k, lambda k: "x_{" * k + "1" + "}" * k,
        lambda k: "9^{9^{9^{9}}}", lambda k: f"{'9' * k}^{{{'9' * k}}}", lambda k: f"{k}{'!' * (k % 9 + 1)}", lambda k: "x+" * k + "1", lambda k: "1/0",
        lambda k: "\\int" * (k % 30) + " x dx", lambda k: f"\\sum_{{n=1}}^{{\\infty}} \\frac{{1}}{{n^{{{k}}}}}", lambda k: "\\left(" * k,
        lambda k: f"\\prod_{{n=1}}^{{{10**(k % 40)}}} n", lambda k: "a" * (k * 1000), lambda k: "\\" * k, lambda k: "$" * k, lambda k: "\x00\ud7ff\u202e" * k,
        lambda k: "".join(chr(rng.randrange(32, 127)) for _ in range(k)), lambda k: " ".join(rng.choices(latex, k=k)), lambda k: f"(x+1)^{{{k * 10}}}",
        lambda k: f"1e{'9' * (k % 9 + 1)}", lambda k: "0." + "3" * k, lambda k: "-" * k + "5", lambda k: "5," * k + "5"]
    whole = [lambda k: "\\boxed{" * k, lambda k: "\\boxed{" * k + "5" + "}" * k, lambda k: "\\boxed{5}" * k, lambda k: "}" * k + "\\boxed{5}",
             lambda k: "</think>" * k, *(lambda k, kind=kind: f"\\boxed{{{kind(k)}}}" for kind in inside)]
    return [whole[i % len(whole)](rng.choice([1, 2, 3, 5, 9, 17, 40, 99, 300, 700, 1000])) for i in range(n)]


def test_hostile_answers_are_graded_within_the_time_limit_each(rlvr, monkeypatch):
    """HOSTILE=2000 pytest tests/test_16_grader.py -k hostile for more of them, with the real limit."""
    n = int(os.environ.get("HOSTILE", 0))
    if not n:
        monkeypatch.setattr(grader, "GRADE_SECONDS", 0.3)
    grader.compare.cache_clear()
    verdicts = Counter()
    for i, completion in enumerate(hostile(n or 150)):
        started = time.time()
        verdicts[rlvr.judge(completion, "\\frac{1}{2}" if i % 2 else "x^2+1")] += 1
        assert time.time() - started < grader.GRADE_SECONDS + 30, completion[:80]       # the limit is processor time
    assert set(verdicts) == {"wrong", "unparsable", "no answer"}, verdicts
    assert rlvr.judge("\\boxed{0.5}", "\\frac{1}{2}") == "right"          # and it still grades


def test_an_answer_out_of_time_is_unparsable_and_the_same_process_goes_on(rlvr, monkeypatch):
    process = grader.GRADER.running()
    monkeypatch.setattr(grader, "GRADE_SECONDS", 0.3)
    grader.compare.cache_clear()
    assert rlvr.judge("\\boxed{9^{9^{9^{9}}}}", "5") == "unparsable"        # in the power of big integers no Python code runs that could give up
    monkeypatch.setattr(grader, "GRADE_SECONDS", 5)
    assert rlvr.judge("\\boxed{\\frac{10}{2}}", "5") == "right" and grader.GRADER.process is process


def test_a_process_that_was_killed_is_replaced_and_an_interruption_leaves_no_reply_behind():
    grader.GRADER.running().kill()
    grader.GRADER.process.wait()
    assert grader.ask_grader("\\frac{10}{2}", "5") == "right"          # the question was asked again
    helper = Helper(lambda: Mock(stdout=Mock(readline=Mock(side_effect=KeyboardInterrupt))))
    with pytest.raises(KeyboardInterrupt):
        helper.ask("5")
    assert helper.process is None                                       # the next question goes to a new process


def test_grading_works_from_any_thread(rlvr):
    grader.compare.cache_clear()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda i: rlvr.judge(f"\\boxed{{{2 * i}/2}}", str(i)), range(8))) == ["right"] * 8
