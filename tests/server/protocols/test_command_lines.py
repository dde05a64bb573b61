"""Codex CLI and Claude Code themselves, where they are installed: each runs a command that the model asks for.

The model is a script. What is shown is that requests of these clients are read, and that streams are what they expect.
"""

import asyncio
import os
import shutil
from dataclasses import replace

import pytest

from engine import FinishReason
from tests.server import fake_engine

pytestmark = pytest.mark.slow

LONG = 1_000_000
CALL = 'I look.\n<tool_call>\n{"name": "%s", "arguments": %s}\n</tool_call>'
CODEX = """\
model = "demo"
model_provider = "unmask"

[model_providers.unmask]
name = "unmask"
base_url = "{url}/v1"
wire_api = "responses"
"""


@pytest.fixture
def calls_once(engine, monkeypatch):
    """`calls_once(call)`: the model calls, and then says what it was told of the result."""
    monkeypatch.setattr(fake_engine, "MAX_LEN", LONG)
    engine.info = replace(engine.info, spec=replace(engine.info.spec, max_model_len=LONG))

    def script(call):
        def answer(submission):
            _, has_result, result = bytes(submission.prompt_ids).decode().rpartition("<t>")
            return [f"It says: {result[:200]}" if has_result else call, FinishReason.STOP]

        engine.script = answer

    return script


async def run(*command, cwd, **environ):
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "HOME": str(cwd), **environ},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(), 100)
    finally:
        if process.returncode is None:
            process.kill()
    return out.decode()


@pytest.mark.skipif(shutil.which("codex") is None, reason="needs Codex CLI: npm install -g @openai/codex")
async def test_codex(engine, tokenizer, listening, calls_once, tmp_path):
    calls_once(CALL % ("exec_command", '{"cmd": "echo $((6 * 7))-found"}'))
    async with listening(engine, tokenizer, served_model_name=["demo"]) as (url, _):
        home = tmp_path / ".codex"
        home.mkdir()
        (home / "config.toml").write_text(CODEX.format(url=url))
        told = await run(
            "codex",
            "exec",
            "--skip-git-repo-check",
            "--dangerously-bypass-approvals-and-sandbox",
            "What is six times seven?",
            cwd=tmp_path,
        )
    assert "42-found" in told.rpartition("It says:")[2], told
    assert len(engine.submissions) >= 2


@pytest.mark.skipif(
    shutil.which("claude") is None, reason="needs Claude Code: npm install -g @anthropic-ai/claude-code"
)
async def test_claude_code(engine, tokenizer, listening, calls_once, tmp_path):
    calls_once(CALL % ("Bash", '{"command": "echo $((6 * 7))-found", "description": "Multiplies"}'))
    async with listening(engine, tokenizer, served_model_name=["demo"]) as (url, _):
        told = await run(
            "claude",
            "-p",
            "What is six times seven?",
            "--allowedTools",
            "Bash",
            cwd=tmp_path,
            ANTHROPIC_BASE_URL=url,
            ANTHROPIC_AUTH_TOKEN="none",
            ANTHROPIC_MODEL="demo",
            ANTHROPIC_DEFAULT_HAIKU_MODEL="demo",
            CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
        )
    assert "42-found" in told, told
    assert len(engine.submissions) >= 2
