r"""`Weights`: relative weights ρ on the rows of a data set, or on the tokens of its rows; only ratios of ρ matter:

.. math:: L_\rho = \sum_j q_j \rho_j \ell_j \Big/ \sum_j q_j \rho_j

(Wang & Murfet, arXiv 2601.13548). Weights know the rows they were made for, by their ids and by a fingerprint of the
data, so that other or reordered data is refused and not weighted wrongly.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patterning.core.arrays import Bools, Floats, as_floats, as_ids, as_mask
from patterning.core.errors import PatterningError
from patterning.core.indexes import in_one_order, index_of
from patterning.core.plain import Facts, Plain
from patterning.core.shapes import Losses, Rho, SampleNumbers, shaped
from patterning.intervention.card import TABLE, push_card, save_card
from patterning.intervention.change import what_rows_keep
from patterning.intervention.loading import WeightedRows, attached
from patterning.intervention.permute import dealt, dealt_order, labels_of_cells
from patterning.intervention.row_ids import ROW_ID, check_order, in_groups, places_of, refuse_no_samples, with_ids
from patterning.intervention.weights import WeightSummary, summarise
from patterning.intervention.weights_file import read_weights, write_weights

if TYPE_CHECKING:
    from patterning.core.task import Task

ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class Weights:
    """ρ of every row (n,), or of every token of every row (n, t), float64, with mean 1 under the base weights.

    `ids` (n,): the rows' names, by default their numbers. `base_weights` q, shaped like `rho`: 0 where a token is
    masked. `free`, shaped like `rho`: what may move; the rest stays at ρ = 1. `data`: fingerprint of the data. `facts`:
    how the weights were made, in plain values (target in words, policy, strength, predicted change). `swapped` (n,)
    bool: preference pairs that are trained on with their labels exchanged (None: no pair is).

    >>> weights = Weights.of_rows([2.0, 1.0, 0.0])
    >>> weights.of([0, 2]).tolist()
    [2.0, 0.0]
    """

    rho: Floats
    ids: NDArray[Any]
    base_weights: Floats
    free: Bools
    data: str = ""
    facts: Facts = field(default_factory=dict)
    swapped: Bools | None = None

    def __post_init__(self) -> None:
        """Refuse weights that cannot weight a loss; scale the others to mean 1."""
        rho, q = as_floats("the weights", self.rho), as_floats("base_weights", self.base_weights)
        if rho.ndim not in (1, 2) or q.shape != rho.shape or len(self.ids) != len(rho):
            raise PatterningError(f"weights {rho.shape}, base weights {q.shape} and {len(self.ids)} ids do not fit")
        if not np.isfinite(rho).all() or (rho < 0).any():
            bad = int((~np.isfinite(rho) | (rho < 0)).sum())
            raise PatterningError(f"{bad} of {rho.size} weights are negative, NaN or infinite")
        if not (np.isfinite(q).all() and (q >= 0).all() and q.any()):
            raise PatterningError("base_weights must be finite and >= 0, not all 0")
        q = q if abs(q.sum() - 1) < ROUNDING else q / q.sum()
        mean = float((q * rho).sum())
        if not mean > 0:
            raise PatterningError("the weights are all zero: there is nothing left to train on")
        names = as_ids(self.ids)
        free = as_mask("free", np.asarray(self.free).ravel(), rho.size).reshape(rho.shape)
        rho = rho if abs(mean - 1) < ROUNDING else rho / mean  # so that a file gives back the same bits
        for name, value in (("rho", rho), ("base_weights", q), ("free", free), ("ids", names)):
            object.__setattr__(self, name, value)
        if self.swapped is not None:
            if rho.ndim != 1:
                raise PatterningError("labels of single tokens cannot be exchanged: swapped is for one weight a row")
            swapped = as_mask("swapped", self.swapped, len(rho))
            object.__setattr__(self, "swapped", swapped if swapped.any() else None)

    def __repr__(self) -> str:
        """What the weights ask for, and how hard they pull."""
        pull, what = self.summary(), self.facts.get("what", "weights")
        return (
            f"Weights({what}: {' × '.join(map(str, self.rho.shape))}, ρ {pull.smallest:.3g} to {pull.largest:.3g}, "
            f"effective sample size {100 * pull.effective_sample_size:.0f} % of what may move"
            f"{'' if self.swapped is None else f', labels of {int(self.swapped.sum())} rows exchanged'}"
            f"{'; ' + kept if (kept := what_rows_keep(self.facts)) else ''})"
        )

    @classmethod
    def of_rows(cls, rho: Any, ids: Sequence[Any] | None = None, base_weights: Any = None) -> "Weights":
        """Weights of your own: ρ (n,) or (n, t). The index of a pandas series is its ids, unless these are given."""
        values = as_floats("the weights", in_one_order({"rho": rho, "ids": ids}, base_weights)["rho"])
        if values.ndim not in (1, 2) or not values.size:
            raise PatterningError(f"ρ has shape {values.shape}: it must be (rows,) or (rows, tokens), and not empty")
        q = np.ones(values.shape) if base_weights is None else as_floats("base_weights", base_weights)
        ids = index_of(rho) if ids is None else ids
        names = np.arange(len(values)) if ids is None else as_ids(ids)
        return cls(values, names, q, np.ones(values.shape, dtype=bool))

    @classmethod
    def uniform(cls, task: "Task") -> "Weights":
        """ρ = 1 for every row of the task's data: the unweighted arm."""
        q = task.base_weights.numpy()
        return cls(
            np.ones(len(q)), task.ids, q, np.ones(len(q), dtype=bool), task.data_fingerprint, {"what": "unweighted"}
        )

    @classmethod
    def of_groups(cls, groups: Any, rho_by_group: Mapping[Any, float], task: "Task | None" = None) -> "Weights":
        """One ρ for each group of rows, a mixture of domains say: `groups` (n,) labels, `rho_by_group` label → ρ.

        ρ says how the groups compare; it is scaled to mean 1. With `task`: rows, base weights and fingerprint of its
        data. Raises `PatterningError` for a group without a ρ, and for a ρ without rows.
        """
        named, place = in_groups(groups, rho_by_group)
        rho = as_floats("rho_by_group", list(named.values()), 1)[place]
        index = index_of(groups)
        base = cls.of_rows(np.ones(len(rho)), ids=index) if task is None else cls.uniform(task)
        if task is not None and index is not None and set(index) == set(task.ids.tolist()):
            check_order(np.array(index), task.ids, "take groups.loc[task.ids]")
        if len(base) != len(rho):
            raise PatterningError(f"{len(rho)} labels for the {len(base)} rows of the task")
        facts = {"what": "groups", "rho_by_group": {str(kind): float(value) for kind, value in named.items()}}
        return replace(base, rho=rho, facts=facts)

    def __len__(self) -> int:
        """Rows."""
        return len(self.rho)

    @property
    def per_token(self) -> bool:
        """Whether each token of a row has a weight of its own."""
        return self.rho.ndim == 2

    @shaped
    def of(self, rows: Any) -> Rho:
        """ρ of the rows with these ids, (b,) or (b, t); raises `PatterningError` for an id that is none."""
        return self.rho[self.places(rows)]

    @shaped
    def places(self, rows: Any) -> SampleNumbers:
        """Where rows with these ids lie, (b,) int64."""
        return places_of(self.ids, rows.cpu().numpy() if isinstance(rows, Tensor) else rows)

    def by_row(self) -> "Weights":
        """One weight a row: the mean of its tokens' under q. Rows without tokens have 1."""
        if not self.per_token:
            return self
        total = self.base_weights.sum(1)
        mean = (self.base_weights * self.rho).sum(1) / np.where(total > 0, total, 1.0)
        return replace(self, rho=np.where(total > 0, mean, 1.0), base_weights=total, free=self.free.any(1))

    def check(self, task: "Task") -> None:
        """Raise `PatterningError` unless these weights are of the data and the rows (ids) of `task`, in its order."""
        self.check_data(task.data_fingerprint, len(task.base_weights))
        check_order(self.ids, task.ids)

    def check_data(self, fingerprint: str, rows: int) -> None:
        """Raise `PatterningError` for data of another fingerprint (where one is known) or another number of rows."""
        if rows != len(self):
            raise PatterningError(f"these weights are of {len(self)} rows, and the data has {rows}")
        if self.data and fingerprint != self.data:
            raise PatterningError(
                "these weights were made for other data, or for the same rows in another order (fingerprint "
                f"{self.data}, not {fingerprint}); look rows up by their ids with .of(ids) instead"
            )

    def loss(self, losses: Losses, rows: Any, mask: Tensor | None = None, *, exchanged: Tensor | None = None) -> Tensor:
        """The weighted mean loss of a minibatch drawn without regard to ρ: `losses` (b,) or (b, t) of rows `rows`.

        The mean of ρ ℓ over the samples, those of `mask` if there is one. `losses` may be the pair (losses, mask)
        that a task's loss returns. Of padded rows give a mask: without one, padding counts. ρ has mean 1 over the data
        and not over the minibatch: where rows are drawn in proportion to the base weights q (uniformly, where these are
        even) and hold equally many samples, the gradient is unbiased for that of L_ρ. `exchanged` (b,): the losses of
        the same pairs with their labels exchanged, which count where `swapped` says so.
        """
        if isinstance(losses, tuple) and len(losses) == 2 and mask is None:
            losses, mask = losses
        mask = mask if mask is None else torch.as_tensor(mask, device=getattr(losses, "device", None))
        if not isinstance(losses, Tensor):
            raise PatterningError(f"the losses are {type(losses).__name__}: they must be a tensor, or (losses, mask)")
        if self.swapped is not None:
            if exchanged is None or exchanged.shape != losses.shape:
                raise PatterningError(
                    "the labels of some rows are exchanged under these weights: give exchanged=, the losses of the "
                    "same rows with their labels exchanged, or exchange them in the data (tasks.preference.exchange)"
                )
            swapped = torch.from_numpy(self.swapped[self.places(rows)]).to(losses.device)
            losses = torch.where(swapped.reshape(-1, *[1] * (losses.ndim - 1)), exchanged, losses)
        if not losses.is_floating_point():
            raise PatterningError(f"the losses are {losses.dtype}: they must be floating point numbers")
        if mask is not None and mask.shape != losses.shape:
            raise PatterningError(
                f"the mask {tuple(mask.shape)} is not of the shape of the losses {tuple(losses.shape)}"
            )
        if mask is not None and not bool((mask >= 0).all()):
            raise PatterningError("the mask holds numbers below 0 or NaN: 0 is no sample, 1 is one, between is a share")
        rho = torch.from_numpy(self.of(rows)).to(losses)
        rho = rho[:, None] if losses.ndim > rho.ndim else rho
        fits = losses.ndim == rho.ndim <= 2 and losses.shape[0] == rho.shape[0]
        if not fits or rho.shape[-1] not in (1, losses.shape[-1]):
            how = "" if losses.ndim else ': one loss for each row is needed (reduction="none")'
            raise PatterningError(f"losses {tuple(losses.shape)} and weights {tuple(rho.shape)} do not fit{how}")
        if self.per_token:
            counted = torch.ones_like(losses, dtype=torch.bool) if mask is None else mask > 0
            refuse_no_samples(self.base_weights[self.places(rows)], counted)
        weighted = rho * losses
        if mask is None:
            return weighted.mean()
        kept = mask.to(losses)
        return torch.where(kept > 0, weighted * kept, 0.0).sum() / kept.sum().clamp(min=1e-12)

    def sampler(self, seed: int, rows: int | None = None) -> WeightedRows:
        """For a `DataLoader`: row numbers drawn in proportion to q ρ, so that a plain loss follows L_ρ."""
        if self.per_token:
            raise PatterningError("tokens of a row are not drawn apart: use .loss(...), or .by_row().sampler(seed)")
        self._refuse_swaps("a sampler draws rows as they are")
        return WeightedRows(self.base_weights * self.rho, seed, rows)

    def permuted(self, seed: int, within: Any = None) -> "Weights":
        """The same weights dealt to other free samples: the control of these. `within`: a label for each sample.

        With labels, weights are dealt out within each label, which keeps every label's total. The histogram of the
        weights is kept, where base weights are uneven up to a factor (`intervention.permute`), which is in the facts.
        Warns where hardly anything is moved, and raises `PatterningError` where nothing can be.
        """
        labels = None if within is None else labels_of_cells(within, self.rho.shape)
        free = self.free & (self.base_weights > 0)
        facts: dict[str, Plain] = {"what": f"permuted ({self.facts.get('what', 'weights')})", "seed": seed}
        if self.swapped is not None:  # each weight is dealt out together with its exchange
            source = dealt_order(self.base_weights, free, seed, labels)
            return replace(self, rho=self.rho[source], swapped=self.swapped[source], facts=facts)
        rho = dealt(self.rho.ravel(), self.base_weights.ravel(), free.ravel(), seed, labels)
        if within is None and np.ptp(self.base_weights[free]) > 0:
            facts["rescaled"] = float(rho[free.ravel()].sum() / self.rho[free].sum())
        return replace(self, rho=rho.reshape(self.rho.shape), facts=facts)

    def _refuse_swaps(self, why: str) -> None:
        if self.swapped is not None:
            raise PatterningError(
                f"labels of {int(self.swapped.sum())} rows are exchanged under these weights, and {why}: exchange them "
                "in the data (tasks.preference.exchange), and set swapped to None"
            )

    def extend(self, task: "Task", at: Any = None, *, force: bool = False) -> "Weights":
        """ρ for the rows of `task` that were not probed, predicted from the model (`intervention.extend`).

        `at`: the checkpoint that χ was measured at, a module or a row (None: the task's module). `facts["held_out_r2"]`
        says how well probed rows are predicted that were left out; where that is nothing, `PatterningError`.
        """
        from patterning.intervention.extend import extended

        self._refuse_swaps("exchanges are not predicted")
        return extended(self, task, at, force=force)

    def extend_to(self, out: str | Path, task: "Task", data: Any = None, at: Any = None, **settings: Any) -> Any:
        """`extend` of rows that do not fit in memory, to a parquet file, with memory that does not grow with rows.

        `data`: other rows than the task's, in the same form (a corpus: a parquet file, a data set). Killed, it goes on
        where it was. `settings` and what it returns: `intervention.extend_file.extend_to`.
        """
        from patterning.intervention.extend_file import extend_to

        self._refuse_swaps("exchanges are not predicted")
        return extend_to(self, Path(out), task, data, at, **settings)

    def summary(self) -> WeightSummary:
        """How hard the weights pull on the free samples: effective sample size, extremes, share at zero."""
        place = self.base_weights > 0
        return summarise(self.rho[place], self.base_weights[place], self.free[place])

    def name_rows(self, dataset: Any, column: str = ROW_ID) -> Any:
        """The data set with a column of row ids, which survives shuffling, filters and splits (`with_ids`).

        Its rows must be those that the weights were made for, in their order; refused where its index says otherwise.
        """
        return with_ids(dataset, self.ids, column)

    def attach(self, dataset: Any) -> Any:
        """The data set with a column "weight": Hugging Face `Dataset`, pandas frame, or map-style torch data set.

        A torch data set yields (item, weight), or its item with the key "weight" where that is a dict. Rows go by
        place. Raises `PatterningError` for another number of rows, and where an index or row ids show another order.
        """
        self._refuse_swaps("a column of weights does not say so")
        return attached(dataset, self.rho.astype(np.float32), self.ids)

    def to_parquet(self, path: str | Path) -> None:
        """Write ids, ρ, q and what is free, with the facts and the data's fingerprint in the file's metadata."""
        write_weights(self, path)

    @classmethod
    def from_parquet(cls, path: str | Path) -> "Weights":
        """What `to_parquet` wrote; raises `PatterningError` for any other file."""
        return cls(**read_weights(Path(path)))

    def save_card(self, folder: str | Path, **about: Any) -> Path:
        """Write a folder to share: `rho.parquet`, and `README.md` which says what the weights ask and what they did.

        `about`: target, evidence, arm, task, chi, chi_se, licence (`intervention.card.save_card`).
        """
        return save_card(self, folder, **about)

    @classmethod
    def from_folder(cls, folder: str | Path) -> "Weights":
        """The weights of a folder that `save_card` wrote, or that was downloaded from a hub."""
        return cls.from_parquet(Path(folder) / TABLE)

    def push_to_hub(self, repo_id: str, api: Any = None, *, private: bool = False, **about: Any) -> Any:
        """Upload weights and card as a data set of the Hugging Face hub; `about` as for `save_card`."""
        with TemporaryDirectory() as folder:
            return push_card(self.save_card(folder, **about), repo_id, api, private=private)
