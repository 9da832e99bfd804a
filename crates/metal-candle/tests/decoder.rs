//! Tokens to logits: batches of rows, rejected inputs, and that a failure changes nothing.

#![cfg(feature = "graph")]

mod common;

use candle_core::{DType, Device};
use common::fixture;
use metal_candle::graph::Error;
use metal_candle::inference::Decoder;
use metal_candle::models::load_model;

#[test]
fn batched_rows_equal_single_rows() {
    let model = load_model(fixture("models/llama-tiny"), DType::F64, &Device::Cpu).unwrap();
    let vocabulary = model.config().vocab_size;
    let decoder = Decoder::new(&*model);
    let prompts: [&[u32]; 2] = [&[5, 9, 3, 17], &[2, 2, 11, 8]];
    // For each row, the following tokens.
    let following = [[7, 21], [30, 4]];
    // The logits of every row after the prompt and after each following token.
    let run = |rows: &[usize]| {
        let mut cache = decoder.cache(rows.len()).unwrap();
        let prompts: Vec<&[u32]> = rows.iter().map(|&row| prompts[row]).collect();
        let mut logits = vec![decoder.read(&mut cache, &prompts).unwrap()];
        for tokens in following {
            let tokens: Vec<u32> = rows.iter().map(|&row| tokens[row]).collect();
            logits.push(decoder.next(&mut cache, &tokens).unwrap());
        }
        assert_eq!((cache.rows(), cache.len()), (rows.len(), 6));
        logits
    };
    let (both, alone) = (run(&[0, 1]), [run(&[0]), run(&[1])]);
    for (step, both) in both.iter().enumerate() {
        for (row, alone) in alone.iter().enumerate() {
            let together = &both[row * vocabulary..(row + 1) * vocabulary];
            let difference = together.iter().zip(&alone[step]).map(|(a, b)| (a - b).abs());
            let largest = difference.fold(0.0, f32::max);
            assert!(largest <= 1e-6, "row {row} after step {step}: {largest:e}");
        }
    }
    assert_ne!(alone[0], alone[1]);
}

#[test]
fn rows_that_do_not_fit_are_refused() {
    let model = load_model(fixture("models/llama-tiny"), DType::F32, &Device::Cpu).unwrap();
    let decoder = Decoder::new(&*model);
    let mut cache = decoder.cache(2).unwrap();
    for (prompts, reason) in [
        (vec![&[1, 2][..], &[3][..]], "differ in length"),
        (vec![&[1, 2][..]], "1 rows for a cache of 2"),
    ] {
        let fault = decoder.read(&mut cache, &prompts).unwrap_err().to_string();
        assert!(fault.starts_with("decoder: ") && fault.contains(reason), "{fault}");
    }
    assert!(cache.is_empty());
}

/// A token outside the vocabulary is refused, and later results have the same bits as without it: in the middle of a
/// text, at its beginning, when the cache had to grow for it, and in the second part of a long prompt.
#[test]
fn a_failed_read_leaves_the_cache_unchanged() {
    let model = load_model(fixture("models/llama-tiny"), DType::F32, &Device::Cpu).unwrap();
    let vocabulary = model.config().vocab_size as u32;
    let bits = |logits: Vec<f32>| logits.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    let decoder = Decoder::new(&*model);
    let run = |failing: bool| {
        let mut cache = decoder.cache(1).unwrap();
        let refuse = |cache: &mut metal_candle::inference::KvCache, length: usize| {
            if !failing {
                return;
            }
            let before = (cache.len(), cache.capacity());
            let mut tokens = vec![1; length];
            tokens[length - 1] = vocabulary;
            let fault = match length {
                1 => decoder.next(cache, &tokens),
                _ => decoder.read(cache, &[&tokens]),
            };
            let fault = fault.unwrap_err();
            assert!(
                matches!(fault, Error::Index { index, .. } if index == i64::from(vocabulary)),
                "{fault:?}"
            );
            assert_eq!((cache.len(), cache.capacity()), before);
        };
        let mut logits = Vec::new();
        refuse(&mut cache, 5);
        if failing {
            // The first of two parts is read.
            let mut long = vec![2; 520];
            long[519] = vocabulary;
            assert!(decoder.read(&mut cache, &[&long]).is_err() && cache.is_empty());
        }
        logits.push(bits(decoder.read(&mut cache, &[&[5, 9, 3, 17]]).unwrap()));
        for token in 0..62 {
            if token % 20 == 0 {
                refuse(&mut cache, 1);
                // Longer than the remaining capacity.
                refuse(&mut cache, 60);
            }
            logits.push(bits(decoder.next(&mut cache, &[token]).unwrap()));
        }
        logits
    };
    assert_eq!(run(false), run(true));
}
