//! A program written against version 1: names, argument types and both kinds of device.

use std::sync::{Arc, Mutex};

use candle_core::{DType, Tensor, Var};
use metal_candle::training::{
    AdamW, AdamWConfig, LRScheduler, LoRAConfig, LoRALayer, cross_entropy_loss, cross_entropy_loss_with_smoothing,
};
use metal_candle::{Device, DeviceInfo, DeviceType, Error, Result};

const VOCAB: usize = 12;

/// Mean loss of a frozen head plus its adapter over one batch.
fn loss(lora: &LoRALayer, frozen: &Tensor, x: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let logits = (x.broadcast_matmul(frozen)? + lora.forward(x)?)?;
    cross_entropy_loss(&logits, targets, Some(0))
}

#[test]
fn a_hand_written_training_loop_learns() -> Result<()> {
    let device = candle_core::Device::Cpu;
    let config = LoRAConfig {
        rank: 4,
        alpha: 8.0,
        dropout: 0.1,
    };
    let mut lora = LoRALayer::new(16, VOCAB, &config, &device)?;
    let frozen = Tensor::randn(0f32, 0.1f32, (16, VOCAB), &device)?;
    let x = Tensor::randn(0f32, 1f32, (2, 4, 16), &device)?;
    let targets = Tensor::new(&[[3u32, 1, 4, 1], [5, 9, 2, 0]], &device)?;

    lora.eval();
    let before = loss(&lora, &frozen, &x, &targets)?.to_scalar::<f32>()?;

    lora.set_training(true);
    let schedule = LRScheduler::warmup_cosine(10, 200, 2e-2, 1e-4);
    schedule.validate()?;
    let mut optimizer = AdamW::new(AdamWConfig {
        learning_rate: 2e-2,
        ..Default::default()
    })?;
    for step in 0..200 {
        optimizer.set_lr(schedule.get_lr(step));
        let grads = loss(&lora, &frozen, &x, &targets)?.backward()?;
        for var in lora.trainable_variables() {
            let grad: &Tensor = grads.get(var).expect("the adapter is in the loss");
            optimizer.step_var(var, grad)?;
        }
    }

    lora.eval();
    let after = loss(&lora, &frozen, &x, &targets)?.to_scalar::<f32>()?;
    assert!(after < before / 4.0, "loss {before} before, {after} after");
    assert_eq!(optimizer.step_count(), 200);
    Ok(())
}

#[test]
fn a_layer_tells_what_it_is() -> Result<()> {
    let layer = LoRALayer::new(768, 512, &LoRAConfig::default(), &candle_core::Device::Cpu)?;
    let (a, b): (&Var, &Var) = (layer.lora_a(), layer.lora_b());
    assert_eq!((a.dims(), b.dims()), (&[768, 8][..], &[8, 512][..]));
    let (a, b): (&Tensor, &Tensor) = (layer.lora_a_tensor(), layer.lora_b_tensor());
    assert_eq!((a.dtype(), b.dtype()), (DType::F32, DType::F32));
    let variables: Vec<&Var> = layer.trainable_variables();
    assert_eq!(
        variables.iter().map(|v| v.id()).collect::<Vec<_>>(),
        [layer.lora_a().id(), layer.lora_b().id()]
    );
    assert_eq!(layer.num_parameters(), 8 * (768 + 512));
    assert_eq!((layer.in_features(), layer.out_features()), (768, 512));
    assert_eq!(layer.config().rank, 8);
    assert!((layer.config().scaling() - 2.0).abs() < f32::EPSILON);
    assert!(layer.is_training());
    Ok(())
}

#[test]
fn a_device_may_be_candles_or_ours() -> Result<()> {
    let config = LoRAConfig::default();
    let ours = Device::new_cpu();
    let candles: candle_core::Device = ours.clone().into();
    let x = Tensor::zeros((1, 16), DType::F32, &candles)?;

    // As in a function that takes references.
    let (our_reference, candle_reference) = (&ours, &candles);
    let layers = [
        LoRALayer::new(16, 16, &config, &ours)?,
        LoRALayer::new(16, 16, &config, &candles)?,
        LoRALayer::new(16, 16, &config, &our_reference)?,
        LoRALayer::new(16, 16, &config, &candle_reference)?,
        LoRALayer::new(16, 16, &config, ours.as_candle_device())?,
        LoRALayer::new(16, 16, &config, x.device())?,
    ];
    for layer in &layers {
        assert!(layer.lora_a().device().same_device(&candles));
    }
    Ok(())
}

#[test]
fn the_cpu_is_always_there_and_says_so() {
    for device in [
        Device::new_cpu(),
        Device::default(),
        Device::from(candle_core::Device::Cpu),
    ] {
        assert!(device.is_cpu() && !device.is_metal() && !device.is_cuda());
        let info: DeviceInfo = device.info();
        assert_eq!((info.device_type, info.index), (DeviceType::Cpu, 0));
        assert_eq!(info.metal_available, Device::is_metal_available());
    }
}

#[test]
fn a_missing_device_is_an_error_with_advice() {
    // No machine has this many GPUs.
    for (device, name) in [(Device::new_metal(9999), "Metal"), (Device::new_cuda(9999), "CUDA")] {
        let error = device.unwrap_err();
        assert!(matches!(error, Error::Device(_)));
        let text = error.to_string();
        assert!(
            text.starts_with(&format!("{name} device not available: {name} device 9999: ")),
            "{text}"
        );
        assert!(text.contains("`Device::new_cpu()`"), "{text}");
    }
    assert!(Device::new_with_fallback(9999).is_cpu());
}

#[test]
fn the_best_device_computes() -> Result<()> {
    let device = Device::best();
    assert_eq!(Device::new_with_fallback(0).is_metal(), Device::is_metal_available());
    let logits = Tensor::zeros((1, 1, VOCAB), DType::F32, device.as_candle_device())?;
    let targets = Tensor::zeros((1, 1), DType::U32, device.as_candle_device())?;
    let loss = cross_entropy_loss_with_smoothing(&logits, &targets, 0.1, None)?.to_scalar::<f32>()?;
    assert!((loss - (VOCAB as f32).ln()).abs() < 1e-5);
    Ok(())
}

#[test]
fn a_programs_own_candle_errors_become_ours() {
    fn program() -> Result<Tensor> {
        let x = Tensor::zeros((2, 3), DType::F32, &candle_core::Device::Cpu)?;
        Ok(x.matmul(&x)?)
    }
    let error = program().unwrap_err();
    assert!(matches!(error, Error::Candle { .. }));
    assert!(error.to_string().starts_with("candle error: "), "{error}");
}

#[test]
fn a_device_converts_as_it_did() {
    let ours = Device::from_candle_device(candle_core::Device::Cpu);
    let reference: &candle_core::Device = ours.as_ref();
    assert!(reference.is_cpu() && ours.is_cpu());
    assert!(ours.clone().into_candle_device().is_cpu());
    let candles: candle_core::Device = ours.into();
    assert!(Device::from(candles).is_cpu());
}

/// Errors that a function with the crate's result may propagate with `?`.
#[test]
fn a_programs_own_file_and_json_errors_become_ours() {
    fn settings(path: &str) -> Result<LoRAConfig> {
        let text = std::fs::read_to_string(path)?;
        Ok(serde_json::from_str(&text)?)
    }
    assert!(matches!(settings("no/such/file.json"), Err(Error::Io(_))));
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    assert!(matches!(settings(manifest), Err(Error::Json(_))));
    let config: LoRAConfig = serde_json::from_str(r#"{"rank": 4, "alpha": 8.0, "dropout": 0.0}"#).unwrap();
    assert_eq!((config.rank, config.scaling()), (4, 2.0));
}

/// Everything that version 1 exported at the root and that still exists.
#[test]
fn the_root_and_the_module_paths_are_there() -> Result<()> {
    use metal_candle::backend::{Device as BackendDevice, TensorExt as _};
    use metal_candle::training::loss::cross_entropy_loss as loss_of_the_module;
    use metal_candle::training::{lora, optimizer, scheduler};

    assert_eq!(metal_candle::VERSION, env!("CARGO_PKG_VERSION"));
    let config: metal_candle::LoRAConfig = lora::LoRAConfig::default();
    let layer: lora::LoRALayer =
        metal_candle::LoRALayer::new(4, 4, &lora::LoRAConfig { rank: 2, ..config }, &BackendDevice::new_cpu())?;
    let mut adamw: optimizer::AdamW = metal_candle::AdamW::new(metal_candle::AdamWConfig::default())?;
    let schedule: scheduler::LRScheduler = metal_candle::LRScheduler::constant(1e-3);

    let x = Tensor::ones((1, 2, 4), DType::F32, &candle_core::Device::Cpu)?;
    let targets = Tensor::new(&[[1u32, 2]], &candle_core::Device::Cpu)?;
    let logits = (x.rms_norm(1e-6)? + layer.forward(&x)?)?;
    let loss = loss_of_the_module(&logits, &targets, None)?;
    assert_eq!(
        loss.to_scalar::<f32>()?,
        metal_candle::cross_entropy_loss(&logits, &targets, None)?.to_scalar::<f32>()?
    );
    adamw.set_lr(schedule.get_lr(0));
    adamw.step_var(
        layer.lora_b(),
        loss.backward()?.get(layer.lora_b()).expect("B is in the loss"),
    )?;
    Ok(())
}

/// Captures the lines of a subscriber.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The `tracing` output of `f`.
fn said(f: impl FnOnce()) -> String {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(move || writer.clone())
        .with_ansi(false)
        .finish();
    tracing::subscriber::with_default(subscriber, f);
    let bytes = lines.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn falling_back_to_the_cpu_warns_and_choosing_it_does_not() {
    // No machine has this many GPUs.
    let text = said(|| assert!(Device::new_with_fallback(9999).is_cpu()));
    assert!(
        text.contains("WARN") && text.contains("computing on the CPU: Metal device not available"),
        "{text}"
    );
    let text = said(|| assert!(Device::new_with_fallback(0).is_metal() || !Device::is_metal_available()));
    assert_eq!(
        text.contains("computing on the CPU"),
        !Device::is_metal_available(),
        "{text}"
    );
    let text = said(|| assert!(Device::new_cpu().is_cpu() && Device::best().info().index == 0));
    assert_eq!(text, "");
}
