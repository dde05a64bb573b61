"""`unmask bench serve`: puts load on any OpenAI-compatible server that streams, and measures how long users wait."""
