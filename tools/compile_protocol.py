"""Compile `proto/` into the descriptor set that `hybridload.goplugin.grpc.messages` loads.

Run it after a change of those files: `python tools/compile_protocol.py`. A test compares its output with what is
committed, so the two cannot drift apart.
"""

from __future__ import annotations

import sys
import tempfile
from importlib import resources
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "hybridload" / "goplugin" / "grpc" / "protocol.binpb"


def compile_protocol() -> bytes:
    """The serialized `FileDescriptorSet` of the protocol's own services, imports included.

    :raises RuntimeError: when a file does not compile; the compiler's words are on standard error.
    """
    from grpc_tools import protoc

    root = ROOT / "proto"
    sources = sorted(
        str(path.relative_to(root)) for each in ("plugin", "grpc") for path in (root / each).glob("*.proto")
    )
    well_known = str(resources.files("grpc_tools") / "_proto")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "protocol.binpb"
        options = [f"-I{root}", f"-I{well_known}", "--include_imports", f"--descriptor_set_out={out}"]
        if protoc.main(["protoc", *options, *sources]) != 0:
            raise RuntimeError("protoc failed")
        return out.read_bytes()


if __name__ == "__main__":
    TARGET.write_bytes(compile_protocol())
    sys.stdout.write(f"wrote {TARGET.relative_to(ROOT)}\n")
