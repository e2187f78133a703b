"""The scripts as modules, and a policy small enough for every test. Run from anywhere: pytest tests."""
import os
import sys
from importlib import import_module
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "miniature")]

import pytest  # noqa: E402
import torch  # noqa: E402
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM  # noqa: E402

from engine.attention import register_attention  # noqa: E402

register_attention()


@pytest.fixture(scope="session")
def segment():
    return import_module("01_segment")


@pytest.fixture(scope="session")
def srl():
    return import_module("02_srl_train")


@pytest.fixture(scope="session")
def rlvr():
    return import_module("03_rlvr_train")


@pytest.fixture(scope="session")
def evaluate():
    return import_module("04_eval")


@pytest.fixture(scope="session")
def tokenizer():
    return AutoTokenizer.from_pretrained(ROOT / "miniature/base")


@pytest.fixture
def tiny(tokenizer):
    """A random Qwen2 of 30 k parameters with the miniature's tokenizer; new for every test."""
    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                         tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
                         attn_implementation="grouped_query", initializer_range=0.2)
    return Qwen2ForCausalLM(config).eval()


@pytest.fixture
def task(tmp_path, tiny, tokenizer, srl):
    """A one-step task: two tokens of at least seven characters together, which about half of the random ones have. Config for a small model in a folder."""
    tiny.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    examples = [{"id": str(i), "k": 1, "n": 1, "problem": f"Solve {i}", "partial": "", "action": "1"} for i in range(12)]
    cfg = srl.Config(model=str(tmp_path / "model"), out=str(tmp_path / "out"), prompts_per_batch=4, group_size=4, max_new_tokens=2, rollouts=160, eval_every=3,
                     learning_rate=3e-3, device="cpu")

    def reward(text, example):
        return float(len(text) >= 7)
    return cfg, examples, reward


@pytest.fixture(scope="session")
def example():
    return {"id": "p", "k": 2, "n": 3, "problem": "Solve 3x + 4 = 19", "partial": "1. **Subtract 4 from both sides** 3x = 15\n",
            "action": "2. **Divide both sides by 3** x = 5", "answer": "5"}
