"""The benchmarks: a module each, whose first line says what it measures and whose `BENCHMARK` is run by the harness."""
