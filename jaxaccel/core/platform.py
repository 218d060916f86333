"""Which devices a program is compiled for: those of the mesh in context, which need not be attached to this process."""

import jax


def get_platform(backend: str | None = None) -> str:
    """Gives the platform that is compiled for: ``cpu``, ``gpu`` or ``tpu``.

    It is `backend` where one is named, else that of the mesh in context (`jax.set_mesh`), else JAX's default. So a
    program can be compiled ahead of time for a topology of devices that this machine lacks.
    """
    if backend:
        return backend
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    found = device.platform if device is not None else jax.default_backend()
    return "gpu" if found in ("cuda", "rocm") else found


def count_devices() -> int:
    """Counts the devices over which a program is split: those of the mesh in context, else one."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.size
