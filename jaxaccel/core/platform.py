"""Which devices a program is compiled for: those of the mesh in context, which need not be attached to this process."""

import contextlib

import jax
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh

from jaxaccel.core.unattached import GPUS


def get_platform(backend: str | None = None) -> str:
    """Gives the platform that is compiled for: ``cpu``, ``gpu`` or ``tpu``.

    It is `backend` where one is named, else that of the mesh in context (`jax.set_mesh`), else JAX's default. So a
    program can be compiled ahead of time for a topology of devices that this machine lacks.
    """
    if backend:
        return backend
    mesh = jax.sharding.get_abstract_mesh()
    return jax.default_backend() if mesh.empty else platform_of(mesh)


def platform_of(mesh: Mesh | AbstractMesh) -> str:
    """Gives the platform of a mesh's devices: ``cpu``, ``gpu`` or ``tpu``."""
    device = mesh.abstract_mesh.abstract_device
    found = device.platform if device is not None else jax.default_backend()
    return "gpu" if found in ("cuda", "rocm") else found


def trace_for(platform: str) -> contextlib.AbstractContextManager[object]:
    """Lets programs be traced for one device of a platform that need not be there: ``cpu``, ``cuda``, ``tpu``."""
    device = AbstractDevice(device_kind=platform, num_cores=None, platform=platform)
    mesh = AbstractMesh((1,), ("device",), (AxisType.Auto,), abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


def count_devices() -> int:
    """Counts the devices over which a program is split: those of the mesh in context, else one."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.size


def get_capability() -> tuple[int, int] | None:
    """Gives the compute capability of the GPU that is compiled for, such as (8, 9).

    It is that of the mesh in context, whose devices need not be attached, else of the first GPU of this process. None
    says that neither is known.
    """
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    for gpu in GPUS.values():
        if device is not None and device.device_kind == gpu.name:
            return gpu.capability
    try:
        attached = jax.local_devices(backend="gpu")[0]
    except RuntimeError:
        return None
    numbers = str(getattr(attached, "compute_capability", "")).split(".")  # AMD writes gfx90a
    return (
        (int(numbers[0]), int(numbers[1]))
        if all(n.isdigit() for n in numbers) and len(numbers) == 2
        else None
    )
