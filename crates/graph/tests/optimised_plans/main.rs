//! Passes preserve values: random graphs over all primitives and fused operations, with common subexpressions and
//! several outputs, optimised against unoptimised on the candle backend bit for bit, including gradients; the CPU
//! backend against the candle backend, also in f16 and bf16; and the CPU backend against itself with other numbers of
//! threads, and with each kernel run by itself in poisoned memory.

mod layers;
mod program;

use candle_core::{DType, Device, Tensor};
use layers::{Layer, Size};
use metal_candle_graph::{Backend, LazyTensor, Result, eval_all, with_backend, with_threads};
use program::{Instruction, OPERATIONS, Program, leaf, u32s};
use proptest::prelude::*;

fn run(backend: Backend, seed: u32, instructions: &[Instruction]) -> Vec<Tensor> {
    with_backend(backend, || {
        let mut program = Program::new(seed);
        for i in instructions {
            program.step(*i).unwrap_or_else(|e| panic!("recording {i:?}: {e}"));
        }
        eval_all(&program.outputs().unwrap()).unwrap()
    })
}

/// The elements; widening to f64 is exact.
fn list(tensor: &Tensor) -> Vec<f64> {
    let wide = tensor.to_dtype(DType::F64).and_then(|tensor| tensor.flatten_all());
    wide.unwrap().to_vec1().unwrap()
}

fn bits(values: &[f64]) -> Vec<u64> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn compare(seed: u32, instructions: &[Instruction]) -> std::result::Result<(), TestCaseError> {
    let unoptimised = run(Backend::Unoptimised, seed, instructions);
    let optimised = run(Backend::Candle, seed, instructions);
    let ours = run(Backend::Cpu, seed, instructions);
    compare_checked(&ours, || run(Backend::Checked, seed, instructions))?;
    prop_assert!(unoptimised.len() == optimised.len() && ours.len() == optimised.len());
    for (output, ((before, after), ours)) in unoptimised.iter().zip(&optimised).zip(&ours).enumerate() {
        prop_assert_eq!(before.dims(), after.dims());
        prop_assert_eq!(before.dims(), ours.dims());
        let (before, after, ours) = (list(before), list(after), list(ours));
        prop_assert_eq!(
            bits(&before),
            bits(&after),
            "output {}: {:?} became {:?}",
            output,
            before,
            after
        );
        let scale = after.iter().fold(1.0f64, |m, v| m.max(v.abs()));
        prop_assert!(scale.is_finite(), "output {} is not finite: {:?}", output, after);
        for (e, f) in after.iter().zip(&ours) {
            prop_assert!(
                (e - f).abs() <= 1e-9 * scale,
                "output {}: {} on the CPU backend, {} on candle's",
                output,
                f,
                e
            );
        }
    }
    Ok(())
}

/// Each kernel by itself touches only what it declared, and computes the same bits as in the arena.
fn compare_checked(ours: &[Tensor], checked: impl FnOnce() -> Vec<Tensor>) -> std::result::Result<(), TestCaseError> {
    for (output, (ours, checked)) in ours.iter().zip(checked()).enumerate() {
        prop_assert!(
            bits(&list(ours)) == bits(&list(&checked)),
            "output {}: {:?} by itself {:?}",
            output,
            ours,
            checked
        );
    }
    Ok(())
}

fn run_layers(backend: Backend, seed: u32, size: Size, layers: &[Layer]) -> Vec<Vec<f64>> {
    let tensors = with_backend(backend, || eval_all(&layers::outputs(seed, size, layers).unwrap()));
    tensors.unwrap().iter().map(list).collect()
}

/// The allowed mean squared error, relative to the mean square, for a few layers and their gradients, by the narrowest
/// dtype in them. The backends round at different points.
fn tolerance(dtype: DType, layers: &[Layer]) -> f64 {
    if dtype == DType::BF16 || layers.iter().copied().any(layers::casts) {
        2e-3
    } else {
        1e-10
    }
}

fn compare_layers(seed: u32, size: Size, layers: &[Layer]) -> std::result::Result<(), TestCaseError> {
    let [unoptimised, optimised, ours] =
        [Backend::Unoptimised, Backend::Candle, Backend::Cpu].map(|backend| run_layers(backend, seed, size, layers));
    let checked = run_layers(Backend::Checked, seed, size, layers);
    for (output, (ours, checked)) in ours.iter().zip(&checked).enumerate() {
        prop_assert!(
            bits(ours) == bits(checked),
            "output {} has other bits where each kernel runs by itself",
            output
        );
    }
    for (output, ((before, after), ours)) in unoptimised.iter().zip(&optimised).zip(&ours).enumerate() {
        prop_assert_eq!(bits(before), bits(after), "output {}", output);
        prop_assert_eq!(after.len(), ours.len());
        let error: f64 = after.iter().zip(ours).map(|(e, f)| (e - f).powi(2)).sum();
        let power: f64 = after.iter().map(|e| e * e).sum();
        prop_assert!(
            error <= tolerance(size.dtype, layers) * power,
            "output {}: error {:e} of {:e}",
            output,
            error,
            power
        );
    }
    Ok(())
}

/// The same bits on one thread, two and five.
fn compare_threads(run: impl Fn() -> Vec<Vec<f64>>) -> std::result::Result<(), TestCaseError> {
    let on = |threads: usize| {
        with_threads(threads, &run)
            .iter()
            .map(|values| bits(values))
            .collect::<Vec<_>>()
    };
    let one = on(1);
    for threads in [2, 5] {
        prop_assert!(on(threads) == one, "{} threads give other bits than one", threads);
    }
    Ok(())
}

/// A quarter of the cases, or all where `CI` is set.
fn cases(all: u32) -> ProptestConfig {
    let quick = std::env::var_os("CI").is_none();
    ProptestConfig {
        cases: if quick { all.div_ceil(4) } else { all },
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

fn dtypes() -> impl Strategy<Value = DType> {
    prop::sample::select(vec![DType::F32, DType::BF16])
}

proptest! {
    #![proptest_config(cases(3000))]

    #[test]
    fn passes_and_backends_keep_the_values_of_random_graphs(
        seed in 0u32..1000,
        instructions in prop::collection::vec(any::<Instruction>(), 1..20),
    ) {
        compare(seed, &instructions)?;
    }
}

proptest! {
    #![proptest_config(cases(400))]

    #[test]
    fn layers_agree_within_their_dtype(
        seed in 0u32..1000,
        dtype in dtypes(),
        (rows, columns) in prop::sample::select(vec![(3, 8), (49, 16), (70, 18), (5, 33)]),
        layers in prop::collection::vec(any::<Layer>(), 0..7),
    ) {
        compare_layers(seed, Size { rows, columns, dtype }, &layers)?;
    }

    #[test]
    fn small_graphs_have_the_same_bits_on_any_number_of_threads(
        seed in 0u32..1000,
        instructions in prop::collection::vec(any::<Instruction>(), 1..20),
    ) {
        compare_threads(|| run(Backend::Cpu, seed, &instructions).iter().map(list).collect())?;
    }
}

proptest! {
    #![proptest_config(cases(40))]

    /// Both sizes are spread over threads: the first in its products, the second everywhere.
    #[test]
    fn large_layers_have_the_same_bits_on_any_number_of_threads(
        seed in 0u32..1000,
        dtype in dtypes(),
        (rows, columns) in prop::sample::select(vec![(150, 64), (700, 96)]),
        layers in prop::collection::vec(any::<Layer>(), 1..6),
    ) {
        let size = Size { rows, columns, dtype };
        compare_threads(|| run_layers(Backend::Cpu, seed, size, &layers))?;
    }
}

/// Every instruction at least once, regardless of the random programs.
#[test]
fn every_instruction_alone() {
    for operation in 0..OPERATIONS {
        for c in 0..96 {
            if let Err(error) = compare(7, &[(operation, 2, 3, c)]) {
                panic!("instruction {operation} with parameter {c}: {error}");
            }
        }
    }
}

/// The bits of the results of `f`, which must be the same on each of the backends.
fn bits_of(backends: &[Backend], values: &[f64], f: impl Fn(&LazyTensor) -> Result<Vec<LazyTensor>>) -> Vec<Vec<u64>> {
    let run = |backend: &Backend| -> Vec<Vec<u64>> {
        let x = LazyTensor::from_data(values, &[values.len()], &Device::Cpu).unwrap();
        let tensors = with_backend(*backend, || eval_all(&f(&x).unwrap()).unwrap());
        tensors.iter().map(|t| bits(&list(t))).collect()
    };
    let found: Vec<Vec<Vec<u64>>> = backends.iter().map(run).collect();
    for (backend, other) in backends.iter().zip(&found) {
        assert_eq!(*other, found[0], "{backend:?} differs from {:?}", backends[0]);
    }
    found[0].clone()
}

const ALL: [Backend; 3] = [Backend::Unoptimised, Backend::Candle, Backend::Cpu];

#[test]
fn zeros_keep_their_signs() {
    let zeros = [0.0, -0.0];
    let (plus, minus) = (0.0f64.to_bits(), (-0.0f64).to_bits());
    let found = bits_of(&ALL, &zeros, |x| {
        Ok(vec![
            x.mul_scalar(1.0)?,
            x.mul_scalar(-0.0)?,
            x.add_scalar(0.0)?,
            x.add_scalar(-0.0)?,
            x.abs()?,
            x.sign()?.abs()?,
            x.neg()?.neg()?,
            // Equal constants in different nodes.
            x.mul(&x.scalar_like(0.0)?)?.add(&x.scalar_like(-0.0)?)?,
            x.scalar_like(0.0)?.broadcast_to(&[2])?.reshape(&[2])?,
            x.scalar_like(-0.0)?.broadcast_to(&[2])?.reshape(&[2])?,
        ])
    });
    let expected = [
        [plus, minus],
        [minus, plus],
        [plus, plus],
        [plus, minus],
        [plus, plus],
        [plus, plus],
        [plus, minus],
        [plus, minus],
        [plus, plus],
        [minus, minus],
    ];
    assert_eq!(found, expected);
}

#[test]
fn operations_that_differ_in_the_sign_of_zero_are_not_merged() {
    // The engine's product starts from 0.0, candle's may not: only the passes must keep the sign.
    let found = bits_of(&ALL[..2], &[1.0, 2.0], |x| {
        let (row, a, b) = (x.reshape(&[1, 2])?, leaf(1, &[2, 1]).abs()?, leaf(2, &[1, 2]).abs()?);
        Ok(vec![row.lora_fused(&a, &b, 0.0)?, row.lora_fused(&a, &b, -0.0)?])
    });
    assert_eq!(found, [[0.0f64.to_bits(); 2], [(-0.0f64).to_bits(); 2]]);
}

#[test]
fn nan_and_infinity_go_through() {
    let odd = [f64::NAN, f64::INFINITY, -1.0];
    for backend in [Backend::Unoptimised, Backend::Candle, Backend::Cpu] {
        with_backend(backend, || {
            let x = LazyTensor::from_data(&odd, &[3], &Device::Cpu).unwrap();
            let value = |y: Result<LazyTensor>| y.unwrap().to_vec::<f64>().unwrap();
            assert!(value(x.max(0))[0].is_nan(), "{backend:?}: NaN wins a maximum");
            assert_eq!(x.argmax(0).unwrap().to_vec::<u32>().unwrap(), [0], "{backend:?}");
            assert_eq!(value(x.sign()), [0.0, 1.0, -1.0], "{backend:?}");
            assert!(
                value(x.mul(&x.scalar_like(0.0).unwrap()))[..2]
                    .iter()
                    .all(|v| v.is_nan()),
                "{backend:?}"
            );
            assert_eq!(
                value(x.equal(&x).unwrap().cast(DType::F64)),
                [0.0, 1.0, 1.0],
                "{backend:?}"
            );
            let nan = x.scalar_like(f64::NAN).unwrap();
            assert!(value(x.add(&nan)).iter().all(|v| v.is_nan()), "{backend:?}");
        });
    }
}

/// A contiguous view may have any stride in a dimension of size 1; a product must not read it.
#[test]
fn products_of_views_with_dimensions_of_one() {
    let numbers: Vec<f64> = (0..12).map(f64::from).collect();
    let views: [fn(&LazyTensor) -> Result<LazyTensor>; 3] = [
        |x| x.reshape(&[1, 3, 4])?.permute(&[1, 0, 2]),
        |x| x.reshape(&[1, 3, 1, 4])?.permute(&[1, 2, 0, 3]),
        |x| x.reshape(&[3, 4])?.t()?.reshape(&[4, 1, 3])?.permute(&[2, 1, 0]),
    ];
    for view in views {
        let found = bits_of(&ALL, &numbers, |x| {
            let w = x.slice(0, 0, 8)?.reshape(&[4, 2])?;
            Ok(vec![view(&x.mul_scalar(1.5)?)?.matmul(&w)?.reshape(&[6])?])
        });
        // Row i is 1.5 (4 i, 4 i + 1, ..) times (0 1; 2 3; 4 5; 6 7).
        let entry = |i: u32, j: u32| (0..4).map(|k| 1.5 * f64::from((4 * i + k) * (2 * k + j))).sum::<f64>();
        let expected: Vec<u64> = (0..6).map(|e| entry(e / 2, e % 2).to_bits()).collect();
        assert_eq!(found, [expected]);
    }
}

/// The stride of such a dimension may be 0 too.
#[test]
fn maxima_over_dimensions_of_one() {
    let numbers = [2.0, -1.0, 4.0];
    let found = bits_of(&ALL, &numbers, |x| {
        let row = x.broadcast_to(&[1, 3])?;
        Ok(vec![
            row.max_keepdim(&[0])?.reshape(&[3])?,
            row.argmax(0)?.cast(DType::F64)?,
        ])
    });
    assert_eq!(found, [bits(&numbers), bits(&[0.0; 3])]);
}

/// Updates of values that are read afterwards, through views and copies.
#[test]
fn updates_in_place_leave_other_views_unchanged() {
    let numbers: Vec<f64> = (0..16).map(f64::from).collect();
    bits_of(&ALL, &numbers, |x| {
        let square = x.reshape(&[4, 4])?.mul_scalar(2.0)?;
        let (turned, rows) = (square.t()?, u32s(&[1, 3], &[2]));
        let added = square.index_add(0, &rows, &turned.slice(0, 0, 2)?)?;
        let written = added.slice_update(1, &added.t()?.slice(1, 0, 1)?, &u32s(&[2], &[1]))?;
        Ok(vec![
            written.mul(&written)?,
            square.add(&turned)?,
            written.add(&written.t()?)?,
            turned,
        ])
    });
}

/// Sums and maxima of long rows, fused with the loop that computes them: of `dims`, those from `first` on are reduced.
/// Row 0 of the last two outputs contains a NaN.
fn long_rows(dims: &[usize], first: usize, dtype: DType) -> Result<Vec<LazyTensor>> {
    let x = leaf(3, dims).cast(dtype)?;
    let row = leaf(4, &dims[dims.len() - 1..]).cast(dtype)?;
    let over: Vec<usize> = (first..dims.len()).collect();
    // With the same dimensions in reverse memory order.
    let backwards: Vec<usize> = (0..dims.len()).rev().collect();
    let turned_dims: Vec<usize> = dims.iter().rev().copied().collect();
    let turned = leaf(5, &turned_dims).cast(dtype)?.permute(&backwards)?.abs()?;
    let count: usize = dims.iter().product();
    let holed: Vec<f64> = (0..count).map(|i| if i == 700 { f64::NAN } else { 0.5 }).collect();
    let holed = LazyTensor::from_data(&holed, dims, &Device::Cpu)?.cast(dtype)?;
    Ok(vec![
        x.sub(&row)?.mul(&x)?.sum_keepdim(&over)?,
        x.mul(&row)?.max_keepdim(&over)?,
        turned.sum_keepdim(&over)?,
        holed.neg()?.max_keepdim(&over)?,
        holed.neg()?.sum_keepdim(&over)?,
    ])
}

#[test]
fn reductions_of_long_rows_agree() {
    let cases: [(&[usize], usize); 5] = [
        (&[5, 1024], 1),
        (&[3, 5000], 1),
        (&[100_003], 0),
        (&[2, 3, 40, 40], 2),
        (&[70, 1, 2048], 1),
    ];
    let dtypes = [(DType::F64, 1e-12), (DType::F32, 1e-5)];
    // Only one of each under Miri.
    let (cases, dtypes, threads) = if cfg!(miri) {
        (&cases[..1], &dtypes[..1], &[2][..])
    } else {
        (&cases[..], &dtypes[..], &[1, 2, 5][..])
    };
    for &(dims, first) in cases {
        let explained = long_rows(dims, first, DType::F64).unwrap()[0].explain().unwrap();
        assert!(
            explained.kernels.iter().any(|kernel| kernel.text.ends_with("+ Sum]")),
            "{dims:?}: {explained}"
        );
        for &(dtype, tolerance) in dtypes {
            // A NaN may have any bits.
            let known = |x: f64| if x.is_nan() { f64::NAN } else { x };
            let on = |backend| -> Vec<Vec<f64>> {
                let tensors = with_backend(backend, || eval_all(&long_rows(dims, first, dtype).unwrap()));
                let rows = tensors.unwrap();
                rows.iter().map(|t| list(t).into_iter().map(known).collect()).collect()
            };
            let (plain, ours) = (on(Backend::Unoptimised), on(Backend::Cpu));
            let same = |a: &[Vec<f64>], b: &[Vec<f64>]| a.iter().map(|x| bits(x)).eq(b.iter().map(|x| bits(x)));
            assert!(same(&plain, &on(Backend::Candle)), "{dims:?} {dtype:?}");
            for &threads in threads {
                let again = with_threads(threads, || on(Backend::Cpu));
                assert!(same(&ours, &again), "{dims:?} {dtype:?} on {threads} threads");
            }
            for (i, (plain, ours)) in plain.iter().zip(&ours).enumerate() {
                // Candle's maximum ignores NaN; ours, like PyTorch's, does not.
                if i == 3 {
                    continue;
                }
                let scale = plain.iter().filter(|x| !x.is_nan()).fold(1.0f64, |m, x| m.max(x.abs()));
                assert_eq!(plain.len(), ours.len());
                for (a, b) in plain.iter().zip(ours) {
                    let close = (a - b).abs() <= tolerance * scale || a.is_nan() && b.is_nan();
                    assert!(close, "{dims:?} {dtype:?}: {b}, not {a}");
                }
            }
            assert!(
                ours[3..]
                    .iter()
                    .all(|row| row[0].is_nan() && row[1..].iter().all(|x| !x.is_nan()))
            );
        }
    }
}
