"""How a request reaches one replica and its answer comes back, and what all replicas answer together."""
