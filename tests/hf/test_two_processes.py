"""The identical script, run in two processes, finds its own work again: keys hold nothing of a process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")

SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")
import torch
from transformers import GPT2Config, GPT2LMHeadModel
import patterning as pt

torch.manual_seed(0)
small = dict(vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
net = GPT2LMHeadModel(GPT2Config(**small, layer_norm_epsilon=float(sys.argv[2])))
tokens = {"input_ids": torch.randint(16, (8, 6)), "attention_mask": torch.ones(8, 6, dtype=torch.long)}
task = pt.language_task(net, tokens)

def train(weights, seed):
    print("TRAINED", flush=True)
    generator = torch.Generator().manual_seed(seed)
    return float(net.transformer.wte.weight.sum()) + float(weights.rho[0]) + float(torch.randn((), generator=generator))

if __name__ == "__main__":
    print("TASK", task.fingerprint)
    pt.verify(train, {"up": pt.Weights.of_rows([1.5, 1.0, 0.5])}, {"y": pt.Measure(abs)}, range(3), out=sys.argv[1])
"""


@pytest.mark.long
def test_a_train_that_holds_a_hugging_face_model_is_found_again_in_another_process(tmp_path: Path) -> None:
    script, runs = tmp_path / "mine.py", list[tuple[str, str]]()
    script.write_text(SCRIPT)
    for epsilon, salt in (("1e-5", "1"), ("1e-5", "2"), ("1e-4", "3")):
        line = [sys.executable, str(script), str(tmp_path / "proof"), epsilon]
        done = subprocess.run(
            line, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": salt}
        )
        runs.append((done.stdout, done.stderr))
    trained = [out.count("TRAINED") for out, _ in runs]
    assert trained == [10, 1, 10]  # nine runs, the first of them twice and once more in each call; then another model
    assert runs[0][0].splitlines()[0] == runs[1][0].splitlines()[0]  # so that χ finds its task again as well
    assert "fits this call" not in runs[1][1]
    assert "10 pieces) fits this call, which begins anew; what differs from the last call: " in runs[2][1]
    assert "train → net.config.layer_norm_epsilon" in runs[2][1]
