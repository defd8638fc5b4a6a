"""The two forms in which a part is written: a file of ONNX, and a program of `torch.export`.

Neither keeps what the exporters add about the machine: the path and the text of every line of source behind a node.
"""

import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ifsq.config import InputError
from ifsq.interop.graphs.parts import Part, Port
from ifsq.interop.graphs.staged import with_staged_norms
from ifsq.store.files import write_bytes
from ifsq.tokenizer.model import Tokenizer

OPSET = 18
"""Of ONNX: what torch's exporter is written for, and ONNX Runtime reads since 1.14 (2023), in browsers too."""
LARGEST = 2**31 - 2**22
"""Bytes of weights in one file of ONNX: a protobuf ends at 2 GiB."""
FEW = 1024
"""Numbers of a tensor that stays float32 among weights in half precision."""

Opened = Callable[[Tensor], dict[str, Tensor]]
"""A written part, called with its one input."""


@dataclass(frozen=True)
class Format:
    """How parts are written and opened.

    suffix   of the files
    prepare  a tokenizer -> the same function in the form that is exported
    write    a part into a file, with texts about it by name
    open     a file as a function, by the runtime that it is for
    halve    a file that is written -> its weights in float16, computed in float32; None: it cannot be
    needs    packages
    least    positions a side of the smallest grid of codes: torch's programs check what was true of the traced sizes,
             and attention over one row is not
    """

    suffix: str
    prepare: Callable[[Tokenizer], Tokenizer]
    write: Callable[[Part, Path, Mapping[str, str]], None]
    open: Callable[[Path], Opened]
    halve: Callable[[Path], None] | None = None
    needs: tuple[str, ...] = ()
    least: int = 1

    def check(self) -> None:
        """Raise InputError where a package is missing."""
        for name in self.needs:
            if importlib.util.find_spec(name) is None:
                raise InputError(f"export: needs the package {name}, which is not here: pip install 'ifsq[export]'")


def trace(part: Part) -> torch.export.ExportedProgram:
    """The part as a program with dynamic batch, height and width."""
    with torch.no_grad():
        program = torch.export.export(
            part.module.eval(), (part.example,), dynamic_shapes=(part.dynamic_shapes(),), strict=False
        )
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return program


def write_program(part: Part, path: Path, about: Mapping[str, str]) -> None:
    """Write ``path``, a ``.pt2`` of `torch.export.save`; the texts lie in it as ``about/NAME``."""
    content = io.BytesIO()  # what the system refuses would hide behind errors of torch's own
    torch.export.save(trace(part), content, extra_files={f"about/{name}": text for name, text in about.items()})
    write_bytes(path, content.getvalue())


def open_program(path: Path) -> Opened:
    """A program as a function of its input."""
    return torch.export.load(path).module()


def write_onnx(part: Part, path: Path, about: Mapping[str, str]) -> None:
    """Write one file of ONNX, weights included; the texts are its metadata. Raises InputError above 2 GiB."""
    import onnx

    size = sum(tensor.numel() * tensor.element_size() for tensor in part.module.state_dict().values())
    if size > LARGEST:
        raise InputError(f"{path.name}: its weights take {size / 2**30:.1f} GiB; a file of ONNX holds 2")
    program = trace(part)
    with _quiet():
        made = torch.onnx.export(
            program,
            (),
            dynamo=True,
            opset_version=OPSET,
            input_names=[part.takes.name],
            output_names=[port.name for port in part.gives],
            verbose=False,
        )
    assert made is not None
    model = made.model_proto
    _forget_source(model)
    for value, port in zip([*model.graph.input, *model.graph.output], [part.takes, *part.gives], strict=True):
        _name_axes(value, port)
    onnx.helper.set_model_props(model, dict(about))
    write_bytes(path, model.SerializeToString())


def open_onnx(path: Path) -> Opened:
    """A file of ONNX as a function of its input, computed by ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    takes, gives = session.get_inputs()[0].name, [output.name for output in session.get_outputs()]

    def run(x: Tensor) -> dict[str, Tensor]:
        found = session.run(gives, {takes: x.numpy()})
        return {name: torch.from_numpy(array) for name, array in zip(gives, found, strict=True)}

    return run


def halve_onnx(path: Path) -> None:
    """Keep large tensors of float16 numbers in float16, each with a cast to float32, which runtimes do on loading.

    No value is changed: what the exporter has computed of such numbers, as sums of a kernel's taps, stays float32.
    """
    import numpy as np
    import onnx

    model = onnx.load(path)
    casts = []
    for position, tensor in enumerate(model.graph.initializer):
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < FEW:
            continue
        halved = values.astype(np.float16)
        if not np.array_equal(halved.astype(np.float32), values):
            continue
        name = f"{tensor.name}.float16"
        casts.append(onnx.helper.make_node("Cast", [name], [tensor.name], to=onnx.TensorProto.FLOAT))
        model.graph.initializer[position].CopyFrom(onnx.numpy_helper.from_array(halved, name))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    write_bytes(path, model.SerializeToString())


def _forget_source(model: Any) -> None:
    """Remove what the exporter tells of its source, and the types of inner values, which runtimes infer themselves."""
    graph = model.graph
    for told in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *model.functions):
        told.doc_string = ""
        del told.metadata_props[:]
    del graph.value_info[:]


def _name_axes(value: Any, port: Port) -> None:
    dims = value.type.tensor_type.shape.dim
    for dim, side in zip(dims, port.axes, strict=True):
        dim.Clear()
        if isinstance(side, int):
            dim.dim_value = side
        else:
            dim.dim_param = side


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the remarks of torch's exporter about itself and about packages that are not here."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


FORMATS = {
    "onnx": Format(
        ".onnx", with_staged_norms, write_onnx, open_onnx, halve_onnx, ("onnx", "onnxscript", "onnxruntime")
    ),
    "torch": Format(".pt2", lambda tokenizer: tokenizer, write_program, open_program, least=2),
}
