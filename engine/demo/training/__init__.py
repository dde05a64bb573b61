"""Training of the bundled models: recipe, noise, optimiser, steps and runs. `engine.demo.train` is the command."""
