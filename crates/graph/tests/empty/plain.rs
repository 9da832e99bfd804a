//! Elementwise operations and reductions.

use candle_core::DType;
use metal_candle_graph::{LazyTensor, Result};

use super::cases::{Case, Content, Input, Tells, numbers, one};

pub fn elementwise() -> Vec<Case> {
    fn x(sizes: &[usize]) -> Vec<Input> {
        vec![numbers(sizes)]
    }
    fn xy(sizes: &[usize]) -> Vec<Input> {
        vec![numbers(sizes), numbers(&sizes[1..])]
    }
    type Unary = fn(&LazyTensor) -> Result<LazyTensor>;
    type Binary = fn(&LazyTensor, &LazyTensor) -> Result<LazyTensor>;
    let smooth: [(&str, Unary); 15] = [
        ("neg", LazyTensor::neg),
        ("abs", LazyTensor::abs),
        ("exp", LazyTensor::exp),
        ("log", LazyTensor::log),
        ("sqrt", LazyTensor::sqrt),
        ("rsqrt", LazyTensor::rsqrt),
        ("recip", LazyTensor::recip),
        ("sin", LazyTensor::sin),
        ("cos", LazyTensor::cos),
        ("tanh", LazyTensor::tanh),
        ("erf", LazyTensor::erf),
        ("sigmoid", LazyTensor::sigmoid),
        ("mul_scalar", |x| x.mul_scalar(2.0)),
        ("add_scalar", |x| x.add_scalar(2.0)),
        ("cast", |x| x.cast(DType::F32)),
    ];
    let flat: [(&str, Unary); 4] = [
        ("sign", LazyTensor::sign),
        ("floor", LazyTensor::floor),
        ("stop_gradient", LazyTensor::stop_gradient),
        ("cast to integers", |x| x.cast(DType::I64)?.neg()?.abs()),
    ];
    let binary: [(&str, Binary); 7] = [
        ("add", LazyTensor::add),
        ("sub", LazyTensor::sub),
        ("mul", LazyTensor::mul),
        ("div", LazyTensor::div),
        ("pow", LazyTensor::pow),
        ("maximum", LazyTensor::maximum),
        ("minimum", LazyTensor::minimum),
    ];
    let comparisons: [(&str, Binary); 4] = [
        ("equal", LazyTensor::equal),
        ("less", LazyTensor::less),
        ("less_equal", LazyTensor::less_equal),
        ("sum of integers", |x, y| {
            x.cast(DType::U32)?.add(&y.cast(DType::U32)?)?.mul(&x.cast(DType::U32)?)
        }),
    ];
    let mut cases = Vec::new();
    cases.extend(smooth.map(|(name, f)| one(name, &[2, 3], x, move |x, _| f(&x[0]))));
    cases.extend(flat.map(|(name, f)| one(name, &[2, 3], x, move |x, _| f(&x[0])).flat()));
    cases.extend(binary.map(|(name, f)| one(name, &[2, 3], xy, move |x, _| f(&x[0], &x[1]))));
    cases.extend(binary.map(|(name, f)| one(name, &[2, 3], xy, move |x, _| f(&x[1], &x[0]))));
    cases.extend(comparisons.map(|(name, f)| one(name, &[2, 3], xy, move |x, _| f(&x[0], &x[1])).flat()));
    let choice = |sizes: &[usize]| {
        vec![
            Input(Content::Bytes, sizes[1..].to_vec()),
            numbers(sizes),
            numbers(&sizes[..1].iter().copied().chain([1]).collect::<Vec<_>>()),
        ]
    };
    cases.push(one("where", &[2, 3], choice, |x, _| x[0].where_cond(&x[1], &x[2])));
    cases
}

pub fn reductions() -> Vec<Case> {
    fn x(sizes: &[usize]) -> Vec<Input> {
        vec![numbers(sizes)]
    }
    const OVER: [&[usize]; 6] = [&[0], &[1], &[2], &[0, 2], &[1, 2], &[0, 1, 2]];
    const SIZES: &[usize] = &[2, 3, 4];
    let mut cases = Vec::new();
    for over in OVER {
        cases.push(one("sum", SIZES, x, move |x, _| x[0].sum_keepdim(over)));
        cases.push(
            one("sum of integers", SIZES, x, move |x, _| {
                x[0].cast(DType::I64)?.sum_keepdim(over)
            })
            .flat(),
        );
        cases.push(one("mean", SIZES, x, move |x, _| x[0].mean_keepdim(over)));
    }
    // An error if the reduced dimension is empty.
    let refused: [(&[usize], Tells); 6] = [
        (OVER[0], |sizes| sizes[0] == 0),
        (OVER[1], |sizes| sizes[1] == 0),
        (OVER[2], |sizes| sizes[2] == 0),
        (OVER[3], |sizes| sizes[0] * sizes[2] == 0),
        (OVER[4], |sizes| sizes[1] * sizes[2] == 0),
        (OVER[5], |sizes| sizes.contains(&0)),
    ];
    for (over, refused) in refused {
        cases.push(one("max", SIZES, x, move |x, _| x[0].max_keepdim(over)).refused(refused));
    }
    for (dim, (_, refused)) in refused.into_iter().take(3).enumerate() {
        cases.push(
            one("argmax", SIZES, x, move |x, _| x[0].argmax(dim))
                .flat()
                .refused(refused),
        );
    }
    // Long enough to be fused with the loop that computes them.
    cases.push(one("sum of long rows", &[3, 2048], x, move |x, _| {
        x[0].exp()?.sum_keepdim(&[1])
    }));
    cases
}
