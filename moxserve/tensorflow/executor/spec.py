"""What a user's functions and `run` say to each other: ModeKeys, ModelSpec, ExportSpec, RunResult. No graph code."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from moxserve.errors import ModelSpecError, UsageError, did_you_mean

if TYPE_CHECKING:
    from moxserve.tensorflow.executor.observe.utilisation import Utilisation

__all__ = ["ExportKeys", "ExportSpec", "ModeKeys", "ModelSpec", "RunResult", "SignatureSpec"]


class _Names(type):
    """A class of constants that knows what was meant by a name that it lacks."""

    def __getattr__(cls, name: str) -> NoReturn:
        known = [key for key in vars(cls) if key.isupper() and isinstance(vars(cls)[key], str)]
        raise AttributeError(f"{cls.__name__} has no {name!r}; {did_you_mean(name.upper(), known)}", name=name, obj=cls)


class ModeKeys(metaclass=_Names):
    """The modes that `input_fn` and `model_fn` are called with."""

    TRAIN = "TRAIN"
    EVAL = "EVAL"
    PREDICT = "PREDICT"
    EXPORT = "EXPORT"

    RUNNABLE = (TRAIN, EVAL, PREDICT)
    ALL = (TRAIN, EVAL, PREDICT, EXPORT)

    @classmethod
    def check_runnable(cls, mode: Any, argument: str = "run_mode") -> str:
        """Check that a mode can be asked of `run`.

        Raises:
            UsageError: it is none of TRAIN, EVAL, PREDICT.
        """
        if mode in cls.RUNNABLE:
            return str(mode)
        if mode == cls.EXPORT:
            raise UsageError(
                f"{argument}='EXPORT' cannot be asked for", hint="give export_model=mox.ExportKeys.TF_SERVING instead"
            )
        raise UsageError(
            f"{argument}={mode!r} is not a mode; {did_you_mean(str(mode).upper(), cls.RUNNABLE)}",
            hint=f"{argument}=mox.ModeKeys.TRAIN, EVAL or PREDICT",
        )


class ExportKeys(metaclass=_Names):
    """The kinds of artifact that `run(export_model=...)` can make.

    TF_SERVING is the SavedModel, which is always made; the others are made beside it, in the same version. Which
    precisions there are depends on the runtime; see `moxserve.export.targets`.
    """

    TF_SERVING = "TF_SERVING"
    FROZEN = "FROZEN"
    FROZEN_BF16 = "FROZEN_BF16"
    ONNX = "ONNX"
    ONNX_FP16 = "ONNX_FP16"
    ONNX_DYNAMIC = "ONNX_DYNAMIC"
    ONNX_INT8 = "ONNX_INT8"
    TFLITE = "TFLITE"
    TFLITE_FP16 = "TFLITE_FP16"
    TFLITE_DYNAMIC = "TFLITE_DYNAMIC"
    TFLITE_INT8 = "TFLITE_INT8"
    OPENVINO = "OPENVINO"
    OPENVINO_BF16 = "OPENVINO_BF16"
    OPENVINO_FP16 = "OPENVINO_FP16"
    OPENVINO_INT8 = "OPENVINO_INT8"

    ALL = (
        TF_SERVING, FROZEN, FROZEN_BF16, ONNX, ONNX_FP16, ONNX_DYNAMIC, ONNX_INT8, TFLITE, TFLITE_FP16, TFLITE_DYNAMIC,
        TFLITE_INT8, OPENVINO, OPENVINO_BF16, OPENVINO_FP16, OPENVINO_INT8,
    )  # fmt: skip

    @classmethod
    def resolve(cls, value: Any) -> tuple[str, ...]:
        """Read the `export_model` argument: False and None mean no export, True means TF_SERVING.

        Args:
            value: a kind, or a list of kinds.

        Returns:
            The kinds, none twice; empty for no export.

        Raises:
            UsageError: a kind is unknown.
        """
        if value is None or value is False:
            return ()
        if value is True:
            return (cls.TF_SERVING,)
        kinds = list(value) if isinstance(value, (list, tuple, set, frozenset)) else [value]
        for kind in kinds:
            if kind not in cls.ALL:
                raise UsageError(f"export_model={kind!r} is not a kind of artifact; {did_you_mean(str(kind), cls.ALL)}")
        return tuple(dict.fromkeys(kinds))


def _as_dict(value: Any, what: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ModelSpecError(f"{what} must be a dict of name: tensor, not {type(value).__name__}")
    bad = [key for key in value if not isinstance(key, str) or not key.strip() or not key.isprintable()]
    if bad:
        raise ModelSpecError(f"{what} has the key {bad[0]!r}; expected a name that can be printed")
    return dict(value)


def _refuse(unknown: Mapping[str, Any], kind: type) -> None:
    """Raise an error about the first argument that a class does not know, if there is one."""
    for name in unknown:
        known = [p for p in inspect.signature(kind).parameters if p != "unknown"]
        raise ModelSpecError(f"mox.{kind.__name__} has no argument {name!r}; {did_you_mean(name, known)}")


@dataclass(frozen=True)
class SignatureSpec:
    """One more way to call the exported model.

    Attributes:
        inputs: alias: tensor, each of `inputs` or made inside `model_fn`. For classify and regress they are parsed from
            serialized tf.Examples; a single string vector called `inputs` is taken to be these examples themselves.
        outputs: alias: tensor. Of classify: `scores` `[batch, classes]` float, `classes` `[batch, classes]` string, or
            both; of regress: `outputs` `[batch]` or `[batch, 1]` float.
        method: `predict`, `classify` or `regress`.
    """

    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    method: str = "predict"

    METHODS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "predict": (),
        "classify": ("scores", "classes"),
        "regress": ("outputs",),
    }

    def __post_init__(self) -> None:
        """Check what can be checked without a graph.

        Raises:
            ModelSpecError: the method is unknown, or has other outputs.
        """
        if self.method not in self.METHODS:
            raise ModelSpecError(
                f"SignatureSpec(method={self.method!r}); {did_you_mean(str(self.method), self.METHODS)}"
            )
        for side in ("inputs", "outputs"):
            object.__setattr__(self, side, _as_dict(getattr(self, side), f"SignatureSpec.{side}"))
        if not self.outputs:
            raise ModelSpecError("SignatureSpec.outputs is empty; name at least one tensor")
        if self.method != "predict" and not self.inputs:
            raise ModelSpecError(f"a {self.method} signature needs inputs; SignatureSpec.inputs is empty")
        known = self.METHODS[self.method]
        odd = [alias for alias in self.outputs if known and alias not in known]
        if odd:
            raise ModelSpecError(
                f"a {self.method} signature gives {' and '.join(known)}; SignatureSpec.outputs has {odd[0]!r}"
            )


_RESERVED_KEY = "__saved_model"


@dataclass(frozen=True, init=False)
class ExportSpec:
    """Which tensors of `model_fn` the exported model takes and gives.

    Attributes:
        inputs_dict: alias: tensor, each of `inputs` or made inside `model_fn`.
        outputs_dict: alias: tensor.
        version: number or name of the version directory; -1 takes the next free number.
        scores: the key of `outputs_dict` that holds `[batch, classes] float32` scores; adds a classify signature.
        labels: class names by index, for the classify signature.
        regression: the key of `outputs_dict` that holds `[batch]` or `[batch, 1]` floats; adds a regress signature.
        signatures: key: SignatureSpec, further signatures.
        example_spec: feature name: `tf.io.FixedLenFeature`, `VarLenFeature`, ...: how the inputs of these names are
            parsed from tf.Examples; inputs that it does not name are lists of their own shape and type. Adds a predict
            signature that takes examples.
        default_signature: key of the signature that callers get who name none; empty for the one of `inputs_dict` and
            `outputs_dict`.
    """

    inputs_dict: Mapping[str, Any]
    outputs_dict: Mapping[str, Any]
    version: int | str = -1
    scores: str | None = None
    labels: Sequence[str] | None = None
    regression: str | None = None
    signatures: Mapping[str, SignatureSpec] = field(default_factory=dict)
    example_spec: Mapping[str, Any] = field(default_factory=dict)
    default_signature: str = ""

    def __init__(
        self,
        inputs_dict: Mapping[str, Any],
        outputs_dict: Mapping[str, Any],
        version: int | str = -1,
        *,
        scores: str | None = None,
        labels: Sequence[str] | None = None,
        regression: str | None = None,
        signatures: Mapping[str, SignatureSpec] | None = None,
        example_spec: Mapping[str, Any] | None = None,
        default_signature: str = "",
        **unknown: NoReturn,
    ) -> None:
        _refuse(unknown, ExportSpec)
        inputs = _as_dict(inputs_dict, "ExportSpec.inputs_dict")
        outputs = _as_dict(outputs_dict, "ExportSpec.outputs_dict")
        if not inputs or not outputs:
            missing = "inputs_dict" if not inputs else "outputs_dict"
            raise ModelSpecError(f"ExportSpec.{missing} is empty; name at least one tensor")
        for argument, key in (("scores", scores), ("regression", regression)):
            if key is not None and key not in outputs:
                raise ModelSpecError(
                    f"ExportSpec({argument}={key!r}) is no key of outputs_dict; {did_you_mean(key, outputs)}"
                )
        further = _signature_dict(signatures)
        features = _as_dict(example_spec, "ExportSpec.example_spec")
        known = {*inputs, *(alias for signature in further.values() for alias in signature.inputs)}
        for name in features:
            if name not in known:
                raise ModelSpecError(
                    f"ExportSpec.example_spec has the feature {name!r}, which is no input; {did_you_mean(name, known)}"
                )
        for name, value in (
            ("inputs_dict", inputs),
            ("outputs_dict", outputs),
            ("version", version),
            ("scores", scores),
            ("labels", list(labels) if labels is not None else None),
            ("regression", regression),
            ("signatures", further),
            ("example_spec", features),
            ("default_signature", default_signature),
        ):
            object.__setattr__(self, name, value)


def _signature_dict(signatures: Any) -> dict[str, SignatureSpec]:
    found = _as_dict(signatures, "ExportSpec.signatures")
    for key, value in found.items():
        if not isinstance(value, SignatureSpec):
            raise ModelSpecError(
                f"ExportSpec.signatures[{key!r}] is a {type(value).__name__}; expected a mox.SignatureSpec",
                hint="mox.SignatureSpec(inputs={...}, outputs={...}, method='predict')",
            )
        if not key or key.startswith(_RESERVED_KEY):
            raise ModelSpecError(f"ExportSpec.signatures: the key {key!r} is empty or TensorFlow's own")
    return found


class ModelSpec:
    """What `model_fn` returns.

    Args:
        loss: scalar tensor, or a list of scalar tensors for several objectives; needed in TRAIN.
        var_scopes: variable scopes that the loss trains: a list of names, or one list per loss. Default: all variables.
        log_info: name: scalar tensor, printed on the console and written as summaries; needed in EVAL.
        output_info: name: tensor, handed to `output_fn`; needed in PREDICT.
        export_spec: an ExportSpec; needed in EXPORT.
        hooks: AggregativeSessionRunHook objects (a plain SessionRunHook is taken as one that aggregates nothing).
        var_scope: another spelling of `var_scopes`; the documents use both.
        output_dict: another spelling of `output_info`; likewise.

    Raises:
        ModelSpecError: a field has the wrong type. What a mode needs is checked where the mode is known.
    """

    def __init__(
        self,
        loss: Any = None,
        var_scopes: Sequence[Any] | None = None,
        log_info: Mapping[str, Any] | None = None,
        output_info: Mapping[str, Any] | None = None,
        export_spec: ExportSpec | None = None,
        hooks: Sequence[Any] | None = None,
        var_scope: Sequence[Any] | None = None,
        output_dict: Mapping[str, Any] | None = None,
        **unknown: NoReturn,
    ) -> None:
        _refuse(unknown, ModelSpec)
        if output_dict is not None and output_info is not None:
            raise ModelSpecError("ModelSpec got both output_dict and output_info; they are the same, give one")
        if var_scope is not None and var_scopes is not None:
            raise ModelSpecError("ModelSpec got both var_scope and var_scopes; they are the same, give one")
        if export_spec is not None and not isinstance(export_spec, ExportSpec):
            raise ModelSpecError(
                f"ModelSpec.export_spec must be a mox.ExportSpec, not {type(export_spec).__name__}",
                hint="export_spec=mox.ExportSpec(inputs_dict={...}, outputs_dict={...})",
            )
        self.losses: list[Any] = [] if loss is None else list(loss) if isinstance(loss, (list, tuple)) else [loss]
        self.var_scopes = self._scopes_per_loss(var_scopes if var_scopes is not None else var_scope, loss)
        self.log_info = _as_dict(log_info, "ModelSpec.log_info")
        self.output_info = _as_dict(output_dict if output_info is None else output_info, "ModelSpec.output_info")
        self.export_spec = export_spec
        self.hooks: list[Any] = self._hook_list(hooks)

    @property
    def loss(self) -> Any:
        """The loss as it was given: None, one tensor, or the list of several."""
        if not self.losses:
            return None
        return self.losses[0] if len(self.losses) == 1 else self.losses

    def _scopes_per_loss(self, scopes: Any, loss: Any) -> list[list[str] | None]:
        if scopes is None:
            return [None] * len(self.losses)
        scopes = [scopes] if isinstance(scopes, str) else list(scopes)
        nested = scopes and all(isinstance(s, (list, tuple)) for s in scopes)
        if not isinstance(loss, (list, tuple)) and not nested:
            return [[str(s) for s in scopes]]
        if not nested or len(scopes) != len(self.losses):
            raise ModelSpecError(
                f"ModelSpec.var_scopes must hold one list for each of the {len(self.losses)} losses, not {scopes!r}",
                hint="loss=[D_loss, G_loss], var_scopes=[['discriminator'], ['generator']]",
            )
        return [[str(s) for s in group] for group in scopes]

    @staticmethod
    def _hook_list(hooks: Any) -> list[Any]:
        if hooks is None:
            return []
        if not isinstance(hooks, (list, tuple)):
            raise ModelSpecError(
                f"ModelSpec.hooks must be a list of hooks, not {type(hooks).__name__}", hint="hooks=[hook]"
            )
        return list(hooks)


@dataclass(frozen=True)
class RunResult:
    """What a run did.

    Attributes:
        mode: TRAIN, EVAL or PREDICT.
        start_step: global step that the run began at.
        global_step: global step that it ended at.
        local_steps: steps that this run made.
        stop_reason: `max_steps`, `end_of_input`, `already_trained` or `request_stop`.
        checkpoint: prefix of the newest checkpoint (TRAIN: the last one written; EVAL, PREDICT: the one restored).
        metrics: EVAL: mean of each `log_info` over all steps, a step weighted by its rows; TRAIN: values last logged.
        samples_per_s: rows a second, the first step left out (it pays for start-up).
        step_s: seconds a step, the first step left out; 0.0 when there were fewer than two.
        step_cpu_s: CPU seconds that the whole process spent a step, likewise.
        export: what `export_model` made, else None.
        traces: files that timelines and profiles of steps were written to.
        utilisation: cores, memory, GPUs and waiting for input; None when there were fewer than two steps.
        best: prefix of the best checkpoint, where a `mox.BestCheckpointHook` keeps some.
    """

    mode: str
    start_step: int
    global_step: int
    local_steps: int
    stop_reason: str
    checkpoint: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    samples_per_s: float = 0.0
    step_s: float = 0.0
    step_cpu_s: float = 0.0
    export: Any = None
    traces: Sequence[str] = ()
    utilisation: Utilisation | None = None
    best: str | None = None
