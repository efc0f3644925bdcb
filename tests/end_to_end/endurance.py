"""Ask a bundle ten thousand times from eight threads, in each of the sdk's ways, and print the memory over time.

python tests/end_to_end/endurance.py BUNDLE [N_ASKS]
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import numpy as np

from tvp import sdk

N_WARM, N_THREADS = 1000, 8
PICTURES = [np.random.default_rng(i).integers(0, 256, (40 + 8 * i, 64, 3), np.uint8) for i in range(3)]
QUESTIONS = ["What?", "How many objects are there?"]
CASES = [(picture, question) for picture in range(len(PICTURES)) for question in QUESTIONS]
LABELS = ["1", "two", "a red star"]
LIMIT = {"max_new_tokens": 2}


def resident():
    """Resident memory of this process in KiB."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


def main(bundle, n_asks):
    with sdk.load(bundle, providers="cpu") as task:
        views = [task.see(picture) for picture in PICTURES]
        ways = [
            lambda p, q: task.ask(PICTURES[p], q, **LIMIT).tokens,
            lambda p, q: task.see(PICTURES[p]).ask(q, **LIMIT).tokens,
            lambda p, q: views[p].ask(q, **LIMIT).tokens,  # a view that the threads share
            lambda p, q: [row.label for row in task.rank(PICTURES[p], q, labels=LABELS)],
            lambda p, q: "".join(task.stream(PICTURES[p], q, **LIMIT)),
            lambda p, q: [a.tokens for a in task.ask_many([(PICTURES[p], q), (PICTURES[0], QUESTIONS[0])], **LIMIT)],
        ]
        expected = {(way, case): ways[way](*case) for way in range(len(ways)) for case in CASES}

        def ask(number, way=None):
            way = number % len(ways) if way is None else way
            case = CASES[number // len(ways) % len(CASES)]
            return ways[way](*case) == expected[way, case]

        right, kib = [0] * N_THREADS, []
        step = threading.Barrier(N_THREADS)
        # Memory is read after every thousand questions, when all threads wait.
        pause = threading.Barrier(N_THREADS, action=lambda: kib.append(resident()))

        def work(thread):
            for start in range(0, n_asks, N_WARM):
                for number in range(start + thread, start + N_WARM, N_THREADS):
                    if start == 0:
                        # The warm-up is the worst case: all threads ask in the same way at the same moment. By chance
                        # alone this would come late, and look like growth.
                        step.wait()
                        right[thread] += ask(number, way=number // N_THREADS % len(ways))
                    else:
                        right[thread] += ask(number)
                pause.wait()

        began = time.perf_counter()
        threads = [threading.Thread(target=work, args=(number,)) for number in range(N_THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(
            json.dumps(
                {
                    "asks": n_asks,
                    "right": sum(right),
                    "kib": kib,
                    "growth": kib[-1] / kib[0] - 1,
                    "seconds": round(time.perf_counter() - began, 1),
                }
            )
        )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 10_000)
