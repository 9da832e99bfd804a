//! The tensors of a model by name and shape, as implied by the settings.

use super::{Architecture, ModelConfig};

impl ModelConfig {
    /// Name and shape of every tensor of the model, with Hugging Face's names; linear weights are `(out, in)`.
    ///
    /// With tied embeddings there is no `lm_head.weight`: the head is the embedding.
    #[must_use]
    pub fn parameter_shapes(&self) -> Vec<(String, Vec<usize>)> {
        let mut list = vec![(
            "model.embed_tokens.weight".to_owned(),
            vec![self.vocab_size, self.hidden_size],
        )];
        for layer in 0..self.num_hidden_layers {
            self.layer_shapes(&format!("model.layers.{layer}"), &mut list);
        }
        list.push(("model.norm.weight".to_owned(), vec![self.hidden_size]));
        if !self.tie_word_embeddings {
            list.push(("lm_head.weight".to_owned(), vec![self.vocab_size, self.hidden_size]));
        }
        list
    }

    fn layer_shapes(&self, prefix: &str, list: &mut Vec<(String, Vec<usize>)>) {
        for (name, input, output, bias) in self.linear_shapes() {
            list.push((format!("{prefix}.{name}.weight"), vec![output, input]));
            if bias {
                list.push((format!("{prefix}.{name}.bias"), vec![output]));
            }
        }
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            list.push((format!("{prefix}.{norm}.weight"), vec![self.hidden_size]));
        }
    }

    /// The linear layers of one decoder layer: name, input size, output size, and whether it has a bias.
    #[must_use]
    pub fn linear_shapes(&self) -> [(&'static str, usize, usize, bool); 7] {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let (query, key) = (
            self.num_attention_heads * self.head_dim,
            self.num_key_value_heads * self.head_dim,
        );
        let output_bias = self.attention_bias && self.architecture == Architecture::Llama;
        [
            ("self_attn.q_proj", hidden, query, self.attention_bias),
            ("self_attn.k_proj", hidden, key, self.attention_bias),
            ("self_attn.v_proj", hidden, key, self.attention_bias),
            ("self_attn.o_proj", query, hidden, output_bias),
            ("mlp.gate_proj", hidden, inner, self.mlp_bias),
            ("mlp.up_proj", hidden, inner, self.mlp_bias),
            ("mlp.down_proj", inner, hidden, self.mlp_bias),
        ]
    }
}
