"""What a study of tokens adds: where χ is read, how runs agree, what rivals weigh, what changes are in percent."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from patterning.core.errors import PatterningError
from patterning.intervention.weights import summarise
from patterning.study.bench import Bench, Found
from patterning.study.language_settings import CorpusSettings, ModelSettings, TrainSettings
from patterning.study.readings_of_tokens import Pilot, describe_runs
from patterning.study.relative import by_more_of, in_percent
from patterning.study.rivals import Lead, by_label, by_worth, other_reading, random_directions, without_groups
from patterning.study.seeds import Seeds
from patterning.study.settings import Strength
from patterning.study.strength import weigh
from patterning.study.subject import Outcome, Runs
from patterning.study.tokens import Stages, TokenSubject

ROWS, LENGTH = 12, 9


class Toy(TokenSubject):
    """Twelve rows of eight predictions, of which nothing is trained."""

    name = "toy"
    outcomes = (Outcome("gap"),)
    fingerprint = "toy"

    @property
    def base_weights(self) -> np.ndarray:
        return np.full((ROWS, LENGTH - 1), 1 / (ROWS * (LENGTH - 1)))


def lead(force: bool = False) -> Lead:
    seeds = Seeds(range(1), range(10, 14))
    strength = Strength(policy="rank-tilt", alpha=0.5)
    bench = Bench(Toy(), None, seeds, {}, force=force, chosen={("a", "up"): strength, ("a", "down"): strength})  # type: ignore[arg-type]
    s = np.random.default_rng(0).standard_normal(ROWS * (LENGTH - 1))
    return Lead.of(bench, {"a": bench.direction("a", "random", s)}, range(10, 12))


def test_chi_is_read_at_the_checkpoint_of_a_stage_and_before() -> None:
    runs = Runs({"gap": np.zeros(1)}, np.array([0, 1, 10, 100, 1000]))
    pilot = Pilot(0, 1000, {}, Stages({"before": 1, "between": 100, "after": 1000}, True), runs)
    assert pilot.last_steps("between", 2) == [10, 100]
    assert pilot.last_steps("before", 3) == [1]  # not at the start, where there is nothing to read


def test_agreement_of_runs_foretells_that_of_their_means() -> None:
    """χ of a run is what all runs share, and its own: across_runs is the correlation of two means of four runs each."""
    random = np.random.default_rng(0)
    shared = random.standard_normal((60, 200))
    runs = np.stack([0.6 * shared + 0.8 * random.standard_normal(shared.shape) for _ in range(8)]).astype(np.float32)
    found = describe_runs(runs[:4], [{"reliability": {"gap": 0.9}}, {"reliability": {"gap": 0.7}}], "gap")
    ours, theirs = (some.mean(axis=0).ravel() for some in (runs[:4], runs[4:]))
    assert found["between_runs"] == pytest.approx(0.36, abs=0.03)
    assert found["across_runs"] == pytest.approx(np.corrcoef(ours, theirs)[0, 1], abs=0.03)
    assert found["reliability"] == pytest.approx(0.8)
    alone = describe_runs(runs[:1], [{"reliability": {"gap": 0.9}}], "gap")
    assert alone["between_runs"] is None


def test_rivals_have_the_leads_histogram_dealt_otherwise() -> None:
    own = lead()
    rho = own.rho()
    worth = np.arange(ROWS)[::-1].astype(float)
    (dealt,) = by_worth(own, "worth", worth).values()
    assert sorted(dealt.rho.ravel()) == sorted(rho.ravel())
    assert list(np.argsort(dealt.rho.mean(axis=1))) == list(np.argsort(worth))
    (random,) = random_directions(own).values()
    assert len(random.by_seed) == 2
    for drawn in random.by_seed:
        assert np.sort(drawn.ravel()) == pytest.approx(np.sort(rho.ravel()))
        assert abs(np.corrcoef(drawn.ravel(), rho.ravel())[0, 1]) < 0.4
    assert not np.array_equal(*random.by_seed)


def test_a_label_pulls_as_hard_as_the_lead() -> None:
    own, label = lead(), np.random.default_rng(1).random((ROWS, LENGTH - 1)) < 0.5
    found = by_label(own, "label", label)
    assert [(name, one.way) for name, one in found.items()] == [("label → more", "up"), ("label → less", "down")]
    q = own.bench.subject.base_weights.ravel()
    size = summarise(own.rho().ravel(), q).effective_sample_size
    for name, sign in (("label → more", 1), ("label → less", -1)):
        rho = found[name].rho
        assert sign * (rho[label].mean() - rho[~label].mean()) > 0
        assert summarise(rho.ravel(), q).effective_sample_size == pytest.approx(size)


def test_a_reading_that_gives_nothing_is_no_rival() -> None:
    own = lead()
    again = other_reading(own, "other", lambda: Found(own.direction), "up")
    assert np.array_equal(again["other"].rho, own.rho())
    assert other_reading(own, "other", lambda: Found(replace(own.direction, refused="noise"))) == {}

    def broken() -> Found:
        raise PatterningError("no chain is left")

    assert other_reading(own, "other", broken) == {}


def test_a_group_is_removed_and_doubled() -> None:
    label = np.zeros((ROWS, LENGTH - 1), dtype=bool)
    label[:3] = True
    found = without_groups(lead().bench, {"code": label, "all": label | True}, ("remove", "double"), 2)
    assert list(found) == ["remove code", "double code"]
    none, twice = (found[name].rho for name in found)
    assert none[label].max() == 0
    assert none.mean() == pytest.approx(1)
    assert twice[label].min() / twice[~label].max() == pytest.approx(2)


def test_less_may_be_another_direction_than_minus_more() -> None:
    own = lead()
    held = own.bench.direction("held", "something held", own.direction.s[::-1])
    both = replace(own.direction, opposite=held.reversed())
    strength = own.strength
    assert np.array_equal(weigh(own.bench, both, "up", strength).rho, own.rho())
    assert np.array_equal(weigh(own.bench, both, "down", strength).rho, weigh(own.bench, held, "down", strength).rho)
    assert not np.array_equal(weigh(own.bench, both, "down", strength).rho, own.rho("down"))


def test_changes_in_percent_and_by_more_of_a_group() -> None:
    runs = {
        "unweighted": Runs({"onset": np.array([100.0, 200.0, 400.0, 1.0]), "gap": np.array([0.5, 0.5, 0.5, 9.0])}),
        "a": Runs({"onset": np.array([80.0, 150.0, 320.0]), "gap": np.zeros(3)}),
        "double code": Runs({"onset": np.ones(3), "gap": np.array([0.9, 0.8, 1.0])}),
        "remove code": Runs({"onset": np.ones(3), "gap": np.array([0.4, 0.1, 0.4])}),
        "remove docs": Runs({"onset": np.ones(2), "gap": np.array([0.4, 0.5])}),
    }
    (row,) = in_percent(runs, ("onset", "gap"), {"a": "unweighted"})
    assert row["onset"]["difference"] == pytest.approx((-20 - 25 - 20) / 3)  # of the seeds that both have
    assert row["onset"]["low"] < row["onset"]["difference"] < row["onset"]["high"]
    assert in_percent(runs, ("gap",), {"unweighted": "a"})[0]["gap"] is None  # of nothing
    code, docs = by_more_of(runs, ("code", "docs", "prose"), "gap", "unweighted")
    assert code["more"]["difference"] == pytest.approx(0.3)
    assert code["more"]["low"] < 0.3 < code["more"]["high"]
    assert docs["more"]["difference"] == pytest.approx(0.05)
    assert docs["more"]["low"] is None  # two seeds give no interval
    assert "double" not in docs


def test_settings_of_a_language_model_are_checked() -> None:
    with pytest.raises(PatterningError, match="not a multiple"):
        ModelSettings(context=8, layers=1, heads=3, width=16).language(300)
    train = TrainSettings(steps=100, batch_size=4, learning_rate=0.1, warmup=0, checkpoints=5, bfloat16="auto")
    assert train.measured_at()[0] == 0
    assert train.measured_at()[-1] == 100
    assert isinstance(train.training().bfloat16, bool)
    own = CorpusSettings(vocabulary=300, shares={"docs": 0.4, "code": 0.6}, rows=8, test_rows=8)
    same = CorpusSettings(vocabulary=300, shares={"code": 0.6, "docs": 0.4}, rows=8, test_rows=8, folder="elsewhere")
    assert own.source(16).fingerprint == same.source(16).fingerprint  # the text counts, not its folder
    assert own.source(16).fingerprint != own.source(17).fingerprint


def test_a_study_without_a_place_for_its_text_finds_one(tmp_path: Path) -> None:
    source = CorpusSettings(vocabulary=300, max_mb=0.3, shares={"code": 1.0}, rows=8, test_rows=8, repeat=True)
    found = source.source(16).found(tmp_path / "corpus")
    assert found.corpus
    assert (tmp_path / "corpus" / "manifest.json").is_file()
    with pytest.raises(PatterningError, match="missing is not a corpus"):
        source.model_copy(update={"folder": str(tmp_path / "missing")}).source(16).found(tmp_path)
    wrong = source.model_copy(update={"folder": found.folder, "vocabulary": 301})
    with pytest.raises(PatterningError, match="vocabulary of 300"):
        wrong.source(16).found(tmp_path)
