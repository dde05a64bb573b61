"""The bundled models: small transformers trained from scratch on the families of `engine.demo.tasks`.

This folder is a checkpoint in LLaDA's published layout (config, tokenizer, chat template, weights) beside the scripts
that made it, and `demo-block/` one in SDAR's, so both load through the same path as the published models.
"""

from pathlib import Path

PATH = Path(__file__).parent
"""The folder of `demo`, which attends to everything."""
FOLDERS = {"demo": PATH, "demo-block": PATH / "demo-block"}
"""The folder of each bundled model."""
