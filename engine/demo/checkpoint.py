"""Writes a model as a checkpoint folder in the layout of LLaDA or SDAR: config, tensor names, tokenizer."""

import json
from pathlib import Path

from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from engine.demo.build_tokenizer import save, token_id
from engine.demo.chat import BOS, EOS, EOT, MASK
from engine.models.families import llada, sdar
from engine.models.layers import Transformer, TransformerConfig
from engine.models.weights import Destinations


def export(model: Transformer, tokenizer: Tokenizer, folder: Path, block: int | None) -> None:
    """Replaces the checkpoint in `folder`, with weights in float16; they arrive whole, a reader never sees half a file.

    `block`: of a block-causal model, written in SDAR's layout; None writes LLaDA's.
    """
    save(folder)
    config = llada_config(model.config, tokenizer) if block is None else sdar_config(model.config, tokenizer, block)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    ends = [token_id(tokenizer, EOS), token_id(tokenizer, EOT)]
    generation = {
        "bos_token_id": token_id(tokenizer, BOS),
        "eos_token_id": ends[0] if block is None else ends,
        "pad_token_id": ends[0],
    }
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    part = folder / "model.safetensors.part"
    layout = llada.destinations if block is None else sdar.destinations
    tensors = published_tensors(model, layout(model.config))
    save_file({name: tensor.half() for name, tensor in tensors.items()}, part, metadata={"format": "pt"})
    part.chmod(0o644)
    part.replace(folder / "model.safetensors")


def published_tensors(model: Transformer, destinations: Destinations) -> dict[str, Tensor]:
    """The weights under a family's names: the loader's table read backwards."""
    parameters = dict(model.named_parameters())
    return {name: destination.within(parameters).detach().clone() for name, destination in destinations.items()}


def sdar_config(config: TransformerConfig, tokenizer: Tokenizer, block: int) -> dict[str, object]:
    """SDAR's `config.json` keys."""
    return {
        "architectures": ["SDARForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "block_size": block,
        "bos_token_id": token_id(tokenizer, BOS),
        "eos_token_id": token_id(tokenizer, EOS),
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.dim,
        "intermediate_size": config.ff_dim,
        "mask_token_id": token_id(tokenizer, MASK),
        "max_position_embeddings": config.max_positions,
        "model_type": "sdar",
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "rms_norm_eps": config.norm_eps,
        "rope_scaling": None,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tied_head,
        "torch_dtype": "float16",
        "use_sliding_window": False,
        "vocab_size": config.vocab_size,
    }


def llada_config(config: TransformerConfig, tokenizer: Tokenizer) -> dict[str, object]:
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
        "torch_dtype": "float16",
        "train_max_sequence_length": config.max_positions,
        "use_cache": False,
        "vocab_size": config.vocab_size,
        "weight_tying": config.tied_head,
    }
