//! The `AdamW` update, in one pass over the parameter, its gradient and both moments.

use super::float::{Float, Real};
use super::inout::InOut;
use super::par::{Shared, copied, for_blocks, simd};

/// The settings of a step.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// 1 - beta1^step
    pub correction1: f64,
    /// 1 - beta2^step
    pub correction2: f64,
    /// Factor on the gradient, such as that of clipping.
    pub factor: f64,
}

/// Updates parameter and moments from the gradient; each may be in place.
///
/// `g = factor * gradient`, `m' = beta1 m + (1 - beta1) g`, `v' = beta2 v + (1 - beta2) g^2`,
/// `p' = p (1 - lr weight_decay) - lr / correction1 * m' / (sqrt(v') / sqrt(correction2) + eps)`.
///
/// # Panics
/// If the lengths differ.
pub fn adamw<T: Float, S: Float<Acc = T::Acc>>(
    step: &AdamW,
    p: &InOut<'_, T>,
    m: &InOut<'_, S>,
    v: &InOut<'_, S>,
    g: &[T],
) {
    let n = g.len();
    assert_eq!([p.len(), m.len(), v.len()], [n; 3], "adamw: lengths differ");
    let factors = StepFactors::new(step);
    let (p_in, m_in, v_in) = (
        Shared::raw(p.src().cast_mut()),
        Shared::raw(m.src().cast_mut()),
        Shared::raw(v.src().cast_mut()),
    );
    let (p_out, m_out, v_out) = (Shared::raw(p.dst()), Shared::raw(m.dst()), Shared::raw(v.dst()));
    for_blocks(n, 8, |start, len| {
        simd(
            #[inline(always)]
            || {
                // SAFETY: the block is in bounds of all buffers and belongs to this task.
                let (p, m, v) = unsafe {
                    (
                        copied(p_in.at(start), p_out.at(start), len),
                        copied(m_in.at(start), m_out.at(start), len),
                        copied(v_in.at(start), v_out.at(start), len),
                    )
                };
                let g = &g[start..][..len];
                for i in 0..len {
                    let new = factors.update(p[i].to_acc(), m[i].to_acc(), v[i].to_acc(), g[i].to_acc());
                    (p[i], m[i], v[i]) = (T::from_acc(new.0), S::from_acc(new.1), S::from_acc(new.2));
                }
            },
        );
    });
}

/// The settings as factors, computed once in f64.
struct StepFactors<A> {
    keep: A,
    beta1: A,
    rest1: A,
    beta2: A,
    rest2: A,
    eps: A,
    root2: A,
    rate: A,
    factor: A,
}

impl<A: Real> StepFactors<A> {
    fn new(step: &AdamW) -> Self {
        StepFactors {
            keep: A::of(1.0 - step.lr * step.weight_decay),
            beta1: A::of(step.beta1),
            rest1: A::of(1.0 - step.beta1),
            beta2: A::of(step.beta2),
            rest2: A::of(1.0 - step.beta2),
            eps: A::of(step.eps),
            root2: A::of(step.correction2.sqrt()),
            rate: A::of(step.lr / step.correction1),
            factor: A::of(step.factor),
        }
    }

    #[inline(always)]
    fn update(&self, p: A, m: A, v: A, g: A) -> (A, A, A) {
        let g = g * self.factor;
        let m = m * self.beta1 + g * self.rest1;
        let v = v * self.beta2 + g * g * self.rest2;
        let p = p * self.keep - self.rate * (m / (v.sqrt() / self.root2 + self.eps));
        (p, m, v)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{affordable, close, each_float, epsilon, noise_as, widen};
    use super::*;

    /// Ten steps, each with a gradient computed from the parameter, against the update written out in f64.
    fn ten_steps<T: Float>() {
        for n in [0, 1, 40, 300, 70_001] {
            if !affordable(30 * n) {
                continue;
            }
            let (mut p, mut p64) = noise_as::<T>(1, n);
            let (mut m, mut v) = (vec![T::Acc::ZERO; n], vec![T::Acc::ZERO; n]);
            let (mut m64, mut v64) = (vec![0.0; n], vec![0.0; n]);
            for t in 1..=10 {
                let (g, mut g64) = noise_as::<T>(t, n);
                for g in &mut g64 {
                    *g *= 0.5;
                }
                let [correction1, correction2] = [0.9f64, 0.999].map(|beta| 1.0 - beta.powi(t as i32));
                let settings = (1e-2, 0.9, 0.999, 1e-8, 0.1);
                let (lr, beta1, beta2, eps, weight_decay) = settings;
                let step = AdamW {
                    lr,
                    beta1,
                    beta2,
                    eps,
                    weight_decay,
                    correction1,
                    correction2,
                    factor: 0.5,
                };
                adamw(
                    &step,
                    &InOut::in_place(&mut p),
                    &InOut::in_place(&mut m),
                    &InOut::in_place(&mut v),
                    &g,
                );
                for i in 0..n {
                    p64[i] *= 1.0 - lr * weight_decay;
                    m64[i] = beta1 * m64[i] + (1.0 - beta1) * g64[i];
                    v64[i] = beta2 * v64[i] + (1.0 - beta2) * g64[i] * g64[i];
                    let (mean, square) = (m64[i] / correction1, v64[i] / correction2);
                    p64[i] -= lr * mean / (square.sqrt() + eps);
                }
            }
            close(&widen(&p), &p64, 10.0 * epsilon::<T>());
            close(&widen(&m), &m64, 10.0 * epsilon::<T::Acc>());
            close(&widen(&v), &v64, 10.0 * epsilon::<T::Acc>());
        }
    }

    #[test]
    fn agrees_with_the_formula() {
        each_float!(ten_steps);
    }

    #[test]
    fn out_of_place_leaves_the_inputs() {
        let (p, m, v, g) = ([1.0f32], [0.5f32], [0.25f32], [1.0f32]);
        let (mut p1, mut m1, mut v1) = ([0.0], [0.0], [0.0]);
        let step = AdamW {
            lr: 0.1,
            beta1: 0.5,
            beta2: 0.5,
            eps: 0.0,
            weight_decay: 0.0,
            correction1: 0.5,
            correction2: 0.5,
            factor: 2.0,
        };
        adamw(
            &step,
            &InOut::new(&p, &mut p1),
            &InOut::new(&m, &mut m1),
            &InOut::new(&v, &mut v1),
            &g,
        );
        // m = 1.25, v = 2.125: p = 1 - 0.2 * 1.25 / sqrt(4.25)
        assert_eq!((m1, v1), ([1.25], [2.125]));
        assert!((f64::from(p1[0]) - (1.0 - 0.25 / 4.25f64.sqrt())).abs() < 1e-7);
        assert_eq!((p, m, v), ([1.0], [0.5], [0.25]));
    }
}
