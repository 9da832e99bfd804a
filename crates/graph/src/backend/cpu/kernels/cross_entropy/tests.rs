//! Cross-entropy against its definition in f64, and gradients against central differences.

use super::super::testing::{affordable, close, differences, each_float, epsilon, noise, noise_as, widen as wide};
use super::*;

const IGNORED: i64 = -100;

/// Loss and lse computed by the definition.
fn naive(input: &CrossEntropy<'_, f64>) -> (Vec<f64>, Vec<f64>) {
    let CrossEntropy {
        d, vocab, smoothing, ..
    } = *input;
    let row = |(i, &target): (usize, &i64)| {
        if target == input.ignore_index {
            return (0.0, 0.0);
        }
        let logit = |c: usize| {
            (0..d)
                .map(|k| input.hidden[i * d + k] * input.weight[c * d + k])
                .sum::<f64>()
        };
        let logits: Vec<f64> = (0..vocab).map(logit).collect();
        let lse = logits.iter().map(|x| x.exp()).sum::<f64>().ln();
        let spread = logits.iter().map(|x| lse - x).sum::<f64>() / vocab as f64;
        (
            (1.0 - smoothing) * (lse - logits[target as usize]) + smoothing * spread,
            lse,
        )
    };
    input.targets.iter().enumerate().map(row).unzip()
}

fn targets(n: usize, vocab: usize) -> Vec<i64> {
    (0..n)
        .map(|i| if i % 3 == 1 { IGNORED } else { (i * 131 % vocab) as i64 })
        .collect()
}

/// (n, d, vocab)
const SIZES: [(usize, usize, usize); 6] = [
    (1, 1, 1),
    (0, 3, 5),
    (7, 5, 11),
    (200, 17, 2100),
    (300, 300, 50),
    (2, 1, 4097),
];

fn forward<T: Float>() {
    for (n, d, vocab) in SIZES {
        if !affordable(n * d * vocab) {
            continue;
        }
        for smoothing in [0.0, 0.1] {
            let ((hidden, h64), (weight, w64)) = (noise_as::<T>(1, n * d), noise_as::<T>(2, vocab * d));
            let targets = targets(n, vocab);
            let settings = (d, vocab, IGNORED, smoothing);
            let (mut loss, mut lse) = (vec![T::Acc::ONE; n], vec![T::Acc::ONE; n]);
            cross_entropy(&input(&hidden, &weight, &targets, settings), &mut loss, &mut lse).unwrap();
            let (want, want_lse) = naive(&input(&h64, &w64, &targets, settings));
            close(&wide(&loss), &want, 30.0 * epsilon::<T::Acc>());
            close(&wide(&lse), &want_lse, 30.0 * epsilon::<T::Acc>());
        }
    }
}

fn input<'a, T>(
    hidden: &'a [T],
    weight: &'a [T],
    targets: &'a [i64],
    (d, vocab, ignore_index, smoothing): (usize, usize, i64, f64),
) -> CrossEntropy<'a, T> {
    CrossEntropy {
        hidden,
        weight,
        targets,
        d,
        vocab,
        ignore_index,
        smoothing,
    }
}

#[test]
fn forward_agrees_with_the_definition() {
    each_float!(forward);
}

#[test]
fn gradients_agree_with_differences() {
    for (n, d, vocab) in [(1, 1, 1), (5, 3, 7), (4, 2, 130)] {
        if !affordable(d * (n + vocab) * n * vocab) {
            continue;
        }
        for smoothing in [0.0, 0.2] {
            let (hidden, weight, targets) = (noise(1, n * d), noise(2, vocab * d), targets(n, vocab));
            let (g, g_lse) = (noise(3, n), noise(4, n));
            let settings = (d, vocab, IGNORED, smoothing);
            let run = |hidden: &[f64], weight: &[f64]| {
                let (loss, lse) = naive(&input(hidden, weight, &targets, settings));
                let pairs = loss.iter().zip(&g).chain(lse.iter().zip(&g_lse));
                pairs.map(|(x, g)| x * g).sum::<f64>()
            };
            let (mut loss, mut lse) = (vec![0.0; n], vec![0.0; n]);
            let input = input(&hidden, &weight, &targets, settings);
            cross_entropy(&input, &mut loss, &mut lse).unwrap();
            let (mut dh, mut dw) = (vec![9.0; n * d], vec![9.0; vocab * d]);
            cross_entropy_vjp(&input, &lse, &g, Some(&g_lse), Some(&mut dh), Some(&mut dw)).unwrap();
            close(&dh, &differences(&hidden, |x| run(x, &weight)), 1e-6);
            close(&dw, &differences(&weight, |x| run(&hidden, x)), 1e-6);
        }
    }
}

fn narrow<T: Float>() {
    for (n, d, vocab) in SIZES {
        if !affordable(n * d * vocab) {
            continue;
        }
        let ((hidden, h64), (weight, w64)) = (noise_as::<T>(1, n * d), noise_as::<T>(2, vocab * d));
        let (targets, g64, settings) = (targets(n, vocab), noise(3, n), (d, vocab, IGNORED, 0.1));
        let g: Vec<T::Acc> = g64.iter().map(|&x| T::Acc::of(x)).collect();
        let got = gradients(&input(&hidden, &weight, &targets, settings), &g);
        let want = gradients(&input(&h64, &w64, &targets, settings), &g64);
        for (got, want) in got.iter().zip(&want) {
            // A logit of size 20 has an error of about 1e-6, and the probability the same relative error.
            close(&wide(got), want, 2.0 * epsilon::<T>() + 100.0 * epsilon::<T::Acc>());
        }
    }
}

fn gradients<T: Float>(input: &CrossEntropy<'_, T>, g: &[T::Acc]) -> [Vec<T>; 2] {
    let n = input.targets.len();
    let (mut loss, mut lse) = (vec![T::Acc::ZERO; n], vec![T::Acc::ZERO; n]);
    cross_entropy(input, &mut loss, &mut lse).unwrap();
    let (mut dh, mut dw) = (
        vec![T::default(); input.hidden.len()],
        vec![T::default(); input.weight.len()],
    );
    cross_entropy_vjp(input, &lse, g, None, Some(&mut dh), Some(&mut dw)).unwrap();
    // The same from one call, whose row blocks differ.
    let (mut loss2, mut lse2) = (vec![T::Acc::ONE; n], vec![T::Acc::ONE; n]);
    let (mut dh2, mut dw2) = (dw.clone(), dh.clone());
    dh2.resize(dh.len(), T::default());
    dw2.resize(dw.len(), T::default());
    cross_entropy_and_vjp(input, g, None, (&mut loss2, &mut lse2), &mut dh2, Some(&mut dw2)).unwrap();
    let tolerance = 2.0 * epsilon::<T>() + 100.0 * epsilon::<T::Acc>();
    for (one, other) in [(&dh2, &dh), (&dw2, &dw)] {
        close(&wide(one), &wide(other), tolerance);
    }
    for (one, other) in [(&loss2, &loss), (&lse2, &lse)] {
        close(&wide(one), &wide(other), 30.0 * epsilon::<T::Acc>());
    }
    [dh, dw]
}

#[test]
fn gradients_of_large_and_narrow_inputs_agree_with_f64() {
    each_float!(narrow);
}

#[test]
fn a_target_outside_the_vocabulary_is_an_error() {
    for bad in [3, -1, i64::MAX, i64::MIN] {
        let targets = [0, IGNORED, bad];
        let input = input(&[1.0f32; 3], &[1.0; 3], &targets, (1, 3, IGNORED, 0.0));
        let error = KernelError::Target {
            row: 2,
            target: bad,
            vocab: 3,
        };
        assert_eq!(cross_entropy(&input, &mut [0.0; 3], &mut [0.0; 3]), Err(error));
        assert_eq!(
            cross_entropy_vjp(&input, &[0.0; 3], &[0.0; 3], None, None, None),
            Err(error)
        );
    }
}

#[test]
fn huge_logits_do_not_overflow() {
    let (mut loss, mut lse) = ([0.0f32; 2], [0.0f32; 2]);
    let input = input(&[300.0f32, -300.0], &[1.0, -1.0, 0.5], &[0, 0], (1, 3, IGNORED, 0.0));
    cross_entropy(&input, &mut loss, &mut lse).unwrap();
    assert_eq!((loss, lse), ([0.0, 600.0], [300.0, 300.0]));
}
