"""A model repository for Triton, as its own proto reads it."""

import os
import subprocess

import pytest

from jaxaccel.deployment.signature import Signature, TensorSpec
from jaxaccel.deployment.triton import DATATYPES, write_config, write_repository
from jaxaccel.errors import UserError

SIGNATURE = Signature(
    (TensorSpec("image", "uint8", (None, 8, 8, 1)), TensorSpec("length", "int32", (None,))),
    (TensorSpec("symbols", "int32", (None, None)), TensorSpec("score", "float32", (None,))),
)
CONFIG = """\
name: "digits"
backend: "onnxruntime"
max_batch_size: 16
input {
  name: "image"
  data_type: TYPE_UINT8
  dims: [ 8, 8, 1 ]
}
input {
  name: "length"
  data_type: TYPE_INT32
  dims: [ 1 ]
  reshape: { shape: [ ] }
}
output {
  name: "symbols"
  data_type: TYPE_INT32
  dims: [ -1 ]
}
output {
  name: "score"
  data_type: TYPE_FP32
  dims: [ 1 ]
  reshape: { shape: [ ] }
}
dynamic_batching {
  preferred_batch_size: [ 4, 16 ]
  max_queue_delay_microseconds: 2000
}
"""
READ = """
import sys
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
config = text_format.Parse(sys.stdin.read(), model_config_pb2.ModelConfig())
print(config.max_batch_size, [x.data_type for x in (*config.input, *config.output)],
      list(config.dynamic_batching.preferred_batch_size))
"""


def test_the_repository_has_the_layout_of_triton(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    write_repository(tmp_path / "triton", "digits", tmp_path / "model.onnx", SIGNATURE, [1, 4, 16])
    assert (tmp_path / "triton" / "digits" / "1" / "model.onnx").read_bytes() == b"onnx"
    assert (tmp_path / "triton" / "digits" / "config.pbtxt").read_text() == CONFIG


def test_one_example_at_a_time_is_not_gathered():
    assert "dynamic_batching" not in write_config("x", SIGNATURE, [1])


def test_a_dtype_that_triton_lacks_is_refused():
    odd = Signature((TensorSpec("x", "float8_e4m3fn", (None, 2)),), ())
    with pytest.raises(UserError, match="Triton has no dtype for x, which is float8_e4m3fn"):
        write_config("x", odd, [1])


@pytest.mark.skipif("JAXACCEL_TRITON_PYTHON" not in os.environ, reason="names a Python that has tritonclient")
def test_tritons_own_proto_reads_it():
    python = os.environ["JAXACCEL_TRITON_PYTHON"]
    found = subprocess.run([python, "-c", READ], input=CONFIG, capture_output=True, text=True)
    assert found.stdout == "16 [2, 8, 8, 11] [4, 16]\n", found.stderr
    every = Signature(tuple(TensorSpec(name, name, (None, 2)) for name in DATATYPES), ())
    found = subprocess.run(
        [python, "-c", READ], input=write_config("x", every, [2]), capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
