"""Regular expressions: read from a text, written to an automaton over UTF-8. Knows nothing of JSON."""
