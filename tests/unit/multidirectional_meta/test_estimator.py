# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""The scikit-learn side: its own estimator checks, labels of any kind, unseen classes."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from anomalib_comet.guard import NonFiniteTrainingError
from anomalib_comet.multidirectional_meta import MultidirectionalDetector

FAST = {"episodes": 1, "inner_epochs": 1, "outer_epochs": 1}


NO_NORMAL = "it labels samples at random and none of them, or one, as normal: there is nothing to learn then"


def expected_failures(estimator):
    """Checks that cannot pass, with the reason."""
    del estimator
    names = ("check_estimators_dtypes", "check_classifier_data_not_an_array", "check_fit2d_1feature")
    return dict.fromkeys(names, NO_NORMAL)


@parametrize_with_checks(
    [MultidirectionalDetector(**FAST), MultidirectionalDetector(encoder="mlp", head="linear", **FAST)],
    expected_failed_checks=expected_failures,
)
def test_checks_of_scikit_learn(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(estimator)


@pytest.fixture(scope="module")
def samples():
    """Four pairs of features are nearly the same in normal samples, and differ in defects; 32 others only blur."""
    rng = np.random.default_rng(0)

    def draw(count, difference):
        pairs = rng.normal(size=(count, 4))
        moved = difference * rng.normal(size=(count, 4)) * rng.uniform(0.5, 1.0, size=4)
        return np.concatenate([pairs + moved, pairs - moved, rng.normal(size=(count, 32))], axis=1)

    normal = draw(500, 0.1)
    return normal[:300], normal[300:], {name: draw(60, 0.25) for name in ("scratch", "dent", "unseen")}


def test_labelled_anomalies_help_on_a_class_that_nobody_labelled(samples):
    train, test, kinds = samples
    features = np.concatenate([train, kinds["scratch"][:20], kinds["dent"][:20]])
    labels = np.array(["good"] * 300 + ["scratch"] * 20 + ["dent"] * 20)
    detector = MultidirectionalDetector(normal_label="good").fit(features, labels)
    assert detector.anomaly_classes_ == ["scratch", "dent"]
    tested = np.concatenate([test, kinds["unseen"]])
    truth = np.r_[np.zeros(len(test)), np.ones(60)]
    distances = detector.network_.mahalanobis_scores(torch.from_numpy(tested)).numpy()
    assert roc_auc_score(truth, -detector.score_samples(tested)) > roc_auc_score(truth, distances) + 0.05
    assert (detector.predict(train) == 1).mean() == pytest.approx(0.99, abs=0.01)


def test_without_labelled_anomalies_it_warns_and_works(samples):
    train, test, kinds = samples
    with pytest.warns(UserWarning, match="no labelled anomalies"):
        alone = MultidirectionalDetector(**FAST).fit(train)
    assert alone.direction_ is None
    assert alone.records_[0].outer_loss is None
    assert alone.score_samples(test).mean() > alone.score_samples(kinds["dent"] * 3).mean()


def test_same_seed_same_scores_and_other_seed_other_scores(samples):
    train, _, kinds = samples
    features, labels = np.concatenate([train, kinds["dent"]]), [0] * 300 + [1] * 60
    first = MultidirectionalDetector(encoder="mlp", head="linear", **FAST).fit(features, labels)
    assert np.array_equal(first.score_samples(features), clone(first).fit(features, labels).score_samples(features))
    other = clone(first).set_params(random_state=1).fit(features, labels)
    assert not np.allclose(first.score_samples(features), other.score_samples(features))


def test_labels_of_several_kinds_stay_apart(samples):
    train, _, kinds = samples
    features, counts = np.concatenate([train, kinds["dent"], kinds["scratch"]]), (300, 60, 60)
    found = []
    for labels in ((0, 1, "1"), ("good", "a", "b")):
        detector = MultidirectionalDetector(normal_label=labels[0], **FAST)
        detector.fit(features, [label for label, count in zip(labels, counts, strict=True) for _ in range(count)])
        assert detector.anomaly_classes_ == list(labels[1:])
        assert len(detector.records_[0].classes) == 2
        found.append(detector.score_samples(features))
    assert np.array_equal(*found)  # what classes are called changes nothing


def test_random_state_is_what_scikit_learn_takes(samples):
    train, _, kinds = samples
    features, labels = np.concatenate([train, kinds["dent"]]), [0] * 300 + [1] * 60

    def scores(random_state):
        made = MultidirectionalDetector(encoder="mlp", head="linear", random_state=random_state, **FAST)
        return made.fit(features, labels).score_samples(features)

    assert np.array_equal(scores(np.int64(2)), scores(2))
    assert np.array_equal(scores(np.random.RandomState(3)), scores(np.random.RandomState(3)))
    assert not np.array_equal(scores(None), scores(None))


@pytest.mark.parametrize("pcgrad", [False, True])
@pytest.mark.parametrize("lr", [1e5, 1e20])
@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.filterwarnings("ignore:There are no labelled anomalies")
def test_training_that_diverges_says_so(samples, lr, pcgrad, labelled):
    train, _, kinds = samples
    features, labels = np.concatenate([train, kinds["dent"]]), [0] * 300 + [int(labelled)] * 60
    with pytest.raises(NonFiniteTrainingError, match=r"no longer finite, .* a lower learning rate \(lr\)"):
        MultidirectionalDetector(lr=lr, pcgrad=pcgrad).fit(features, labels)


@pytest.mark.parametrize(
    ("change", "labels", "sentence"),
    [
        ({}, [1] * 300, "At least 2 samples with the label 0"),
        ({}, [0.0] * 299 + [float("nan")], r"A label is missing \(NaN or None\); give .* the label 0"),
        ({"normal_label": "good"}, ["good"] * 299 + [float("nan")], "A label is missing"),
        ({"normal_label": "good"}, np.array(["good"] * 299 + [None], dtype=object), "A label is missing"),
        ({"normal_label": "good"}, pd.Series(["good"] * 299 + [pd.NA], dtype="string"), "A label is missing"),
        ({"random_state": "1"}, None, "random_state must be a whole number, a numpy.random.RandomState or None"),
        ({}, [0] * 299, "300 samples and 299 labels"),
        ({"contamination": 0.6}, None, "contamination must lie in"),
        ({"episodes": 0}, None, "episodes must be a whole number of at least 1"),
        ({"lr": float("nan")}, None, "lr a number above zero, got 20 and nan"),
        ({"margin": -1.0}, None, "margin must be a number and not be negative"),
        ({"encoder": "mlp", "hidden": (8.9, 4)}, None, r"hidden must be two whole numbers .*, got \(8.9, 4\)"),
    ],
)
def test_bad_input_is_one_sentence(samples, change, labels, sentence):
    detector = MultidirectionalDetector(**change)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=sentence):
            detector.fit(samples[0], labels)
