"""Tests that speak the protocol themselves: a Python that has python/requirements.txt runs them."""

import subprocess
import sys
import tempfile

from nibble_job import ROOT, JobTest


class ProtocolTest(JobTest):
    """Has what protoc makes of PROTOS (nibble_pb2 and nibble_pb2_grpc) in the folder `generated.name`."""

    PROTOS = ("nibble.proto",)

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.generated = tempfile.TemporaryDirectory(prefix="nibble-proto-")
        cls.addClassCleanup(cls.generated.cleanup)
        subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}",
                        f"--python_out={cls.generated.name}",
                        f"--grpc_python_out={cls.generated.name}", *cls.PROTOS], check=True)
