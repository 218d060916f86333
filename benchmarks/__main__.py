"""``python -m benchmarks``: lists the benchmarks, runs one, or writes the pages of docs/benchmarks."""

import sys

from benchmarks.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
