"""What a line of `unmask chat` does to the conversation."""

import json

import pytest

from server.chat.conversation import OWN, BadCommand, Conversation, carried_out
from server.schemas import ChatRequest, DiffusionRequest


@pytest.fixture
def conversation():
    return Conversation()


def test_a_request_has_messages_and_settings_where_they_belong(conversation):
    conversation.system = "Be brief."
    conversation.ask("One?")
    conversation.answered("Yes.")
    conversation.ask("Two?")
    carried_out("/set temperature 0.5", conversation)
    carried_out("/set cache window", conversation)
    carried_out("/set lookahead null", conversation)
    assert conversation.body(block_length=8) == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "One?"},
            {"role": "assistant", "content": "Yes."},
            {"role": "user", "content": "Two?"},
        ],
        "temperature": 0.5,
        "diffusion": {"cache": "window", "lookahead": None, "block_length": 8},
    }
    assert "diffusion" not in Conversation().body()


def test_every_field_of_a_request_can_be_set_where_it_belongs(conversation):
    conversation.ask("One?")
    for name in sorted({*ChatRequest.model_fields} - {*OWN}):
        carried_out(f"/set {name} 1", conversation)
    for name in DiffusionRequest.model_fields:
        carried_out(f"/set {name} 1", conversation)
    body = conversation.body()
    assert set(body["diffusion"]) == set(DiffusionRequest.model_fields)
    assert set(body) == {*ChatRequest.model_fields} - {*OWN} | {"messages", "diffusion"}
    assert {"stop", "repetition_penalty", "logit_bias", "min_tokens"} < set(body)


@pytest.mark.parametrize("name", OWN)
def test_what_the_chat_says_itself_is_no_setting(conversation, name):
    with pytest.raises(BadCommand, match=f"{name} is no setting"):
        carried_out(f"/set {name} 1", conversation)
    assert not conversation.settings


def test_settings_are_told_and_taken_back(conversation):
    assert "defaults" in carried_out("/settings", conversation)
    carried_out("/set cache d2", conversation)
    assert carried_out("/settings", conversation) == 'cache = "d2"'
    carried_out("/unset cache", conversation)
    assert conversation.settings == {}
    carried_out("/set a 1", conversation)
    carried_out("/unset", conversation)
    assert conversation.settings == {}


def test_the_last_question_is_forgotten_with_its_answer(conversation):
    conversation.ask("One?")
    conversation.answered("Yes.")
    conversation.ask("Two?")
    conversation.answered("No.")
    assert carried_out("/undo", conversation) == "forgotten: Two?"
    assert len(conversation.messages) == 2
    carried_out("/clear", conversation)
    assert conversation.messages == []


def test_what_is_saved_is_a_body(conversation, tmp_path):
    conversation.ask("Ça?")
    carried_out(f"/save '{tmp_path / 'talk one.json'}'", conversation)
    assert json.loads((tmp_path / "talk one.json").read_text()) == conversation.body()


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("/sett a b", "did you mean /set"),
        ("/", "no command"),
        ("/set", "a name and a value"),
        ("/set cache", "a name and a value"),
        ("/unset cache", "cache is not set"),
        ("/undo", "no question"),
        ("/undo now", "takes nothing"),
        ("/save", "name of a file"),
        ("/save /no/such/folder/x", "cannot be written: No such file"),
        ("/set 'a b", "no closing quotation"),
    ],
)
def test_what_cannot_be_done_is_told(conversation, line, why):
    with pytest.raises(BadCommand, match=why):
        carried_out(line, conversation)
    assert conversation == Conversation()


def test_help_lists_all(conversation):
    told = carried_out("/help", conversation)
    for name in ("set", "unset", "settings", "system", "undo", "clear", "save", "help", "compare", "retry", "quit"):
        assert f"/{name}" in told
