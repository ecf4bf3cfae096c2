"""One of two processes that train together (gloo, on the CPU), for `test_distributed`: arguments are a folder."""

import os
import sys
import warnings
from pathlib import Path

warnings.simplefilter("ignore")  # of transformers and accelerate, about themselves

import torch  # noqa: E402

from hf.test_weighted_trainer import ROWS, gpt2, pad, row_weights, settings, texts, trained  # noqa: E402
from patterning.core.errors import PatterningError  # noqa: E402
from patterning.hf import WeightedTrainer  # noqa: E402

CASES = {
    "halves": {"per_device_train_batch_size": ROWS // 2},
    "micro-batches": {"per_device_train_batch_size": ROWS // 6, "gradient_accumulation_steps": 3},
    "drawn": {"per_device_train_batch_size": ROWS // 2},
}
"""Two processes go through all rows in a step, which hold unequal numbers of tokens."""


def run(folder: Path, case: str, **more: object) -> torch.Tensor:
    """Parameters after three steps over all rows."""
    weights = row_weights()
    return trained(
        WeightedTrainer(
            gpt2(), settings(folder, **{"learning_rate": 0.5} | more), train_dataset=weights.name_rows(texts()),
            data_collator=pad, weights=weights, resample=case == "drawn",
        )
    )[0]  # fmt: skip


def main(folder: Path) -> None:
    """What this process ends at, in every case, and what it says where samples are counted apart."""
    torch.set_num_threads(1)
    found: dict[str, object] = {case: run(folder, case, ddp_backend="gloo", **own) for case, own in CASES.items()}
    try:
        run(folder, "halves", ddp_backend="gloo", average_tokens_across_devices=False, **CASES["halves"])
    except PatterningError as error:
        found["refused"] = str(error)
    torch.save(found, folder / f"{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
