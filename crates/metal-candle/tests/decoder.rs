//! Tokens to logits: several rows side by side, and what is refused.

#![cfg(feature = "graph")]

mod common;

use candle_core::{DType, Device};
use common::fixture;
use metal_candle::inference::Decoder;
use metal_candle::models::load_model;

#[test]
fn rows_side_by_side_are_what_each_is_alone() {
    let model = load_model(fixture("models/llama-tiny"), DType::F64, &Device::Cpu).unwrap();
    let vocabulary = model.config().vocab_size;
    let decoder = Decoder::new(&*model);
    let prompts: [&[u32]; 2] = [&[5, 9, 3, 17], &[2, 2, 11, 8]];
    // Of each row, step by step.
    let following = [[7, 21], [30, 4]];
    // Every row's logits after the prompt and after each token that follows.
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
        (vec![&[1, 2][..], &[3][..]], "not of one length"),
        (vec![&[1, 2][..]], "1 rows for a cache of 2"),
    ] {
        let fault = decoder.read(&mut cache, &prompts).unwrap_err().to_string();
        assert!(fault.starts_with("decoder: ") && fault.contains(reason), "{fault}");
    }
    assert!(cache.is_empty());
}
