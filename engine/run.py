"""A training run: progress bar, log, trackers, best model by validation, checkpoints, exact resume after any
interruption."""
import math
import os
import random
import resource
import signal
import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import torch
from tqdm import tqdm

from .distributed import rank, shard_model
from .files import InputError, atomic_write, explain_write_errors, first_line, write_jsonl
from .optimizer import make_optimizer
from .policy import load_policy, save_model
from .preflight import check_start
from .stored import digest, identity_of

# flags that do not change what is learned
IGNORED_ON_RESUME = ("continue_changed", "save_every", "report_to", "share_prompts", "shard", "max_rows",
                     "update_tokens")


def peak_gb(device):
    """The peak memory of this process so far in GB: of the GPU, else of the machine."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024                  # bytes on a Mac, kB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def finite(line):
    """A log line as strict JSON: a number that is not finite becomes null."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}


def numbers(line):
    return {name: value for name, value in line.items() if isinstance(value, (int, float))}


def make_tracker(cfg):
    """track(line): sends the numbers of a log line to --report_to. Raises InputError where the package is
    missing."""
    if cfg.report_to == "none" or rank():
        return lambda line: None
    try:
        if cfg.report_to == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter
            writer = SummaryWriter(cfg.out)

            def track(line):
                for name, value in numbers(line).items():
                    writer.add_scalar(name, value, line["step"])
                writer.flush()
            return track
        tracker = import_module(cfg.report_to)                      # trackio has the interface of wandb
        project = Path(__file__).parents[1].name
        run_id = {"id": digest(asdict(cfg))} if cfg.report_to == "wandb" else {}    # else it does not resume
        tracker.init(project=project, name=Path(cfg.out).name, config=asdict(cfg), resume="allow", **run_id)
        return lambda line: tracker.log(numbers(line), step=line["step"])
    except ImportError:
        raise InputError(f"--report_to {cfg.report_to}: not installed; pip install {cfg.report_to}") from None


def load_checkpoint(out, cfg, identity):
    """The newest complete checkpoint of an interrupted run, or None. Raises InputError where it was made with
    other flags."""
    for path in (out / "checkpoint.pt", out / "checkpoint.previous.pt"):
        if not path.exists():
            continue
        try:
            state = torch.load(path, weights_only=True, map_location="cpu")
            before = state["config"]
        except Exception as error:  # torch raises many types for a damaged file
            print(f"{path}: damaged ({first_line(error)[:80]}), ignored", file=sys.stderr)
            continue
        now = {name: value for name, value in asdict(cfg).items() if name not in IGNORED_ON_RESUME}
        changed = [f"{name} {before.get(name)!r} -> {value!r}" for name, value in now.items()
                   if before.get(name) != value]
        saved = state.get("identity", {})
        changed += [f"other {name}" for name, value in identity.items() if saved.get(name) != value]
        if changed and not cfg.continue_changed:
            raise InputError(f"{out}: contains a run with other settings ({'; '.join(changed)}); "
                             "use another --out, delete the folder, or accept them with --continue_changed")
        return state
    return None


class Cursor:
    """Walks through examples in a new random order every epoch; its position is one number."""

    def __init__(self, examples, seed, position=0):
        self.examples, self.seed, self.position = examples, seed, position

    def take(self, n):
        taken = []
        while len(taken) < n:
            epoch, i = divmod(self.position + len(taken), len(self.examples))
            order = random.Random(f"{self.seed}-{epoch}").sample(self.examples, len(self.examples))
            taken += order[i:i + n - len(taken)]
        self.position += n
        return taken


def plan(cfg, data, total, unit, extends):
    """One line on what a run will do. extends: an episode has several turns, each a completion."""
    examples = f"{cfg.out}: {len(data[0]):,} examples, {len(data[1]):,} to validate on; "
    if unit == "batch":
        return f"{examples}{total:,} batches of {cfg.sft_batch}, {cfg.epochs} epochs; bar: [time so far<left]"
    size = cfg.prompts_per_batch * cfg.group_size
    least = math.ceil(total / (size * cfg.max_tries * (cfg.max_turns if extends else 1)))
    return (f"{examples}{total:,} completions in {least:,} to {math.ceil(total / size):,} updates of "
            f"{cfg.prompts_per_batch} prompts x {cfg.group_size} or more; bar: [time so far<left]")


class Run:
    """Owns policy, tokenizer and optimizer, and what a checkpoint stores of a run: counters, log, best
    validation.

    step: updates so far; done, of `total`: units of the progress bar; cursor: position in the data. Started
    again with the same flags, a run continues where its checkpoint is, with the same result.
    """

    def __init__(self, cfg, data, make_prompt, functions, total, unit, shown, validate_every,
                 alarms=None, log=()):
        """data: (training, validation) examples. functions: see identity_of; the last one extends an episode,
        if not None. shown: names of a log line for the screen, the first four for the bar too.
        validate_every: steps between validations, which save too. alarms(log) -> {name: message}.

        Raises InputError, see check_start and load_checkpoint.
        """
        if not all(data):
            raise InputError(f"{cfg.out}: no examples to train on, or none to validate on; see --data and "
                             "the flags that choose among them")
        check_start(cfg, [*data[0], *data[1]], make_prompt)
        print(plan(cfg, data, total, unit, functions[-1]))
        self.identity = identity_of(cfg, data, make_prompt, functions)
        self.cfg, self.out, self.total = cfg, Path(cfg.out), total
        self.shown, self.validate_every, self.alarms = shown, validate_every, alarms
        self.state = {"step": 0, "done": 0, "cursor": 0, "losses": [], "completions_size": 0,
                      "best": (-1.0, -1.0), "log": list(log)}
        saved = load_checkpoint(self.out, cfg, self.identity)
        self.policy, self.tokenizer = load_policy(cfg.model, cfg.device, cfg.dtype, cfg.share_prompts)
        torch.manual_seed(cfg.seed)
        if cfg.shard:
            shard_model(self.policy, getattr(torch, cfg.dtype))
        self.optimizer = make_optimizer(self.policy, cfg)
        if saved:
            self.state = saved["run"]
            self.optimizer.load_state_dict(saved["optimizer"])
            torch.set_rng_state(saved["rng"])
            print(f"{self.out}: continuing after update {self.step}", file=sys.stderr)
        self.track, self.interrupted = make_tracker(cfg), False
        self.replay_log()
        # smoothing: the time left follows the last 20 updates, so about one validation
        self.bar = tqdm(total=total, initial=self.done or self.step, unit=unit, desc=self.out.name,
                        dynamic_ncols=True, smoothing=0.05, disable=rank() > 0)

    def __getattr__(self, name):
        """run.step, run.done, run.log, ..: the entries of the state."""
        if name == "state" or name not in self.state:
            raise AttributeError(name)
        return self.state[name]

    @contextmanager
    def resumable(self):
        """Ctrl-C, SIGTERM, out of memory, a lost device: whatever ends the block, a checkpoint of the last
        complete update is saved first.

        A signal in the middle of an update waits for its end (checkpoint_barrier).
        """
        def stop(*_):
            self.interrupted = True
            if not self.optimizer.mid_update:
                raise KeyboardInterrupt
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            # a sharded checkpoint needs all ranks
            if not self.cfg.shard and not self.optimizer.mid_update and not isinstance(error, InputError):
                self.save()
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        self.bar.close()
        counts = Counter(name for line in self.log for name in line.get("alarms", ()))
        if counts:
            print("alarms: " + ", ".join(f"{name} {n} times" for name, n in counts.items()))
        print(f"{self.out / 'model'}: best by validation, exact {self.best[0]:.1%}, mean {self.best[1]:.3f}; "
              f"log: {self.out / 'log.jsonl'}")

    def checkpoint_barrier(self, **state):
        """The state now includes the last update: stop here if a signal arrived during it."""
        self.state = {**self.state, **state}
        self.optimizer.mid_update = False
        if self.interrupted:
            raise KeyboardInterrupt

    def save(self):
        """A checkpoint, complete or absent, and the log. The previous one stays as checkpoint.previous.pt."""
        state = {"optimizer": self.optimizer.state_dict(), "rng": torch.get_rng_state(),
                 "config": asdict(self.cfg), "identity": self.identity, "run": self.state}
        if rank() == 0:
            write_jsonl(self.out / "log.jsonl", self.log)
            with atomic_write(self.out / "checkpoint.pt") as temporary:
                torch.save(state, temporary)
                if (self.out / "checkpoint.pt").exists():
                    os.replace(self.out / "checkpoint.pt", self.out / "checkpoint.previous.pt")

    def updated(self, stats, turns, text, **state):
        """An update is complete: its log line, its text for completions.txt, and the state that changed."""
        if stats.get("skipped") and rank() == 0:
            names = ("prompt", "completion", "logprobs", "weight")
            records = [dict(zip(names, turn, strict=True)) for turn in turns]
            write_jsonl(self.out / "not_finite.jsonl", records)
        done = self.done + stats["completions"]
        line = finite({"step": self.step + 1, "done": done, **stats, "peak_gb": peak_gb(self.cfg.device)})
        line["alarms"] = self.new_alarms([*self.log, line])
        state |= {"step": self.step + 1, "done": done, "log": [*self.log, line]}
        self.checkpoint_barrier(completions_size=self.append_text(text), **state)
        self.bar.update(stats["completions"])
        validated_next = self.step % self.validate_every == 0 or self.done >= self.total
        if not validated_next:
            self.track(line)
            if self.step % self.cfg.save_every == 0:
                self.save()
        shown = {name: f"{line[name]:.3g}" for name in self.shown[:4]}
        self.bar.set_postfix(shown, val=f"{self.best[0]:.1%}")

    def stepped(self, norm, **state):
        """An optimizer step with this gradient norm is complete, and has no log line of its own."""
        if not math.isfinite(norm):
            tqdm.write(f"ALARM (not finite): batch {self.step + 1} was skipped, its gradient was not finite; "
                       "lower --learning_rate, or try --dtype float32")
        self.checkpoint_barrier(step=self.step + 1, **state)
        self.bar.update()
        if self.step % self.cfg.save_every == 0 and self.step % self.validate_every:
            self.save()

    def validated(self, metrics, **state):
        """Add validation metrics to the last log line (or a new one), keep the best model, save.

        Best is the largest sum: the mean alone overlooks near copies, the exact share alone is chance where
        texts are worded freely and almost none is equal.
        """
        score = (metrics["val_exact"], metrics["val_reward"])
        better = sum(score) > sum(self.best)
        if better:
            save_model(self.policy, self.tokenizer, self.out / "model", getattr(torch, self.cfg.dtype))
        log = [*self.log]
        line = finite({**(log.pop() if log and log[-1]["step"] == self.step else {}), **metrics})
        if self.alarms:
            line["alarms"] = self.new_alarms([*log, line])
        self.state = {**self.state, "log": [*log, line], "best": score if better else self.best, **state}
        self.save()
        self.track(line)
        self.print_line(line)
        if not self.step:
            self.bar.unpause()                                      # the first update does not pay for it

    def append_text(self, text):
        """Append to completions.txt, without what updates after the checkpoint had written. Returns its new
        size in bytes."""
        if rank():
            return self.completions_size
        path = self.out / "completions.txt"
        with explain_write_errors(path), open(path, "ab") as file:
            size = min(self.completions_size, file.tell())
            file.truncate(size)
            return size + file.write(text.encode("utf-8", "replace"))

    def new_alarms(self, log):
        """{name: message} of the alarms after the last line; no message where an earlier line has it."""
        earlier = {name for line in log for name in line.get("alarms", ())}
        found = {name: "" if name in earlier else message for name, message in self.alarms(log).items()}
        self.print_alarms(found)
        return {**found, **log[-1].get("alarms", {})}

    def print_alarms(self, found):
        for name, message in found.items():
            if message:
                tqdm.write(f"ALARM ({name}): {message}")

    def print_line(self, line):
        shown = [f"{name} {line[name]:.3g}" for name in self.shown if line.get(name) is not None]
        tqdm.write(f"update {line['step']}: " + ", ".join(shown))
        if line.get("val_unsolved"):
            tqdm.write(line["val_unsolved"].rstrip())

    def replay_log(self):
        """Print what the screen showed before an interruption."""
        for line in self.log:
            self.print_alarms(line.get("alarms", {}))
            if "val_exact" in line:
                self.print_line(line)
