"""`unmask serve` and what belongs to it, each with `main(argv) -> exit code`; the writer of docs/api.md's tables."""
