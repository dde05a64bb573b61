"""`unmask chat`: a conversation in a terminal, with any OpenAI-compatible server.

Where the server tells its steps (docs/trace.md), the canvas is shown while it is decoded.
"""
