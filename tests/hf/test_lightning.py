"""Lightning needs nothing of ours but `weights.loss`."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import patterning as pt

lightning = pytest.importorskip("lightning")


@pytest.mark.filterwarnings("ignore")  # of Lightning, about loggers and workers
def test_three_lines_in_a_training_step(tmp_path) -> None:
    x = torch.linspace(-1, 1, 12)[:, None]
    y = torch.sign(x)
    weights = pt.Weights.of_rows(torch.arange(12.0))

    class Line(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)
            nn.init.zeros_(self.layer.weight)

        def training_step(self, batch, _):
            (features, target), rows = batch
            losses = (self.layer(features) - target).square()[:, 0]
            return weights.loss(losses, rows)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    model = Line()
    expected = nn.Linear(1, 1)
    expected.load_state_dict(model.layer.state_dict())
    loader = DataLoader(weights.name_rows(TensorDataset(x, y)), batch_size=12, shuffle=True)
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(model, loader)
    for _ in range(2):  # the formula, by hand
        gradient = torch.autograd.grad(
            (torch.as_tensor(weights.rho).float() * (expected(x) - y).square()[:, 0]).mean(), expected.parameters()
        )
        with torch.no_grad():
            for p, g in zip(expected.parameters(), gradient, strict=True):
                p.sub_(0.1 * g)
    for p, wanted in zip(model.layer.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, wanted, rtol=0, atol=1e-6)
