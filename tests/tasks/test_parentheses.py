"""The data sets of the parentheses task, read as text and judged by a parser, and its measures on known answers."""

import dataclasses
import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from patterning.core.errors import PatterningError
from patterning.tasks import strings
from patterning.tasks.parentheses import Parentheses, Strings, make_parentheses, name_rule

P_MIN = 1e-3


def small(**changes: int) -> Parentheses:
    settings = {"max_length": 16, "draws": 20_000, "layers": 1, "heads": 2, "width": 8, "test_strings": 300, "seed": 3}
    return make_parentheses(**{**settings, **changes})


@pytest.fixture(scope="module")
def task() -> Parentheses:
    return small()


def texts(data: Strings) -> list[str]:
    return [data.text(row) for row in range(len(data))]


def is_balanced(text: str) -> bool:
    depth = 0
    for symbol in text:
        depth += 1 if symbol == "(" else -1
        if depth < 0:
            return False
    return depth == 0


def multiplicities(task: Parentheses) -> np.ndarray:
    return np.bincount(task.draws.numpy(), minlength=len(task.train))


def test_labels_are_a_parsers(task: Parentheses) -> None:
    for data in (task.train, task.id_test, task.ood_test):
        assert [is_balanced(text) for text in texts(data)] == data.labels.tolist()
        assert data.targets.tolist() == [int(is_balanced(text)) for text in texts(data)]


def test_samples_are_distinct_and_sorted_by_length(task: Parentheses) -> None:
    for data in (task.train, task.id_test, task.ood_test):
        assert len(set(texts(data))) == len(data)
        lengths = [len(text) for text in texts(data)]
        assert lengths == sorted(lengths) == data.lengths.tolist()


def test_samples_longer_than_127_symbols_are_sorted_too() -> None:
    data = small(max_length=200, draws=30_000, test_strings=2).train
    assert data.lengths.max() > 127
    assert (np.diff(data.lengths) >= 0).all()
    assert data.steps.dtype == np.int8


def test_half_of_the_draws_are_true_and_base_weights_are_shares_of_the_draws(task: Parentheses) -> None:
    counts = multiplicities(task)
    assert len(task.draws) == 20_000
    assert counts.min() >= 1
    assert counts[task.train.labels].sum() == 10_000
    assert task.base_weights.dtype == torch.float64
    np.testing.assert_allclose(task.base_weights.numpy(), counts / 20_000, rtol=1e-15)
    assert float(task.base_weights.sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("length", [4, 6])
def test_false_strings_are_uniform_over_unequal_counts(task: Parentheses, length: int) -> None:
    every = ["".join(symbols) for symbols in itertools.product("()", repeat=length)]
    support = [text for text in every if text.count("(") != text.count(")")]
    seen = Counter()
    for text, label, count in zip(texts(task.train), task.train.labels, multiplicities(task), strict=True):
        if len(text) == length and not label:
            seen[text] += count
    assert set(seen) <= set(support)
    assert chisquare([seen[text] for text in support]).pvalue > P_MIN


def test_lengths_of_true_and_false_strings_follow_their_laws(task: Parentheses) -> None:
    # TRUE: 2 + 2 Binomial(7, ½). FALSE: the same law times the chance that a uniform string has unequal counts.
    lengths, counts, true = task.train.lengths, multiplicities(task), task.train.labels
    prior = np.array([math.comb(7, i) for i in range(8)]) / 2**7
    unequal = np.array([1 - math.comb(2 * m, m) / 4**m for m in range(1, 9)])
    for mask, law in ((true, prior), (~true, prior * unequal / (prior * unequal).sum())):
        seen = np.bincount((lengths[mask] - 2) // 2, weights=counts[mask], minlength=8)
        assert chisquare(seen, 10_000 * law).pvalue > P_MIN


def test_out_of_distribution_strings_have_equal_counts_and_do_not_nest(task: Parentheses) -> None:
    assert len(task.ood_test) == 300
    assert not task.ood_test.labels.any()
    for text in texts(task.ood_test):
        assert text.count("(") == text.count(")")
        assert not is_balanced(text)


def test_test_sets_hold_no_training_string(task: Parentheses) -> None:
    train, id_test, ood = (set(texts(data)) for data in (task.train, task.id_test, task.ood_test))
    assert not train & id_test
    assert not train & ood
    assert not id_test & ood
    assert len(id_test) == 300
    assert sum(is_balanced(text) for text in id_test) == 150


def test_tokens_are_start_string_end_padding(task: Parentheses) -> None:
    for data in (task.train, task.ood_test):
        for text, row, last in zip(texts(data), data.tokens.tolist(), data.last.tolist(), strict=True):
            symbols = [3 if symbol == "(" else 4 for symbol in text]
            assert row == [0, *symbols, 2, *[1] * (16 - len(text))]
            assert row[last] == 2


def test_data_are_a_function_of_the_seed(task: Parentheses) -> None:
    again, other = small(), small(seed=4)
    for name in ("train", "id_test", "ood_test"):
        np.testing.assert_array_equal(getattr(task, name).steps, getattr(again, name).steps)
        assert texts(getattr(task, name)) != texts(getattr(other, name))
    assert torch.equal(task.draws, again.draws)
    assert torch.equal(task.base_weights, again.base_weights)


def test_data_do_not_depend_on_the_model(task: Parentheses) -> None:
    other = small(layers=2, width=16)
    np.testing.assert_array_equal(task.train.steps, other.train.steps)
    assert torch.equal(task.draws, other.draws)


def test_classes_partition_the_training_strings_and_mean_what_they_say(task: Parentheses) -> None:
    assert (np.stack(list(task.classes.values())).sum(0) == 1).all()
    for name, mask in task.classes.items():
        assert mask.any()
        for row in np.flatnonzero(mask):
            text = task.train.text(row)
            excess = text.count("(") - text.count(")")
            if name == "TRUE":
                assert is_balanced(text)
                continue
            assert not is_balanced(text)
            dips = any(text[:i].count(")") > text[:i].count("(") for i in range(len(text) + 1))
            assert (abs(excess) == 2) == name.endswith("near-equal")
            if "never dips" in name:
                assert not dips
            else:
                assert dips
                assert text.startswith("(" if "starts (" in name else ")")


class Obedient(Parentheses):
    """Answers as one rule does, through the logits: what `measure` should find is known."""

    rule = "nested"

    def logits(self, flat: torch.Tensor, data: Strings, index: torch.Tensor) -> torch.Tensor:
        answer = torch.from_numpy(strings.RULES[self.rule](data.steps))[index].to(flat.dtype)
        zero = torch.zeros_like(answer)
        return torch.stack([1 - answer, answer, zero + 9, zero, zero], dim=-1)  # logit 2 is no answer


@pytest.mark.parametrize("rule", ["nested", "equal_count", "first_symbol"])
def test_a_model_that_follows_a_rule_is_measured_as_that_rule(task: Parentheses, rule: str) -> None:
    model = Obedient(**{field.name: getattr(task, field.name) for field in dataclasses.fields(task)})
    object.__setattr__(model, "rule", rule)
    measures = {name: float(value[1]) for name, value in model.measure(torch.zeros(2, 1)).items()}
    opens = np.mean([text.startswith("(") for text in texts(task.ood_test)])
    balanced = np.array([is_balanced(text) for text in texts(task.id_test)])
    first = np.array([text.startswith("(") for text in texts(task.id_test)])
    assert measures[f"agree_{rule}"] == 1
    assert name_rule(measures) == rule
    assert measures["ood_accuracy"] == pytest.approx({"nested": 1, "equal_count": 0, "first_symbol": 1 - opens}[rule])
    assert measures["agree_first_symbol"] == pytest.approx({"nested": 1 - opens, "equal_count": opens}.get(rule, 1))
    assert measures["id_accuracy"] == pytest.approx(1 if rule != "first_symbol" else (balanced == first).mean())


def test_a_run_below_the_threshold_has_no_rule() -> None:
    measures = {"agree_nested": 0.5, "agree_equal_count": 0.89, "agree_first_symbol": 0.2}
    assert name_rule(measures) == "none"
    assert name_rule(measures, threshold=0.8) == "equal_count"


def test_losses_are_cross_entropy_of_all_five_logits(task: Parentheses) -> None:
    flat = task.init([0, 1]).double() * 20
    index = torch.tensor([[0, 5, 900], [17, 3, 2000]])
    logits = task.logits(flat, task.train, index)
    losses = task.losses(flat, index)
    for r, b in itertools.product(range(2), range(3)):
        row = [math.exp(value) for value in logits[r, b].tolist()]
        label = int(is_balanced(task.train.text(int(index[r, b]))))
        assert float(losses[r, b]) == pytest.approx(-math.log(row[label] / sum(row)), abs=1e-10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_length": 7}, "max_length is 7"),
        ({"max_length": 4}, "max_length is 4"),
        ({"max_length": 202}, "max_length is 202"),
        ({"draws": 7}, "draws is 7"),
        ({"draws": 0}, "draws is 0"),
        ({"heads": 3}, "width 8 is not a multiple of 3"),
        ({"max_length": 6, "draws": 20_000}, "every possible test string is in the training set"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(PatterningError, match=message):
        small(**changes)
