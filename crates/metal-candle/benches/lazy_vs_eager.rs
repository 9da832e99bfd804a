//! Benchmark of a `LoRA` forward pass, eager and through the lazy graph, over the shapes used for timing other
//! libraries.
//!
//!     cargo bench -p metal-candle --bench lazy_vs_eager
//!
//! The lazy call includes everything: creating an input from the tensor, recording, the plan cache, running.

use std::hint::black_box;

use candle_core::{Device, Tensor};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use metal_candle::Result;
use metal_candle::graph::LazyTensor;
use metal_candle::training::{LoRAConfig, LoRALayer};

/// `(batch, in, out, rank)`
const CASES: [(usize, usize, usize, usize); 7] = [
    (1, 16, 16, 8),
    (8, 64, 64, 8),
    (1, 512, 512, 8),
    (64, 512, 512, 8),
    (1, 1024, 1024, 8),
    (1, 2048, 2048, 8),
    (1024, 2048, 2048, 16),
];

/// A layer in evaluation mode with nonzero factors, and an input.
fn case((batch, inputs, outputs, rank): (usize, usize, usize, usize)) -> Result<(LoRALayer, Tensor)> {
    let config = LoRAConfig {
        rank,
        alpha: 2.0 * rank as f32,
        dropout: 0.0,
    };
    let mut layer = LoRALayer::new(inputs, outputs, &config, &Device::Cpu)?;
    layer.eval();
    layer
        .lora_b()
        .set(&Tensor::randn(0f32, 1f32, (rank, outputs), &Device::Cpu)?)?;
    Ok((layer, Tensor::randn(0f32, 1f32, (batch, inputs), &Device::Cpu)?))
}

fn lazy(layer: &LoRALayer, x: &Tensor) -> Result<Tensor> {
    Ok(layer.forward_lazy(&LazyTensor::from_tensor(x.clone())?)?.eval()?)
}

fn lora_forward(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("lora_forward");
    for shape @ (batch, inputs, outputs, rank) in CASES {
        let (layer, x) = case(shape).expect("the case is well formed");
        let name = format!("b{batch} {inputs}x{outputs} r{rank}");
        group.bench_function(BenchmarkId::new("eager", &name), |bencher| {
            bencher.iter(|| layer.forward(black_box(&x)).expect("runs"));
        });
        group.bench_function(BenchmarkId::new("lazy", &name), |bencher| {
            bencher.iter(|| lazy(&layer, black_box(&x)).expect("runs"));
        });
    }
    group.finish();
}

criterion_group!(benches, lora_forward);
criterion_main!(benches);
