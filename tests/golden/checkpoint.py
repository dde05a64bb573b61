"""A golden folder's checkpoint, loaded in float32 on the CPU. Knows no family and no row."""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerFast

from engine import ModelSpec
from engine.models import describe, load_model
from engine.models.layers import Transformer


class Checkpoint(NamedTuple):
    folder: Path
    model: Transformer
    spec: ModelSpec

    @classmethod
    def load(cls, folder: Path) -> "Checkpoint":
        """Raises LoadError if the folder has no checkpoint of a known family."""
        description = describe(folder)
        model = load_model(folder, description, torch.float32, torch.device("cpu"))
        return cls(folder, model, description.spec)

    @property
    def pad_id(self) -> int:
        """The tokenizer's, else that of `generation_config.json`."""
        own = PreTrainedTokenizerFast.from_pretrained(self.folder).pad_token_id
        if own is None:
            own = json.loads((self.folder / "generation_config.json").read_text())["pad_token_id"]
        return own
