"""`unmask trace`: pictures that move, of answers that were watched (docs/trace.md)."""
