"""Benchmarks of jaxaccel beside its peers: ``python -m benchmarks`` lists them, and NAME runs one."""
