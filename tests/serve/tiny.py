"""A tiny network as an exported file, a service of it in a thread, and a client."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from cnnlab.io.http import listen
from cnnlab.serve.batching import Model
from cnnlab.serve.log import Log
from cnnlab.serve.server import Server, images_bounded, make_server
from cnnlab.serve.settings import Limits

SIDE = 8
CLASSES = ["red", "green", "blue"]


def tiny_onnx(path: Path) -> Path:
    """Write a network that classifies an image by its strongest colour."""
    weights = [
        numpy_helper.from_array(np.array([2, 3], np.int64), "axes"),
        numpy_helper.from_array(np.array([1], np.int64), "axis"),
        numpy_helper.from_array(np.float32(0.05), "scale"),
        numpy_helper.from_array(np.array(CLASSES, dtype=object), "names"),
        numpy_helper.from_array(np.float32(0.4), "threshold"),
    ]
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["means"], keepdims=0),
        helper.make_node("Mul", ["means", "scale"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["logits"], ["best"], axis=1, keepdims=0),
        helper.make_node("Gather", ["names", "best"], ["label"]),
        helper.make_node("ReduceMax", ["probabilities", "axis"], ["highest"], keepdims=0),
        helper.make_node("Less", ["highest", "threshold"], ["none_of_these"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", 3, "height", "width"])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("label", TensorProto.STRING, ["batch"]),
            helper.make_tensor_value_info("none_of_these", TensorProto.BOOL, ["batch"]),
        ],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    about = {"format": 1, "classes": CLASSES, "threshold": 0.4, "temperature": 1.0,
             "preprocessing": {"channels": 3, "native_size": SIDE, "fit": "pad", "background": "black", "low": 0.0,
                               "high": 0.0, "interpolation": "bilinear", "lows": [], "highs": []}}  # fmt: skip
    helper.set_model_props(model, {"cnnlab": json.dumps(about)})
    onnx.save(model, path)
    return path


def png(colour: tuple[int, int, int], side: int = SIDE, format_: str = "PNG") -> bytes:
    """Return an image of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(file, format_)
    return file.getvalue()


def form(*files: tuple[str, bytes], boundary: str = "xyz") -> tuple[bytes, dict[str, str]]:
    """Return the body and the headers of a multipart form with these files."""
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'.encode()
        + content
        + b"\r\n"
        for name, content in files
    ]
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), {
        "Content-Type": f"multipart/form-data; boundary={boundary}"
    }


class Client:
    """A client of a service on this machine."""

    def __init__(self, port: int, **headers: str) -> None:
        self.port, self.headers = port, headers

    def ask(self, path: str, body: bytes | None = None, method: str = "", **headers: str) -> tuple[int, Any, Any]:
        """Send a request. Return the status, JSON or text, and the headers."""
        sent = {**self.headers, **{key.replace("_", "-"): value for key, value in headers.items()}}
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method or ("POST" if body is not None else "GET"), path, body, sent)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        is_json = answer.getheader("content-type", "").startswith("application/json") and content
        return answer.status, json.loads(content) if is_json else content.decode(), answer.headers

    def raw(self, *parts: bytes, shut: bool = False) -> bytes:
        """Send bytes as they are. Return all that arrives until the end. shut: shut down the sending side first."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as stream:
            for part in parts:
                stream.sendall(part)
            if shut:
                stream.shutdown(socket.SHUT_WR)
            found = b""
            while chunk := stream.recv(1 << 16):
                found += chunk
        return found


@contextmanager
def serving(model: Model, limits: Limits | None = None, **options: Any) -> Iterator[tuple[Client, Server]]:
    """Serve a network in a thread of this process."""
    listener, limits, log = listen("127.0.0.1", 0), limits or Limits(), Log("json", io.StringIO())
    server = make_server(model, listener, limits=limits, log=log, name="tiny", **options)
    port = listener.getsockname()[1]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    with images_bounded(limits.pixels):
        thread.start()
        while not server.started:
            time.sleep(0.002)
        try:
            yield Client(port), server
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
            assert server.service.batcher.close()
            log.close()
