//! GELU in both forms, `x/2 * (1 + erf(x / sqrt(2)))` and `x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))`, and their
//! gradients.

use super::float::{Float, Real};
use super::inout::InOut;
use super::par::{Shared, copied, for_blocks, simd};

/// The form of GELU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gelu {
    /// With the error function.
    Erf,
    /// The approximation with tanh.
    Tanh,
}

const CUBIC: f64 = 0.044_715;
/// sqrt(2 / pi)
const ROOT_2_PI: f64 = std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2;

/// GELU of each element. May be in place.
pub fn gelu<T: Float>(form: Gelu, x: &InOut<'_, T>) {
    match form {
        Gelu::Erf => map(x, erf_form),
        Gelu::Tanh => map(x, tanh_form),
    }
}

#[inline(always)]
fn map<T: Float>(x: &InOut<'_, T>, f: impl Fn(T::Acc) -> T::Acc + Sync) {
    let (src, dst) = (Shared::raw(x.src().cast_mut()), Shared::raw(x.dst()));
    for_blocks(x.len(), 12, |start, len| {
        simd(
            #[inline(always)]
            || {
                // SAFETY: the block is inside both buffers and belongs to this task.
                let block = unsafe { copied(src.at(start), dst.at(start), len) };
                for x in block {
                    *x = T::from_acc(f(x.to_acc()));
                }
            },
        );
    });
}

#[inline(always)]
fn erf_form<A: Real>(x: A) -> A {
    A::of(0.5) * x * (A::ONE + (x * A::of(std::f64::consts::FRAC_1_SQRT_2)).erf())
}

#[inline(always)]
fn tanh_form<A: Real>(x: A) -> A {
    A::of(0.5) * x * (A::ONE + angle(x).tanh())
}

#[inline(always)]
fn angle<A: Real>(x: A) -> A {
    A::of(ROOT_2_PI) * (x + A::of(CUBIC) * x * x * x)
}

/// The gradient of [`gelu`] from that of its result, `g`.
///
/// # Panics
/// If the lengths differ.
pub fn gelu_vjp<T: Float>(form: Gelu, x: &[T], g: &[T], dx: &mut [T]) {
    assert_eq!([g.len(), dx.len()], [x.len(); 2], "gelu: lengths differ");
    match form {
        Gelu::Erf => map_vjp(x, g, dx, erf_slope),
        Gelu::Tanh => map_vjp(x, g, dx, tanh_slope),
    }
}

#[inline(always)]
fn map_vjp<T: Float>(x: &[T], g: &[T], dx: &mut [T], slope: impl Fn(T::Acc) -> T::Acc + Sync) {
    let out = Shared::new(dx);
    for_blocks(x.len(), 16, |start, len| {
        let (x, g) = (&x[start..][..len], &g[start..][..len]);
        // SAFETY: the block belongs to this task.
        let dx = unsafe { out.slice(start, len) };
        simd(
            #[inline(always)]
            || {
                for (dx, (x, g)) in dx.iter_mut().zip(x.iter().zip(g)) {
                    *dx = T::from_acc(g.to_acc() * slope(x.to_acc()));
                }
            },
        );
    });
}

/// Phi(x) + x phi(x), with Phi and phi the distribution function and density of the normal distribution.
#[inline(always)]
fn erf_slope<A: Real>(x: A) -> A {
    let half = A::of(0.5);
    let below = half + half * (x * A::of(std::f64::consts::FRAC_1_SQRT_2)).erf();
    below + x * (-half * x * x).exp() * A::of(0.5 * ROOT_2_PI)
}

#[inline(always)]
fn tanh_slope<A: Real>(x: A) -> A {
    let (half, t) = (A::of(0.5), angle(x).tanh());
    let inside = A::of(ROOT_2_PI) * (A::ONE + A::of(3.0 * CUBIC) * x * x);
    half * (A::ONE + t) + half * x * (A::ONE - t * t) * inside
}

#[cfg(test)]
mod tests {
    use super::super::testing::{cast, close, differences, each_float, epsilon, noise, widen};
    use super::*;

    fn naive(form: Gelu, x: f64) -> f64 {
        match form {
            Gelu::Erf => 0.5 * x * (1.0 + libm::erf(x / 2f64.sqrt())),
            Gelu::Tanh => 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh()),
        }
    }

    fn inputs(n: usize) -> Vec<f64> {
        noise(1, n).iter().map(|x| x * 6.0).collect()
    }

    fn forward<T: Float>() {
        for form in [Gelu::Erf, Gelu::Tanh] {
            for n in [0, 1, 257, 20_000] {
                let mut x = cast::<T>(&inputs(n));
                let want: Vec<f64> = widen(&x).iter().map(|&x| naive(form, x)).collect();
                let mut y = x.clone();
                gelu(form, &InOut::new(&x, &mut y));
                close(&widen(&y), &want, 4.0 * epsilon::<T>());
                gelu(form, &InOut::in_place(&mut x));
                assert!(x == y);
            }
        }
    }

    #[test]
    fn forward_agrees_with_the_definition() {
        each_float!(forward);
    }

    fn gradient<T: Float>() {
        for form in [Gelu::Erf, Gelu::Tanh] {
            let (x, g) = (cast::<T>(&inputs(300)), cast::<T>(&noise(2, 300)));
            let (x64, g64) = (widen(&x), widen(&g));
            let mut dx = x.clone();
            gelu_vjp(form, &x, &g, &mut dx);
            let loss = |x: &[f64]| x.iter().zip(&g64).map(|(&x, g)| naive(form, x) * g).sum::<f64>();
            close(&widen(&dx), &differences(&x64, loss), 4.0 * epsilon::<T>() + 1e-7);
        }
    }

    #[test]
    fn gradients_agree_with_differences() {
        each_float!(gradient);
    }
}
