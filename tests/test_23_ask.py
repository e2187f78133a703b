"""04_eval.py --ask: a problem of one's own, read as an equation of the miniature or not, and what the screen shows."""
import io
import random

import make
import pytest
from conftest import ROOT

from engine.files import InputError, read_jsonl
from miniature import ask

PROBLEM = "Solve 4(3x - 7) + 25 = 5x + 46"
BASE = f"base={ROOT / 'miniature/base'}"


@pytest.fixture
def typed(evaluate, monkeypatch, capsys):
    """typed(flags, keyboard) -> what 04_eval.py prints for these flags, with this text from the keyboard."""
    def typed(*flags, keyboard=""):
        monkeypatch.setattr("sys.argv", ["04_eval.py", *flags])
        monkeypatch.setattr("sys.stdin", io.StringIO(keyboard))
        evaluate.main()
        return capsys.readouterr().out
    return typed


# Equations
def test_every_equation_of_random_walks_is_read_back_from_its_text():
    rng, count = random.Random(0), 0
    for kind in ("short", "hard", "long", "large") * 50:
        equation, _ = make.draw_problem(kind, rng)
        turns = iter(range(8))
        for state in make.play(equation, lambda e, turns=turns: None if next(turns, None) is None else make.random_title(e, rng))[2]:
            assert ask.parse_equation(make.equation_text(state)) == tuple(map(make.without_zeros, state))
            count += 1
    assert count > 1000


@pytest.mark.parametrize("text", ["4(3x-7)+25=5x+46", "solve: 4*(3x - 7) + 25 = 5x + 46.", "  SOLVE 4 (3X \u2212 7) + 25 = 5X + 46",
                                  "4(-7 + 3x) + 25 = 5x + 46"])
def test_an_equation_may_be_spaced_and_signed_in_other_ways_and_is_shown_as_in_training(text):
    assert ask.problem_of(text, "stepwise") == {"id": "", "problem": PROBLEM, "answer": "7"}


@pytest.mark.parametrize("text", ["What is 2 + 2?", "3x", "x = y", "x^2 = 4", "2(3(x + 1)) = 4", "2(x) = 4", "= 3", "3x = ", "1 = 2 = 3", "x = 1e5",
                                  "9" * 5000 + "x = 1", "(" * 5000, "3 4 = x 5 y"])
def test_what_is_no_equation_of_the_world_stays_as_it_is_without_an_answer(text):
    assert ask.problem_of(text, "stepwise") == {"id": "", "problem": text.strip(), "answer": ""}


def test_the_expert_continues_from_every_state_of_its_own_solutions_as_they_do_and_finds_their_answers():
    for record in read_jsonl(ROOT / "miniature/expert.jsonl")[::20]:
        partial, steps = "", record["solution"].split("\n")
        for k, step in enumerate(steps):
            equation = ask.equation_of({"problem": record["problem"], "partial": partial})
            assert [own.partition(".")[2] for own in ask.expert_steps(equation)] == [own.partition(".")[2] for own in steps[k:]]
            partial += step + "\n"


@pytest.mark.parametrize("text", ["3x = 7", "0 = 5", "5x = 5x + 1", "-3x = 9"])
def test_where_the_expert_has_no_legal_way_it_gives_no_answer_and_no_reward(text):
    assert ask.problem_of(text, "stepwise")["answer"] == ""
    assert ask.turn_lines("<think>a</think>\n1. **B** c", ask.parse_equation(text), 1) == [("<think>a</think>", True), ("1. **B** c", False),
                                                                                                       ("   no reward: the expert cannot go on from here",
                                                                                                           False)]


def test_a_whole_solution_in_one_completion_is_not_compared_with_the_experts_first_step():
    text, problem = "<think>a</think>\n1. **B** c \\boxed{7}", {"partial": "", **ask.problem_of(PROBLEM, "stepwise")}
    assert ask.attempt_lines("m", problem, [text], None) == [("m: right, 1 completion", False), ("<think>a</think>", True), (text[17:], False)]


# The screen
def test_a_step_has_its_reward_and_the_experts_step_where_they_differ(srl):
    equation, right = ask.parse_equation(PROBLEM), "1. **Expand the left side** 12x - 28 + 25 = 5x + 46"
    wrong = "<think>a</think>\n" + right.replace("28", "29")
    assert ask.turn_lines(f"<think>a</think>\n{right}", equation, 1)[-1][0] == "   reward 1.000: as the expert"
    assert ask.turn_lines(wrong, equation, 1)[-1][0] == f"   reward {srl.srl_reward(wrong, {'action': right}):.3f}: expert {right}"
    assert ask.turn_lines("no thoughts", equation, 1) == [("no thoughts", False), (f"   reward -1.000: expert {right}", False)]


@pytest.mark.parametrize("width, num", [(200, 3), (140, 3), (100, 2), (89, 1), (60, 1), (5, 1)])
def test_attempts_are_side_by_side_where_the_terminal_is_wide_enough_else_one_below_the_other(width, num):
    attempts = [[(f"name{i}", False), ("word " * 40, True)] for i in range(3)]
    rows = ask.side_by_side(attempts, width, False).split("\n")
    assert sum("name" in part for part in rows[0].split()) == num and sum("name" in row for row in rows) == -(-3 // num)
    assert max(map(len, rows)) <= max(width, 20) and sum(row.count("word") for row in rows) == 120


def test_thoughts_are_dimmed_in_colour_alone_and_a_models_own_escapes_reach_no_terminal():
    attempts = [[("thought", True), ("step \x1b[31m\x07\u202e", False)]]
    assert ask.side_by_side(attempts, 80, False) == "thought\nstep ?[31m??\n"
    assert ask.side_by_side(attempts, 80, True).startswith("\033[2mthought") and "\x1b[31m" not in ask.side_by_side(attempts, 80, True)


# The script
def test_every_model_solves_the_problem_and_its_own_spelling_makes_no_difference(typed, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    printed = typed("--models", BASE, BASE.replace("base", "again", 1), "--max_turns", "2", "--ask", "4(3x-7)+25 = 5x+46")
    assert printed.startswith(f"\n{PROBLEM}   (answer: 7)\n\nbase: no answer, 2 completions") and "again: no answer, 2 completions" in printed
    assert printed.count("<think>I could") == 4 and printed.count("reward 0.") == 4 and "\033" not in printed
    assert typed("--models", BASE, BASE.replace("base", "again", 1), "--max_turns", "2", "--ask", PROBLEM) == printed


@pytest.mark.parametrize("flags", [("--ask",), ("--ask", "")])
def test_without_a_problem_they_come_from_the_keyboard_a_line_each(typed, flags):
    printed = typed("--models", BASE, "--max_turns", "1", *flags, keyboard="2x = 8\n\nhard-012\nWhat is 2 + 2?")
    first, second, third = printed.split("base: ")[:3]
    assert "Solve 2x = 8   (answer: 4)" in first and "Solve 9(8x - 8) + 36 = 65x + 13   (answer: 7)" in second and "\nWhat is 2 + 2?\n" in third
    assert "reward" in second and "reward" in third and "reward" not in printed.split("base: ")[3]


def test_a_task_of_the_agents_is_named_by_its_id_and_shows_calls_and_what_they_return(typed):
    printed = typed("--mode", "agent", "--models", f"base={ROOT / 'miniature/agents/base'}", "--max_turns", "2", "--ask", "modules-003")
    assert "cargo(6, 1) should be 11 and not 1." in printed and "base: no answer, 2 completions\n<think>" in printed
    assert printed.count("<function=run_tests>") == printed.count("cargo(6, 1) returns 1 but should return 11.") == 2


@pytest.mark.parametrize("flags, message", [
    (("--mode", "agent", "--ask", "nobody-1"), "--ask nobody-1: no task of .*; give the id of one, such as modules-003"),
    (("--models", BASE, "--ask", "word " * 30_000), "positions"), (("--models", "a=./nowhere", "--ask", "x = 1"), "nowhere: no such model")])
def test_bad_input_ends_in_one_line(typed, flags, message):
    with pytest.raises(InputError, match=message) as error:
        typed(*flags)
    assert "\n" not in str(error.value)


def test_a_mistyped_line_of_the_keyboard_does_not_end_the_session(typed):
    printed = typed("--models", BASE, "--max_turns", "1", "--ask", keyboard=f"{'word ' * 30_000}\n2x = 8")
    assert "positions of base" in printed and "Solve 2x = 8   (answer: 4)" in printed


def test_without_any_model_it_says_so(evaluate):
    with pytest.raises(InputError, match="--ask: no model; train one, or name one with --models"):
        ask.ask(evaluate.Config(ask=("x = 1",)), {})
