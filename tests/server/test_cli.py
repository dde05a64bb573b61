"""The command line: one line and exit code 2 for what the user can mend."""

import socket

import pytest

import server.serve
from engine import CapacityError, LoadError
from server.cli import main
from server.report import start_report


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
    monkeypatch.setattr(server.serve, "load", lambda *_: pytest.fail("a model was loaded"))


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("unmask 0.")


@pytest.mark.parametrize("argv", [[], ["srve"]])
def test_a_command_is_needed(argv, capsys):
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_bad_flag(complaint, no_model):
    assert "--prot is not a flag" in complaint("serve", "--prot", "1")


def test_a_missing_model(complaint):
    assert "/nowhere" in complaint("serve", "/nowhere", "--port", "0")


@pytest.mark.parametrize("error", [LoadError("too\nbad"), CapacityError("too bad")])
def test_a_model_that_cannot_be_loaded(complaint, monkeypatch, error):
    def load(*_):
        raise error

    monkeypatch.setattr(server.serve, "load", load)
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


def test_an_interrupt_while_loading_is_no_stack_trace(monkeypatch, capsys):
    def load(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(server.serve, "load", load)
    assert main(["serve", "--port", "0"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_the_report_says_what_is_served_and_how_much_fits(engine):
    report = start_report(engine.info, "fake", "http://127.0.0.1:8000")
    assert "fake (llada, 1.0 M parameters)" in report
    assert "3.81 MiB in float32 on cpu" in report
    assert "4,096 tokens (1 MiB): 32 canvases of 128 tokens at once" in report
    assert "curl -N http://127.0.0.1:8000/v1/completions" in report
