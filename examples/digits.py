"""Which handwritten digits should weigh more, for a small network to read the 8s better?

χ says how the 8s' loss on a probe set answers to the weight of each training image; its inverse gives weights; and
retraining from fresh seeds says what the weights do, on test images that neither training nor χ has seen.
It is the README's ten lines with three questions more: what do the same weights do when they are dealt out again among
the images of each digit, what would someone do who knows the answer, and what do the other digits pay? About 25
seconds of one core; needs scikit-learn:

    python examples/digits.py
"""

import numpy as np
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn, tensor

import patterning as pt


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of each image, (b,)."""
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def main(*, pairs: int = 8, steps: int = 400, chains: int = 4, draws: int = 20) -> pt.Evidence:
    """Do it, print it, and return the evidence. Training stops early, at `steps`, so that the loss can still fall."""
    images, digits = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(digits))
    x, y = tensor(images[order] / 16).float(), tensor(digits[order])
    net = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    task = pt.Task(net, loss, (x[:1000], y[:1000]))

    def train(weights: pt.Weights | None, seed: int) -> nn.Module:
        return pt.fit(task, weights, seed, steps=steps, learning_rate=3e-3)

    def mean_loss(first: int, last: int, eights: bool):
        keep = first + ((y[first:last] == 8) == eights).nonzero()[:, 0]
        return lambda model: F.cross_entropy(model(x[keep]), y[keep])

    # 1. A trained network, and χ of the 8s' loss on the probe set (images 1000-1399) for each training image
    chi = pt.measure(
        task, {"8s": mean_loss(1000, 1400, True)}, at=train(None, 1000), sampler=pt.SGLD(300, 1000, 1e-4),
        chains=chains, draws=draws,
    )  # fmt: skip
    print(chi)
    print(*chi.top(3, "8s", decode=lambda row, position: f"a {int(row[1])}"), sep="\n")
    # 2. Weights for less loss on the 8s
    plan = chi.invert({"8s": -1})
    print(plan)
    rho = plan.weights(strength=0.25)
    # 3. Retraining: under ρ, unweighted, permuted, ρ dealt out again among each digit's images, plain weights
    within = rho.permuted(0, within=y[:1000])
    plain = pt.Weights.of_rows(np.where(y[:1000] == 8, 3.0, 1.0))  # scaled to mean 1
    test = {"8s": mean_loss(1400, 1797, True), "other digits": mean_loss(1400, 1797, False)}
    check = pt.verify(
        train, {"fewer errors on 8s": rho}, {name: pt.Measure(of) for name, of in test.items()}, range(pairs),
        extra={"permuted within digit": within, "each 8 three times": plain},
    )  # fmt: skip
    check.show()
    return check


if __name__ == "__main__":
    main()
