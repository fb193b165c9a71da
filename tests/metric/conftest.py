"""Boxes for the metric out of loose columns, as the official op takes them."""

from __future__ import annotations

import numpy as np
import pytest

from kdlib.metric.objects import EvalBoxes, Predictions, Truth


@pytest.fixture(scope="session")
def eval_boxes():
    """A function of columns in any frame order: boxes sorted by frame, and the ascending ids of
    both sides' frames.
    """
    return _eval_boxes


def _eval_boxes(
    *,
    prediction_frame,
    prediction_box,
    prediction_type,
    score,
    truth_frame,
    truth_box,
    truth_type,
    difficulty,
    overlap_nlz=None,
):
    ids = np.unique(np.concatenate((prediction_frame, truth_frame)))
    flag = np.zeros(len(score), np.bool_) if overlap_nlz is None else overlap_nlz.astype(np.bool_)
    p, g = np.searchsorted(ids, prediction_frame), np.searchsorted(ids, truth_frame)
    with np.errstate(over="ignore"):
        predictions = Predictions(
            p,
            prediction_box.astype(np.float32),
            prediction_type.astype(int),
            score.astype(np.float32),
            flag,
        )
        truth = Truth(
            g, truth_box.astype(np.float32), truth_type.astype(int), difficulty.astype(int)
        )
    by_frame = (
        predictions.take(np.argsort(p, kind="stable")),
        truth.take(np.argsort(g, kind="stable")),
    )
    return EvalBoxes(*by_frame, len(ids)), ids
