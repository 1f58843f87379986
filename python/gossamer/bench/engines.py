# SPDX-License-Identifier: BSD-3-Clause
"""Other inference engines as peers: ONNX Runtime and OpenVINO, where they are installed.

`onnxruntime_int8` is ONNX Runtime's own dynamic quantization of a linear layer:
DynamicQuantizeLinear rounds the whole input at one scale in every call, MatMulInteger multiplies,
weights have a scale an output.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import io
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer._errors import first_line

__all__ = ["ENGINES", "INT8", "describe", "engines", "int8_engines"]

_WORST = 2.0**-10
"""Of the largest result. Float32 with Winograd's transform errs by about 1e-5 of it, arithmetic in
bfloat16 by 4e-3 and more: an engine that silently computes in bfloat16 is no peer."""


def engines(module: nn.Module, x: Tensor, note: Callable[[str], None]) -> dict[str, Any]:
    """Calls that compute `module(x)`, each with torch's present number of threads.

    Args:
        module: dense, float32, one input and one result.
        x: the input; its values are read anew at every call, its shape is compiled in.
        note: told why an engine that is installed does not take part.

    Returns:
        Name to a function without arguments; empty where no engine is installed.
    """
    found: dict[str, Any] = {}
    for name, (needs, build) in ENGINES.items():
        if any(importlib.util.find_spec(one) is None for one in needs):
            continue
        try:
            call = _quiet(build, module, x)
            wrong = _error(call(), module(x))
        except Exception as error:  # their exceptions share no class
            note(f"{name} does not take part: {_said(error)}")
            continue
        if not wrong <= _WORST:
            note(f"{name} does not take part: its results are off by {wrong:.2g} of the largest")
            continue
        found[name] = call
    return found


INT8 = "_int8"
"""Behind an engine's name where it computes in eight bits."""


def int8_engines(
    module: nn.Linear, x: Tensor, note: Callable[[str], None]
) -> dict[str, Callable[[], Tensor]]:
    """ONNX Runtime's dynamically quantized layer, where it is installed.

    Args:
        module: dense, float32, without a bias; the caller checks what the calls compute.
        x: float32 [tokens, in]; its values are read anew at every call.
        note: told why an engine that is installed does not take part.

    Returns:
        `onnxruntime_int8` to a function without arguments; empty where it is not installed.
    """
    if any(importlib.util.find_spec(one) is None for one in ("onnx", "onnxruntime")):
        return {}
    try:
        call = _quiet(_onnxruntime_int8, module, x)
    except Exception as error:  # its exceptions share no class
        note(f"onnxruntime_int8 does not take part: {_said(error)}")
        return {}
    return {"onnxruntime" + INT8: lambda: torch.from_numpy(call())}


def describe(name: str) -> str:
    """A peer's name with its version."""
    package = name.removesuffix(INT8)
    package = package if package in ENGINES else "torch"
    return f"{name}, {package} {importlib.metadata.version(package)}"


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)[:200]}"


def _quiet(build: Callable[..., Any], module: nn.Module, x: Tensor) -> Any:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return build(module, x)
    finally:
        logging.disable(before)


def _error(found: Any, wanted: Tensor) -> float:
    result = torch.from_numpy(found)
    return float((result - wanted).abs().max() / wanted.abs().max())


def _exported(module: nn.Module, x: Tensor) -> bytes:
    model = io.BytesIO()
    export: Any = torch.onnx.export  # its annotation knows no stream, its older exporter takes one
    export(module, (x,), model, dynamo=False)
    return model.getvalue()


def _onnxruntime(module: nn.Module, x: Tensor) -> Callable[[], Any]:
    return _session(_exported(module, x), x)


def _onnxruntime_int8(module: nn.Module, x: Tensor) -> Callable[[], Any]:
    onnx = importlib.import_module("onnx")
    quantization = importlib.import_module("onnxruntime.quantization")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "int8.onnx"
        quantization.quantize_dynamic(
            onnx.load_model_from_string(_exported(module, x)),
            target,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            # Without VNNI two products of eight bits are added in sixteen and may not fit.
            reduce_range=not {"avx512_vnni", "avx_vnni"} & set(gs.machine().isa_detected),
        )
        model = target.read_bytes()
    nodes = {node.op_type for node in onnx.load_model_from_string(model).graph.node}
    if "MatMulInteger" not in nodes:
        raise RuntimeError(f"no MatMulInteger in the quantized graph, but {sorted(nodes)}")
    return _session(model, x)


def _session(model: bytes, x: Tensor) -> Callable[[], Any]:
    runtime = importlib.import_module("onnxruntime")
    wishes = runtime.SessionOptions()
    wishes.intra_op_num_threads = torch.get_num_threads()
    wishes.log_severity_level = 3
    session = runtime.InferenceSession(model, wishes, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, feed)[0]


def _openvino(module: nn.Module, x: Tensor) -> Callable[[], Any]:
    openvino = importlib.import_module("openvino")
    model = openvino.convert_model(module, example_input=x, input=[list(x.shape)])
    wishes = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = openvino.compile_model(model, "CPU", wishes).create_infer_request()
    request.set_input_tensor(openvino.Tensor(x.numpy(), shared_memory=True))

    def call() -> Any:
        request.infer()
        return request.get_output_tensor().data

    return call


ENGINES: dict[str, tuple[tuple[str, ...], Callable[[nn.Module, Tensor], Any]]] = {
    "onnxruntime": (("onnx", "onnxruntime"), _onnxruntime),
    "openvino": (("openvino",), _openvino),
}
"""Name to the packages that it needs and to what makes a call."""
