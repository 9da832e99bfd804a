//! Compiled functions: a failed call leaves its arguments unchanged, functions may call each other and be traced from
//! several threads, and the number of traces is bounded.

use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use candle_core::{DType, Device};
use metal_candle_graph::{
    AdamWOptions, Backend, Compiled, Error, LazyTensor, Result, compile, with_backend, with_threads,
};

fn numbers(count: usize) -> LazyTensor {
    let values: Vec<f32> = (0..count).map(|i| i as f32 * 0.25 - 1.0).collect();
    LazyTensor::from_data(&values, &[count], &Device::Cpu).unwrap()
}

fn index(i: u32) -> LazyTensor {
    LazyTensor::from_data(&[i], &[1], &Device::Cpu).unwrap()
}

/// A tensor held by the engine alone, so that it is donated.
fn owned(x: &LazyTensor) -> LazyTensor {
    let copy = compile(|x| Ok(vec![x[0].add_scalar(0.0)?]));
    copy.call(vec![x.clone()]).unwrap().remove(0)
}

fn bits(tensors: &[LazyTensor]) -> Vec<Vec<u32>> {
    let of = |t: &LazyTensor| t.to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect();
    tensors.iter().map(of).collect()
}

type Function = fn(&[LazyTensor]) -> Result<Vec<LazyTensor>>;

/// State of 8 numbers in `[0]` and of 6 in `[1]`, and an index in `[2]` below 8; each fails for 100.
const FUNCTIONS: [(&str, Function); 7] = [
    ("an index that is given, before an update", |x| {
        let picked = x[0].index_select(0, &x[2])?;
        Ok(vec![x[0].slice_update(0, &picked, &index(0))?, x[1].clone()])
    }),
    ("the position of an update", |x| {
        Ok(vec![x[0].slice_update(0, &numbers(1), &x[2])?, x[1].clone()])
    }),
    ("an index that is given, after an update", |x| {
        let updated = x[0].slice_update(0, &numbers(2), &index(1))?;
        let picked = updated.index_select(0, &x[2])?;
        Ok(vec![updated, x[1].index_add(0, &index(3), &picked)?])
    }),
    ("an index that is computed, before an update", |x| {
        let at = x[2].cast(DType::F32)?.mul_scalar(0.5)?.floor()?.cast(DType::U32)?;
        let picked = x[0].index_select(0, &at)?;
        Ok(vec![x[0].slice_update(0, &picked, &index(0))?, x[1].clone()])
    }),
    ("an index that an update computes", |x| {
        let updated = x[0].slice_update(0, &x[2].cast(DType::F32)?, &index(1))?;
        let at = updated.slice(0, 1, 2)?.cast(DType::U32)?;
        let picked = updated.index_select(0, &at)?;
        Ok(vec![updated, x[1].index_add(0, &index(3), &picked)?])
    }),
    ("a target of a loss, after an update", |x| {
        let updated = x[0].scatter_add(0, &index(2), &numbers(1))?;
        let hidden = updated.reshape(&[1, 8])?;
        let weight = LazyTensor::ones(&[9, 8], DType::F32, &Device::Cpu)?;
        let target = x[2]
            .cast(DType::F32)?
            .sign()?
            .mul(&x[2].cast(DType::F32)?)?
            .cast(DType::I64)?;
        let loss = hidden.cross_entropy(&weight, &target, metal_candle_graph::CrossEntropyOptions::default())?;
        Ok(vec![updated, x[1].add(&loss)?])
    }),
    ("an index after an optimizer step", |x| {
        let options = AdamWOptions {
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            weight_decay: 0.1,
        };
        let (p, rates) = (
            x[0].slice(0, 0, 4)?.abs()?,
            LazyTensor::from_slice(&[0.1; 4], &[4], &Device::Cpu)?,
        );
        let state = x[0].adamw(&numbers(8), &x[0].abs()?, &x[0].abs()?, &rates, options)?;
        let at = x[2]
            .cast(DType::F32)?
            .add(&state.second.slice(0, 0, 1)?.mul_scalar(0.0)?)?
            .cast(DType::U32)?;
        Ok(vec![
            state.parameter,
            x[1].index_add(0, &index(0), &p.slice(0, 0, 1)?)?,
            state.first.index_select(0, &at)?,
        ])
    }),
];

/// Calls `function` with `i` as the index, on unshared state. Returns the state, also that of a failed call.
fn call(
    function: &Compiled<Function>,
    state: Vec<LazyTensor>,
    i: u32,
) -> std::result::Result<Vec<LazyTensor>, Vec<LazyTensor>> {
    let mut arguments = state;
    arguments.push(index(i));
    function.call(arguments).map_err(|failed| {
        let (error, mut arguments) = failed.into_parts();
        assert!(
            matches!(
                error,
                Error::Index { index: 100 | 50, .. } | Error::Range { start: 100, .. }
            ),
            "{error:?}"
        );
        assert_eq!(arguments.pop().unwrap().to_vec::<u32>().unwrap(), [i]);
        arguments
    })
}

#[test]
fn a_failed_call_leaves_its_arguments_unchanged() {
    for backend in [Backend::Candle, Backend::Cpu, Backend::Checked] {
        for (name, function) in FUNCTIONS {
            with_backend(backend, || {
                let start = || vec![owned(&numbers(8)), owned(&numbers(6))];
                let before = bits(&start());
                let (failing, other) = (compile::<Function>(function), compile::<Function>(function));
                let state = call(&failing, start(), 100).expect_err(name);
                // Reading the values would move the buffers to Candle, so that they could not be donated any more.
                let state = call(&failing, state, 100).expect_err(name);
                let results = call(&failing, state, 3).unwrap_or_else(|_| panic!("{name} fails"));
                let expected = call(&other, start(), 3).unwrap_or_else(|_| panic!("{name} fails"));
                assert_eq!(bits(&results), bits(&expected), "{name} on {backend:?}");
                let state = call(&failing, start(), 100).expect_err(name);
                assert_eq!(bits(&state), before, "{name} on {backend:?}");
            });
        }
    }
}

/// Groups of steps that threads run concurrently: one fails, the others write.
#[test]
fn failed_tasks_leave_their_arguments_unchanged() {
    let count = 1 << 13;
    let step = compile(move |x: &[LazyTensor]| {
        let groups = x[..8].iter().map(|state| {
            let long = (0..20).try_fold(state.mul_scalar(1.0)?, |long, _| long.sin());
            state.slice_update(0, &long?, &index(0))
        });
        let mut results: Vec<LazyTensor> = groups.collect::<Result<_>>()?;
        let at = x[8].cast(DType::F32)?.sqrt()?.cast(DType::U32)?;
        results.push(numbers(4).sin()?.index_select(0, &at)?);
        Ok(results)
    });
    with_threads(4, || {
        let state = || -> Vec<LazyTensor> { (0..8).map(|_| owned(&numbers(count))).collect() };
        let call = |mut state: Vec<LazyTensor>, i: u32| {
            state.push(index(i));
            step.call(state)
        };
        let (error, mut arguments) = call(state(), 10_000).unwrap_err().into_parts();
        assert!(matches!(error, Error::Index { index: 100, .. }), "{error:?}");
        arguments.pop();
        let again = call(arguments, 4).unwrap();
        assert_eq!(bits(&again), bits(&call(state(), 4).unwrap()));
    });
}

#[test]
fn arguments_that_cannot_be_evaluated_are_returned() {
    let twice = compile(|x| Ok(vec![x[0].add(&x[1])?]));
    let bad = numbers(3).index_select(0, &index(7)).unwrap();
    let (error, arguments) = twice.call(vec![owned(&numbers(1)), bad]).unwrap_err().into_parts();
    assert!(matches!(error, Error::Index { index: 7, size: 3, .. }));
    assert_eq!(bits(&arguments[..1]), bits(&[numbers(1)]));
    // An error of the function itself.
    let failed = twice.call(vec![numbers(2), numbers(3)]).unwrap_err();
    assert!(matches!(failed.error(), Error::Shape { operation: "Add", .. }));
    assert_eq!(failed.to_string(), "Add: shapes [2] and [3] do not broadcast");
    assert!(matches!(Error::from(failed), Error::Shape { .. }));
    assert_eq!(
        bits(&twice.call(vec![numbers(1), numbers(1)]).unwrap()),
        bits(&[numbers(1).mul_scalar(2.0).unwrap()])
    );
}

#[test]
fn a_failed_node_reports_the_same_error_again() {
    let x = numbers(3).index_select(0, &index(7)).unwrap();
    for _ in 0..2 {
        assert!(matches!(x.eval(), Err(Error::Index { index: 7, .. })));
        assert!(!x.is_evaluated());
    }
    let sum = x.add_scalar(1.0).unwrap();
    assert!(matches!(sum.eval(), Err(Error::Index { index: 7, .. })));
}

/// A function that calls itself, for another shape and for the same.
#[test]
fn functions_may_call_themselves_for_other_shapes() {
    static OUTER: std::sync::OnceLock<Compiled<Function>> = std::sync::OnceLock::new();
    let outer = OUTER.get_or_init(|| {
        compile::<Function>(|x| {
            let count = x[0].dims()[0];
            if count == 1 {
                return Ok(vec![x[0].mul_scalar(2.0)?]);
            }
            // The inner call uses data, since placeholders have no values.
            let data = numbers(if count == 5 { 5 } else { count - 1 });
            let itself = OUTER.get().expect("it is set before it is called");
            let sum = itself.call(vec![data])?.remove(0).sum_all()?;
            Ok(vec![x[0].add(&sum)?])
        })
    });
    let found = outer.call(vec![numbers(2)]).unwrap();
    // Of one number, -1: doubled. Added to -1 and -0.75.
    assert_eq!(found[0].to_vec::<f32>().unwrap(), [-3.0, -2.75]);
    assert!(matches!(
        outer.call(vec![numbers(5)]).unwrap_err().error(),
        Error::Recursion
    ));
    // And it works afterwards.
    assert_eq!(
        outer.call(vec![numbers(2)]).unwrap()[0].to_vec::<f32>().unwrap(),
        [-3.0, -2.75]
    );
}

/// Both threads are tracing at the same time.
#[test]
fn threads_trace_concurrently() {
    let both = Barrier::new(2);
    let double = compile(|x: &[LazyTensor]| {
        both.wait();
        Ok(vec![x[0].mul_scalar(2.0)?])
    });
    thread::scope(|scope| {
        let double = &double;
        let dims = |count| double.call(vec![numbers(count)]).unwrap()[0].dims().to_vec();
        let calls = [2, 3].map(|count| scope.spawn(move || dims(count)));
        let dims: Vec<Vec<usize>> = calls.into_iter().map(|call| call.join().unwrap()).collect();
        assert_eq!(dims, [[2], [3]]);
    });
    // The same signature from two threads is one trace.
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| double.call(vec![numbers(7)]).unwrap());
        }
    });
    assert_eq!(double.trace_count(), 3);
}

#[test]
fn the_least_recently_used_trace_is_evicted() {
    let traced = AtomicUsize::new(0);
    let double = compile(|x: &[LazyTensor]| {
        traced.fetch_add(1, Ordering::Relaxed);
        Ok(vec![x[0].mul_scalar(2.0)?])
    });
    for count in 1..=200 {
        double.call(vec![numbers(count)]).unwrap();
        // Used all the time.
        double.call(vec![numbers(1)]).unwrap();
    }
    assert_eq!((double.trace_count(), traced.load(Ordering::Relaxed)), (64, 200));
    // Recent traces still exist; an old one is traced again.
    for count in [1, 200, 138] {
        double.call(vec![numbers(count)]).unwrap();
    }
    assert_eq!(traced.load(Ordering::Relaxed), 200);
    double.call(vec![numbers(137)]).unwrap();
    assert_eq!((double.trace_count(), traced.load(Ordering::Relaxed)), (64, 201));
}
