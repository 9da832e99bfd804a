//! `SwiGLU`: `silu(gate) * up` with `silu(x) = x * sigmoid(x)`, and its gradient.

use super::float::{Float, Real};
use super::par::{BLOCK, Shared, for_blocks, simd};

/// `out = silu(gate) * up`, element by element.
///
/// # Safety
/// `gate` and `up` are readable and `out` is writable for `n` elements; `out` is not accessed elsewhere meanwhile;
/// `out` may be `gate` or `up` (but not both), and overlaps neither partially.
pub unsafe fn swiglu<T: Float>(gate: *const T, up: *const T, out: *mut T, n: usize) {
    let (gate, up) = (Shared::raw(gate.cast_mut()), Shared::raw(up.cast_mut()));
    let out = Shared::raw(out);
    for_blocks(n, 8, |start, len| {
        let (gate, up, out) = (gate.at(start), up.at(start), out.at(start));
        simd(
            #[inline(always)]
            // SAFETY: the block is in bounds of all three, and an input that is not `out` is disjoint from it.
            || unsafe {
                let slice = |from: *mut T| std::slice::from_raw_parts(from.cast_const(), len);
                let to = std::slice::from_raw_parts_mut(out, len);
                if std::ptr::eq(up, out) {
                    for (to, gate) in to.iter_mut().zip(slice(gate)) {
                        *to = product(*gate, *to);
                    }
                } else if std::ptr::eq(gate, out) {
                    for (to, up) in to.iter_mut().zip(slice(up)) {
                        *to = product(*to, *up);
                    }
                } else {
                    for (to, (gate, up)) in to.iter_mut().zip(slice(gate).iter().zip(slice(up))) {
                        *to = product(*gate, *up);
                    }
                }
            },
        );
    });
}

#[inline(always)]
fn product<T: Float>(gate: T, up: T) -> T {
    T::from_acc(silu(gate.to_acc()) * up.to_acc())
}

#[inline(always)]
fn silu<A: Real>(x: A) -> A {
    x * x.sigmoid()
}

/// The gradients of [`swiglu`] from that of its result, `g`:
/// `dgate = g * up * s * (1 + gate * (1 - s))` with s = sigmoid(gate), `dup = g * silu(gate)`.
///
/// # Panics
/// If the lengths differ.
pub fn swiglu_vjp<T: Float>(gate: &[T], up: &[T], g: &[T], dgate: &mut [T], dup: &mut [T]) {
    let n = gate.len();
    let lengths = [up.len(), g.len(), dgate.len(), dup.len()];
    assert_eq!(lengths, [n; 4], "swiglu: lengths differ");
    let (dgate, dup) = (Shared::new(dgate), Shared::new(dup));
    for_blocks(n, 12, |start, len| {
        let (gate, up, g) = (&gate[start..][..len], &up[start..][..len], &g[start..][..len]);
        // SAFETY: the block belongs to this task.
        let (dgate, dup) = unsafe { (dgate.slice(start, len), dup.slice(start, len)) };
        simd(
            #[inline(always)]
            || {
                // Separate loops over few slices, which the compiler vectorises.
                let mut sigmoids = [T::Acc::ZERO; BLOCK];
                let sigmoids = &mut sigmoids[..len];
                for (s, x) in sigmoids.iter_mut().zip(gate) {
                    *s = x.to_acc().sigmoid();
                }
                for (dup, ((s, x), g)) in dup.iter_mut().zip(sigmoids.iter().zip(gate).zip(g)) {
                    *dup = T::from_acc(g.to_acc() * x.to_acc() * *s);
                }
                for (s, x) in sigmoids.iter_mut().zip(gate) {
                    *s = *s * (T::Acc::ONE + x.to_acc() * (T::Acc::ONE - *s));
                }
                for (dgate, ((s, u), g)) in dgate.iter_mut().zip(sigmoids.iter().zip(up).zip(g)) {
                    *dgate = T::from_acc(g.to_acc() * u.to_acc() * *s);
                }
            },
        );
    });
}

#[cfg(test)]
mod tests {
    use super::super::testing::{affordable, close, differences, each_float, epsilon, noise, noise_as, widen};
    use super::*;

    fn naive(gate: f64, up: f64) -> f64 {
        gate / (1.0 + (-gate).exp()) * up
    }

    fn forward<T: Float>() {
        for n in [0, 1, 255, 256, 30_001] {
            if !affordable(n) {
                continue;
            }
            let ((mut gate, gate64), (mut up, up64)) = (noise_as::<T>(1, n), noise_as::<T>(2, n));
            let mut y = vec![T::default(); n];
            unsafe { swiglu(gate.as_ptr(), up.as_ptr(), y.as_mut_ptr(), n) };
            let want: Vec<f64> = gate64.iter().zip(&up64).map(|(&g, &u)| naive(g, u)).collect();
            close(&widen(&y), &want, 4.0 * epsilon::<T>());
            let (copy, g) = (up.clone(), gate.as_mut_ptr());
            unsafe { swiglu(gate.as_ptr(), up.as_ptr(), up.as_mut_ptr(), n) };
            unsafe { swiglu(g, copy.as_ptr(), g, n) };
            assert!(up == y && gate == y);
        }
    }

    #[test]
    fn forward_agrees_with_the_definition_in_place_too() {
        each_float!(forward);
    }

    #[test]
    fn gradients_agree_with_differences() {
        let n = if cfg!(miri) { 40 } else { 301 };
        let gate: Vec<f64> = noise(1, n).iter().map(|x| x * 9.0).collect();
        let (up, g) = (noise(2, n), noise(3, n));
        let (mut dgate, mut dup) = (vec![0.0; n], vec![0.0; n]);
        swiglu_vjp(&gate, &up, &g, &mut dgate, &mut dup);
        let loss = |gate: &[f64], up: &[f64]| (0..n).map(|i| naive(gate[i], up[i]) * g[i]).sum::<f64>();
        close(&dgate, &differences(&gate, |x| loss(x, &up)), 1e-6);
        close(&dup, &differences(&up, |x| loss(&gate, x)), 1e-6);
    }

    fn narrow<T: Float>() {
        let n = if cfg!(miri) { 600 } else { 20_000 };
        let ((gate, gate64), (up, up64), (g, g64)) = (noise_as::<T>(1, n), noise_as::<T>(2, n), noise_as::<T>(3, n));
        let (mut a, mut b) = (vec![T::default(); n], vec![T::default(); n]);
        let (mut a64, mut b64) = (vec![0.0; n], vec![0.0; n]);
        swiglu_vjp(&gate, &up, &g, &mut a, &mut b);
        swiglu_vjp(&gate64, &up64, &g64, &mut a64, &mut b64);
        close(&widen(&a), &a64, 4.0 * epsilon::<T>());
        close(&widen(&b), &b64, 4.0 * epsilon::<T>());
    }

    #[test]
    fn narrow_gradients_agree_with_f64() {
        each_float!(narrow);
    }
}
