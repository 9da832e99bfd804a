//! `bench matmul`: matrix products of given sizes, or of a model's layers.

use metal_candle::models::ModelConfig;

use super::args::{Dtype, MatmulArgs, Size};
use super::inputs::{self, Inputs};
use super::lora::timed;
use super::row::Row;
use super::timing::measure;
use super::{Bench, engine, work};
use crate::error::Result;

/// A product `(m, k) x (k, n)`.
#[derive(Debug, Clone, PartialEq)]
struct Product {
    name: String,
    sizes: [usize; 3],
    /// Whether the second factor is stored as `(n, k)`, like weights.
    transposed: bool,
}

/// Runs every requested product.
pub fn run(arguments: &MatmulArgs) -> Result<()> {
    let config = arguments.config.as_deref().map(inputs::model).transpose()?;
    let mut products: Vec<_> = arguments.size.iter().map(|&Size(sizes)| Product::of(sizes)).collect();
    if let Some((_, config)) = &config {
        products.extend(layers(config, arguments.length));
    }
    if products.is_empty() {
        products.push(Product::of([1024; 3]));
    }
    let mut bench = Bench::new(&arguments.common)?;
    for dtype in Dtype::chosen(arguments.dtype) {
        for product in &products {
            time(&mut bench, arguments, product, dtype)?;
        }
    }
    Ok(())
}

impl Product {
    fn of(sizes: [usize; 3]) -> Self {
        Self {
            name: label(sizes),
            sizes,
            transposed: false,
        }
    }
}

fn label([m, k, n]: [usize; 3]) -> String {
    if m == k && k == n {
        format!("matmul {m}^3")
    } else {
        format!("matmul {m}x{k}x{n}")
    }
}

/// The products of a model's layers on `length` tokens, without duplicates.
fn layers(config: &ModelConfig, length: usize) -> Vec<Product> {
    let linear = config
        .linear_shapes()
        .map(|(_, inputs, outputs, _)| [length, inputs, outputs]);
    let mut products: Vec<Product> = Vec::new();
    for sizes in linear
        .into_iter()
        .chain([[length, config.hidden_size, config.vocab_size]])
    {
        if products.iter().all(|product| product.sizes != sizes) {
            products.push(Product {
                name: format!("{} t", label(sizes)),
                sizes,
                transposed: true,
            });
        }
    }
    products
}

fn time(bench: &mut Bench, arguments: &MatmulArgs, product: &Product, dtype: Dtype) -> Result<()> {
    let Product {
        name,
        sizes: sizes @ [m, k, n],
        transposed,
    } = product;
    let mut random = Inputs::new(arguments.common.seed, &bench.device);
    let mut normal = |rows, columns| random.normal(&[rows, columns], 1.0, dtype.dtype()).map_err(engine);
    let x = normal(*m, *k)?;
    let y = if *transposed { normal(*n, *k)? } else { normal(*k, *n)? };
    let timing = measure(arguments.warmup, arguments.steps, || {
        let product = if *transposed { x.matmul_t(&y) } else { x.matmul(&y) };
        product.and_then(|z| z.eval()).map_err(engine)
    })?;
    let work = work::matmul(*sizes, dtype.dtype());
    let what = format!("{name} ({})", dtype.name());
    let least = bench.judge.least_seconds(&what, &work, timing.least())?;
    let row = Row::new()
        .with("case", name.as_str())
        .with("dtype", dtype.name())
        .with("mode", "lazy");
    let row = timed(row, &timing)
        .figure("gflop_per_s", work.flops / timing.latency / 1e9, 2)
        .limit("limit", work.flops / least / 1e9, least / timing.latency);
    bench.output.row(row, &bench.judge);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_s_products_occur_once() {
        let json = serde_json::json!({
            "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 48,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        });
        let config = ModelConfig::from_json("config.json".as_ref(), json.as_object().unwrap()).unwrap();
        let sizes: Vec<_> = layers(&config, 5).into_iter().map(|product| product.sizes).collect();
        assert_eq!(sizes, [[5, 16, 16], [5, 16, 8], [5, 16, 48], [5, 48, 16], [5, 16, 32]]);
    }

    #[test]
    fn cubic_products_are_named() {
        assert_eq!(label([8; 3]), "matmul 8^3");
        assert_eq!(label([8, 8, 4]), "matmul 8x8x4");
    }
}
