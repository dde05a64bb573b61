"""The server against its own description: requests made up from /openapi.json, right ones and wrong ones."""

import re
import subprocess
import sys

import pytest

MIN_CASES = 1500
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "negative_data_rejection",
    "unsupported_method",
)


GENERATING = ("/v1/completions", "/v1/chat/completions")
ALL_PHASES = "examples,coverage,fuzzing"
TRANSLATED = ("/v1/responses", "/v1/messages", "/v1/messages/count_tokens")


@pytest.fixture(scope="module")
def url(serve, llada_tiny):
    # A short context, so that an answer is short too, whatever a made-up request asks for.
    with serve(str(llada_tiny), "--max-model-len", "64", "--log-level", "error") as url:
        yield url


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "paths", "phases", "num_examples", "min_cases"),
    [
        ("--include-path", GENERATING, ALL_PHASES, 20, MIN_CASES),
        # They become chats, whose fields the first part covers; all phases make 2,300 cases, and take minutes.
        ("--include-path", TRANSLATED, "examples,fuzzing", 40, 100),
        ("--exclude-path", (*GENERATING, *TRANSLATED), ALL_PHASES, 10, 200),
    ],
    ids=["completions and chat", "responses and messages", "others"],
)
def test_what_the_description_says_is_so(url, tmp_path, option, paths, phases, num_examples, min_cases):
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"]
    for path in paths:
        command += [option, path]
    command += ["--checks", ",".join(CHECKS), "--mode", "all", "--phases", phases]
    command += ["--max-examples", str(num_examples), "--seed", "1", "--continue-on-failure", "--no-color"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stdout + run.stderr
    num_cases = int(re.search(r"^ +(\d+) generated", run.stdout, re.MULTILINE)[1])
    print(run.stdout[-500:])
    assert num_cases >= min_cases
