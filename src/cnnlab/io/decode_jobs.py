"""Decode many images into the rows of a file, in this process or in another: `python -m cnnlab.io.decode_jobs`.

It does not import torch, so that such a process starts quickly; cnnlab.competition.decoders starts them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import IO, Any

import numpy as np

from cnnlab.io.decode import BadImage, Decoding, Picture, bombs_refused, header_of, read_image, square_pixels
from cnnlab.io.errors import reason
from cnnlab.io.processes import answer_stream


@dataclass(frozen=True)
class Job:
    """The destination of decoded images, and how they are decoded.

    file: a .npy of (N, channels, size, size) uint8 whose pixels begin at byte `offset`. same_size: report an image of
    another size instead of fitting it. measured: whether `how` suits all images. Otherwise it suits only plain ones,
    and others are reported: colour where grey is expected, more than eight bits, and transparency.
    """

    file: str
    offset: int
    how: Decoding
    same_size: bool
    measured: bool


Fault = tuple[int, str, str]
"""(row, kind, text) of an image that was not stored. text: the error message.

kind: `bad`; `size`, see `Job.same_size`; or `unmeasured`, see `Job.measured`.
"""


def decode_into(job: Job, rows: Sequence[int], names: Sequence[str], contents: Sequence[bytes]) -> list[Fault]:
    """Write each image to its row of the file. The rows of faulty images stay unchanged, that is, black.

    Raise OSError if the file cannot be written.
    """
    faults: list[Fault] = []
    # Plain writes: with a memory map, a full disk would be a fatal signal, and the pages would count as memory.
    with open(job.file, "r+b") as file, bombs_refused():  # noqa: PTH123 - a text
        for row, name, content in zip(rows, names, contents, strict=True):
            try:
                found = read_image(name, content, partial(_stored, job, name))
            except BadImage as error:
                faults.append((row, "bad", str(error)))
                continue
            if isinstance(found, tuple):
                faults.append((row, *found))
                continue
            file.seek(job.offset + row * found.size)
            file.write(found.tobytes())
    return faults


def _stored(job: Job, name: str, image: Picture) -> np.ndarray | tuple[str, str]:
    """Return the pixels to store, or the kind and text of a fault."""
    how = job.how
    if job.same_size and image.size != (how.size, how.size):
        return "size", f"{name} is {image.size[0]} x {image.size[1]}"
    if not job.measured:
        header = header_of(image)
        if (how.channels == 1 and not header.grey) or header.deep or header.transparent:
            return "unmeasured", f"{name} is not like the images before it"
    return square_pixels(image, name, how)


def write_batch(
    stream: IO[bytes], job: Job, rows: Sequence[int], names: Sequence[str], contents: Sequence[bytes]
) -> None:
    """Send a batch to a process that runs `serve`: a line of JSON, then the content of the image files."""
    head = {"job": asdict(job), "rows": rows, "names": names, "sizes": [len(c) for c in contents]}
    stream.write(json.dumps(head).encode() + b"\n")
    stream.write(b"".join(contents))
    stream.flush()


def serve(source: IO[bytes], sink: IO[bytes]) -> None:
    """Decode batches until the source ends; answer each with a line of JSON."""
    while line := source.readline():
        head = json.loads(line)
        contents = [source.read(size) for size in head["sizes"]]
        answer: dict[str, Any]
        try:
            job = Job(**{**head["job"], "how": Decoding(**head["job"]["how"])})
            answer = {"faults": decode_into(job, head["rows"], head["names"], contents)}
        except OSError as error:
            answer = {"failed": reason(error)}
        sink.write(json.dumps(answer).encode() + b"\n")
        sink.flush()


if __name__ == "__main__":
    serve(sys.stdin.buffer, answer_stream())
