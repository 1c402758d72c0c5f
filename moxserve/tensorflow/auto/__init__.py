"""`mox.auto`: short trial runs choose hyper-parameters, then a normal run uses them.

params    ParamSpec: values, or lists of values to try
curve     what a trial's metric did while the learning rate grew
trial     one trial, a `mox.run` of its own
search    which trials are made, and which one wins
"""

from moxserve.tensorflow.auto.params import ParamSpec
from moxserve.tensorflow.auto.search import SearchResult, run, search
from moxserve.tensorflow.auto.trial import ModelSize, Trial

__all__ = ["ModelSize", "ParamSpec", "SearchResult", "Trial", "run", "search"]
