"""Lesson 3.4 - published Llama weights in a ModernGPT, and back.

    model = from_llama(tensors, n_head=32, n_kv_head=8, rope_base=500000.0)

`tensors` is a plain dict with Hugging Face's names, such as `safetensors.torch.load_file` returns. Two of our matrices hold
several of theirs, one below the other: qkv = (q_proj, k_proj, v_proj) and feed_forward.expand = (gate_proj, up_proj). The
columns of a head are paired half and half, as theirs are. The rescaled frequencies of Llama 3.1 and later ("rope_scaling" in
config.json) are not supported: such files load, but do not give their published logits.
"""

import torch

from part_3.modern_gpt import ModernGPT, ModernGPTConfig
from part_3.rope import interleaved_to_half

WHOLE = {  # of the model: their name, ours
    "model.embed_tokens.weight": "token_embedding.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "head.weight",
}
LAYER = {  # of a layer: our name, theirs from top to bottom
    "norm_1.weight": ["input_layernorm.weight"],
    "attention.qkv.weight": ["self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"],
    "attention.project.weight": ["self_attn.o_proj.weight"],
    "norm_2.weight": ["post_attention_layernorm.weight"],
    "feed_forward.expand.weight": ["mlp.gate_proj.weight", "mlp.up_proj.weight"],
    "feed_forward.contract.weight": ["mlp.down_proj.weight"],
}


def llama_shapes(config):
    """Name and shape of every tensor of a Llama of this size, the head included unless it is tied. Returns a dict."""
    V, C, F = config.vocab_size, config.d_model, config.d_hidden
    Q, K = config.n_head * config.d_head, config.n_kv_head * config.d_head
    shapes = {"model.embed_tokens.weight": (V, C), "model.norm.weight": (C,)}
    if not config.tie_embeddings:
        shapes["lm_head.weight"] = (V, C)
    of_layer = {"input_layernorm": (C,), "self_attn.q_proj": (Q, C), "self_attn.k_proj": (K, C), "self_attn.v_proj": (K, C),
                "self_attn.o_proj": (C, Q), "post_attention_layernorm": (C,), "mlp.gate_proj": (F, C), "mlp.up_proj": (F, C),
                "mlp.down_proj": (C, F)}
    return shapes | {f"model.layers.{layer}.{name}.weight": shape
                     for layer in range(config.n_layer) for name, shape in of_layer.items()}


def check_tensors(tensors, shapes):
    """ValueError that lists the names that are missing, unknown, or of the wrong shape."""
    problems = [f"missing: {name}" for name in shapes if name not in tensors]
    problems += [f"unknown: {name}" for name in tensors if name not in shapes]
    problems += [f"wrong shape: {name} is {tuple(tensors[name].shape)}, not {shape}" for name, shape in shapes.items()
                 if name in tensors and tuple(tensors[name].shape) != shape]
    if problems:
        raise ValueError("not the tensors of one Llama model: " + "; ".join(problems))


def from_llama(tensors, n_head, n_kv_head=None, rope_base=10000.0, norm_eps=1e-5, block_size=2048):
    """A ModernGPT with these weights, in fp32.

    tensors: dict of name to tensor, as in Hugging Face's Llama. n_head, n_kv_head (n_head when None), rope_base, norm_eps
    and block_size (the trained length) stand in its config.json; the other sizes are read from the tensors. Without
    `lm_head.weight` the head is the embedding. ValueError, with the names, when the dict is not exactly one such model.
    """
    # Old files also hold each layer's rotary frequencies, which follow from rope_base.
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("rotary_emb.inv_freq")}
    sizes = ("model.embed_tokens.weight", "model.layers.0.mlp.gate_proj.weight")
    if missing := [name for name in sizes if name not in tensors or tensors[name].ndim != 2]:
        raise ValueError(f"not the tensors of one Llama model: missing, or no matrix: {', '.join(missing)}")
    layers = [int(name.split(".")[2]) for name in tensors
              if name.startswith("model.layers.") and name.split(".")[2].isdecimal()]
    (vocab_size, d_model), (d_hidden, _) = (tensors[name].shape for name in sizes)
    config = ModernGPTConfig(vocab_size, block_size, 1 + max(layers), n_head, d_model, n_kv_head, d_hidden,
                             rope_base=rope_base, norm_eps=norm_eps, tie_embeddings="lm_head.weight" not in tensors)
    check_tensors(tensors, llama_shapes(config))
    state = {ours: tensors[theirs] for theirs, ours in WHOLE.items() if theirs in tensors}
    if config.tie_embeddings:
        state["head.weight"] = state["token_embedding.weight"]
    for layer in range(config.n_layer):
        for ours, theirs in LAYER.items():
            state[f"blocks.{layer}.{ours}"] = torch.cat([tensors[f"model.layers.{layer}.{name}"] for name in theirs])
    model = ModernGPT(config)
    model.load_state_dict(state)
    return model


def to_llama(model):
    """The inverse of `from_llama`: a dict of Hugging Face's names to tensors, copies of the model's weights.

    ValueError for a model that is no Llama: other norm, positions or feed-forward layer, biases, or QK-norm.
    """
    config = model.config
    shape = (config.norm, config.positions, config.mlp, config.bias, config.qk_norm, config.rope_scale, config.window)
    if shape != ("rmsnorm", "rope", "swiglu", False, False, 1.0, None):
        raise ValueError("a Llama has RMSNorm, rotary positions without scaling, SwiGLU, and no biases, QK-norm or window; "
                         f"this model is {config}")
    state = model.state_dict()
    tensors = {theirs: state[ours].clone() for theirs, ours in WHOLE.items()
               if not (config.tie_embeddings and theirs == "lm_head.weight")}
    shapes = llama_shapes(config)
    for layer in range(config.n_layer):
        for ours, theirs in LAYER.items():
            names = [f"model.layers.{layer}.{name}" for name in theirs]
            parts = state[f"blocks.{layer}.{ours}"].split([shapes[name][0] for name in names])
            for name, part in zip(names, parts):
                if config.rope_pairing == "interleaved" and name.endswith(("q_proj.weight", "k_proj.weight")):
                    part = interleaved_to_half(part, config.d_head)
                tensors[name] = part.clone()
    return tensors
