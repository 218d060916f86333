"""Times a training step in a process of its own, whose allocator stands as its environment says; for allocator.

Its words are the name of the workload, the batch size and the seconds.
"""

import json
import resource
import sys
from collections.abc import Sequence

from jaxaccel.core import runtime

EXAMPLES = 8192


def main(words: Sequence[str]) -> None:
    """Sets the allocator before everything else, then measures and prints the answer."""
    said = runtime.keep_freed_memory()
    from benchmarks.trainer import TrainerStep
    from benchmarks.workloads import WORKLOADS, draw_data

    workload, batch_size, seconds = WORKLOADS[words[0]], int(words[1]), float(words[2])
    step = TrainerStep(workload, *draw_data(workload, EXAMPLES), batch_size)
    steps = max(8, round(seconds / min(step.run(4), step.run(4))))
    before = resource.getrusage(resource.RUSAGE_SELF)
    milliseconds = 1e3 * step.run(steps)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    answer = {
        "allocator": said,
        "ms": milliseconds,
        "cpu_ms": 1e3 * (usage.ru_utime + usage.ru_stime - before.ru_utime - before.ru_stime) / steps,
        "page_faults_per_step": (usage.ru_minflt - before.ru_minflt) / steps,
        "peak_rss_mb": usage.ru_maxrss / 1024,
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1:])
