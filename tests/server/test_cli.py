"""The command line: one line and exit code 2 for what the user can mend."""

import json
import socket
import sys

import pytest

import server.commands.serve
from engine import CapacityError, LoadError
from server import cli
from server.cli import main
from server.commands.banner import start_report
from server.http.lifecycle import Server


@pytest.fixture
def complaint(capsys):
    """Runs a command that must fail and returns its one line on stderr."""

    def run(*argv):
        assert main(argv) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        return captured.err

    return run


@pytest.fixture
def no_model(monkeypatch):
    """Fails the test if a model is loaded."""
    monkeypatch.setattr(server.commands.serve, "load", lambda *_: pytest.fail("a model was loaded"))


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("unmask 0.")


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        ([], "give a command: serve or run-batch or chat or trace or bench or eval (`unmask help` explains them)"),
        (["srve"], "srve is no command, but serve, run-batch, chat, trace, bench, eval are; did you mean serve?"),
        (["GSAI-ML/LLaDA-8B"], "GSAI-ML/LLaDA-8B is no command, but serve, run-batch, chat, trace, bench, eval are\n"),
    ],
)
def test_a_command_is_needed(argv, text, capsys):
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 2
    complaint = capsys.readouterr().err
    assert text in complaint
    assert complaint.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "usage"),
    [
        (["help"], "unmask ["),
        (["help", "serve"], "unmask serve [MODEL]"),
        (["help", "bench", "serve"], "unmask bench serve ["),
        (["serve", "--help"], "unmask serve [MODEL]"),
    ],
)
def test_help_is_a_word_too(argv, usage, capsys):
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 0
    assert f"usage: {usage}" in capsys.readouterr().out


def test_bench_alone_says_what_it_measures(complaint):
    benchmarks = "decode or host or constraints or decisions or gpu or serve or roofline"
    assert f"say what to measure: unmask bench {benchmarks}" in complaint("bench")
    assert "did you mean roofline?" in complaint("bench", "rofline")


@pytest.mark.parametrize("argv", [["bench", "serve"], ["bench", "serve", "--model", "m"], ["eval", "--limit", "1"]])
def test_without_a_server_it_says_how_to_start_one(argv, complaint):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    said = complaint(*argv, "--base-url", url)
    assert f"no server answers at {url}/v1/" in said
    assert "start one with `unmask serve`, or give another's address with --base-url" in said


def test_a_bad_flag(complaint, no_model):
    assert "--prot is not a flag" in complaint("serve", "--prot", "1")


def test_a_missing_model(complaint):
    assert "/nowhere" in complaint("serve", "/nowhere", "--port", "0")


@pytest.mark.parametrize("flags", [["--port", "0"], ["--dry-run"]])
def test_a_model_that_is_not_served_is_told_which_are(complaint, tmp_path, monkeypatch, flags):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_head": 12}))
    families = "known families: llada (LLaDAModelLM), Dream (DreamModel)"
    assert f"{tmp_path}: unknown architecture gpt2; {families}" in complaint("serve", str(tmp_path), *flags)
    assert f"gpt2: no such folder, and not a hub id of the form owner/name; {families}" in complaint(
        "serve", "gpt2", *flags
    )
    said = complaint("serve", "openai-community/gpt2", *flags)
    assert "the hub does not give it" in said
    assert families in said


@pytest.mark.parametrize("error", [LoadError("too\nbad"), CapacityError("too bad")])
def test_a_model_that_cannot_be_loaded(complaint, monkeypatch, error):
    def load(*_):
        raise error

    monkeypatch.setattr(server.commands.serve, "load", load)
    assert complaint("serve", "--port", "0") == "unmask: too bad\n"


def test_a_taken_port_is_found_before_the_model_is_loaded(complaint, no_model):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in complaint("serve", "--port", str(port))


@pytest.mark.parametrize("host", ["256.0.0.1", "203.0.113.7"])
def test_an_address_of_another_machine(complaint, no_model, host):
    assert f"cannot listen on {host}:0" in complaint("serve", "--host", host, "--port", "0")


def test_variables_of_services_are_named_in_one_line_of_the_log(complaint, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setenv("UNMASK_SERVICE_HOST", "10.96.0.7")
    monkeypatch.setenv("UNMASK_PORT", "tcp://10.96.0.7:80")
    complaint("serve", "/nowhere", "--port", "0")
    [line] = [record.message for record in caplog.records if "Kubernetes" in record.message]
    assert "UNMASK_SERVICE_HOST, UNMASK_PORT:" in line


@pytest.fixture
def at_once(monkeypatch):
    """Servers that end as soon as they have come up."""

    async def serve(server, sockets):
        server.started = True
        server._announce()

    monkeypatch.setattr(Server, "serve", serve)


@pytest.mark.parametrize(("is_terminal", "lines"), [(False, ["loading {}", "listening on {}"]), (True, [])])
def test_without_a_terminal_the_log_tells_how_far_it_is(
    at_once, llada_tiny, monkeypatch, caplog, capsys, is_terminal, lines
):
    caplog.set_level("INFO")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    assert main(["serve", str(llada_tiny), "--port", "0"]) == 0
    address = next(word for word in capsys.readouterr().out.split() if word.startswith("http")).removesuffix("/v1")
    told = [record.message for record in caplog.records if record.message.startswith(("loading", "listening"))]
    assert told == [
        *[line.format(llada_tiny) for line in lines[:1]],
        *[line.format(address) + " and serving llada-tiny" for line in lines[1:]],
    ]


def test_the_end_does_not_wait_for_a_collection_of_all_of_torch(monkeypatch):
    """Its objects are left out of the interpreter's last one."""
    happened = []
    monkeypatch.setattr(cli, "main", lambda: happened.append("served") or 3)
    monkeypatch.setattr(cli.gc, "freeze", lambda: happened.append("frozen"))
    with pytest.raises(SystemExit) as end:
        cli.run()
    assert end.value.code == 3
    assert happened == ["served", "frozen"]


def test_an_interrupt_while_loading_is_no_stack_trace(monkeypatch, capsys):
    def load(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(server.commands.serve, "load", load)
    assert main(["serve", "--port", "0"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_the_report_says_what_is_served_and_how_much_fits(engine):
    report = start_report(engine.info, "fake", "http://127.0.0.1:8000", has_page=True)
    assert "fake (llada, 1.0 M parameters)" in report
    assert "3.81 MiB in float32 on cpu" in report
    assert "4,096 tokens (1 MiB in float32): 32 canvases of 128 tokens at once" in report
    assert "curl -N http://127.0.0.1:8000/v1/completions" in report
    assert "page  http://127.0.0.1:8000/\n" in report
    assert "page" not in start_report(engine.info, "fake", "http://127.0.0.1:8000", has_page=False)
