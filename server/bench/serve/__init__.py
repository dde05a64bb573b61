"""`unmask bench serve`: load against any OpenAI-compatible server that streams, and how long its users wait."""
