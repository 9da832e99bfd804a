//! The plans of a generator. In a process of its own, because the engine counts plans per process.

#![cfg(feature = "graph")]

mod common;

use std::ops::ControlFlow;

use candle_core::{DType, Device};
use common::fixture;
use metal_candle::inference::{GenerationOptions, Generator, Prompt};
use metal_candle::models::load;
use metal_candle_graph::statistics;

#[test]
fn decoding_and_prompts_of_like_length_share_their_plans() {
    let loaded = load(fixture("models/llama-tiny"), DType::F32, &Device::Cpu).unwrap();
    let generator = Generator::new(&loaded);
    let run = |prompt: &[u32], max_new_tokens| {
        let options = GenerationOptions {
            max_new_tokens,
            stop_tokens: Some(vec![]),
            ..GenerationOptions::default()
        };
        let before = statistics();
        generator
            .generate(Prompt::Tokens(prompt), &options, &mut |_| ControlFlow::Continue(()))
            .unwrap();
        let after = statistics();
        (
            after.plan_misses - before.plan_misses,
            after.evaluations - before.evaluations,
        )
    };
    // Empty cache, reading, decoding.
    assert_eq!(run(&[5; 3], 10).0, 3);
    let (misses, evaluations) = run(&[7; 30], 20);
    assert_eq!(misses, 0, "30 tokens fit the bucket of 3");
    assert_eq!(
        evaluations,
        1 + 1 + 19,
        "one each for cache, reading, and every token but the first"
    );
    // Another bucket: one more plan for prefill. A larger cache: one to grow it, one more for decoding.
    assert_eq!(run(&[7; 33], 20).0, 1);
    assert_eq!(run(&[7; 33], 40).0, 2);
    assert_eq!(run(&[7; 33], 40).0, 0);
}
