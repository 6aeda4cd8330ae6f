"""The peer of benchmarks/serve.py: the same file and the same decoding behind LitServe, from .peers/litserve.

    python benchmarks/_litserve.py FILE PORT BATCH

A module of its own, since LitServe's worker process imports it.
"""

import os
import sys
from contextlib import ExitStack
from typing import Any

import numpy as np

from _common import PEERS
from cnnlab.device.cgroups import available_cores
from cnnlab.export.runtime import open_exported
from cnnlab.io.decode import bombs_refused, decode

sys.path.insert(0, str(PEERS / "litserve"))
import litserve
from starlette.requests import Request  # from that folder; LitServe reads the annotation, so it must be an object


class API(litserve.LitAPI):  # type: ignore[misc]
    def setup(self, device: str) -> None:  # noqa: ARG002 - its signature
        self.exported = open_exported(os.environ["CNNLAB_SERVED"], threads=available_cores())
        self.how, self.classes, self.threshold = (
            self.exported.decoding, self.exported.classes, self.exported.threshold,
        )  # fmt: skip
        self.around = ExitStack()
        self.around.enter_context(bombs_refused())

    def decode_request(self, request: Request) -> Any:
        form: Any = request  # LitServe passes the parsed form
        return decode("a.jpg", self.how, form["image"].file.read())

    def batch(self, inputs: Any) -> Any:
        return np.stack(inputs)

    def predict(self, x: Any) -> Any:
        return self.exported.probabilities(x)

    def unbatch(self, output: Any) -> Any:
        return list(output)

    def encode_response(self, output: Any) -> Any:
        order = np.argsort(-output, kind="stable")[:3].tolist()
        top = [{"label": self.classes[k], "probability": float(output[k])} for k in order]
        none = top[0]["probability"] < self.threshold
        return {"images": [{"image": "a.jpg", "top": top, "none_of_these": none}]}


if __name__ == "__main__":
    file, port, most = sys.argv[1:]
    os.environ["CNNLAB_SERVED"] = file
    server = litserve.LitServer(API(max_batch_size=int(most), batch_timeout=0.0), accelerator="cpu", devices=1)
    server.run(host="127.0.0.1", port=int(port), log_level="error", generate_client_file=False)
