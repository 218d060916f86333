"""``README.md`` of a bundle: what it is, what was measured, and how it is run without jaxaccel."""

from collections.abc import Sequence

from jaxaccel.deployment.manifest import MANIFEST, WEIGHTS, Manifest
from jaxaccel.deployment.signature import TensorSpec

_LOADER = """import json
from pathlib import Path

import jax
import numpy as np
from safetensors.flax import load_file  # arrays of JAX; Flax is not needed

bundle = Path(".")  # the directory of this file
manifest = json.loads((bundle / "{manifest}").read_text())
entry = next(entry for entry in manifest["programs"] if entry["backend"] == jax.default_backend())
program = jax.export.deserialize(bytearray((bundle / entry["file"]).read_bytes()))
weights = load_file(bundle / "{weights}")
count = entry["batch"] or entry["least"]
inputs = {{
    spec["name"]: np.zeros((count, *shape), spec["dtype"])
    for spec, shape in zip(manifest["signature"]["inputs"], entry["shapes"])
}}
outputs = jax.jit(program.call)(weights, inputs)
print({{name: x.shape for name, x in outputs.items()}})
"""


def write_card(manifest: Manifest) -> str:
    """Writes the text for the bundle of that manifest."""
    origin = manifest.origin
    scores = manifest.receipts.get("scores", {})
    parts = [
        f"# {manifest.name}",
        f"Exported by jaxaccel {manifest.versions.get('jaxaccel', '')} on {manifest.created[:10]} from "
        f"`{origin.get('run', '')}`, step {origin.get('step', '')}, trained on {origin.get('data', 'unknown data')}.",
        _write_table("takes", manifest.signature.inputs),
        _write_table("gives", manifest.signature.outputs),
    ]
    if scores:
        rows = [f"| {name} | {value:.4g} |" for name, value in scores.items()]
        parts.append("\n".join(["| measured | |", "|---|---:|", *rows]))
    parts.append(
        "With jaxaccel:\n\n```sh\n"
        f"python -m jaxaccel.predict {manifest.name} INPUT...\n"
        f"python -m jaxaccel.serve {manifest.name}\n```"
    )
    if manifest.programs:
        parts.append(_write_loader())
    parts.append(
        f"`{MANIFEST}` lists every file with its SHA-256. Nothing here is executed when it is read: weights are "
        "arrays, programs are StableHLO."
    )
    return "\n\n".join(parts) + "\n"


def _write_table(what: str, specs: Sequence[TensorSpec]) -> str:
    rows = [f"| `{spec.name}` | `{spec}` |" for spec in specs]
    return "\n".join([f"| {what} | |", "|---|---|", *rows])


def _write_loader() -> str:
    text = _LOADER.format(manifest=MANIFEST, weights=WEIGHTS)
    return f"With jax, numpy, safetensors and flatbuffers alone:\n\n```python\n{text}```"
