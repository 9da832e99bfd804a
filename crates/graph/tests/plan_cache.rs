//! Plans are made once per structure and found afterwards; compiled functions trace once; donated arguments are
//! overwritten. A single test in its own process, because the counters and the allocator are per process.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{Device, Tensor};
use metal_candle_graph::{LazyTensor, PlanMemory, Statistics, compile, eval_all, prepare, statistics, value_and_grad};

/// Counts allocations of at least this many bytes.
const LARGE: usize = 1 << 20;
static LARGE_ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: forwards every call to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() >= LARGE {
            LARGE_ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
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

/// The counters of `f`, without those of memory.
fn count(f: impl FnOnce()) -> Statistics {
    let before = statistics();
    f();
    let after = statistics();
    Statistics {
        plan_hits: after.plan_hits - before.plan_hits,
        plan_misses: after.plan_misses - before.plan_misses,
        evaluations: after.evaluations - before.evaluations,
        ..Statistics::default()
    }
}

fn normal(shape: &[usize]) -> LazyTensor {
    LazyTensor::from_tensor(Tensor::randn(0f32, 1f32, shape, &Device::Cpu).unwrap()).unwrap()
}

/// A step of gradient descent on a linear layer, recorded anew. The rate is an input.
fn step(weight: &LazyTensor, rows: usize, rate: f32) -> LazyTensor {
    let error = normal(&[rows, 8])
        .matmul(weight)
        .unwrap()
        .sub(&normal(&[rows, 4]))
        .unwrap();
    let loss = error.mul(&error).unwrap().sum_all().unwrap();
    let (loss, gradients) = value_and_grad(&loss, std::slice::from_ref(weight)).unwrap();
    let rate = LazyTensor::from_slice(&[rate], &[1], &Device::Cpu).unwrap();
    let next = weight.sub(&gradients[0].mul(&rate).unwrap()).unwrap();
    eval_all(&[loss, next.clone()]).unwrap();
    next
}

fn a_recorded_loop_has_one_miss_per_shape() {
    let counted = count(|| {
        let mut weight = normal(&[8, 4]);
        for i in 0..20 {
            weight = step(&weight, if i % 5 == 4 { 3 } else { 6 }, 1e-3 / (i + 1) as f32);
        }
    });
    assert_eq!(
        counted,
        Statistics {
            plan_hits: 18,
            plan_misses: 2,
            evaluations: 20,
            ..Statistics::default()
        }
    );
}

fn structure_is_what_counts() {
    let (x, y) = (normal(&[3, 5]), normal(&[3, 5]));
    let once = |f: &dyn Fn() -> LazyTensor| count(|| drop(f().eval().unwrap()));
    let record = || x.mul_scalar(3.25).unwrap().add(&y).unwrap();
    assert_eq!(once(&record).plan_misses, 1);
    assert_eq!(once(&record).plan_hits, 1);
    // Different data, the same structure.
    assert_eq!(
        once(&|| y.mul_scalar(3.25).unwrap().add(&normal(&[3, 5])).unwrap()).plan_hits,
        1
    );
    // Different constants, inputs, shapes.
    assert_eq!(once(&|| x.mul_scalar(3.5).unwrap().add(&y).unwrap()).plan_misses, 1);
    assert_eq!(once(&|| x.mul_scalar(3.25).unwrap().add(&x).unwrap()).plan_misses, 1);
    assert_eq!(
        once(&|| normal(&[5, 3]).mul_scalar(3.25).unwrap().add(&normal(&[5, 3])).unwrap()).plan_misses,
        1
    );
    // An evaluated tensor is not evaluated again.
    let done = record();
    done.eval().unwrap();
    assert_eq!(count(|| drop(done.eval().unwrap())), Statistics::default());
}

fn a_compiled_function_is_traced_once_per_signature() {
    let traces = Cell::new(0);
    let f = compile(|args| {
        traces.set(traces.get() + 1);
        Ok(vec![args[0].matmul(&args[1])?.exp()?])
    });
    let counted = count(|| {
        for _ in 0..10 {
            f.call(vec![normal(&[2, 3]), normal(&[3, 2])]).unwrap();
        }
        for _ in 0..10 {
            f.call(vec![normal(&[4, 3]), normal(&[3, 2])]).unwrap();
        }
    });
    assert_eq!((traces.get(), f.trace_count()), (2, 2));
    // The plan cache is used when tracing, not in calls.
    assert_eq!(
        counted,
        Statistics {
            plan_hits: 0,
            plan_misses: 2,
            evaluations: 20,
            ..Statistics::default()
        }
    );
}

/// The memory of a plan before its run, and the counters of the run.
fn memory_is_known_before_the_run() {
    let bytes = 64 * 64 * 4;
    let (x, w) = (normal(&[64, 64]), normal(&[64, 64]));
    let y = x.matmul(&w).unwrap().exp().unwrap().matmul(&w).unwrap();
    let memory = prepare(std::slice::from_ref(&y)).unwrap();
    // Three values; the exponential overwrites the product that it reads.
    let expected = PlanMemory {
        inputs: 2 * bytes,
        outputs: bytes,
        arena: bytes,
        values: 3 * bytes,
    };
    assert_eq!(memory, expected);
    assert_eq!((memory.peak(), memory.saved()), (4 * bytes, bytes));
    let before = statistics();
    y.eval().unwrap();
    let after = statistics();
    assert_eq!(after.plan_misses, before.plan_misses, "the plan was there");
    assert_eq!(after.arena_bytes - before.arena_bytes, bytes as u64);
    assert_eq!(after.saved_bytes - before.saved_bytes, bytes as u64);
    // A result that overwrites a donated argument takes no memory.
    let f = compile(|args| {
        let at = &args[2];
        Ok(vec![args[0].slice_update(0, &args[1], at)?])
    });
    let at = LazyTensor::from_data(&[3u32], &[1], &Device::Cpu).unwrap();
    let memory = f.memory(&[x, normal(&[1, 64]), at]).unwrap();
    assert_eq!((memory.outputs, memory.arena, memory.peak()), (0, 0, bytes + 256 + 4));
}

fn donated_arguments_are_overwritten() {
    let size = LARGE / 2;
    let f = compile(|args| {
        let [state, update, at] = args else {
            unreachable!("three arguments")
        };
        Ok(vec![state.slice_update(0, update, at)?])
    });
    let at = |i: u32| LazyTensor::from_data(&[i], &[1], &Device::Cpu).unwrap();
    let one = || LazyTensor::from_slice(&[1.0], &[1], &Device::Cpu).unwrap();
    // The first call takes a buffer owned by the engine alone.
    let mut state = f.call(vec![
        LazyTensor::zeros(&[size], candle_core::DType::F32, &Device::Cpu).unwrap(),
        one(),
        at(0),
    ]);
    let before = LARGE_ALLOCATIONS.load(Ordering::Relaxed);
    for i in 1..50 {
        state = f.call(vec![state.unwrap().remove(0), one(), at(i)]);
    }
    assert_eq!(
        LARGE_ALLOCATIONS.load(Ordering::Relaxed),
        before,
        "a donated buffer was copied"
    );
    // A shared buffer is copied, and the other handle keeps its value.
    let held = state.unwrap().remove(0);
    let next = f.call(vec![held.clone(), one(), at(50)]).unwrap().remove(0);
    assert_eq!(LARGE_ALLOCATIONS.load(Ordering::Relaxed), before + 1);
    assert_eq!(held.sum_all().unwrap().to_vec::<f32>().unwrap(), [50.0]);
    assert_eq!(next.sum_all().unwrap().to_vec::<f32>().unwrap(), [51.0]);
}

#[test]
fn plans_are_made_once_and_buffers_reused() {
    a_recorded_loop_has_one_miss_per_shape();
    structure_is_what_counts();
    a_compiled_function_is_traced_once_per_signature();
    memory_is_known_before_the_run();
    donated_arguments_are_overwritten();
}
