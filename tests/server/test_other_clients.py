"""LangChain and LiteLLM, pointed at the server over a real socket: what people put in front of an OpenAI server.

Slow: the two take longer to import than everything that they ask here.
"""

import asyncio
import warnings

import openai
import pytest
from pydantic import BaseModel, Field

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # their own, of each other
]
KEY = "sk-test"
PROMPT = "Question: Sort these numbers: 7 3 12 5.\nAnswer:"
MESSAGES = [{"role": "user", "content": "Sort these numbers: 7 3 12 5."}]


@pytest.fixture(scope="module")
def url(serve):
    with serve("demo", "--api-key", KEY) as url:
        yield f"{url}/v1"


@pytest.fixture(scope="module")
def expected(url):
    """What OpenAI's own client is told: (completion, answer of a chat)."""
    client = openai.OpenAI(base_url=url, api_key=KEY)
    completion = client.completions.create(model="demo", prompt=PROMPT, max_tokens=32)
    chat = client.chat.completions.create(model="demo", messages=MESSAGES, max_tokens=32)
    assert completion.choices[0].text.strip()
    assert chat.choices[0].message.content.strip()
    return completion.choices[0].text, chat.choices[0].message.content


class TestLangChain:
    @pytest.fixture
    def options(self, url):
        return {"model": "demo", "base_url": url, "api_key": KEY, "max_tokens": 32, "temperature": 0, "max_retries": 0}

    @pytest.fixture
    def completions(self, options):
        from langchain_openai import OpenAI

        return OpenAI(**options)

    @pytest.fixture
    def chat(self, options):
        from langchain_openai import ChatOpenAI

        return ChatOpenAI(**options)

    def test_completion(self, completions, expected):
        assert completions.invoke(PROMPT) == expected[0]

    def test_responses(self, options, expected):
        from langchain_openai import ChatOpenAI

        chat = ChatOpenAI(**options, use_responses_api=True)
        assert chat.invoke(MESSAGES).text == expected[1]
        assert "".join(chunk.text for chunk in chat.stream(MESSAGES)) == expected[1]

    def test_completion_stream(self, completions, expected):
        assert "".join(completions.stream(PROMPT)) == expected[0]

    def test_many_completions(self, completions, expected):
        answers = completions.generate([PROMPT, PROMPT])
        assert [generations[0].text for generations in answers.generations] == [expected[0]] * 2
        assert answers.llm_output["token_usage"]["completion_tokens"] > 0

    def test_chat(self, chat, expected):
        answer = chat.invoke([(message["role"], message["content"]) for message in MESSAGES])
        assert answer.content == expected[1]
        assert answer.usage_metadata["output_tokens"] > 0

    async def test_chat_stream(self, chat, expected):
        pieces = [piece async for piece in chat.astream(MESSAGES)]
        await chat.root_async_client.close()  # LangChain keeps it, and its socket, to the end
        assert "".join(piece.content for piece in pieces) == expected[1]

    @pytest.mark.parametrize("method", ["json_schema", "json_mode"])
    def test_structured_output(self, chat, method):
        class Sum(BaseModel):
            who: str = Field(max_length=8)
            count: int

        schema = Sum if method == "json_schema" else None
        answer = chat.with_structured_output(schema, method=method).invoke(MESSAGES, max_tokens=80)
        assert isinstance(answer, Sum if schema else dict)

    @pytest.mark.parametrize("choice", ["auto", "any", "add"])
    def test_tools(self, chat, choice):
        """Bound, called, run, and their results sent back; `any` is what others call `required`."""
        from langchain_core.messages import HumanMessage
        from langchain_core.tools import tool

        @tool
        def add(a: int, b: int) -> int:
            """Adds."""
            return a + b

        messages = [HumanMessage(MESSAGES[0]["content"])]
        bound = chat.bind_tools([add], tool_choice=choice)
        answer = bound.invoke(messages, max_tokens=150)
        streamed = None
        for piece in bound.stream(messages, max_tokens=150):
            streamed = piece if streamed is None else streamed + piece
        assert [(call["name"], call["args"]) for call in streamed.tool_calls] == (
            [(call["name"], call["args"]) for call in answer.tool_calls]
        )
        assert not answer.invalid_tool_calls
        assert answer.tool_calls or choice == "auto"
        results = [add.invoke(call) for call in answer.tool_calls]
        assert [int(result.content) for result in results] == [sum(call["args"].values()) for call in answer.tool_calls]
        assert chat.invoke([*messages, answer, *results]).content is not None

    def test_structured_output_by_a_call(self, chat):
        class Sum(BaseModel):
            who: str = Field(max_length=8)
            count: int

        answer = chat.with_structured_output(Sum, method="function_calling").invoke(MESSAGES, max_tokens=150)
        assert isinstance(answer, Sum)

    def test_a_wrong_key(self, options):
        from langchain_openai import ChatOpenAI

        with pytest.raises(openai.AuthenticationError):
            ChatOpenAI(**options | {"api_key": "wrong"}).invoke("Hello")


class TestLiteLLM:
    @pytest.fixture
    def litellm(self, monkeypatch):
        monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it fetches a price list on import
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import litellm
        yield litellm
        asyncio.run(litellm.close_litellm_async_clients())

    @pytest.fixture
    def options(self, url):
        return {"api_base": url, "api_key": KEY, "max_tokens": 32, "temperature": 0, "num_retries": 0}

    def test_completion(self, litellm, options, expected):
        answer = litellm.text_completion(model="text-completion-openai/demo", prompt=PROMPT, **options)
        assert answer.choices[0].text == expected[0]

    def test_chat(self, litellm, options, expected):
        answer = litellm.completion(model="openai/demo", messages=MESSAGES, **options)
        assert answer.choices[0].message.content == expected[1]
        assert answer.usage.completion_tokens > 0

    def test_chat_stream(self, litellm, options, expected):
        stream = litellm.completion(model="openai/demo", messages=MESSAGES, stream=True, **options)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == expected[1]

    def test_tools(self, litellm, options):
        function = {"name": "now", "parameters": {"type": "object", "properties": {}}}
        body = {
            **options,
            "messages": MESSAGES,
            "tools": [{"type": "function", "function": function}],
            "tool_choice": {"type": "function", "function": {"name": "now"}},
            "max_tokens": 100,
        }
        [call] = litellm.completion(model="openai/demo", **body).choices[0].message.tool_calls
        assert (call.function.name, call.function.arguments) == ("now", "{}")
        chunks = list(litellm.completion(model="openai/demo", stream=True, **body))
        [call] = litellm.stream_chunk_builder(chunks).choices[0].message.tool_calls
        assert (call.function.name, call.function.arguments) == ("now", "{}")

    async def test_chat_async(self, litellm, options, expected):
        answer = await litellm.acompletion(model="openai/demo", messages=MESSAGES, **options)
        assert answer.choices[0].message.content == expected[1]

    def test_a_wrong_key(self, litellm, options):
        with pytest.raises(litellm.AuthenticationError):
            litellm.completion(model="openai/demo", messages=MESSAGES, **options | {"api_key": "wrong"})
