"""χ of a model's components as plain values: how reliable, which modes, what of the text they answer to."""

from collections.abc import Mapping
from dataclasses import asdict

import numpy as np

from patterning.core.arrays import Bools, Floats
from patterning.core.plain import Document
from patterning.response.groups import clustered_mean
from patterning.response.sample import COMPONENT_LOSS
from patterning.study.bench import Bench
from patterning.study.readings_of_components import Components, Probes
from patterning.study.readings_of_tokens import token_subject

CONTEXT = 24
"""Tokens shown before one that is named."""


def describe_components(bench: Bench, read: Components, stage: str) -> Document:
    """Everything that a page shows of χ at a checkpoint."""
    modes, choice, parts = read.modes, read.choice, read.response.by_component
    subject, probes = token_subject(bench), read.probes
    values = {"mode": read.mode, "heads": read.head_chi}
    served = probes.groups[subject.served]
    classes = {**probes.groups, f"not {subject.served}": ~served}
    return {
        "stage": stage,
        "step": read.step,
        "seed": read.pilot.seed,
        "heads": list(read.heads),
        "names": list(read.names),
        "reliability": read.response.reliability(),
        "estimator": {name: part.estimator for name, part in parts.items()},
        "r_hat": {name: part.diagnostics[COMPONENT_LOSS].r_hat for name, part in parts.items()},
        "refused": dict(read.response.refused),
        "singular_values": modes.singular_values,
        "noise_floor": modes.noise_floor,
        "stability_loadings": modes.stability_loadings,
        "stability_scores": modes.stability_scores,
        "loadings": modes.loadings,
        "choice": {"index": choice.index, "sign": choice.sign, "agrees": choice.agrees, "expressed": choice.expressed},
        "candidates": [asdict(candidate) for candidate in choice.candidates],
        "by_class": _means(values, classes, probes),
        "by_domain": _means(values, probes.domains, probes),
        "tokens": token_page(bench, probes, read.mode),
    }


def _means(values: Mapping[str, Floats], groups: Mapping[str, Bools], probes: Probes) -> Document:
    return {
        key: {name: clustered_mean(value, label, probes.row_of) for name, label in groups.items()}
        for key, value in values.items()
    }


def token_page(bench: Bench, probes: Probes, score: Floats, *, shown: int = 1, extremes: int = 12) -> Document:
    """Rows coloured by `score` (n,), `shown` of each domain, and the contexts of the highest and lowest scores."""
    subject = token_subject(bench)
    tokens = subject.tokens.numpy()[probes.rows]
    table = score.reshape(len(tokens), -1)
    domain_of = {name: label.reshape(table.shape)[:, 0] for name, label in probes.domains.items()}

    def domain(i: int) -> str:
        return next((name for name, rows in domain_of.items() if rows[i]), "")

    def row(i: int) -> Document:
        words = [subject.piece(int(token)) for token in tokens[i]]
        return {"domain": domain(i), "tokens": words, "scores": [0.0, *np.round(table[i], 2).tolist()]}

    def place(j: int) -> Document:
        i, t = divmod(j, table.shape[1])
        before = [subject.piece(int(token)) for token in tokens[i, max(0, t + 1 - CONTEXT) : t + 1]]
        word = subject.piece(int(tokens[i, t + 1]))
        return {"before": "".join(before), "token": word, "score": float(score[j]), "domain": domain(i)}

    order = np.argsort(score, kind="stable")
    some = [int(i) for rows in domain_of.values() for i in np.flatnonzero(rows)[:shown]] or [0]
    return {
        "rows": [row(i) for i in some],
        "top": [place(int(j)) for j in order[::-1][:extremes]],
        "bottom": [place(int(j)) for j in order[:extremes]],
    }
