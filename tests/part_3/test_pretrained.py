import pytest
import torch
from torch import nn

from part_3.modern_gpt import ModernGPT, ModernGPTConfig
from part_3.pretrained import from_llama, to_llama
from tests.part_3.llama_reference import LlamaReference

SHAPE = dict(vocab_size=40, n_layer=3, n_head=4, n_kv_head=2, d_model=24, d_hidden=20)
LAYER_1 = "model.layers.1."


def reference(**changes):
    torch.manual_seed(0)
    return LlamaReference(**{**SHAPE, **changes}).randomise()


def load(tensors, **changes):
    return from_llama(tensors, **{**dict(n_head=4, n_kv_head=2), **changes}).eval()


def close(ours, theirs):
    return (ours - theirs).abs().max().item() <= 1e-4 and theirs.std() > 0.1


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("n_kv_head", [1, 2, 4])
@pytest.mark.parametrize("base", [10000.0, 500000.0])
@torch.inference_mode()
def test_logits_are_those_of_a_llama_with_and_without_a_cache(tied, n_kv_head, base):
    llama, tokens = reference(tied=tied, n_kv_head=n_kv_head, base=base), torch.randint(40, (2, 30))
    model, expected = load(llama.tensors(), n_kv_head=n_kv_head, rope_base=base), llama(tokens)
    assert close(model(tokens), expected)
    cache = model.new_cache("static", 2, 30)
    parts = [tokens[:, :20], *tokens[:, 20:].split(1, dim=1)]  # prefill, then one token at a time
    assert close(torch.cat([model(part, cache=cache) for part in parts], dim=1), expected)


@torch.inference_mode()
def test_the_defaults_are_as_many_key_value_heads_as_heads_base_10000_and_eps_1e_5():
    llama, tokens = reference(n_kv_head=4), torch.randint(40, (2, 30))
    llama.model.embed_tokens.weight.mul_(1e-2)  # so small that eps counts in the first norm
    assert close(from_llama(llama.tensors(), 4)(tokens), llama(tokens))


@torch.inference_mode()
def test_base_and_eps_reach_the_model():
    llama, tokens = reference(base=300.0, eps=0.3), torch.randint(40, (2, 30))
    assert close(load(llama.tensors(), rope_base=300.0, norm_eps=0.3)(tokens), llama(tokens))
    assert not close(load(llama.tensors(), rope_base=10000.0, norm_eps=0.3)(tokens), llama(tokens))
    assert not close(load(llama.tensors(), rope_base=300.0)(tokens), llama(tokens))


def test_the_trained_length_is_the_block_size():
    tensors = reference().tensors()
    assert load(tensors, block_size=77).config.block_size == 77 and load(tensors).config.block_size == 2048


@pytest.mark.parametrize("tied", [True, False])
def test_there_and_back_restores_every_tensor_exactly(tied):
    tensors = reference(tied=tied).tensors()
    model = load(tensors)
    back = to_llama(model)
    assert back.keys() == tensors.keys() and all(torch.equal(back[name], tensors[name]) for name in tensors)
    assert (model.head.weight is model.token_embedding.weight) == tied


def test_the_tensors_are_copies():
    tensors = reference().tensors()
    model = load(tensors)
    back = to_llama(model)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
@pytest.mark.parametrize("tied", [True, False])
@torch.inference_mode()
def test_a_model_of_ours_becomes_a_llama_whatever_its_pairing(pairing, tied):
    torch.manual_seed(0)
    model = ModernGPT(ModernGPTConfig(block_size=30, rope_pairing=pairing, tie_embeddings=tied, **SHAPE)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.15)
    tokens = torch.randint(40, (2, 30))
    assert close(model(tokens), reference(tied=tied).load(to_llama(model))(tokens))


def without(name):
    return lambda tensors: tensors.pop(name)


def put(name, *shape):
    return lambda tensors: tensors.update({name: torch.zeros(shape)})


@pytest.mark.parametrize("damage, complaint", [
    (dict.clear, "missing.*model.embed_tokens.weight, model.layers.0.mlp.gate_proj.weight"),
    (without("model.embed_tokens.weight"), "missing.*model.embed_tokens.weight$"),
    (without("model.layers.0.mlp.gate_proj.weight"), "missing.*: model.layers.0.mlp.gate_proj.weight$"),
    (put("model.embed_tokens.weight", 24), "missing, or no matrix: model.embed_tokens.weight$"),
    (without("model.norm.weight"), "missing: model.norm.weight$"),
    (without(LAYER_1 + "self_attn.v_proj.weight"), f"missing: {LAYER_1}self_attn.v_proj.weight$"),
    (put(LAYER_1 + "self_attn.q_proj.bias", 24), f"unknown: {LAYER_1}self_attn.q_proj.bias$"),
    (put("model.layers.x.weight", 24), "unknown: model.layers.x.weight$"),
    (put("vision.blocks.7.weight", 1), "unknown: vision.blocks.7.weight$"),
    (put("lm_head.weight", 41, 24), r"wrong shape: lm_head.weight is \(41, 24\), not \(40, 24\)$"),
    (put(LAYER_1 + "mlp.down_proj.weight", 20, 24), r"wrong shape: .*1.mlp.down_proj.weight is \(20, 24\), not \(24, 20\)$"),
    (put(LAYER_1 + "input_layernorm.weight", 1), r"wrong shape: .*1.input_layernorm.weight is \(1,\), not \(24,\)$"),
])
def test_tensors_that_are_not_one_llama_are_refused_by_name(damage, complaint):
    tensors = reference().tensors()
    damage(tensors)
    with pytest.raises(ValueError, match="^not the tensors of one Llama model: " + complaint):
        load(tensors)


def test_every_problem_is_named_at_once():
    tensors = reference().tensors()
    tensors["surplus"] = tensors.pop(LAYER_1 + "mlp.up_proj.weight")
    tensors["model.norm.weight"] = torch.ones(25)
    with pytest.raises(ValueError, match=f"missing: {LAYER_1}mlp.up_proj.weight; unknown: surplus; wrong shape: model.norm"):
        load(tensors)


def test_a_missing_layer_in_between_is_named_tensor_by_tensor():
    tensors = reference().tensors()
    gone = {name for name in tensors if name.startswith(LAYER_1)}
    with pytest.raises(ValueError) as refusal:
        load({name: tensor for name, tensor in tensors.items() if name not in gone})
    assert len(gone) == 9 and all(f"missing: {name}" in str(refusal.value) for name in gone)
    assert "unknown" not in str(refusal.value)  # layer 2 is the third, though only two are there


@torch.inference_mode()
def test_the_number_of_layers_is_read_from_the_tensors():
    # Ten and more: layer 10 comes after layer 9, not after layer 1.
    llama, tokens = reference(n_layer=11), torch.randint(40, (1, 8))
    assert close(load(llama.tensors())(tokens), llama(tokens))


def test_a_number_of_key_value_heads_that_does_not_fit_is_refused():
    # The file has 2 key-value heads of width 6: 12 rows. 4 would need 24, and 1 would need 6.
    for n_kv_head, rows in ((4, 24), (1, 6)):
        with pytest.raises(ValueError, match=rf"self_attn.k_proj.weight is \(12, 24\), not \({rows}, 24\)"):
            load(reference().tensors(), n_kv_head=n_kv_head)


def test_rotary_frequencies_of_old_files_are_ignored():
    tensors = reference().tensors()
    old = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(3) for layer in range(3)}
    assert to_llama(load(tensors | old)).keys() == tensors.keys()


@torch.inference_mode()
def test_bf16_tensors_give_an_fp32_model():
    llama, tokens = reference(), torch.randint(40, (2, 10))
    narrow = {name: tensor.bfloat16() for name, tensor in llama.tensors().items()}
    model = load(narrow)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    llama.load({name: tensor.float() for name, tensor in narrow.items()})
    assert close(model(tokens), llama(tokens))


@pytest.mark.parametrize("change", [dict(norm="layernorm"), dict(positions="learned"), dict(mlp="gelu"), dict(bias=True),
                                    dict(qk_norm=True), dict(rope_scale=2.0), dict(window=8)])
def test_a_model_that_is_no_llama_is_refused(change):
    with pytest.raises(ValueError, match="a Llama has.*{}={}".format(*(repr(x) if i else x for i, x in
                                                                       enumerate(*change.items())))):
        to_llama(ModernGPT(ModernGPTConfig(block_size=30, **SHAPE, **change)))
