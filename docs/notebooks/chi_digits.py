# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---
# %% [markdown]
# # χ on digits
#
# Which training images does the loss on one digit answer to? We train a small classifier of handwritten digits,
# measure the *susceptibility* χ of its loss on the 8s, and look at the images at both ends. χ of a sample says how the
# mean of a measured number moves when this sample gains weight ([concepts](../concepts.md)).

# %%
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.nn import Linear, ReLU, Sequential
from torch.nn.functional import cross_entropy

import patterning as pt

torch.set_num_threads(1)
images, digits = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(digits))
x, y = torch.tensor(images[order] / 16).float(), torch.tensor(digits[order])


def loss(model, batch):
    return cross_entropy(model(batch[0]), batch[1], reduction="none")


def loss_of(digit: int):
    """The loss on the images of `digit` among rows 1,000 to 1,399, which training does not see."""
    rows = 1000 + (y[1000:1400] == digit).nonzero()[:, 0]
    return lambda model: cross_entropy(model(x[rows]), y[rows])


task = pt.Task(Sequential(Linear(64, 16), ReLU(), Linear(16, 10)), loss, (x[:1000], y[:1000]))
trained = pt.fit(task, None, 0, steps=400, learning_rate=3e-3)

# %% [markdown]
# `measure` runs chains around the trained model. One observable is the loss on the 8s, the other that on the 3s.

# %%
chi = pt.measure(
    task,
    {"8s": loss_of(8), "3s": loss_of(3)},
    sampler=pt.SGLD(n_beta=300, localization=1000, step_size=1e-4),
    at=trained,
    progress=False,
)
print(chi)

# %% [markdown]
# **The samples at both ends.** χ > 0: more weight on this image *raises* the loss on the 8s. Most of these are images
# that look like an 8 and are something else. χ < 0: more weight on it lowers the loss.

# %%
for example in chi.top(4, "8s", decode=lambda row, position: f"a {int(row[1])}"):
    print(example)

# %% [markdown]
# **By class.** The mean of χ over the images of each digit, with the standard error over images. The images of an 8
# lower the loss on the 8s, and those of a 3 lower the loss on the 3s.

# %%
labels = y[:1000].numpy()
print("digit   χ of the loss on 8s    χ of the loss on 3s")
for digit in range(10):
    of_class = chi.chi[:, labels == digit]
    mean, error = of_class.mean(1), of_class.std(1) / of_class.shape[1] ** 0.5
    print(f"{digit:5}   {mean[0]:+.5f} ± {error[0]:.5f}     {mean[1]:+.5f} ± {error[1]:.5f}")
assert chi.chi[0, labels == 8].mean() < 0 < chi.chi[0, labels != 8].mean()

# %% [markdown]
# **One weight by hand.** χ predicts what happens when weight is moved, to first order: `nβ Σ q s χ`. Doubling the
# weight of all 8s (and taking it evenly from the rest) is such a change. This is its prediction for a change of 1 %:

# %%
s = np.where(labels == 8, 1.0, 0.0)
s -= s.mean()
predicted = chi.n_beta * (chi.chi @ (0.01 * s)) / len(s)
print(f"predicted change of the loss on 8s: {predicted[0]:+.2e} nats, on 3s: {predicted[1]:+.2e} nats")

# %% [markdown]
# That is the response of the trained model's surroundings. Whether *training* follows is tested by retraining:
# [get started](../get-started.md) goes on from here.
