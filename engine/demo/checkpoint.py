"""Writes a model as a checkpoint folder in LLaDA's layout: `config.json` keys, tensor names, tokenizer files."""

import json
from pathlib import Path

from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from engine.demo.build_tokenizer import BOS, EOS, MASK, save, token_id
from engine.models.layers import Transformer, TransformerConfig
from engine.models.llada import destinations


def export(model: Transformer, tokenizer: Tokenizer, folder: Path) -> None:
    """Replaces the checkpoint in `folder`; the weights arrive whole, a reader never sees half a file."""
    save(folder)
    config = published_config(model.config, tokenizer)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    part = folder / "model.safetensors.part"
    save_file(published_tensors(model), part, metadata={"format": "pt"})
    part.chmod(0o644)
    part.replace(folder / "model.safetensors")


def published_tensors(model: Transformer) -> dict[str, Tensor]:
    """The weights under LLaDA's names: the loader's table read backwards."""
    parameters = dict(model.named_parameters())
    tensors = {}
    for name, (parameter, start, rows) in destinations(model.config).items():
        whole = parameters[parameter].detach()
        tensors[name] = (whole if rows is None else whole[start : start + rows]).clone()
    return tensors


def published_config(config: TransformerConfig, tokenizer: Tokenizer) -> dict[str, object]:
    """LLaDA's `config.json` keys."""
    return {
        "activation_type": "silu",
        "alibi": False,
        "alibi_bias_max": 8.0,
        "architectures": ["LLaDAModelLM"],
        "attention_dropout": 0.0,
        "attention_layer_norm": False,
        "attention_layer_norm_with_affine": True,
        "bias_for_layer_norm": False,
        "block_group_size": 1,
        "block_type": "llama",
        "bos_token_id": token_id(tokenizer, BOS),
        "d_model": config.dim,
        "embedding_dropout": 0.0,
        "embedding_size": config.vocab_size,
        "eos_token_id": token_id(tokenizer, EOS),
        "flash_attention": False,
        "include_bias": False,
        "include_qkv_bias": config.qkv_bias,
        "init_cutoff_factor": None,
        "init_device": "cpu",
        "init_fn": "mitchell",
        "init_std": 0.02,
        "input_emb_norm": False,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "mask_token_id": token_id(tokenizer, MASK),
        "max_sequence_length": config.max_positions,
        "mlp_hidden_size": config.ff_dim,
        "mlp_ratio": 4,
        "model_type": "llada",
        "multi_query_attention": None,
        "n_heads": config.num_heads,
        "n_kv_heads": config.num_kv_heads,
        "n_layers": config.num_layers,
        "pad_token_id": token_id(tokenizer, EOS),
        "precision": None,
        "residual_dropout": 0.0,
        "rms_norm_eps": config.norm_eps,
        "rope": True,
        "rope_full_precision": True,
        "rope_theta": config.rope_theta,
        "scale_logits": False,
        "torch_dtype": "float32",
        "train_max_sequence_length": config.max_positions,
        "use_cache": False,
        "vocab_size": config.vocab_size,
        "weight_tying": config.tied_head,
    }
