"""Predict a whole data set against a server or a model on disk, with the order kept and every failure told.

    with Client("grpc://localhost:8500") as client:
        summary = run_predict(client, PredictJob("digits", "data/eval", "preds.jsonl"))

Where to look: `readers.py` (what may be read, and how rows and labels come from it), `images.py` (pictures to
tensors), `run.py` (requests in flight, order, errors), `batches.py` (one batch), `writer.py` (the JSONL), `accuracy.py`
(answers against labels). TensorFlow is never imported here; the client's `local:` transport does that when asked.
"""

from __future__ import annotations

from moxserve.predict.accuracy import Accuracy
from moxserve.predict.readers import Row, open_rows
from moxserve.predict.run import PredictJob, PredictSummary, run_predict

__all__ = ["Accuracy", "PredictJob", "PredictSummary", "Row", "open_rows", "run_predict"]
