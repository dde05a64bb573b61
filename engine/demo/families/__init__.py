"""The families of problems that the bundled models are trained for: generators and exact checks, without torch."""
