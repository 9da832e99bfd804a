//! Candle's own eager timings on the CPU, as JSON lines with the keys of `../lora_forward.py`, and one small LoRA
//! training step. Run with `cargo run --release`.

#![forbid(unsafe_code)]

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use std::time::Instant;

fn report(case: &str, dtype: DType, runs: usize, mut call: impl FnMut() -> Result<Tensor>) -> Result<()> {
    for _ in 0..20 {
        call()?;
    }
    let mut samples = Vec::with_capacity(runs);
    for _ in 0..runs {
        let start = Instant::now();
        call()?;
        samples.push(start.elapsed().as_secs_f64() * 1e6);
    }
    samples.sort_by(f64::total_cmp);
    let dtype = if dtype == DType::F32 { "float32" } else { "bfloat16" };
    println!(
        r#"{{"peer": "candle", "device": "cpu", "case": "{case}", "dtype": "{dtype}", "mode": "eager", "latency_us": {:.2}, "best_us": {:.2}}}"#,
        samples[runs / 2],
        samples[0]
    );
    Ok(())
}

fn main() -> Result<()> {
    let device = Device::Cpu;
    let normal = |rows: usize, cols: usize, dtype| Tensor::randn(0f32, 1.0, (rows, cols), &device)?.to_dtype(dtype);
    for dtype in [DType::F32, DType::BF16] {
        for (b, i, o, r) in [
            (1, 16, 16, 8),
            (8, 64, 64, 8),
            (1, 512, 512, 8),
            (64, 512, 512, 8),
            (1, 1024, 1024, 8),
            (1, 2048, 2048, 8),
            (1024, 2048, 2048, 16),
        ] {
            let (x, a, w) = (normal(b, i, dtype)?, normal(i, r, dtype)?, normal(r, o, dtype)?);
            report(
                &format!("lora b{b} {i}x{o} r{r}"),
                dtype,
                if b > 64 { 30 } else { 300 },
                || x.matmul(&a)?.matmul(&w)?.affine(2.0, 0.0),
            )?;
        }
        let (x, m, g) = (
            normal(1024, 1024, dtype)?,
            normal(1024, 1024, dtype)?,
            Tensor::ones(1024, dtype, &device)?,
        );
        report("softmax 1024x1024", dtype, 50, || candle_nn::ops::softmax_last_dim(&x))?;
        report("rms_norm 1024x1024", dtype, 50, || {
            candle_nn::ops::rms_norm(&x, &g, 1e-5)
        })?;
        report("matmul 1024^3", dtype, 20, || x.matmul(&m))?;
    }
    let (x, w, y) = (
        normal(64, 512, DType::F32)?,
        normal(512, 512, DType::F32)?,
        normal(64, 512, DType::F32)?,
    );
    let (a, b) = (
        Var::randn(0f32, 0.1, (512, 8), &device)?,
        Var::zeros((8, 512), DType::F32, &device)?,
    );
    let mut optimizer = AdamW::new(vec![a.clone(), b.clone()], ParamsAdamW::default())?;
    report("lora step 64x512 r8", DType::F32, 200, || {
        let out = (x.matmul(&w)? + x.matmul(a.as_tensor())?.matmul(b.as_tensor())?.affine(2.0, 0.0)?)?;
        let loss = (out - &y)?.sqr()?.mean_all()?;
        optimizer.backward_step(&loss)?;
        Ok(loss)
    })
}
