"""`unmask serve` with its banner and `--dry-run`; and the writer of the tables in docs/api.md."""
