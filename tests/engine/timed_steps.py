"""CPU time, function calls and bytecode instructions of the host for a step of one of 64 requests that nobody watches.

`python tests/engine/timed_steps.py` in the root of any checkout that has `unmask bench host`, with it as PYTHONPATH: in
turns with another commit it says what that one adds. CPU time is of one thread, the median of many steps; calls and
instructions do not depend on the machine.
"""

import sys
from collections import Counter
from statistics import median
from time import thread_time

from engine.bench.host import Crowd

REQUESTS, STEPS, COUNTED = 64, 512, 16


def seconds(crowd):
    begun = thread_time()
    crowd.step({})
    return thread_time() - begun


def instructions(crowd):
    """Of Python, in one step."""
    counted = Counter()

    def trace(frame, event, _argument):
        frame.f_trace_opcodes = True
        counted[event] += 1
        return trace

    sys.settrace(trace)
    crowd.step({})
    sys.settrace(None)
    return counted["opcode"]


def main():
    crowd, counted = Crowd(REQUESTS), Counter()
    for _ in range(COUNTED):
        sys.setprofile(lambda _frame, event, _argument: counted.update([event]))
        crowd.step({})
        sys.setprofile(None)
    calls = (counted["call"] + counted["c_call"]) / COUNTED / REQUESTS
    executed = sum(instructions(crowd) for _ in range(COUNTED)) / COUNTED / REQUESTS
    taken = median(seconds(crowd) for _ in range(STEPS))
    print(f"{1e6 * taken / REQUESTS:.2f} microseconds, {calls:.2f} calls, {executed:.1f} instructions")


if __name__ == "__main__":
    main()
