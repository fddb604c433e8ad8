"""The study: its data, its trainings, the rule of its verdicts, and a quick run of it all."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import bncore
from bncore.extras import pip_install
from bncore.programs.study import __main__ as study
from bncore.programs.study import data, judge, networks, page, plan, training
from bncore.programs.study.execute import run
from bncore.programs.study.judge import ACCURACY, LOSS, Claim, Comparison, Says, Verdict
from bncore.programs.study.training import Outcome, Setting

SHORT = Setting(epochs=2, points=4)


# Data


def test_a_split_has_every_digit_once_and_depends_on_the_seed():
    cut = data.split(3)
    images = np.concatenate([part.images for part in (cut.train, cut.validation, cut.test)])
    every, _ = data._digits()
    np.testing.assert_array_equal(
        np.unique(images.reshape(len(images), -1), axis=0),
        np.unique(every.reshape(len(every), -1), axis=0),
    )
    assert len(images) == 1797
    assert not np.array_equal(cut.test.images, data.split(4).test.images)


def test_standardized_training_images_have_mean_0_and_std_1():
    cut = data.split(0)
    x = cut.standardized(cut.train.images)
    assert x.dtype == np.float32
    assert x.shape[1:] == (8, 8, 1)
    assert abs(x.mean()) < 1e-5
    assert x.std() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("shift", "moved"), [((1.0, 0.0), -1), ((-1.0, 0.0), 1)])
def test_a_shift_of_one_pixel_moves_by_one_pixel(monkeypatch, shift, moved):
    monkeypatch.setattr(data, "TURN", 0.0)

    class Fixed:
        def uniform(self, low, high, size):
            return np.broadcast_to(np.reshape(shift, (2, 1, 1, 1)), size) if len(size) == 4 else 0.0

    image = np.zeros((1, 8, 8), np.float32)
    image[0, 3, 5] = 1
    result = data.shifted_and_turned(image, Fixed())
    assert result[0, 3 + moved, 5] == pytest.approx(1)
    assert result.sum() == pytest.approx(1)


def test_a_quarter_turn_turns_by_a_quarter():
    class Quarter:
        def uniform(self, low, high, size):
            return np.zeros(size) if len(size) == 4 else np.full(size, 90.0)

    image = np.random.default_rng(0).random((2, 8, 8), np.float32)
    result = data.shifted_and_turned(image, Quarter())
    turned = [np.allclose(result, np.rot90(image, k, (1, 2)), atol=1e-5) for k in range(4)]
    assert turned in ([False, True, False, False], [False, False, False, True])


def test_every_augmented_image_moves_by_its_own(rng):
    image = np.repeat(data.split(0).train.images[:1], 6, axis=0)
    result = data.shifted_and_turned(image, rng)
    assert result.dtype == np.float32
    assert len(np.unique(result.reshape(6, -1), axis=0)) == 6


# Networks and trainings


@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_both_sides_start_from_the_same_weights(network):
    plain, normed = (
        networks.weighted(networks.build(network, batch_norm=side, seed=5, scale=0.3))
        for side in plan.SIDES
    )
    assert len(plain) == len(normed) == 4
    for one, other in zip(plain, normed, strict=True):
        np.testing.assert_array_equal(one.weight, other.weight)


def test_an_unknown_network_is_refused():
    with pytest.raises(ValueError, match="network: expected 'mlp' or 'cnn', got 'rnn'"):
        networks.build("rnn", batch_norm=True, seed=0)


def test_both_sides_see_the_same_batches():
    cut = data.split(0)
    setting = replace(SHORT, augment=True)
    one, other = (
        list(training.batches(replace(setting, batch_norm=side, rate=rate), cut))
        for side, rate in ((False, 0.1), (True, 1.0))
    )
    for (x, label), (same_x, same_label) in zip(one, other, strict=True):
        np.testing.assert_array_equal(x, same_x)
        np.testing.assert_array_equal(label, same_label)
    assert not np.array_equal(one[0][0], next(training.batches(SHORT, cut))[0])


@pytest.mark.parametrize("network", ["mlp", "cnn"])
@pytest.mark.parametrize("batch_norm", plan.SIDES)
def test_a_training_repeats_to_the_bit_and_learns(network, batch_norm):
    setting = replace(SHORT, network=network, batch_norm=batch_norm)
    first, second = training.train(setting), training.train(setting)
    np.testing.assert_array_equal(first.step_loss, second.step_loss)
    assert first.accuracy == second.accuracy
    assert len(first.step_loss) == first.at[-1] == 2 * (1078 // 64)
    assert first.step_loss[-5:].mean() < 0.8 * first.step_loss[:5].mean()
    assert len(first.weight_gradients) == len(first.signals) + 1 == 4


def test_averages_change_evaluation_alone():
    outcomes = [training.train(replace(SHORT, average=average)) for average in networks.AVERAGES]
    for outcome in outcomes[1:]:
        np.testing.assert_array_equal(outcome.step_loss, outcomes[0].step_loss)
    assert len({outcome.loss["test"][-1] for outcome in outcomes}) == 3


def test_every_statistic_is_evaluated_and_changes_nothing():
    plain, full = (training.train(replace(SHORT, every_statistic=on)) for on in (False, True))
    np.testing.assert_array_equal(plain.step_loss, full.step_loss)
    assert plain.loss["test"] == full.loss["test"]
    assert set(full.loss) == {"validation", "test", "batch", "population"}
    assert len({losses[-1] for losses in full.loss.values()}) == 4


def test_population_statistics_are_those_of_all_training_images():
    cut = data.split(0)
    network = networks.build("mlp", batch_norm=True, seed=0)
    found = training.evaluations(network, cut, replace(SHORT, every_statistic=True))
    for layer in network.norms:
        layer.momentum = 1.0
        layer.train()
    network.forward(cut.standardized(cut.train.images))
    network.eval()
    score = network.forward(cut.standardized(cut.test.images))
    loss, _ = training.softmax_loss(score, cut.test.label)
    assert found["population"][0] == pytest.approx(loss, rel=1e-5)


def test_evaluation_in_pieces_is_evaluation_as_a_whole():
    cut = data.split(0)
    network = networks.build("mlp", batch_norm=True, seed=0)
    network.eval()
    score = network.forward(cut.standardized(cut.test.images))
    loss, accuracy = training.evaluate(network, cut.test, cut)
    assert loss == pytest.approx(training.softmax_loss(score, cut.test.label)[0], rel=1e-5)
    assert accuracy == np.mean(score.argmax(axis=1) == cut.test.label)


def test_a_training_that_leaves_the_numbers_stops_and_counts_as_guessing():
    outcome = training.train(replace(SHORT, batch_norm=False, rate=1e4))
    assert not outcome.finite
    assert len(outcome.step_loss) < outcome.at[-1]
    assert outcome.final("test") == training.GUESSING
    assert outcome.loss["validation"][-1] == np.inf
    assert len(outcome.loss["test"]) == len(outcome.accuracy["test"]) == len(outcome.at)
    assert outcome.steps_to(0.95, "test") == 2 * outcome.at[-1]


# The choice of a rate


def outcome_of(validation: float, test: float, loss: float = 1.0) -> Outcome:
    accuracy = {"validation": [0.1, validation], "test": [0.1, test]}
    losses = {"validation": [2.0, loss], "test": [2.0, loss]}
    return Outcome(np.ones(8), np.ones(8), np.array([2, 8]), losses, accuracy)


def test_a_rate_is_chosen_by_validation_alone():
    results = {
        replace(SHORT, rate=0.01): outcome_of(0.8, 0.99),
        replace(SHORT, rate=0.1): outcome_of(0.9, 0.5, loss=2.0),
        replace(SHORT, rate=1.0): outcome_of(0.9, 0.6, loss=1.0),
    }
    assert plan.chosen(results, SHORT, (0.01, 0.1, 1.0)).rate == 1.0
    assert plan.chosen(results, SHORT, (0.01, 0.1)).rate == 0.1


def test_values_are_paired_by_seed():
    results = {
        replace(SHORT, seed=seed, batch_norm=side): outcome_of(0.5, seed / 10 + side / 100)
        for seed in (1, 2, 3)
        for side in plan.SIDES
    }
    without, with_norm = plan.values(results, SHORT, (1, 2, 3), (0.1,), lambda o: o.final("test"))
    np.testing.assert_allclose(without, [0.1, 0.2, 0.3])
    np.testing.assert_allclose(with_norm, [0.11, 0.21, 0.31])


def test_steps_to_an_accuracy_are_those_of_the_first_evaluation_that_has_it():
    outcome = outcome_of(0.5, 0.96)
    assert outcome.steps_to(0.1, "test") == 2
    assert outcome.steps_to(0.96, "test") == 8
    assert outcome.steps_to(0.97, "test") == 16


# The rule


@pytest.mark.parametrize(
    ("difference", "p"),
    [([1.0] * 8, 2 / 256), ([1.0] * 5, 2 / 32), ([3.0, 1.0, -1.0], 6 / 8), ([0.0] * 4, 1.0)],
)
def test_sign_flips_are_counted(difference, p):
    assert judge.sign_flip_p(np.array(difference)) == p
    assert judge.sign_flip_p(-np.array(difference)) == p


@pytest.mark.parametrize(
    ("ps", "falls"),
    [
        ([0.01], [True]),
        ([0.06], [False]),
        ([0.02, 0.03], [True, True]),
        ([0.03, 0.03], [False, False]),
        ([0.5, 0.001, 0.02, 0.04], [False, True, False, False]),
        ([], []),
    ],
)
def test_holm(ps, falls):
    assert judge.holm(ps, 0.05) == falls


def compared(gain: float, measure: judge.Measure = ACCURACY) -> Comparison:
    base = np.linspace(0.5, 0.6, 8)
    return Comparison("here", measure, base, base + gain)


def claimed(*comparisons: Comparison) -> Claim:
    return Claim("It helps", "more of it", comparisons)


@pytest.mark.parametrize(
    ("comparison", "says"),
    [
        (compared(0.1), Says.FOR),
        (compared(-0.1), Says.AGAINST),
        (compared(0.0), Says.NOTHING),
        (compared(0.1, LOSS), Says.AGAINST),
        (compared(-0.1, LOSS), Says.FOR),
    ],
)
def test_what_a_comparison_says(comparison, says):
    assert claimed(comparison).says == [says]


def test_the_more_is_compared_the_more_it_takes():
    assert claimed(*[compared(0.1)] * 6).says == [Says.FOR] * 6  # p is 1/128
    assert claimed(*[compared(0.1)] * 7).says == [Says.NOTHING] * 7


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ((0.1, 0.2), Verdict.CONFIRMED),
        ((0.1, 0.0), Verdict.DEPENDS),
        ((0.1, -0.1), Verdict.DEPENDS),
        ((0.0, -0.1), Verdict.NOT_CONFIRMED),
        ((0.0,), Verdict.NOT_CONFIRMED),
        ((), Verdict.NOT_CONFIRMED),
    ],
)
def test_the_verdict_follows_from_the_comparisons(gains, verdict):
    claim = claimed(*map(compared, gains))
    assert claim.verdict is verdict
    assert claim.sentence().startswith(f"**{verdict.capitalize()}**: more of it")


def test_a_sentence_has_the_means_of_both_sides():
    sentence = claimed(compared(0.1), compared(-0.2)).sentence()
    assert "yes in 1 of 2 comparisons (here: 65.0% against 55.0%)" in sentence
    assert "the opposite in 1 of 2 comparisons (here: 35.0% against 55.0%)" in sentence


# All of it


@pytest.fixture(scope="module")
def tiny():
    return run(page.settings(plan.TINY), workers=1)


def test_a_plan_has_all_trainings_that_its_experiments_look_at(tiny):
    claims = page.claims(tiny, plan.TINY)
    assert len(claims) == 9
    assert all(len(c.first) == len(c.second) == 2 for claim in claims for c in claim.comparisons)
    # Two seeds can show nothing: p is 1/2 at best.
    assert {claim.verdict for claim in claims} == {Verdict.NOT_CONFIRMED}


@pytest.mark.parametrize("whole", [plan.FULL, plan.SMALL], ids=lambda whole: whole.name)
def test_what_is_promised_of_a_plan(whole):
    settings = page.settings(whole)
    assert len(settings) == len(set(settings))
    assert len(whole.seeds) >= 5
    # A difference can be shown, even one alone among the most that a claim compares.
    most = max(4 * len(whole.networks), len(whole.batches))
    assert 2.0 ** (1 - len(whole.seeds)) <= judge.ALPHA / most
    for grid in (whole.rates, whole.few_rates, whole.long_rates):
        assert plan.RATE in grid
    if whole is plan.FULL:
        spans = [whole.rates, whole.scales, whole.depths, whole.batches]
        assert [(min(s), max(s)) for s in spans] == [(0.001, 10), (0.01, 10), (2, 20), (2, 256)]


def test_the_page_is_the_same_every_time_and_has_its_pictures(tiny, tmp_path):
    for folder in ("one", "two"):
        page.write(tiny, plan.TINY, tmp_path / folder)
    texts = [(tmp_path / folder / "README.md").read_text() for folder in ("one", "two")]
    assert texts[0] == texts[1]
    shown = re.findall(r"!\[.*?\]\((.*?)\)", texts[0])
    assert len(shown) == len(page.EXPERIMENTS)
    for name in shown:
        pictures = [(tmp_path / folder / name).read_bytes() for folder in ("one", "two")]
        assert pictures[0] == pictures[1]
    for claim in page.claims(tiny, plan.TINY):
        assert claim.name in texts[0]
        assert claim.sentence() in texts[0]
    assert f"bncore {bncore.__version__}" in texts[0]
    assert "{" not in texts[0]


def test_two_processes_give_what_one_does():
    settings = [replace(SHORT, seed=seed) for seed in range(3)]
    told = []
    alone, together = (
        run([*settings, settings[0]], workers=n, advance=told.append) for n in (1, 2)
    )
    assert list(alone) == list(together)
    assert len(told) == 2 * len(settings)
    for setting in settings:
        np.testing.assert_array_equal(alone[setting].step_loss, together[setting].step_loss)
        assert alone[setting].loss == together[setting].loss


def test_the_command_says_what_came_out_and_writes_it(monkeypatch, tiny, tmp_path, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(study, "run", lambda settings, **options: tiny)
    study.main(["--plan", "tiny", "--write", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert max(len(line) for line in printed.splitlines() if str(tmp_path) not in line) <= 80
    printed = " ".join(printed.split())
    for said in ("trainings on handwritten digits", "Not confirmed", "README.md"):
        assert said in printed
    assert (tmp_path / "out" / "README.md").exists()


@pytest.mark.parametrize("arguments", [["--workers", "0"], ["--plan", "huge"]])
def test_a_wrong_argument_is_explained(arguments, capsys):
    with pytest.raises(SystemExit):
        study.main(arguments)
    assert f"{arguments[0]}: " in capsys.readouterr().err


def test_a_missing_dependency_is_explained():
    code = (
        "import sys; sys.modules['scipy'] = None; sys.argv = ['study']; "
        "import runpy; runpy.run_module('bncore.programs.study', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"{pip_install('study')} installs them" in done.stderr


def test_results_that_were_kept_are_drawn_without_training(monkeypatch, tiny, tmp_path, capsys):
    kept = tmp_path / "some" / "kept.gz"
    monkeypatch.setattr(study, "run", lambda settings, **options: tiny)
    study.main(["--plan", "tiny", "--json", "--keep", str(kept)])
    said = capsys.readouterr().out
    monkeypatch.setattr(study, "run", None)
    study.main(["--plan", "tiny", "--json", "--from", str(kept)])
    assert capsys.readouterr().out == said
    assert json.loads(said)["trainings"] == len(tiny)
    with pytest.raises(SystemExit):
        study.main(["--plan", "small", "--from", str(kept)])
    assert "expected all trainings of the small plan" in capsys.readouterr().err
