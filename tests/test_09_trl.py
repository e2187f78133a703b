"""The bridge to TRL: the examples are a prompt data set there, and srl_reward is a reward function. Skipped where TRL is not installed."""
import pytest

from engine.problems import read_problems

trl = pytest.importorskip("trl", reason="TRL is not installed")


def test_one_grpo_trainer_step_with_our_examples_and_our_reward(srl, segment, tiny, tokenizer, tmp_path):
    from datasets import Dataset
    examples = segment.segment(read_problems(srl.HERE / "miniature/expert.jsonl")[:4])[0]
    dataset = Dataset.from_list([{"prompt": srl.srl_prompt(e), "action": e["action"]} for e in examples])
    seen = []

    def reward(completions, action, **kwargs):
        rewards = [srl.srl_reward(completion[0]["content"], {"action": a}) for completion, a in zip(completions, action, strict=True)]
        seen.extend(rewards)
        return rewards
    tiny.set_attn_implementation("eager")
    trl.GRPOTrainer(model=tiny, processing_class=tokenizer, train_dataset=dataset, reward_funcs=reward, args=trl.GRPOConfig(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=8, num_generations=8, max_completion_length=12, report_to="none", use_cpu=True,
        beta=0.0, bf16=False, gradient_checkpointing=False, save_strategy="no")).train()
    assert len(seen) == 8 and all(-1 <= r <= 1 for r in seen)
    assert srl.srl_reward(f"<think>x</think>\n{examples[0]['action']}", {"action": dataset[0]["action"]}) == 1.0
