#!/usr/bin/env bash
# Runs all that needs a GPU, within 9.5 minutes of one: benchmarks/gpu.sh [DIRECTORY] [--plan] [--quick]
cd "$(dirname "${BASH_SOURCE[0]}")/.." && exec python3 -u -m benchmarks gpu "$@"
