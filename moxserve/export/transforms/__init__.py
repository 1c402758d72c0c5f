"""The Graph Transform Tool: rewrites of frozen graphs, each compared with the graph before and undone when wrong.

`parse_transforms` reads the mini-language (`language`), `catalogue` says what each transform is, `apply_transforms`
(`apply`) runs them: TensorFlow's own implementation in a process of its own (`native`, `worker`), or ours (`batchnorm`,
`structure`, `convolutions`, `tables`). `run_grappler` and `compile_with_xla` are the same for TensorFlow's optimizer
and compiler.
"""

from moxserve.export.transforms.apply import apply_transforms
from moxserve.export.transforms.catalogue import DEFAULT_TRANSFORMS, TRANSFORMS, Argument, TransformInfo
from moxserve.export.transforms.check import output_check
from moxserve.export.transforms.grappler import GRAPPLER_PASSES, run_grappler
from moxserve.export.transforms.language import Transform, format_transforms, parse_transforms
from moxserve.export.transforms.steps import DEFAULT_LIMIT, SIMULATED_LIMIT, Step, TransformResult
from moxserve.export.transforms.xla import compile_with_xla

__all__ = [
    "DEFAULT_LIMIT",
    "DEFAULT_TRANSFORMS",
    "GRAPPLER_PASSES",
    "SIMULATED_LIMIT",
    "TRANSFORMS",
    "Argument",
    "Step",
    "Transform",
    "TransformInfo",
    "TransformResult",
    "apply_transforms",
    "compile_with_xla",
    "format_transforms",
    "output_check",
    "parse_transforms",
    "run_grappler",
]
