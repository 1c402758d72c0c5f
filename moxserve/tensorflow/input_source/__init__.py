"""How data enters the graph, with tensorpack's names: an InputSource is tensors, and who keeps them supplied.

    FeedInput        a DataFlow through feed_dict, in the thread of the steps: simple, slow, for debugging
    QueueInput       a DataFlow read by a thread into a queue of the graph; what `mox.run` makes of a plain DataFlow
    BatchQueueInput  the same, with batches made by the queue
    ZMQInput         datapoints of other processes, or machines
    TFDatasetInput   a tf.data.Dataset, or a DataFlow as one
    TensorInput      tensors that a function of yours makes
    StagingInput     around any of those but FeedInput: the next batch waits on the device
    PlaceholderInput placeholders that a hook of yours feeds

`input_fn` of `mox.run` may return one, or a DataFlow. See docs/inputs.md; `base` has the protocol, `pump` the threads.
"""

from moxserve.tensorflow.input_source.base import FeedfreeInput, InputSource, remap_input_source
from moxserve.tensorflow.input_source.dataset import TFDatasetInput, dataflow_to_dataset
from moxserve.tensorflow.input_source.feed import FeedInput, PlaceholderInput
from moxserve.tensorflow.input_source.queue import BatchQueueInput, QueueInput, ZMQInput
from moxserve.tensorflow.input_source.staging import StagingInput
from moxserve.tensorflow.input_source.tensor import DummyConstantInput, TensorInput

__all__ = [
    "BatchQueueInput",
    "DummyConstantInput",
    "FeedInput",
    "FeedfreeInput",
    "InputSource",
    "PlaceholderInput",
    "QueueInput",
    "StagingInput",
    "TFDatasetInput",
    "TensorInput",
    "ZMQInput",
    "dataflow_to_dataset",
    "remap_input_source",
]
