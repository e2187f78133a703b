"""Alarms: what looks wrong in a training log, and the flag that fixes it."""


def mean(lines, name):
    return sum(line.get(name) or 0.0 for line in lines) / len(lines)


def alarms(log, cfg, score):
    """{name: message} after the last of the lines of a log. score: the name of the mean score in a line."""
    line, updates = log[-1], [x for x in log if score in x]
    found = {**sampling_alarms(updates, cfg, score), **update_alarms(line, cfg)} if score in line else {}
    validations = [x for x in log if "val_exact" in x]
    if "val_exact" in line and len(validations) > 2:
        first, last = validations[0], validations[-2:]
        if all(x[name] < first[name] for x in last for name in ("val_exact", f"val_{score}")):
            now, before = line[f"val_{score}"], first[f"val_{score}"]
            found["worse"] = (f"validation is worse than before training, twice in a row ({score} {now:.3f}, "
                              f"{before:.3f} before): --learning_rate {cfg.learning_rate / 3:.2g} or less")
    return found


def sampling_alarms(updates, cfg, score):
    """Alarms about what was sampled: signal, format, length, near copies, entropy."""
    found, line, lower = {}, updates[-1], f"--learning_rate {cfg.learning_rate / 3:.2g}"
    if len(updates) >= 3 and not any(x["kept"] for x in updates[-3:]):
        sampled = sum(x["sampled"] for x in updates[-3:])
        hard = "hard for this policy: train it with 02_srl_train.py first, or use easier ones"
        why = "easy: use harder ones" if line["exact"] > 0.5 else hard
        found["no signal"] = (
            f"no group of the last {sampled} had a {score} difference (a std above --eps {cfg.eps}), so "
            f"there is nothing to learn (mean {score} {line[score]:.3f}); the problems are too {why}")
    if line["bad_format"] > 0.95:
        found["format"] = ("fewer than 5 % of the completions have the right format: read completions.txt; "
                           "start from a model that follows the prompt, or raise --max_new_tokens")
    if line["truncated"] > 0.5:
        found["truncated"] = (f"{line['truncated']:.0%} of the completions were truncated: "
                              f"raise --max_new_tokens {cfg.max_new_tokens} to {2 * cfg.max_new_tokens}")
    if len(updates) < 20:
        return found
    windows, now = [updates[i:i + 10] for i in range(0, len(updates) - 19, 5)], updates[-10:]
    best = max(windows, key=lambda window: mean(window, "exact"))
    if mean(now, "exact") < 0.5 * mean(best, "exact") and mean(now, score) > mean(best, score) + 0.01:
        found["near copies"] = (
            f"the mean {score} rises ({mean(best, score):.3f} to {mean(now, score):.3f}) while exact answers "
            f"fall ({mean(best, 'exact'):.1%} to {mean(now, 'exact'):.1%}): {lower} or less")
    first = mean(updates[:10], "entropy")
    if 0 < mean(now, "entropy") < 0.1 * first and mean(now, "exact") < 0.5:
        found["entropy"] = (
            f"the entropy fell from {first:.3g} to {mean(now, 'entropy'):.3g} while most answers are "
            f"wrong: the policy does not explore; start again with {lower} or a higher --temperature")
    return found


def update_alarms(line, cfg):
    """Alarms about the update: rollout and update disagree, a gradient that is not finite."""
    found = {}
    mismatch, clipped = line.get("mismatch", 0), line.get("clipped", 0)
    if mismatch > 0.02 and cfg.dtype == "float32" or cfg.minibatches == 1 and clipped > 0.02:
        found["mismatch"] = (
            f"log-probabilities of rollout and update differ by {mismatch:.2g} ({clipped:.1%} of the "
            "tokens clipped): they should be equal; try --dtype float32, and report the model")
    if line.get("skipped"):
        found["not finite"] = (
            "a gradient was not finite, its update was skipped, the batch is in not_finite.jsonl; "
            f"lower --learning_rate {cfg.learning_rate:.2g}, or try --dtype float32")
    return found
