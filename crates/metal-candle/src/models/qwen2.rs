//! `qwen2`: Qwen 1.5 to 2.5. Query, key and value have biases; some layers may use a sliding window.

use super::decoder::DecoderStack;
use super::weights::Weights;
use super::{LoadError, ModelConfig};
use crate::nn::{Attention, Block, Mlp};

pub(super) fn build(config: &ModelConfig, weights: &Weights) -> Result<DecoderStack, LoadError> {
    DecoderStack::build(config, weights, |layer| block(config, weights, layer))
}

fn block(config: &ModelConfig, weights: &Weights, layer: usize) -> Result<Block, LoadError> {
    let at = format!("model.layers.{layer}");
    let attention = |name: &str, bias| weights.linear(&format!("{at}.self_attn.{name}"), bias);
    let mlp = |name: &str| weights.linear(&format!("{at}.mlp.{name}"), false);
    Ok(Block {
        input_layernorm: weights.rms_norm(&format!("{at}.input_layernorm"), config)?,
        self_attn: Attention {
            q_proj: attention("q_proj", true)?,
            k_proj: attention("k_proj", true)?,
            v_proj: attention("v_proj", true)?,
            o_proj: attention("o_proj", false)?,
            head_dim: config.head_dim,
            window: config.sliding_windows.get(layer).copied().flatten(),
            layer,
        },
        post_attention_layernorm: weights.rms_norm(&format!("{at}.post_attention_layernorm"), config)?,
        mlp: Mlp {
            gate_proj: mlp("gate_proj")?,
            up_proj: mlp("up_proj")?,
            down_proj: mlp("down_proj")?,
        },
    })
}
