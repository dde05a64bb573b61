"""What is asked of the demo model, and how its answers are read."""

SORT = "Question: Sort these numbers: 7 3 12 5.\nAnswer:"
STORY = "Question: Tell me a story about Mia, Leo and a kite.\nAnswer:"
CHAT = [{"role": "user", "content": "Sort these numbers: 7 3 12 5."}]
TALE = [{"role": "user", "content": "Tell me a story about Mia, Leo and a kite."}]
SMALL_BLOCKS = {"diffusion": {"block_length": 4}}


def texts(answer):
    return [choice.text for choice in answer.choices]


def streamed(chunks, index=0):
    """A completion's text from its chunks."""
    return "".join(choice.text for chunk in chunks for choice in chunk.choices if choice.index == index)


async def tokens_of(http, text):
    return (await http.post("/tokenize", json={"prompt": text})).json()["tokens"]
