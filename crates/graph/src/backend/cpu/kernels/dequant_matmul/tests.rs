//! Products with quantised weights against their definition in f64, over formats, sizes, instruction sets and threads.

use half::f16;

use super::super::float::Float;
use super::super::pool::with_threads;
use super::super::testing::{close, each_float, epsilon, noise, noise_as, widen};
use super::table::tests::at_each_level;
use super::*;

/// Weights `(rows, cols)` whose blocks differ in scale, and their dequantised values.
struct Case {
    format: QuantFormat,
    rows: usize,
    cols: usize,
    quants: Vec<u8>,
    scales: Vec<f16>,
    values: Vec<f64>,
}

impl Case {
    fn new(format: QuantFormat, rows: usize, cols: usize) -> Self {
        let values: Vec<f32> = noise(5, rows * cols)
            .iter()
            .enumerate()
            .map(|(i, &x)| (x * (1.0 + (i / BLOCK % 5) as f64)) as f32)
            .collect();
        let quantized = format.quantize(&values).unwrap();
        let values = format.dequantize(&quantized).iter().map(|&x| f64::from(x)).collect();
        Self {
            format,
            rows,
            cols,
            quants: quantized.quants,
            scales: quantized.scales,
            values,
        }
    }

    fn weights(&self) -> QuantizedWeights<'_> {
        QuantizedWeights {
            format: self.format,
            rows: self.rows,
            cols: self.cols,
            quants: &self.quants,
            scales: &self.scales,
        }
    }

    /// `x W^T`, or `x W`, and its expected mean square, that of sums of terms with random signs.
    fn product(&self, x: &[f64], transposed: bool) -> (Vec<f64>, f64) {
        let (read, made, steps) = if transposed {
            (self.rows, self.cols, (1, self.cols))
        } else {
            (self.cols, self.rows, (self.cols, 1))
        };
        let term = |x: &[f64], j: usize, i: usize| x[i] * self.values[j * steps.0 + i * steps.1];
        let (mut y, mut squares) = (Vec::new(), 0.0);
        for x in x.chunks(read) {
            for j in 0..made {
                y.push((0..read).map(|i| term(x, j, i)).sum());
                squares += (0..read).map(|i| term(x, j, i).powi(2)).sum::<f64>();
            }
        }
        let mean = squares / y.len() as f64;
        (y, mean)
    }
}

const FORMATS: [QuantFormat; 2] = [QuantFormat::Q8_0, QuantFormat::Q4_0];

/// Sizes with full and partial chunks of blocks, odd numbers of blocks and of rows.
const SIZES: [(usize, usize); 7] = [(5, 32), (4, 64), (7, 96), (33, 544), (66, 512), (3, 1184), (130, 1120)];

/// A row of activations rounded to 8 bits in blocks, in f32 so that ties and the inverse match the kernel.
fn in_bytes(x: &[f64]) -> Vec<f64> {
    let block = |x: &[f64]| {
        let top = x.iter().fold(0.0f32, |top, &x| top.max((x as f32).abs()));
        let step = f64::from(top / 127.0);
        let quant = |&x: &f64| f64::from((x as f32 * (127.0 / top)).round_ties_even());
        x.iter().map(|x| quant(x) * step).collect::<Vec<f64>>()
    };
    x.chunks(BLOCK).flat_map(block).collect()
}

/// Mean squared error over the expected mean square.
fn nmse(found: &[f64], (wanted, power): &(Vec<f64>, f64)) -> f64 {
    let error: f64 = found.iter().zip(wanted).map(|(f, w)| (f - w).powi(2)).sum();
    error / wanted.len() as f64 / power
}

fn run<T: Float>(case: &Case, x: &[T], transposed: bool) -> Vec<T> {
    let (read, made) = if transposed {
        (case.rows, case.cols)
    } else {
        (case.cols, case.rows)
    };
    let mut y = vec![T::default(); x.len() / read * made];
    dequant_matmul(x, &case.weights(), transposed, &mut y);
    y
}

/// Sums inside a block are exact, so with quantised activations the only errors are roundings of f32 sums and of T.
fn few_rows_are_exact_on_bytes<T: Float>() {
    if size_of::<T::Acc>() > 4 {
        return;
    }
    for format in FORMATS {
        for (rows, cols) in SIZES {
            let case = Case::new(format, rows, cols);
            for m in 1..=QUANTISED_ROWS {
                let (x, wide) = noise_as::<T>(100 + m as u64, m * cols);
                let found = widen(&run(&case, &x, false));
                let exact = case.product(&wide, false);
                let bytes = nmse(&found, &case.product(&in_bytes(&wide), false));
                let allowed = 1e-11 + epsilon::<T>().powi(2);
                assert!(bytes <= allowed, "{format:?} {rows}x{cols}, {m} rows: {bytes:e}");
                // The quantisation step is a block's largest magnitude divided by 127, its error a twelfth of the step
                // squared: 2e-5 of the variance of uniform numbers.
                let error = nmse(&found, &exact);
                assert!(error <= 1e-4, "{format:?} {rows}x{cols}, {m} rows: {error:e}");
            }
        }
    }
}

#[test]
fn few_rows_at_every_level_of_instructions() {
    at_each_level(|| {
        each_float!(few_rows_are_exact_on_bytes);
    });
}

fn many_rows<T: Float>() {
    for format in FORMATS {
        for (rows, cols) in SIZES {
            let case = Case::new(format, rows, cols);
            for (m, transposed) in [
                (QUANTISED_ROWS + 1, false),
                (50, false),
                (1, true),
                (9, true),
                (50, true),
            ] {
                let (x, wide) = noise_as::<T>(3, m * if transposed { rows } else { cols });
                let found = widen(&run(&case, &x, transposed));
                let error = nmse(&found, &case.product(&wide, transposed));
                // Weights and sums are rounded to T once each; sums are accumulated in f32, except for f64.
                let sums = if size_of::<T>() > 4 { 1e-28 } else { 1e-12 };
                let allowed = sums + epsilon::<T>().powi(2);
                assert!(
                    error <= allowed,
                    "{format:?} {rows}x{cols}, {m} rows, {transposed}: {error:e}"
                );
            }
        }
    }
}

#[test]
fn many_rows_and_gradients_are_those_of_the_weights() {
    each_float!(many_rows);
}

#[test]
fn f64_is_never_rounded_to_bytes() {
    for format in FORMATS {
        let case = Case::new(format, 9, 96);
        let x = noise(1, 96);
        close(&run(&case, &x, false), &case.product(&x, false).0, 1e-13);
    }
}

#[test]
fn the_largest_quants_do_not_overflow() {
    at_each_level(|| {
        for format in FORMATS {
            for extreme in [0, 255] {
                let mut case = Case::new(format, 6, 544);
                case.quants.fill(extreme);
                case.scales.fill(f16::from_f32(1.0));
                let quant = match format {
                    QuantFormat::Q8_0 => f32::from(extreme) - 128.0,
                    QuantFormat::Q4_0 => f32::from(extreme & 15) - 8.0,
                };
                for x in [3.0f32, -3.0] {
                    let found = run(&case, &[x; 544], false);
                    let wanted = 544.0 * x * quant;
                    assert!(
                        found.iter().all(|y| (y / wanted - 1.0).abs() < 1e-5),
                        "{format:?} {extreme} {x}"
                    );
                }
            }
        }
    });
}

#[test]
fn non_finite_inputs_reach_every_output_of_their_row() {
    at_each_level(|| {
        for format in FORMATS {
            let case = Case::new(format, 5, 96);
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = vec![1.0f32; 2 * 96];
                x[40] = bad;
                let y = run(&case, &x, false);
                assert!(y[..5].iter().all(|y| y.is_nan()) && y[5..].iter().all(|y| y.is_finite()));
            }
            // The inverse of such a scale overflows: zeros, not NaN.
            let tiny = run(&case, &[1e-40f32; 96], false);
            assert_eq!(tiny, [0.0; 5]);
        }
    });
}

fn same_bits_on_any_pool<T: Float>() {
    for format in FORMATS {
        let case = Case::new(format, 1030, 576);
        for (m, transposed) in [(1, false), (5, false), (40, false), (40, true)] {
            let (x, _) = noise_as::<T>(7, m * if transposed { case.rows } else { case.cols });
            let on = |threads| with_threads(threads, || run(&case, &x, transposed));
            assert!(on(1) == on(5), "{format:?}, {m} rows");
        }
    }
}

#[test]
fn threads_do_not_change_the_result() {
    each_float!(same_bits_on_any_pool);
}

#[test]
fn empty_inputs_give_empty_outputs() {
    let case = Case::new(QuantFormat::Q8_0, 0, 64);
    assert!(run::<f32>(&case, &[1.0; 64], false).is_empty());
    let mut y = [7.0f32; 64];
    dequant_matmul(&[], &case.weights(), true, &mut y);
    assert_eq!(y, [0.0; 64]);
}
