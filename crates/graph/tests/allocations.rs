//! A cached plan allocates its results and a constant number of small tables, whatever its number of operations. A
//! single test in its own process, because the allocator is per process.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device};
use metal_candle_graph::{
    AdamWOptions, Approximate, AttentionInputs, AttentionOptions, CrossEntropyOptions, LazyTensor, QuantFormat, Result,
    compile, release_memory, value_and_grad,
};

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);
/// Allocations of at least a mebibyte.
static LARGE: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: forwards every call to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        if layout.size() >= 1 << 20 {
            LARGE.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: guaranteed by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: guaranteed by the caller.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count<R>(f: impl FnOnce() -> R) -> usize {
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    let result = f();
    let counted = ALLOCATIONS.load(Ordering::Relaxed) - before;
    drop(result);
    counted
}

fn tensor(shape: &[usize]) -> LazyTensor {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| (i % 7) as f32 * 0.1 - 0.25).collect();
    LazyTensor::from_slice(&values, shape, &Device::Cpu).unwrap()
}

/// Operations that keep the shape `(1, 16, 32)`.
type Round = fn(&LazyTensor, &Weights) -> Result<LazyTensor>;

struct Weights {
    square: LazyTensor,
    row: LazyTensor,
    a: LazyTensor,
    b: LazyTensor,
    quants: LazyTensor,
    scales: LazyTensor,
    angles: LazyTensor,
    indices: LazyTensor,
    classes: LazyTensor,
    rates: LazyTensor,
}

const ROUNDS: [(&str, Round); 12] = [
    ("elementwise", |x, _| x.mul_scalar(0.5)?.add_scalar(0.25)?.tanh()),
    ("broadcast", |x, w| x.add(&w.row)?.maximum(&w.row)),
    ("reductions", |x, _| {
        x.sub(&x.max_keepdim(&[2])?)?.mul(&x.mean_keepdim(&[0, 1])?)
    }),
    ("movement", |x, _| {
        let halves = (x.slice(2, 0, 16)?, x.slice(2, 16, 32)?);
        let swapped = LazyTensor::concat(&[&halves.1, &halves.0], 2)?;
        swapped.permute(&[1, 0, 2])?.neg()?.permute(&[1, 0, 2])
    }),
    ("norms", |x, w| {
        let normed = x.rms_norm_weighted(&w.row, 1e-5)?;
        normed.layer_norm(&w.row, &w.row, 1e-5)?.softmax(2)
    }),
    ("activations", |x, _| x.gelu(Approximate::Tanh)?.swiglu(x)),
    ("products", |x, w| x.matmul_t(&w.square)?.matmul(&w.square)),
    ("lora", |x, w| x.lora_fused(&w.a, &w.b, 2.0)),
    ("quantised products", |x, w| {
        let few = x
            .slice(1, 0, 4)?
            .dequant_matmul(&w.quants, &w.scales, QuantFormat::Q4_0)?;
        x.dequant_matmul(&w.quants, &w.scales, QuantFormat::Q4_0)?
            .add(&few.slice(1, 0, 1)?)
    }),
    ("attention", |x, w| {
        let heads = x.reshape(&[1, 16, 4, 8])?.rope(&w.angles, &w.angles, false)?;
        let options = AttentionOptions {
            scale: 0.35,
            causal: true,
            window: None,
            offset: false,
            segments: false,
        };
        let inputs = AttentionInputs {
            q: &heads,
            k: &heads,
            v: &heads,
            offset: None,
            segments: None,
        };
        LazyTensor::attention(&inputs, options)?.reshape(x.dims())
    }),
    ("rows and loss", |x, w| {
        let rows = x.reshape(&[16, 32])?.index_select(0, &w.indices)?;
        let losses = rows.cross_entropy(&w.square, &w.classes, CrossEntropyOptions::default())?;
        x.add(&losses.reshape(&[1, 16, 1])?)
    }),
    ("optimizer", |x, w| {
        let options = AdamWOptions {
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            weight_decay: 0.01,
        };
        let state = x.adamw(&x.mul_scalar(0.5)?, &x.abs()?, &x.mul(x)?, &w.rates, options)?;
        state.parameter.add(&state.first)
    }),
];

fn weights() -> Weights {
    let device = Device::Cpu;
    Weights {
        square: tensor(&[32, 32]),
        row: tensor(&[32]),
        a: tensor(&[32, 4]),
        b: tensor(&[4, 32]),
        quants: LazyTensor::from_data(&[0x7au8; 32 * 16], &[32, 16], &device).unwrap(),
        scales: LazyTensor::from_tensor(tensor(&[32, 1]).cast(DType::F16).unwrap().eval().unwrap()).unwrap(),
        angles: tensor(&[1, 16, 4]),
        indices: LazyTensor::from_data(&[3u32, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3], &[16], &device).unwrap(),
        classes: LazyTensor::from_data(&(0..16i64).collect::<Vec<_>>(), &[16], &device).unwrap(),
        rates: LazyTensor::from_slice(&[0.1, 0.1, 0.01, 0.5], &[4], &device).unwrap(),
    }
}

/// Allocations of one call with a cached plan: the minimum of several calls, since a pool thread allocates its scratch
/// when it gets its first task.
fn of_a_call(f: impl Fn(&LazyTensor) -> Result<Vec<LazyTensor>>) -> usize {
    let compiled = compile(|arguments| f(&arguments[0]));
    let x = tensor(&[1, 16, 32]);
    let call = || count(|| compiled.call(vec![x.clone()]).unwrap());
    (0..2).for_each(|_| _ = call());
    (0..5).map(|_| call()).min().unwrap()
}

#[test]
fn cached_plans_allocate_next_to_nothing() {
    nothing_per_operation();
    no_large_memory_where_sizes_alternate();
}

/// Results and arenas of mebibytes, of plans for two alternating sizes: the memory of earlier calls is reused.
fn no_large_memory_where_sizes_alternate() {
    let step = compile(|arguments| {
        let square = arguments[0].matmul_t(&arguments[0])?;
        Ok(vec![square.softmax(1)?.matmul(&arguments[0])?, square.exp()?])
    });
    let arguments = [600, 700].map(|rows| vec![tensor(&[rows, 500])]);
    let mut values = Vec::new();
    let mut round = || {
        let results = arguments.clone().map(|arguments| step.call(arguments).unwrap());
        values.push(results.map(|results| results[1].sum_all().unwrap().to_scalar::<f32>().unwrap()));
    };
    (0..3).for_each(|_| round());
    let before = LARGE.load(Ordering::Relaxed);
    (0..10).for_each(|_| round());
    assert_eq!(LARGE.load(Ordering::Relaxed), before, "large memory was allocated");
    release_memory();
    round();
    assert!(LARGE.load(Ordering::Relaxed) > before, "the memory had been kept");
    assert!(values.iter().all(|found| *found == values[0]), "{values:?}");
}

fn nothing_per_operation() {
    let weights = weights();
    for (name, round) in ROUNDS {
        let rounds = |x: &LazyTensor, n: usize| (0..n).try_fold(x.clone(), |x, _| round(&x, &weights));
        let forward = |n: usize| of_a_call(|x| Ok(vec![rounds(x, n)?]));
        let (few, many) = (forward(10), forward(100));
        println!("{name}: {few} allocations");
        assert_eq!(few, many, "{name}");
        // Arguments, results, the result's buffer, and tables of the run.
        assert!(few <= 10, "{name}: {few}");
        if name == "optimizer" {
            // Not differentiated here.
            continue;
        }
        let backward = |n: usize| {
            of_a_call(|x| {
                let (loss, gradients) = value_and_grad(&rounds(x, n)?.sum_all()?, std::slice::from_ref(x))?;
                Ok([vec![loss], gradients].concat())
            })
        };
        let (few, many) = (backward(10), backward(100));
        println!("{name} with gradient: {few} allocations");
        assert_eq!(few, many, "{name} with gradient");
        assert!(few <= 15, "{name} with gradient: {few}");
    }
}
