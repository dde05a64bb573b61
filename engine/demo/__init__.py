"""The bundled demo model: a small LLaDA trained from scratch on the families of `engine.demo.tasks`.

The folder is a checkpoint in the published layout (config, tokenizer, chat template, weights) beside the scripts that
made it, so it loads through the same path as GSAI-ML/LLaDA-8B-Instruct.
"""

from pathlib import Path

PATH = Path(__file__).parent
"""The checkpoint's folder."""
