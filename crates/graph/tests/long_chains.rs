//! Chains of a million operations are recorded, evaluated, differentiated and dropped on a small stack, in time linear
//! in their length.

use std::time::{Duration, Instant};

use candle_core::{DType, Device};
use metal_candle_graph::{Backend, LazyTensor, value_and_grad, with_backend};

const LENGTH: usize = 1_000_000;

/// CPU time of this thread if the system reports it, so that a busy machine does not fail the test.
fn computing(start: Instant) -> Duration {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanoseconds = told.and_then(|text| text.split_whitespace().next()?.parse().ok());
    nanoseconds.map_or_else(|| start.elapsed(), Duration::from_nanos)
}

/// Runs `test` on a thread with a 2 MiB stack, within 20 seconds.
fn on_a_small_stack(test: impl FnOnce() + Send + 'static) {
    let timed = move || {
        let start = Instant::now();
        test();
        computing(start)
    };
    let elapsed = std::thread::Builder::new()
        .stack_size(2 << 20)
        .spawn(timed)
        .unwrap()
        .join()
        .unwrap();
    assert!(elapsed < Duration::from_secs(20), "{elapsed:?}");
}

/// `x * a + b`, `LENGTH / 2` times.
fn chain(x: &LazyTensor) -> LazyTensor {
    (0..LENGTH / 2).fold(x.clone(), |x, _| x.mul_scalar(0.5).unwrap().add_scalar(1.0).unwrap())
}

fn input() -> LazyTensor {
    LazyTensor::from_slice(&[1.0, -3.0], &[2], &Device::Cpu).unwrap()
}

fn evaluates(backend: Backend) {
    on_a_small_stack(move || {
        let y = chain(&input());
        assert_eq!(y.graph_size(), LENGTH + 1);
        // The fixed point of x / 2 + 1.
        assert_eq!(with_backend(backend, || y.to_vec::<f32>()).unwrap(), [2.0, 2.0]);
        assert_eq!(y.graph_size(), 1);
    });
}

#[test]
fn evaluates_on_the_host_backend() {
    evaluates(Backend::Cpu);
}

#[test]
fn evaluates_on_the_candle_backend() {
    evaluates(Backend::Candle);
}

#[test]
fn differentiates() {
    on_a_small_stack(|| {
        let x = input();
        // Factors of 1 and -1 keep the gradient finite: (-1)^(LENGTH / 2).
        let y = (0..LENGTH / 2).fold(x.clone(), |x, _| x.neg().unwrap().add_scalar(1.0).unwrap());
        let (loss, gradients) = value_and_grad(&y.sum_all().unwrap(), &[x]).unwrap();
        assert_eq!(gradients[0].to_vec::<f32>().unwrap(), [1.0, 1.0]);
        assert_eq!(loss.to_vec::<f32>().unwrap(), [-2.0]);
    });
}

#[test]
fn drops_unevaluated() {
    on_a_small_stack(|| {
        let y = chain(&input());
        let shared = y.add(&y).unwrap();
        drop(y);
        drop(shared);
    });
}

/// Every value is needed again at the end, so that no buffer can be reused.
#[test]
fn a_hundred_thousand_values_live_at_once() {
    on_a_small_stack(|| {
        let x = LazyTensor::from_data(&[0.25f64], &[1], &Device::Cpu).unwrap();
        let y = (0..100_000).fold(x.clone(), |x, _| x.sin().unwrap());
        let (_, gradients) = value_and_grad(&y, &[x]).unwrap();
        let (mut value, mut slope) = (0.25f64, 1.0);
        for _ in 0..100_000 {
            (value, slope) = (value.sin(), slope * value.cos());
        }
        let found = gradients[0].to_scalar::<f64>().unwrap();
        assert!((found - slope).abs() <= 1e-9 * slope, "{found} and {slope}");
    });
}

/// One input with very many users, and one operation with very many inputs.
#[test]
fn wide_graphs() {
    on_a_small_stack(|| {
        let x = LazyTensor::iota(0, &[20_000], DType::F32, &Device::Cpu).unwrap();
        let parts: Vec<LazyTensor> = (0..20_000)
            .map(|i| x.slice(0, i, i + 1).unwrap().mul_scalar(2.0).unwrap())
            .collect();
        let joined = LazyTensor::concat(&parts.iter().collect::<Vec<_>>(), 0).unwrap();
        assert_eq!(joined.sum_all().unwrap().to_vec::<f32>().unwrap(), [399_980_000.0]);
    });
}
