//! The overhead of laziness per operation: recording, plan lookup, a call of a compiled function, and all of it
//! compared with Candle's eager calls. The tensors are tiny, so that kernels take negligible time.
//!
//!     cargo bench -p metal-candle-graph --bench overhead
//!
//! Throughputs are operations per second: 6.7 million are 0.15 microseconds each, 20 million are 0.05.

use std::hint::black_box;

use candle_core::{Device, Tensor};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use metal_candle_graph::{
    AttentionInputs, AttentionOptions, LazyTensor, Result, compile, eval_all, prepare, value_and_grad, with_threads,
};

/// Operations of the chain.
const CHAIN: u64 = 1000;
const LAYERS: usize = 8;
/// `(batch, seq, heads, head_dim)`
const HEADS: [usize; 4] = [1, 4, 2, 8];

fn chain(x: &LazyTensor) -> Result<LazyTensor> {
    (0..CHAIN / 2).try_fold(x.clone(), |x, _| x.mul_scalar(0.5)?.add_scalar(1.0))
}

fn eager_chain(x: &Tensor) -> candle_core::Result<Tensor> {
    (0..CHAIN / 2).try_fold(x.clone(), |x, _| x.affine(0.5, 0.0)?.affine(1.0, 1.0))
}

fn ones(shape: &[usize]) -> LazyTensor {
    let values = vec![1.0; shape.iter().product()];
    LazyTensor::from_slice(&values, shape, &Device::Cpu).expect("as many values as the shape has")
}

/// The weights of one layer of a decoder, with `LoRA` on the queries.
struct Layer {
    norms: [LazyTensor; 2],
    /// q, k, v, o
    projections: [LazyTensor; 4],
    /// gate, up, down
    mlp: [LazyTensor; 3],
    lora: [LazyTensor; 2],
}

impl Layer {
    fn new(width: usize) -> Self {
        Self {
            norms: std::array::from_fn(|_| ones(&[width])),
            projections: std::array::from_fn(|_| ones(&[width, width])),
            mlp: [&[2 * width, width], &[2 * width, width], &[width, 2 * width]].map(|shape| ones(shape)),
            lora: [ones(&[width, 2]), ones(&[2, width])],
        }
    }

    fn forward(&self, x: &LazyTensor, rotary: &[LazyTensor; 2]) -> Result<LazyTensor> {
        let normed = x.rms_norm_weighted(&self.norms[0], 1e-5)?;
        let [wq, wk, wv, wo] = &self.projections;
        let q = normed
            .matmul_t(wq)?
            .add(&normed.lora_fused(&self.lora[0], &self.lora[1], 2.0)?)?;
        let q = q.reshape(&HEADS)?.rope(&rotary[0], &rotary[1], false)?;
        let k = normed
            .matmul_t(wk)?
            .reshape(&HEADS)?
            .rope(&rotary[0], &rotary[1], false)?;
        let v = normed.matmul_t(wv)?.reshape(&HEADS)?;
        let options = AttentionOptions {
            scale: 0.35,
            causal: true,
            window: None,
            offset: false,
            segments: false,
        };
        let inputs = AttentionInputs {
            q: &q,
            k: &k,
            v: &v,
            offset: None,
            segments: None,
        };
        let x = LazyTensor::attention(&inputs, options)?
            .reshape(x.dims())?
            .matmul_t(wo)?
            .add(x)?;
        let normed = x.rms_norm_weighted(&self.norms[1], 1e-5)?;
        let [gate, up, down] = &self.mlp;
        normed
            .matmul_t(gate)?
            .swiglu(&normed.matmul_t(up)?)?
            .matmul_t(down)?
            .add(&x)
    }
}

/// A small decoder without its head, and its input.
fn decoder() -> (impl Fn(&LazyTensor) -> Result<LazyTensor>, LazyTensor) {
    let [batch, seq, heads, head_dim] = HEADS;
    let layers: Vec<Layer> = (0..LAYERS).map(|_| Layer::new(heads * head_dim)).collect();
    let rotary = std::array::from_fn(|_| ones(&[1, seq, head_dim / 2]));
    let forward = move |x: &LazyTensor| layers.iter().try_fold(x.clone(), |x, layer| layer.forward(&x, &rotary));
    (forward, ones(&[batch, seq, heads * head_dim]))
}

/// The stages of one graph.
fn stages(criterion: &mut Criterion, name: &str, x: &LazyTensor, record: impl Fn(&LazyTensor) -> Result<LazyTensor>) {
    let mut group = criterion.benchmark_group(name);
    let recorded = record(x).expect("the shapes fit");
    let leaves = recorded.graph().expect("one device").input_count();
    group.throughput(Throughput::Elements((recorded.graph_size() - leaves) as u64));
    group.bench_function("record and drop", |bencher| {
        bencher.iter(|| drop(record(black_box(x)).expect("fits")));
    });
    let recorded = [recorded];
    group.bench_function("find the plan", |bencher| {
        bencher.iter(|| prepare(black_box(&recorded)).expect("fits"));
    });
    group.bench_function("record, find, run", |bencher| {
        bencher.iter(|| record(black_box(x)).and_then(|y| y.eval()).expect("runs"));
    });
    let compiled = compile(|arguments| Ok(vec![record(&arguments[0])?]));
    group.bench_function("call compiled", |bencher| {
        bencher.iter(|| compiled.call(vec![black_box(x).clone()]).expect("runs"));
    });
    group.finish();
}

fn overhead(criterion: &mut Criterion) {
    let x = ones(&[2, 2]);
    stages(criterion, "chain", &x, chain);
    let eager = x.eval().expect("it has a value");
    let mut group = criterion.benchmark_group("chain");
    group.throughput(Throughput::Elements(CHAIN));
    group.bench_function("eager", |bencher| {
        bencher.iter(|| eager_chain(black_box(&eager)).expect("runs"));
    });
    group.finish();
    stages(criterion, "one operation", &x, |x| x.mul_scalar(0.5));
    let mut group = criterion.benchmark_group("one operation");
    group.throughput(Throughput::Elements(1));
    group.bench_function("eager", |bencher| {
        bencher.iter(|| black_box(&eager).affine(0.5, 0.0).expect("runs"));
    });
    group.finish();
    let (forward, x) = decoder();
    stages(criterion, "decoder", &x, &forward);
    stages(criterion, "decoder with gradient", &x, |x| {
        let (_, mut gradients) = value_and_grad(&forward(x)?.sum_all()?, std::slice::from_ref(x))?;
        Ok(gradients.remove(0))
    });
}

/// A hundred `LoRA` layers with one row: one plan for all, run concurrently.
fn together(criterion: &mut Criterion) {
    let [a, b] = [ones(&[512, 8]), ones(&[8, 512])];
    let rows: Vec<LazyTensor> = (0..100).map(|_| ones(&[1, 512])).collect();
    let outputs = || -> Vec<LazyTensor> {
        let output = |x: &LazyTensor| x.lora_fused(&a, &b, 2.0).expect("the shapes fit");
        rows.iter().map(output).collect()
    };
    let mut group = criterion.benchmark_group("100 LoRA layers");
    group.throughput(Throughput::Elements(rows.len() as u64));
    group.bench_function("one by one", |bencher| {
        bencher.iter(|| -> Vec<Tensor> { outputs().iter().map(|y| y.eval().expect("runs")).collect() });
    });
    for threads in [1, 2] {
        group.bench_function(format!("together, {threads} threads"), |bencher| {
            bencher.iter(|| with_threads(threads, || eval_all(&outputs()).expect("runs")));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(30);
    targets = overhead, together
}
criterion_main!(benches);
