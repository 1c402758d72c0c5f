"""Well-known data sets as flows, read from local files; nothing is downloaded.

Where no folder is given, files are looked for where tensorpack keeps them: `$TENSORPACK_DATASET/<name>`, or
`~/tensorpack_data/<name>`.
"""

from moxserve.dataflow.dataset.cifar import Cifar10, Cifar100
from moxserve.dataflow.dataset.ilsvrc import ILSVRC12, ILSVRC12Files
from moxserve.dataflow.dataset.mnist import FashionMnist, Mnist

__all__ = ["ILSVRC12", "Cifar10", "Cifar100", "FashionMnist", "ILSVRC12Files", "Mnist"]
