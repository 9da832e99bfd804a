//! Matrix products against their definition in f64, over sizes, layouts and threads.

use super::super::float::Real;
use super::super::pool::with_threads;
use super::super::testing::{affordable, close, each_float, epsilon, noise_as, widen as wide};
use super::table::tests::at_each_level;
use super::*;

/// Rows of the table: m, n, k, batch, A transposed, B transposed, B shared, accumulate.
type Case = (usize, usize, usize, usize, bool, bool, bool, bool);

fn strides(transposed: bool, rows: usize, cols: usize) -> (usize, usize) {
    if transposed { (1, rows) } else { (cols, 1) }
}

fn check<T: Float>(case: Case) {
    let (m, n, k, batch, ta, tb, shared, accumulate) = case;
    let (a, a64) = noise_as::<T>(1, batch * m * k + 3);
    let (b, b64) = noise_as::<T>(2, batch * k * n + 5);
    let (c, c64) = noise_as::<T>(3, batch * m * n);
    let a_offsets: Vec<usize> = (0..batch).map(|t| 3 + t * m * k).collect();
    let b_offsets: Vec<usize> = (0..batch).map(|t| if shared { 5 } else { 5 + t * k * n }).collect();
    let ((ar, ac), (br, bc)) = (strides(ta, m, k), strides(tb, k, n));
    let mut want = vec![0.0; batch * m * n];
    for t in 0..batch {
        for i in 0..m {
            for j in 0..n {
                let dot: f64 = (0..k)
                    .map(|l| a64[a_offsets[t] + i * ar + l * ac] * b64[b_offsets[t] + l * br + j * bc])
                    .sum();
                let at = (t * m + i) * n + j;
                want[at] = 0.5 * dot + if accumulate { c64[at] } else { 0.0 };
            }
        }
    }
    let a = MatView {
        data: &a,
        offsets: &a_offsets,
        row_stride: ar,
        col_stride: ac,
    };
    let b = MatView {
        data: &b,
        offsets: &b_offsets,
        row_stride: br,
        col_stride: bc,
    };
    // The accumulator is f32 for f16 and bf16 too, and the sum may be sequential.
    let sum = epsilon::<T::Acc>();
    let tolerance = epsilon::<T>() + sum * (k as f64 / 8.0);
    at_each_level(|| {
        let mut c = c.clone();
        matmul(MatmulShape { m, n, k }, T::Acc::of(0.5), a, b, accumulate, &mut c);
        close(&wide(&c), &want, tolerance);
    });
}

fn table<T: Float>() {
    let sizes = [
        (1, 1, 1, 1),
        (0, 3, 2, 1),
        (3, 2, 0, 2),
        (3, 4, 5, 0),
        (1, 300, 77, 1),
        (1, 5, 1030, 3),
        (270, 1, 33, 1),
        (5, 7, 9, 4),
        (130, 259, 517, 1),
        (33, 3, 65, 2),
        (40, 600, 70, 1),
        (9, 130, 31, 2),
        (300, 20, 40, 1),
    ];
    for (m, n, k, batch) in sizes {
        if !affordable(m * n * k * batch) {
            continue;
        }
        for flags in 0..16 {
            let flag = |bit: usize| flags >> bit & 1 == 1;
            check::<T>((m, n, k, batch, flag(0), flag(1), flag(2), flag(3)));
        }
    }
}

#[test]
fn agrees_with_the_definition_at_every_level_of_instructions() {
    each_float!(table);
}

/// Several products, a row and a matrix added to them, with a result that overwrites the matrix.
fn sum<T: Float>() {
    for (m, n, ks) in [
        (60, 70, &[34, 6, 16][..]),
        (60, 7, &[5, 0, 8]),
        // Rows of A packed in two chunks.
        (1030, 5, &[6, 34]),
        (3, 50, &[9, 20]),
        (50, 33, &[2; 11]),
        (4, 3, &[0]),
    ] {
        if !affordable(m * n * ks.iter().sum::<usize>() / 3) {
            continue;
        }
        let left: Vec<_> = ks.iter().zip(1..).map(|(k, seed)| noise_as::<T>(seed, m * k)).collect();
        let right: Vec<_> = ks
            .iter()
            .zip(20..)
            .map(|(k, seed)| noise_as::<T>(seed, k * n))
            .collect();
        let ((row, row64), (mut c, c64)) = (noise_as::<T>(50, n), noise_as::<T>(51, m * n));
        let mut want: Vec<f64> = (0..m * n).map(|at| row64[at % n] + c64[at]).collect();
        for ((&k, (_, a)), (_, b)) in ks.iter().zip(&left).zip(&right) {
            for (at, want) in want.iter_mut().enumerate() {
                // Every second B is column-major.
                let (i, j) = (at / n, at % n);
                let b_at = |l: usize| if k % 4 == 2 { j * k + l } else { l * n + j };
                *want += 0.5 * (0..k).map(|l| a[i * k + l] * b[b_at(l)]).sum::<f64>();
            }
        }
        let factors = ks.iter().zip(&left).zip(&right).map(|((&k, (a, _)), (b, _))| Factors {
            a: Mat {
                ptr: a.as_ptr(),
                rows: k as isize,
                cols: 1,
            },
            b: if k % 4 == 2 {
                Mat {
                    ptr: b.as_ptr(),
                    rows: 1,
                    cols: k as isize,
                }
            } else {
                Mat {
                    ptr: b.as_ptr(),
                    rows: n as isize,
                    cols: 1,
                }
            },
            k,
        });
        let factors: Vec<Factors<T>> = factors.collect();
        let out = Mat {
            ptr: c.as_mut_ptr(),
            rows: n as isize,
            cols: 1,
        };
        let whole = Mat {
            ptr: out.ptr.cast_const(),
            rows: n as isize,
            cols: 1,
        };
        let row = Mat {
            ptr: row.as_ptr(),
            rows: 0,
            cols: 1,
        };
        // SAFETY: all operands have the given sizes, and the result aliases an addend.
        unsafe { sum_of_products((m, n), &factors, T::Acc::of(0.5), &[row, whole], out, true) };
        // Products that are not accumulated in registers are rounded one by one.
        let roundings = if m > 48 && ks.iter().all(|k| k % 2 == 0) {
            1.0
        } else {
            ks.len() as f64
        };
        close(
            &wide(&c),
            &want,
            2.0 * roundings * epsilon::<T>() + epsilon::<T::Acc>() * 20.0,
        );
    }
}

#[test]
fn sums_of_products_agree_with_the_definition() {
    at_each_level(|| {
        each_float!(sum);
    });
}

#[test]
fn broadcast_strides_and_gaps() {
    // A's row is repeated (stride 0); B's rows and columns both have gaps, also with a single row of A.
    let (a, b) = ([1.0f64, 2.0], (0..40).map(f64::from).collect::<Vec<_>>());
    for m in [1, 3] {
        let mut c = vec![0.0; m * 2];
        let left = MatView {
            data: &a,
            offsets: &[0],
            row_stride: 0,
            col_stride: 1,
        };
        let right = MatView {
            data: &b,
            offsets: &[1],
            row_stride: 10,
            col_stride: 3,
        };
        matmul(MatmulShape { m, n: 2, k: 2 }, 1.0, left, right, false, &mut c);
        // b[1], b[4]; b[11], b[14]
        assert_eq!(c, [23.0, 32.0].repeat(m));
    }
}

fn same_bits_on_any_pool<T: Float>() {
    // The last ones have so many panels that each thread gets an equal number.
    let sizes = if cfg!(miri) {
        [(20, 40, 7), (4, 500, 2)]
    } else {
        [(150, 310, 530), (60, 1210, 90)]
    };
    sizes.into_iter().for_each(same_bits_of_size::<T>);
}

fn same_bits_of_size<T: Float>((m, n, k): (usize, usize, usize)) {
    let (a, _) = noise_as::<T>(7, m * k);
    let (b, _) = noise_as::<T>(8, k * n);
    let run = |threads: usize, m: usize| {
        let mut c = vec![T::default(); m * n];
        let left = MatView {
            data: &a,
            offsets: &[0],
            row_stride: k,
            col_stride: 1,
        };
        let right = MatView {
            data: &b,
            offsets: &[0],
            row_stride: 1,
            col_stride: k,
        };
        with_threads(threads, || {
            matmul(MatmulShape { m, n, k }, T::Acc::ONE, left, right, false, &mut c);
        });
        c
    };
    for m in [1, m] {
        assert!(run(1, m) == run(5, m));
    }
}

#[test]
fn threads_do_not_change_the_result() {
    each_float!(same_bits_on_any_pool);
}
