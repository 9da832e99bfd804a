//! NaN, infinities, zeros, integers that overflow and parameters out of range: the same on both backends, and as in
//! `PyTorch` where it has the operation. Expected numbers are written out; those of
//! operations on floats were compared with `PyTorch` 2.15.

mod refused;

use candle_core::{DType, Device};
use metal_candle_graph::{Backend, Error, LazyTensor, Result, value_and_grad, with_backend};

type Binary = fn(&LazyTensor, &LazyTensor) -> Result<LazyTensor>;

const NAN: f64 = f64::NAN;
const INF: f64 = f64::INFINITY;
const BACKENDS: [Backend; 4] = [Backend::Unoptimised, Backend::Candle, Backend::Cpu, Backend::Checked];

fn f64s(values: &[f64]) -> LazyTensor {
    LazyTensor::from_data(values, &[values.len()], &Device::Cpu).unwrap()
}

fn i64s(values: &[i64]) -> LazyTensor {
    LazyTensor::from_data(values, &[values.len()], &Device::Cpu).unwrap()
}

fn same(found: &[f64], expected: &[f64]) -> bool {
    let alike = |(f, e): (&f64, &f64)| f == e || (f.is_nan() && e.is_nan()) || (f - e).abs() <= 1e-12 * e.abs();
    found.len() == expected.len() && found.iter().zip(expected).all(alike)
}

/// Checks the result on every backend, in f64 and in f32.
#[track_caller]
fn gives(what: &str, expected: &[f64], f: impl Fn(DType) -> Result<LazyTensor>) {
    for dtype in [DType::F64, DType::F32] {
        for backend in BACKENDS {
            let found = with_backend(backend, || {
                f(dtype).unwrap().cast(DType::F64).unwrap().to_vec::<f64>().unwrap()
            });
            assert!(
                same(&found, expected),
                "{what}, {backend:?} {dtype:?}: {found:?} instead of {expected:?}"
            );
        }
    }
}

/// The gradient of the sum of `f` with respect to both of two tensors.
#[track_caller]
fn slopes(
    what: &str,
    [a, b]: [&[f64]; 2],
    expected: [&[f64]; 2],
    f: impl Fn(&LazyTensor, &LazyTensor) -> Result<LazyTensor>,
) {
    for (which, expected) in expected.into_iter().enumerate() {
        gives(&format!("gradient {which} of {what}"), expected, |dtype| {
            let (a, b) = (f64s(a).cast(dtype)?, f64s(b).cast(dtype)?);
            Ok(value_and_grad(&f(&a, &b)?.sum_all()?, &[a, b])?.1.remove(which))
        });
    }
}

const LEFT: [f64; 9] = [NAN, 1.0, NAN, 1.0, 2.0, 3.0, INF, -INF, NAN];
const RIGHT: [f64; 9] = [1.0, NAN, NAN, 2.0, 1.0, 3.0, NAN, NAN, INF];

#[test]
fn nan_propagates_through_maximum_and_minimum() {
    let pair = |dtype| Ok::<_, Error>((f64s(&LEFT).cast(dtype)?, f64s(&RIGHT).cast(dtype)?));
    gives("maximum", &[NAN, NAN, NAN, 2.0, 2.0, 3.0, NAN, NAN, NAN], |dtype| {
        let (a, b) = pair(dtype)?;
        a.maximum(&b)
    });
    gives("minimum", &[NAN, NAN, NAN, 1.0, 1.0, 3.0, NAN, NAN, NAN], |dtype| {
        let (a, b) = pair(dtype)?;
        a.minimum(&b)
    });
    // With a NaN both sides get the whole gradient, at a tie half of it each.
    let (left, right) = (
        [1.0, 1.0, 1.0, 0.0, 1.0, 0.5, 1.0, 1.0, 1.0],
        [1.0, 1.0, 1.0, 1.0, 0.0, 0.5, 1.0, 1.0, 1.0],
    );
    slopes("maximum", [&LEFT, &RIGHT], [&left, &right], LazyTensor::maximum);
    let (left, right) = (
        [1.0, 1.0, 1.0, 1.0, 0.0, 0.5, 1.0, 1.0, 1.0],
        [1.0, 1.0, 1.0, 0.0, 1.0, 0.5, 1.0, 1.0, 1.0],
    );
    slopes("minimum", [&LEFT, &RIGHT], [&left, &right], LazyTensor::minimum);
    // An infinite gradient stays on the side it belongs to.
    slopes("roots", [&[0.0], &[-1.0]], [&[INF], &[0.0]], |a, b| {
        a.maximum(b)?.sqrt()
    });
}

#[test]
fn zeros_of_either_sign_are_equal() {
    for backend in BACKENDS {
        with_backend(backend, || {
            let (plus, minus) = (f64s(&[0.0, -0.0]), f64s(&[-0.0, 0.0]));
            let bits = |x: Result<LazyTensor>| -> Vec<u64> {
                x.unwrap()
                    .to_vec::<f64>()
                    .unwrap()
                    .into_iter()
                    .map(f64::to_bits)
                    .collect()
            };
            let left = bits(Ok(plus.clone()));
            assert_eq!(bits(plus.maximum(&minus)), left, "{backend:?}");
            assert_eq!(bits(plus.minimum(&minus)), left, "{backend:?}");
        });
    }
}

#[test]
fn nan_propagates_through_reductions() {
    for at in 0..5 {
        let mut values = [1.0, INF, -INF, 2.0, 0.5];
        values[at] = NAN;
        gives("max", &[NAN], |dtype| f64s(&values).cast(dtype)?.max_keepdim(&[0]));
        gives("argmax", &[at as f64], |dtype| f64s(&values).cast(dtype)?.argmax(0));
        // Columns, only one of which has a NaN.
        let matrix = |dtype| {
            let column = f64s(&values).cast(dtype)?.reshape(&[5, 1])?;
            LazyTensor::concat(&[&column, &column.scalar_like(3.0)?.broadcast_to(&[5, 1])?], 1)
        };
        gives("max of columns", &[NAN, 3.0], |dtype| matrix(dtype)?.max(0));
        gives("argmax of columns", &[at as f64, 0.0], |dtype| matrix(dtype)?.argmax(0));
        gives("max of all", &[NAN], |dtype| matrix(dtype)?.max_keepdim(&[0, 1]));
    }
    gives("two NaN", &[1.0], |dtype| f64s(&[INF, NAN, NAN]).cast(dtype)?.argmax(0));
    gives("max of -inf", &[-INF], |dtype| f64s(&[-INF, -INF]).cast(dtype)?.max(0));
}

#[test]
fn powers_of_zero_and_to_zero() {
    let bases = [0.0, 0.0, 0.0, 0.0, 2.0, 2.0, -2.0, 0.0, NAN];
    let exponents = [0.0, 2.0, 0.5, 1.0, 0.0, 3.0, 2.0, -1.0, 0.0];
    gives("pow", &[1.0, 0.0, 0.0, 0.0, 1.0, 8.0, 4.0, INF, 1.0], |dtype| {
        f64s(&bases).cast(dtype)?.pow(&f64s(&exponents).cast(dtype)?)
    });
    let of_base = [0.0, 0.0, INF, 1.0, 0.0, 12.0, -4.0, -INF, 0.0];
    gives("gradient of the base", &of_base, |dtype| {
        let (a, b) = (f64s(&bases).cast(dtype)?, f64s(&exponents).cast(dtype)?);
        Ok(value_and_grad(&a.pow(&b)?.sum_all()?, &[a])?.1.remove(0))
    });
    let ln2 = std::f64::consts::LN_2;
    let of_exponent = [0.0, 0.0, 0.0, 0.0, ln2, 8.0 * ln2, NAN, -INF, NAN];
    for backend in BACKENDS {
        let found = with_backend(backend, || {
            let (a, b) = (f64s(&bases), f64s(&exponents));
            let (_, slopes) = value_and_grad(&a.pow(&b).unwrap().sum_all().unwrap(), &[b]).unwrap();
            slopes[0].to_vec::<f64>().unwrap()
        });
        assert!(
            same(&found, &of_exponent),
            "{backend:?}: {found:?} instead of {of_exponent:?}"
        );
    }
}

#[test]
fn elementwise_functions_at_their_edges() {
    type Unary = fn(&LazyTensor) -> Result<LazyTensor>;
    let edges = [NAN, INF, -INF, 0.0, -0.0];
    let cases: [(&str, Unary, [f64; 5]); 13] = [
        ("abs", LazyTensor::abs, [NAN, INF, INF, 0.0, 0.0]),
        ("sign", LazyTensor::sign, [0.0, 1.0, -1.0, 0.0, 0.0]),
        ("exp", LazyTensor::exp, [NAN, INF, 0.0, 1.0, 1.0]),
        ("log", LazyTensor::log, [NAN, INF, NAN, -INF, -INF]),
        ("sqrt", LazyTensor::sqrt, [NAN, INF, NAN, 0.0, 0.0]),
        ("rsqrt", LazyTensor::rsqrt, [NAN, 0.0, NAN, INF, -INF]),
        ("recip", LazyTensor::recip, [NAN, 0.0, 0.0, INF, -INF]),
        ("sin", LazyTensor::sin, [NAN, NAN, NAN, 0.0, 0.0]),
        ("cos", LazyTensor::cos, [NAN, NAN, NAN, 1.0, 1.0]),
        ("tanh", LazyTensor::tanh, [NAN, 1.0, -1.0, 0.0, 0.0]),
        ("erf", LazyTensor::erf, [NAN, 1.0, -1.0, 0.0, 0.0]),
        ("sigmoid", LazyTensor::sigmoid, [NAN, 1.0, 0.0, 0.5, 0.5]),
        ("floor", LazyTensor::floor, [NAN, INF, -INF, 0.0, 0.0]),
    ];
    for (name, f, expected) in cases {
        gives(name, &expected, |dtype| f(&f64s(&edges).cast(dtype)?));
    }
    let comparisons: [(&str, Binary, [f64; 5]); 3] = [
        ("equal", LazyTensor::equal, [0.0, 1.0, 0.0, 1.0, 1.0]),
        ("less", LazyTensor::less, [0.0, 0.0, 1.0, 0.0, 0.0]),
        ("less_equal", LazyTensor::less_equal, [0.0, 1.0, 1.0, 1.0, 1.0]),
    ];
    for (name, f, expected) in comparisons {
        gives(name, &expected, |dtype| {
            f(
                &f64s(&edges).cast(dtype)?,
                &f64s(&[NAN, INF, 1.0, -0.0, 0.0]).cast(dtype)?,
            )
        });
    }
    gives("by NaN", &[NAN; 2], |dtype| {
        f64s(&[0.0, 1.0]).cast(dtype)?.mul_scalar(f32::NAN)
    });
    gives("plus NaN", &[NAN; 2], |dtype| {
        f64s(&[0.0, 1.0]).cast(dtype)?.add_scalar(f32::NAN)
    });
    // The slope of |x| at 0 is 0.
    slopes(
        "abs",
        [&[0.0, -0.0, -3.0], &[0.0; 3]],
        [&[0.0, 0.0, -1.0], &[1.0; 3]],
        |a, b| a.abs()?.add(b),
    );
}

#[test]
fn softmax_of_infinities() {
    let third = 1.0 / 3.0;
    let cases: [([f64; 3], [f64; 3]); 4] = [
        ([-INF, 0.0, -INF], [0.0, 1.0, 0.0]),
        ([-INF; 3], [NAN; 3]),
        ([NAN, 0.0, 1.0], [NAN; 3]),
        ([1e3; 3], [third; 3]),
    ];
    for (x, expected) in cases {
        for backend in BACKENDS {
            let found = with_backend(backend, || f64s(&x).softmax(0).unwrap().to_vec::<f64>().unwrap());
            assert!(same(&found, &expected), "{x:?} on {backend:?}: {found:?}");
        }
    }
}

#[test]
fn floats_as_integers_saturate_and_integers_wrap() {
    let x = [NAN, INF, -INF, 1e300, -1.5, 255.9, 256.0, 4_294_967_296.0, -0.9];
    let expected: [(DType, [f64; 9]); 3] = [
        (DType::U8, [0.0, 255.0, 0.0, 255.0, 0.0, 255.0, 255.0, 255.0, 0.0]),
        (
            DType::U32,
            [
                0.0,
                4_294_967_295.0,
                0.0,
                4_294_967_295.0,
                0.0,
                255.0,
                256.0,
                4_294_967_295.0,
                0.0,
            ],
        ),
        (
            DType::I64,
            [
                0.0,
                9_223_372_036_854_775_807.0,
                -9_223_372_036_854_775_808.0,
                9_223_372_036_854_775_807.0,
                -1.0,
                255.0,
                256.0,
                4_294_967_296.0,
                0.0,
            ],
        ),
    ];
    for (dtype, expected) in expected {
        for backend in BACKENDS {
            let found = with_backend(backend, || {
                f64s(&x)
                    .cast(dtype)
                    .unwrap()
                    .cast(DType::F64)
                    .unwrap()
                    .to_vec::<f64>()
                    .unwrap()
            });
            assert_eq!(found, expected, "{dtype:?} on {backend:?}");
        }
    }
    for backend in BACKENDS {
        let narrow = || i64s(&[-1, 256, 513]).cast(DType::U8).unwrap().to_vec::<u8>().unwrap();
        assert_eq!(with_backend(backend, narrow), [255, 0, 1], "{backend:?}");
    }
}

#[test]
fn integers_that_overflow_wrap() {
    for backend in BACKENDS {
        with_backend(backend, || {
            let value = |x: Result<LazyTensor>| x.unwrap().to_vec::<i64>().unwrap();
            let (most, least) = (i64s(&[i64::MAX, 1]), i64s(&[i64::MIN, 1]));
            assert_eq!(value(most.add(&i64s(&[1]))), [i64::MIN, 2], "{backend:?}");
            assert_eq!(value(least.sub(&i64s(&[1]))), [i64::MAX, 0], "{backend:?}");
            assert_eq!(value(most.mul(&i64s(&[2]))), [-2, 2], "{backend:?}");
            assert_eq!(value(least.neg()), [i64::MIN, -1], "{backend:?}");
            assert_eq!(value(least.abs()), [i64::MIN, 1], "{backend:?}");
            assert_eq!(value(most.sum_keepdim(&[0])), [i64::MIN], "{backend:?}");
            let at = i64s(&[0, 0]);
            assert_eq!(
                value(most.index_add(0, &at, &i64s(&[1, 1]))),
                [i64::MIN + 1, 1],
                "{backend:?}"
            );
            assert_eq!(
                value(most.scatter_add(0, &at, &i64s(&[1, 1]))),
                [i64::MIN + 1, 1],
                "{backend:?}"
            );
            let bytes = LazyTensor::from_data(&[200u8, 100], &[2], &Device::Cpu).unwrap();
            assert_eq!(
                bytes.add(&bytes).unwrap().to_vec::<u8>().unwrap(),
                [144, 200],
                "{backend:?}"
            );
            assert_eq!(bytes.sum(0).unwrap().to_vec::<u8>().unwrap(), [44], "{backend:?}");
            let words = LazyTensor::from_data(&[0u32, 5], &[2], &Device::Cpu).unwrap();
            assert_eq!(
                words.sub(&words.add(&words).unwrap()).unwrap().to_vec::<u32>().unwrap(),
                [0, u32::MAX - 4]
            );
        });
    }
}

#[test]
fn sums_of_integers_over_any_dimensions() {
    let x = || {
        let values: Vec<i64> = (0..24).collect();
        LazyTensor::from_data(&values, &[2, 3, 4], &Device::Cpu).unwrap()
    };
    for dims in [&[][..], &[0], &[1], &[2], &[0, 2], &[0, 1, 2]] {
        let expected = x()
            .cast(DType::F64)
            .unwrap()
            .sum_keepdim(dims)
            .unwrap()
            .to_vec::<f64>()
            .unwrap();
        for backend in BACKENDS {
            let found = with_backend(backend, || x().sum_keepdim(dims).unwrap().to_vec::<i64>().unwrap());
            assert!(
                found.iter().map(|&x| x as f64).eq(expected.iter().copied()),
                "{dims:?} on {backend:?}: {found:?}"
            );
        }
    }
}

/// In f16 both the sum and the count of these would overflow.
#[test]
fn means_of_narrow_floats_do_not_overflow() {
    for backend in BACKENDS {
        let x = LazyTensor::ones(&[100_000], DType::F16, &Device::Cpu).unwrap();
        let mean = with_backend(backend, || {
            x.mean_all()
                .unwrap()
                .cast(DType::F32)
                .unwrap()
                .to_scalar::<f32>()
                .unwrap()
        });
        assert_eq!(mean, 1.0, "{backend:?}");
    }
}
