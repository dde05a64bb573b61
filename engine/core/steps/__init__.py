"""One step of one request as data, and the protocols of what decides it. Numbers only, no tensor."""
