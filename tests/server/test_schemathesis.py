"""The server against its own description: requests made up from /openapi.json, right ones and wrong ones."""

import re
import subprocess
import sys

import pytest

MIN_CASES = 2000
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "negative_data_rejection",
    "unsupported_method",
)


@pytest.mark.slow
def test_what_the_description_says_is_so(serve, llada_tiny, tmp_path):
    # A short context, so that an answer is short too, whatever a made-up request asks for.
    with serve(str(llada_tiny), "--max-model-len", "64", "--log-level", "error") as url:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"]
        command += ["--checks", ",".join(CHECKS), "--mode", "all", "--phases", "examples,coverage,fuzzing"]
        command += ["--max-examples", "105", "--seed", "1", "--continue-on-failure", "--no-color"]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stdout + run.stderr
    num_cases = int(re.search(r"^ +(\d+) generated", run.stdout, re.MULTILINE)[1])
    print(run.stdout[-500:])
    assert num_cases >= MIN_CASES
