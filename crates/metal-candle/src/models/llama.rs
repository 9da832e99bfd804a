//! `llama`: Llama 1 to 3. Biases are optional; attention is never windowed.

use super::decoder::DecoderStack;
use super::weights::Weights;
use super::{LoadError, ModelConfig};
use crate::nn::{Attention, Block, Mlp};

pub(super) fn build(config: &ModelConfig, weights: &Weights) -> Result<DecoderStack, LoadError> {
    DecoderStack::build(config, weights, |layer| block(config, weights, layer))
}

fn block(config: &ModelConfig, weights: &Weights, layer: usize) -> Result<Block, LoadError> {
    let at = format!("model.layers.{layer}");
    let attention = |name: &str| weights.linear(&format!("{at}.self_attn.{name}"), config.attention_bias);
    let mlp = |name: &str| weights.linear(&format!("{at}.mlp.{name}"), config.mlp_bias);
    Ok(Block {
        input_layernorm: weights.rms_norm(&format!("{at}.input_layernorm"), config)?,
        self_attn: Attention {
            q_proj: attention("q_proj")?,
            k_proj: attention("k_proj")?,
            v_proj: attention("v_proj")?,
            o_proj: attention("o_proj")?,
            head_dim: config.head_dim,
            window: None,
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
