"""Serves many requests of all shapes and prints, now and then, the memory that the process holds: `requests MiB`.

Run as `python tests/engine/mixed_requests.py MODEL [REQUESTS]`.
"""

import random
import sys
from pathlib import Path

from engine import DiffusionParams, EngineConfig, SamplingParams, Submission, load

POLICIES = [
    ("dual", "threshold"),
    ("none", "fixed"),
    ("prefix", "factor"),
    ("window", "entropy"),
    ("delayed", "margin"),
    ("d2", "certainty"),
    ("dual", "cad"),
]


def resident_mib():
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) // 1024


def submission(rng, number, spec):
    """A prompt of up to the whole context, mostly about a hundred tokens."""
    cache, unmask = rng.choice(POLICIES)
    length = min(int(rng.lognormvariate(4.5, 1.0)) + 1, spec.max_model_len - 64)
    return Submission(
        request_id=str(number),
        prompt_ids=[rng.randrange(spec.mask_id) for _ in range(length)],
        sampling=SamplingParams(
            max_tokens=rng.choice([8, 16, 32, 64]),
            temperature=rng.choice([0.0, 0.8]),
            top_p=rng.choice([1.0, 0.9]),
            logprobs=rng.choice([None, None, 3]),
            seed=number,
        ),
        diffusion=DiffusionParams(cache=cache, unmask=unmask, block_length=rng.choice([4, 8, 16, 32, 64])),
    )


def main(model, requests):
    engine = load(EngineConfig(model=model, device="cpu", max_running_requests=16))
    rng, submitted, ended = random.Random(0), 0, 0
    print(ended, resident_mib(), flush=True)
    while ended < requests:
        while submitted < requests and len(engine.request_ids) < rng.choice([1, 4, 16]):
            engine.submit(engine.new_request(submission(rng, submitted, engine.info.spec)))
            submitted += 1
        for output in engine.step():
            if output.finish_reason:
                ended += 1
                if ended % 250 == 0:
                    print(ended, resident_mib(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 5000)
