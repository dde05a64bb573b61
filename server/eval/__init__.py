"""`unmask eval`: what each decoding policy costs in quality, for a local model or any OpenAI-compatible server."""
