"""Baselines and ablations of SRL: where episodes begin, what replaces 02's reward, advantage and filter, what is kept for
fine-tuning, the jobs of the study and its table."""
import json
import sys
import time
from types import SimpleNamespace

import agents
import ask
import curriculum
import detours
import make
import pytest
import rejection
import study
import study_tables
import torch
import variants

from engine.files import InputError, read_jsonl, write_jsonl, write_text
from engine.stored import identity_of

STEPS = ["1. **Subtract 4 from both sides** 3x = 15", "2. **Divide both sides by 3** x = 5", "3. **State the answer** \\boxed{5}"]


@pytest.fixture(scope="module")
def examples(segment):
    records = [{"id": name, "problem": "Solve 3x + 4 = 19", "solution": "\n".join(STEPS), "answer": "5"} for name in ("a", "b")]
    return segment.segment(records)[0]


# Where an episode begins
def test_episodes_begin_after_every_first_part_of_the_experts_solution_that_leaves_so_many(rlvr, examples):
    problems = rlvr.problem_starts(examples)
    partials = ["", STEPS[0] + "\n", STEPS[0] + "\n" + STEPS[1] + "\n"]
    assert [e["partial"] for e in examples[:3]] == partials
    for steps_left, expected in ((1, partials[2:]), (2, partials[1:]), (3, partials), (99, partials)):
        starts = curriculum.expert_prefixes(problems, examples[::-1], rlvr.next_turn, steps_left)
        for name in ("a", "b"):
            assert [s["partial"] for s in starts if s["id"] == name] == expected, steps_left
    own = ("id", "partial", "completions_left")
    assert all(start == {**problems[0], **{name: start[name] for name in own}} for start in starts)         # "answer" too, no "action"


def test_an_episode_after_the_experts_steps_has_one_completion_more_than_steps_left_and_any_other_no_limit(rlvr, examples):
    extend, wrong = curriculum.limited(rlvr.next_turn), "<think>a</think>\n1. **Swap the sides** 19 = 3x + 4"
    starts = curriculum.expert_prefixes(rlvr.problem_starts(examples), examples, rlvr.next_turn, 99)
    for steps_done, start in enumerate(starts[::2]):
        completions, example = 1, start
        while example := extend(example, wrong):
            completions += 1
        assert completions == 3 - steps_done + 1
    assert extend(starts[0], "2. **Answer** \\boxed{5}") is None
    whole = rlvr.problem_starts(examples)[0]
    for _ in range(99):
        whole = extend(whole, wrong)
    assert whole["partial"].count("Swap") == 99


def test_no_episode_begins_after_a_box_or_in_a_problem_without_an_answer(rlvr, examples):
    boxed = [{**e, "action": e["action"] + " \\boxed{5}"} if e["k"] == 2 else e for e in examples]
    starts = curriculum.expert_prefixes(rlvr.problem_starts(examples)[:1], boxed, rlvr.next_turn, 99)
    assert [(s["id"], s["partial"].count("\n")) for s in starts] == [("a", 0), ("a", 1)]


def test_an_agents_episode_begins_in_the_repository_that_the_experts_calls_have_made(rlvr, segment):
    task = {"id": "t", "problem": "cost(3, 4) returns 12 but should return 8.", "files": {"shop.py": "def cost(a, b):\n    c = a * b\n    return c + 1"},
            "visible": [["shop", "cost", [3, 4], 8]], "hidden": [["shop", "cost", [1, 1], 3]]}
    edit = agents.call_text("edit", path="shop.py", line=2, text="    c = a + b")
    calls = [agents.call_text("view", path="shop.py"), edit, agents.call_text("submit")]
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": task["problem"]}]
    for call in calls:
        messages += [{"role": "assistant", "content": call}, {"role": "user", "content": "seen"}]
    made = segment.trajectory_examples({**task, "messages": messages, "resolved": True})
    starts = curriculum.expert_prefixes(rlvr.problem_starts(made), made, rlvr.next_call, 2)
    assert ["a + b" in s["files"]["shop.py"] for s in starts] == [False, True] and [len(s["context"]) for s in starts] == [2, 4]
    assert starts[1]["context"][-1]["content"] == "edited" and "a * b" in made[0]["files"]["shop.py"]              # the data are not changed


def test_the_curriculum_needs_an_episode_of_several_turns(examples, tmp_path, monkeypatch):
    for part in ("train", "val"):
        write_jsonl(tmp_path / f"{part}.jsonl", [e for e in examples if e["id"] == ("a" if part == "train" else "b")])
    for order in ("reverse", "random"):
        monkeypatch.setattr(sys, "argv", ["curriculum", "--mode", "single", "--order", order, "--data", str(tmp_path), "--out", str(tmp_path / "out")])
        with pytest.raises(InputError, match="--mode single: a completion is the whole solution"):
            curriculum.main()


def test_where_the_data_have_no_last_steps_no_episode_begins_before_one_and_the_run_says_so(examples, tmp_path, monkeypatch):
    for part, name in (("train", "a"), ("val", "b")):
        write_jsonl(tmp_path / f"{part}.jsonl", [e for e in examples if e["id"] == name and e["k"] < e["n"]])       # --targets literal
    monkeypatch.setattr(sys, "argv", ["curriculum", "--data", str(tmp_path), "--out", str(tmp_path / "out")])
    with pytest.raises(InputError, match="round1: no examples to train on"):
        curriculum.main()


def test_the_curriculum_begins_one_step_before_the_end_and_ends_at_the_problem(examples, tmp_path, monkeypatch):
    for part, name in (("train", "a"), ("val", "b")):
        write_jsonl(tmp_path / f"{part}.jsonl", [e for e in examples if e["id"] == name])
    calls = []

    def train(cfg, starts, val_starts, make_prompt, reward, extend):
        assert make_prompt(starts[0])[0]["content"] == "words"
        calls.append((cfg.max_turns, cfg.model, [s["partial"].count("\n") for s in starts], [s["id"] for s in val_starts]))
        (tmp_path / "out" / f"round{len(calls)}/model").mkdir(parents=True)
        write_jsonl(tmp_path / "out" / f"round{len(calls)}/log.jsonl", [{"step": 0, "done": cfg.rollouts, "val_exact": 0.5}])
    monkeypatch.setattr(curriculum.srl, "train", train)
    (tmp_path / "p.txt").write_text("words\n---\n{problem}")
    flags = ("--prompt_file", str(tmp_path / "p.txt"), "--model", "first", "--rollouts", "30")
    monkeypatch.setattr(sys, "argv", ["curriculum", "--data", str(tmp_path), "--out", str(tmp_path / "out"), *flags])
    curriculum.main()
    first, second = (str(tmp_path / f"out/round{n}/model") for n in (1, 2))
    assert calls == [(2, "first", [2], ["b"]), (3, first, [1, 2], ["b", "b"]), (8, second, [0], ["b"])]
    log = read_jsonl(tmp_path / "out/log.jsonl")
    assert [line["done"] for line in log] == [10, 20, 30] and ["val_exact" in line for line in log] == [False, False, True]


def test_in_random_order_one_round_begins_anywhere_and_is_validated_from_the_problem(rlvr, examples, tmp_path, monkeypatch):
    for part, name in (("train", "a"), ("val", "b")):
        write_jsonl(tmp_path / f"{part}.jsonl", [e for e in examples if e["id"] == name])

    def train(cfg, starts, val_starts, make_prompt, reward, extend):
        assert sorted(s["partial"].count("\n") for s in starts) == [0, 1, 2] and val_starts == rlvr.problem_starts(examples[3:])
        assert extend({**starts[0], "completions_left": 1}, f"<think>a</think>\n{STEPS[0]}") is None and (cfg.rollouts, cfg.max_turns) == (30, 8)
        (tmp_path / "out/round1/model").mkdir(parents=True)
        write_jsonl(tmp_path / "out/round1/log.jsonl", [{"step": 0, "done": 30, "val_exact": 0.5}])
    monkeypatch.setattr(curriculum.srl, "train", train)
    monkeypatch.setattr(sys, "argv", ["curriculum", "--order", "random", "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--rollouts", "30"])
    curriculum.main()
    assert [(line["done"], line["val_exact"]) for line in read_jsonl(tmp_path / "out/log.jsonl")] == [(30, 0.5)]


# What replaces 02's functions
def test_each_comparison_is_1_for_an_equal_step_and_sees_only_its_part():
    worded = "2. **Split each side into 3 equal parts** This gives x = 5. Nothing was lost on the way."
    assert variants.equation(worded) == variants.equation(STEPS[1]) == "x = 5" and variants.equation(STEPS[2]) == "\\boxed{5}"
    assert variants.equation("no sign at all") == "no sign at all" and variants.equation(STEPS[0]) == "3x = 15"
    assert variants.without_title(STEPS[1]) == "2. x = 5" and variants.tokens("54x = -7") == ("54", "x", "=", "-", "7")
    assert variants.formulas(worded) == "2. ** 3 ** x = 5. ." and variants.formulas(r"so \frac{1}{2}x_i is ab3c") == r"\frac{1}{2}x_i 3c"
    assert variants.average(lambda *_: 0.5, lambda *_: 1.0)("a", "b") == 0.75
    for name, exchanged in variants.VARIANTS.items():
        if "similarity" in exchanged:
            assert exchanged["similarity"](STEPS[1], STEPS[1]) == 1.0 > exchanged["similarity"](STEPS[0], STEPS[1]) >= 0.0, name
    near = STEPS[0].replace("15", "16")
    assert variants.exact(near, STEPS[0]) == 0.0
    assert variants.VARIANTS["fourth_power"]["similarity"](near, STEPS[0]) == pytest.approx((2 * 40 / 82) ** 4)                # 41 characters each, one differs
    assert variants.VARIANTS["tokens"]["similarity"](near, STEPS[0]) == pytest.approx(2 * 14 / 30)   # 15 tokens each, one differs


def test_ranks_give_advantages_that_do_not_depend_on_how_far_rewards_are_apart_and_equal_ones_share():
    advantages = variants.rank_advantages(torch.tensor([[0.1, 0.98, 0.99, 1.0], [0.0, 0.5, 0.5, 9.0]]))
    assert advantages[0].tolist() == pytest.approx([-1.3416, -0.4472, 0.4472, 1.3416], abs=1e-3)     # ranks 0..3, std 1.118
    assert advantages[1].tolist() == pytest.approx([-1.4142, 0.0, 0.0, 1.4142], abs=1e-3)            # ranks 0, 1.5, 1.5, 3, std 1.061


def test_without_dynamic_sampling_no_group_is_dropped():
    assert variants.all_groups(torch.tensor([[1.0, 1.0], [0.0, 1.0]]), 0.1).tolist() == [True, True]


def test_the_likelihood_is_that_of_the_experts_step_after_the_sampled_thoughts_alone(srl, tiny, tokenizer, examples, monkeypatch):
    monkeypatch.setattr(variants, "scorer", lambda *_: (tiny, tokenizer))
    texts = [f"<think>ab</think>\n{STEPS[0]}", "<think>ab</think>\nanother step", "<think>cd</think>\nthe same", "no thought"]
    episodes = [srl.Episode(examples[0], [srl.Turn([], [], [], text)]) for text in texts]
    monkeypatch.setattr(srl, "run_episodes", lambda *_, **__: [episodes])
    monkeypatch.setattr(variants, "FLOOR", -99.0)
    ((group, rewards),) = variants.score_by_likelihood(tiny, tokenizer, [("s", examples[0])], 4, srl.srl_prompt, None, None, srl.Config())
    assert group == episodes and rewards[0] == rewards[1] != rewards[2] and rewards[3] == 1 - 99.0
    prompt = srl.prompt_text(tokenizer, srl.srl_prompt(examples[0])) + "<think>ab</think>\n"
    ids, step = tokenizer(prompt)["input_ids"], [*tokenizer(STEPS[0])["input_ids"], tokenizer.eos_token_id]
    with torch.no_grad():
        scores = tiny(torch.tensor([[*ids, *step]])).logits[0, len(ids) - 1:-1].log_softmax(-1)
    assert rewards[0] == pytest.approx(1 + scores.gather(1, torch.tensor(step)[:, None]).mean().item(), abs=1e-4)


def test_the_whole_solution_is_rewarded_at_the_end_of_an_episode(rlvr, examples):
    first, *_ = variants.whole_problems(examples)
    assert first["partial"] == "" and first["action"] == "\n".join(STEPS) + "\n" and len(variants.whole_problems(examples)) == 2
    end = {**first, "partial": STEPS[0] + "\n" + STEPS[1] + "\n"}
    assert variants.whole_reward(f"<think>t</think>\n{STEPS[2]}", end) == 1.0 > variants.whole_reward(f"<think>t</think>\n{STEPS[2]}", first) > 0
    assert variants.whole_reward(STEPS[2], end) == -1.0


def test_a_variant_exchanges_functions_of_02_and_an_unknown_one_names_the_known(monkeypatch, srl):
    for name, exchanged in variants.VARIANTS.items():
        assert all(callable(getattr(srl, function)) for function in exchanged), name
    monkeypatch.setattr(sys, "argv", ["variants.py", "equations"])
    with pytest.raises(InputError, match="'equations' is no variant; give one of equation, "):
        variants.main()


def test_a_run_of_one_variant_is_not_continued_by_another(monkeypatch, srl, examples):
    codes = []

    def identity():
        codes.append(identity_of(srl.Config(), (examples, examples), srl.srl_prompt, (srl.train, srl.srl_reward, None))["code"])
    monkeypatch.setattr(srl, "main", identity)
    for name in (*variants.VARIANTS, "exact"):
        monkeypatch.setattr(sys, "argv", ["variants.py", name])
        variants.main()
    identity()
    assert codes[-2] in codes[:-2] and len(set(codes)) == len(variants.VARIANTS) + 1, "each its own, and 02 too"


# What is kept for fine-tuning
def test_rejection_keeps_exact_completions_and_best_of_g_the_most_similar_one_where_rewards_differ():
    texts, rewards = ["a", "b", "a", "c"], [1.0, 0.5, 1.0, 1.0]
    assert rejection.chosen(texts, rewards, "exact", 4) == ["a", "c"] and rejection.chosen(texts, rewards, "exact", 1) == ["a"]
    assert rejection.chosen(texts, [0.1, 0.9, 0.1, 0.9], "best", 4) == ["b"]
    assert rejection.chosen(texts, [0.3] * 4, "best", 4) == rejection.chosen([], [], "best", 4) == rejection.chosen(texts, [0.3] * 4, "exact", 4) == []


def test_a_round_that_kept_nothing_is_not_taken_for_that_of_other_flags(examples, tmp_path, monkeypatch):
    for part, name in (("train", "a"), ("val", "b")):
        write_jsonl(tmp_path / f"{part}.jsonl", [e for e in examples if e["id"] == name])
    monkeypatch.setattr(rejection, "load_policy", lambda *_: (None, None))
    monkeypatch.setattr(rejection, "collect", lambda *_: [])
    (tmp_path / "base").mkdir()

    def run(*flags):
        monkeypatch.setattr(sys, "argv", ["rejection", "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--model", str(tmp_path / "base"), *flags])
        rejection.main()
    run()
    run("--save_every", "9")                            # no setting that the result depends on
    assert [line["kept"] for line in read_jsonl(tmp_path / "out/log.jsonl")] == [0] * 4
    for flags, message in ((("--keep", "best"), "out: contains a run with other settings"), (("--recipe", "paper"), "--recipe paper: must be one of")):
        with pytest.raises(InputError, match=message):
            run(*flags)


# The study
def test_the_seconds_of_a_job_are_those_before_an_interruption_too(tmp_path):
    script, places = ["-c", "import sys, time; time.sleep(0.1); sys.exit(int(sys.argv[1]))"], (tmp_path / "log", tmp_path / "out")
    with pytest.raises(SystemExit, match="exit code 3; see"):
        study.run([*script, "3"], *places)
    assert study.run([*script, "0"], *places) > 0.2


def test_a_method_starts_from_another_methods_model_only_where_that_was_trained_to_its_end(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(study, "ROOT", tmp_path)
    monkeypatch.setattr(study, "train", lambda method, command, here, out, seed, start: calls.append((method, start.parent.name)))
    (tmp_path / "runs/study/seed0/srl/model").mkdir(parents=True)       # of a run that was interrupted
    study.trained("srl_rlvr", 0, study.WORLDS["equations"])
    assert calls == [("srl", "miniature"), ("srl_rlvr", "srl")]
    write_jsonl(tmp_path / "runs/study/seed0/results/srl/srl.json", [])
    study.trained("srl_rlvr", 0, study.WORLDS["equations"])
    assert calls[2:] == [("srl_rlvr", "srl")]


def test_a_base_of_less_pretraining_is_made_once_and_srl_starts_from_it(tmp_path, monkeypatch):
    made, starts, world = [], [], study.WORLDS["equations"]
    monkeypatch.setattr(study, "ROOT", tmp_path)
    monkeypatch.setattr(study, "run", lambda command, log, out: (made.append(command[:3]), write_text(out / "base/model.safetensors", "")))
    monkeypatch.setattr(study, "train", lambda method, command, here, out, seed, start: starts.append(start))
    for seed in (0, 1):
        study.trained("srl_base_1700", seed, world)
    assert made == [["miniature/make.py", "--batches", 1700]] and starts == [tmp_path / "runs/study/base_1700/base"] * 2
    assert study.base_of("srl", world) == tmp_path / "miniature/base"


def test_the_table_of_the_study_folds_rows_of_few_seeds_and_names_what_was_not_run():
    row = {"variant": "srl", "command": "c", "seeds": [*range(5)], "rollouts": 1, "validation_exact": [], "seconds_training": [1800] * 5,
           "seconds_evaluation": [0] * 5}
    few = {**row, "variant": "g4", "seeds": [0, 1], "seconds_training": [3600] * 2, "seconds_evaluation": [1800] * 2}
    table, measured, folded, begun, _ = study_tables.study_text([few, row], [], ["srl", "g4", "p4"]).split("\n\n")
    assert "| srl |" in table and "g4" not in table and measured == "Timed: 7 runs, 5.5 hours of one core. Not run: `p4`."
    assert "1 variants" in folded and "| g4 |" in begun and "srl" not in begun
    assert "Not run" not in study_tables.study_text([row], [], ["srl"]) and "<details>" not in study_tables.study_text([row], [], ["srl"])


def test_results_of_a_method_in_two_folders_count_each_seed_once_in_their_order():
    first, second = ([{"train_seed": seed, "from": name} for seed in seeds] for name, seeds in (("table", (10, 2)), ("study", (2, 0))))
    found = [(r["train_seed"], r["from"]) for r in study_tables.by_seed(first, second)]
    assert found == [(0, "study"), (2, "table"), (10, "table")] and study_tables.by_seed([], []) == []


def test_after_ctrl_c_no_other_job_begins_and_a_method_that_the_world_has_not_is_an_error(monkeypatch, capsys):
    begun = []

    def job(method, seed, args):
        begun.append(seed)
        if seed == 0:
            raise KeyboardInterrupt
        time.sleep(0.2)
    monkeypatch.setattr(study, "job", job)
    with pytest.raises(KeyboardInterrupt):
        study.run_jobs(SimpleNamespace(workers=1, methods=["srl"], seeds=range(9)))
    assert len(begun) < 4
    monkeypatch.setattr(sys, "argv", ["study.py", "--methods", "equation"])
    with pytest.raises(SystemExit):
        study.main()
    assert "--methods equation: here are base, srl, " in capsys.readouterr().err


def test_every_method_of_a_world_has_its_number_of_rollouts_whatever_the_defaults_are():
    for name, world in study.WORLDS.items():
        for method in {**world["study"], **world["train"]}:
            command = study.command_of(method, world)
            assert ("sft" in command) != ("--rollouts" in command) and (study.ROOT / command[0]).is_file(), (name, method)
    world = study.WORLDS["equations"]
    assert study.command_of("equation", world) == ("miniature/variants.py", "equation", "--rollouts", "48000")
    assert study.command_of("srl_rlvr", world) == ("03_rlvr_train.py", "--rollouts", "60000")
    assert set(world["study"]) & set(world["train"]) == {"srl"} and world["study"]["srl"] == world["train"]["srl"]     # its fresh seeds


def test_a_seed_that_is_in_the_table_of_the_methods_is_not_run_again_for_the_study(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "ROOT", tmp_path)
    monkeypatch.setattr(study, "trained", lambda *args: (_ for _ in ()).throw(AssertionError("runs again")))
    write_text(tmp_path / "results/miniature/seed0/srl.json", "{}")
    args = SimpleNamespace(world="equations", study=True, results=tmp_path / "results/study/equations")
    assert study.job("srl", 0, args) == "srl, seed 0: has a result"
    with pytest.raises(AssertionError, match="runs again"):
        study.job("srl", 5, args)


def test_a_study_of_fewer_problems_has_the_same_validation_problems(examples, tmp_path):
    many = [{**e, "id": f"{e['id']}{i}"} for i in range(40) for e in examples]
    write_jsonl(tmp_path / "data/train.jsonl", many)
    write_jsonl(tmp_path / "data/val.jsonl", examples)
    study.make_examples(tmp_path, study.WORLDS["equations"], study.folders_of(["srl_50", "srl"]))
    assert {e["id"] for e in read_jsonl(tmp_path / "data_50/train.jsonl")} == {e["id"] for e in many[:150]} and len(many) == 240
    assert read_jsonl(tmp_path / "data_50/val.jsonl") == examples


# Off the expert's path
def test_after_a_detour_the_expert_goes_on_to_the_answer_and_the_random_move_is_no_target(examples):
    problems = [(f"p{i}", f"Solve {problem}", answer) for i, (problem, answer) in enumerate(
        [("4(3x - 7) + 25 = 5x + 46", "7"), ("3x + 4 = 19", "5"), ("2(3x - 4) + 7 = 4x + 9", "5")] * 20)]
    lengths = set()
    for worded in (False, True):
        found = {}
        for e in detours.detour_examples(problems, 3, worded):
            found.setdefault(e["id"], []).append(e)
        assert len(found) == len(problems)
        for (name, problem, answer), steps in zip(problems, found.values(), strict=True):
            assert {(e["id"], e["problem"], e["answer"]) for e in steps} == {(f"{name}, detour", problem, answer)}
            assert [e["k"] for e in steps] == [*range(steps[0]["k"], steps[-1]["n"] + 1)]      # from the detour to the end
            turns = [*steps[0]["partial"].strip().split("\n"), *(e["action"] for e in steps)]
            assert turns[-1].count(f"\\boxed{{{answer}}}") == 1 and all(turn.startswith(f"{k}. ") for k, turn in enumerate(turns, 1))
            solution = "\n".join(make.play(ask.parse_equation(problem), make.expert_title)[0])
            assert study_tables.departure(turns, {"solution": solution, "answer": answer}) == "valid"
            lengths.add(len(turns) - solution.count("\n") - 1)
    assert {0, 1} <= lengths and min(lengths) >= -2                     # another order, or a step more
    assert detours.detour_examples(problems[:3], 3) != detours.detour_examples(problems[:3], 4)
    with pytest.raises(InputError, match="problem a: 'How many\\?' is no equation"):
        detours.detour_examples([("a", "How many?", "5")], 0)


@pytest.mark.parametrize("turns, expected", [
    (STEPS, "never"), (STEPS[:2], "wrong"), ([], "wrong"), ([*STEPS, STEPS[2]], "valid"),
    (["<think>t</think>\n" + STEPS[0], "2. **Swap the sides** 15 = 3x"], "valid"), ([STEPS[0], "2. **Divide both sides by 3** x = 6"], "wrong"),
    (["1. **State the answer** \\boxed{5}"], "valid"), (["1. **State the answer** \\boxed{4}"], "wrong"), (["1. ** x"], "wrong")])
def test_an_attempt_leaves_the_experts_solution_by_a_step_that_the_answer_solves_or_not(turns, expected):
    assert study_tables.departure(turns, {"solution": "\n".join(STEPS), "answer": "5"}) == expected


def test_the_paths_of_attempts_are_counted_for_each_model_and_benchmark(tmp_path, capsys):
    problem = read_jsonl(study.ROOT / "miniature/benchmarks/hard.jsonl")[0]
    expert, other = problem["solution"].split("\n"), ["1. **Swap the sides** 1 = 2"]
    for name, rows in (("hard", [{"id": problem["id"], "sampled": [{"turns": expert}, {"turns": other}, {"turns": other}]}]), ("own", [])):
        (tmp_path / "srl").mkdir(exist_ok=True)
        write_jsonl(tmp_path / f"srl/{name}.jsonl", [{}, *rows])
        write_jsonl(tmp_path / f"srl/{name}.grades.jsonl", [{}, *({"verdicts": [["wrong", 0], ["right", 0], ["wrong", 0], ["right", 0]]} for _ in rows)])
    study_tables.write_paths([tmp_path, tmp_path])
    assert "| srl | hard | 6 | 33.3%, right 100.0% | 0.0% | 66.7%, right 50.0% |" in capsys.readouterr().out


def test_the_table_of_the_study_pairs_every_variant_with_srl_on_the_same_problems_and_seeds(tmp_path, monkeypatch):
    def write(folder, name, seed, right):
        part = {"greedy": [0, 0], "right": right, "k": 8}
        text = json.dumps({"model": name, "train_seed": seed, "command": "c", "seconds_training": 60, "seconds_evaluation": 30,
                           "benchmarks": {"validation": {**part, "right": [0, 8]}, "hard": part}})
        (folder / f"seed{seed}").mkdir(parents=True, exist_ok=True)
        (folder / f"seed{seed}/{name}.json").write_text(text)
        write_jsonl(folder / f"seed{seed}/{name}.log.jsonl", [{"done": 0, "val_exact": 0.1}, {"done": 96, "val_exact": 0.5 + seed / 10}])
    for seed in (0, 1):
        write(tmp_path / "old", "srl", seed, [4, 8])
        write(tmp_path / "study/w", "equation", seed, [8, 8])
    world = {**study.WORLDS["equations"], "results": tmp_path / "old"}
    monkeypatch.setattr(study_tables, "WORLDS", {"w": world})
    monkeypatch.setattr(study_tables, "ROOT", tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "README.md").write_text("")
    (tmp_path / "results/README.md").write_text("a\n<!-- study_w -->\nold\n<!-- /study_w -->\nb\n")
    study_tables.write_study(SimpleNamespace(world="w", results=tmp_path / "study/w"))
    srl, equation = json.loads((tmp_path / "study/w.json").read_text())
    assert (srl["variant"], srl["hard"]["avg"], equation["variant"], equation["hard"]["avg"]) == ("srl", 75.0, "equation", 100.0)
    assert equation["hard"]["minus_srl"][0] == 25.0 and equation["hard"]["minus_srl"][3] == 2 and equation["validation_exact"] == [0.5, 0.6]
    assert "| equation | `c` | 2 | 96 | 1.0 + 0.5 | 55.0 | 50.0 | 100.0 |  |" in (tmp_path / "study/w.md").read_text()
    table = (tmp_path / "study/w.md").read_text()
    assert (tmp_path / "results/README.md").read_text() == f"a\n<!-- study_w -->\n{table}<!-- /study_w -->\nb\n"
