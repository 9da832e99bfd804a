//! Cross-entropy against `PyTorch` and against finite differences.

use candle_core::{DType, Device, Tensor, Var};
use metal_candle::Result;
use metal_candle::training::{cross_entropy_loss, cross_entropy_loss_with_smoothing};

const CPU: Device = Device::Cpu;

/// (batch 2, seq 2, vocab 4)
const LOGITS: [[[f32; 4]; 2]; 2] = [
    [[1.0, 2.0, 0.5, -1.0], [0.0, 0.1, -0.3, 3.0]],
    [[-2.0, 0.4, 0.2, 0.9], [1.5, -0.5, 0.25, 0.0]],
];
const TARGETS: [[u32; 2]; 2] = [[1, 3], [0, 2]];

/// The results of `PyTorch` 2 for `LOGITS` and `TARGETS`:
///
/// ```python
/// loss = F.cross_entropy(logits.reshape(4, 4), targets.reshape(4), ignore_index=ignore, label_smoothing=s)
/// loss.backward(); print(loss.item(), logits.grad.flatten().tolist())
/// ```
struct Reference {
    ignore: Option<u32>,
    smoothing: f32,
    loss: f64,
    gradient: [f64; 16],
}

#[rustfmt::skip]
const REFERENCES: [Reference; 4] = [
    Reference { ignore: None, smoothing: 0.0, loss: 1.511_165_86, gradient: [
        0.056_051_954_6, -0.097_634_986, 0.033_997_226_5, 0.007_585_807_7,
        0.010_902_022_9, 0.012_048_597_4, 0.008_076_417_26, -0.031_027_033_9,
        -0.243_626_088, 0.070_260_837_7, 0.057_524_707_2, 0.115_840_532,
        0.151_978_418, 0.020_568_043, -0.206_457_451, 0.033_910_967_4,
    ] },
    Reference { ignore: None, smoothing: 0.1, loss: 1.554_603_34, gradient: [
        0.049_801_949_4, -0.078_884_989, 0.027_747_223_2, 0.001_335_806_68,
        0.004_652_022_38, 0.005_798_596_42, 0.001_826_416_7, -0.012_277_035,
        -0.224_876_076, 0.064_010_828_7, 0.051_274_702, 0.109_590_515,
        0.145_728_409, 0.014_318_041_5, -0.187_707_439, 0.027_660_965_9,
    ] },
    Reference { ignore: Some(3), smoothing: 0.0, loss: 1.970_716_95, gradient: [
        0.074_735_939_5, -0.130_179_986, 0.045_329_637_8, 0.010_114_410_9,
        0.0, 0.0, 0.0, 0.0,
        -0.324_834_794, 0.093_681_119_4, 0.076_699_614_5, 0.154_454_052,
        0.202_637_896, 0.027_424_057_9, -0.275_276_601, 0.045_214_623_2,
    ] },
    Reference { ignore: Some(3), smoothing: 0.3, loss: 1.914_466_86, gradient: [
        0.049_735_941, -0.055_179_968_5, 0.020_329_635_6, -0.014_885_589_5,
        0.0, 0.0, 0.0, 0.0,
        -0.249_834_761, 0.068_681_120_9, 0.051_699_612_3, 0.129_454_046,
        0.177_637_89, 0.002_424_057_81, -0.200_276_598, 0.020_214_624_7,
    ] },
];

fn numbers(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).and_then(|t| t.flatten_all()?.to_vec1()).unwrap()
}

#[track_caller]
fn assert_close(got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= tolerance, "element {i}: {g}, expected {w}");
    }
}

#[test]
fn loss_and_gradient_are_pytorchs() -> Result<()> {
    let logits = Var::new(&LOGITS, &CPU)?;
    for dtype in [DType::U8, DType::U32, DType::I64] {
        let targets = Tensor::new(&TARGETS, &CPU)?.to_dtype(dtype)?;
        for r in &REFERENCES {
            let loss = cross_entropy_loss_with_smoothing(&logits, &targets, r.smoothing, r.ignore)?;
            assert_eq!(loss.rank(), 0);
            assert_close(&numbers(&loss), &[r.loss], 1e-6);
            let grads = loss.backward()?;
            assert_close(&numbers(grads.get(&logits).expect("reached")), &r.gradient, 1e-7);
        }
    }
    Ok(())
}

#[test]
fn without_smoothing_both_functions_agree() -> Result<()> {
    let (logits, targets) = (Tensor::new(&LOGITS, &CPU)?, Tensor::new(&TARGETS, &CPU)?);
    for ignore in [None, Some(3)] {
        let plain = cross_entropy_loss(&logits, &targets, ignore)?;
        let smoothed = cross_entropy_loss_with_smoothing(&logits, &targets, 0.0, ignore)?;
        assert_eq!(numbers(&plain), numbers(&smoothed));
    }
    Ok(())
}

#[test]
fn gradients_are_the_finite_differences_in_f64() -> Result<()> {
    let logits = Var::from_tensor(&Tensor::randn(0f64, 2f64, (2, 3, 5), &CPU)?)?;
    let targets = Tensor::new(&[[4u32, 0, 2], [1, 1, 3]], &CPU)?;
    for (smoothing, ignore) in [(0.0, None), (0.2, None), (0.0, Some(1)), (0.2, Some(1))] {
        let loss = || cross_entropy_loss_with_smoothing(&logits, &targets, smoothing, ignore);
        let grads = loss()?.backward()?;
        let grad = numbers(grads.get(&logits).expect("reached"));
        let original = numbers(&logits);
        let step = 1e-6;
        for i in 0..original.len() {
            let at = |delta: f64| -> Result<f64> {
                let mut moved = original.clone();
                moved[i] += delta;
                logits.set(&Tensor::from_vec(moved, logits.shape(), &CPU)?)?;
                Ok(loss()?.to_scalar::<f64>()?)
            };
            let difference = (at(step)? - at(-step)?) / (2.0 * step);
            assert_close(&[grad[i]], &[difference], 1e-8);
        }
        logits.set(&Tensor::from_vec(original, logits.shape(), &CPU)?)?;
    }
    Ok(())
}

#[test]
fn large_logits_neither_overflow_nor_lose_the_loss() -> Result<()> {
    let logits = Var::new(&[[[1e4f32, 0.0, -1e4], [3e38, 3e38, -3e38]]], &CPU)?;
    let targets = Tensor::new(&[[1u32, 0]], &CPU)?;
    let loss = cross_entropy_loss(&logits, &targets, None)?;
    // (1e4 + ln 2) / 2
    assert_close(&numbers(&loss), &[5_000.346_573_59], 1e-3);
    let grads = loss.backward()?;
    let want = [0.5, -0.5, 0.0, -0.25, 0.25, 0.0];
    assert_close(&numbers(grads.get(&logits).expect("reached")), &want, 1e-6);
    Ok(())
}

#[test]
fn ignored_positions_keep_their_nan_to_themselves() -> Result<()> {
    let logits = Var::new(&[[[f32::NAN, 1.0], [0.0, 0.0]]], &CPU)?;
    let targets = Tensor::new(&[[0u32, 1]], &CPU)?;
    let loss = cross_entropy_loss(&logits, &targets, Some(0))?;
    assert_close(&numbers(&loss), &[std::f64::consts::LN_2], 1e-6);
    let grads = loss.backward()?;
    assert_close(
        &numbers(grads.get(&logits).expect("reached")),
        &[0.0, 0.0, 0.5, -0.5],
        1e-6,
    );
    Ok(())
}

#[test]
fn an_ignored_id_may_lie_outside_the_vocabulary() -> Result<()> {
    let logits = Tensor::new(&LOGITS, &CPU)?;
    let padded = Tensor::new(&[[1u32, u32::MAX], [0, 2]], &CPU)?;
    let loss = cross_entropy_loss(&logits, &padded, Some(u32::MAX))?;
    assert_close(&numbers(&loss), &[REFERENCES[2].loss], 1e-6);
    Ok(())
}

#[test]
fn half_precision_logits_give_an_f32_loss_and_their_own_gradient() -> Result<()> {
    let targets = Tensor::new(&TARGETS, &CPU)?;
    for dtype in [DType::BF16, DType::F16] {
        let logits = Var::from_tensor(&Tensor::new(&LOGITS, &CPU)?.to_dtype(dtype)?)?;
        let loss = cross_entropy_loss(&logits, &targets, None)?;
        assert_eq!(loss.dtype(), DType::F32);
        assert_close(&numbers(&loss), &[REFERENCES[0].loss], 5e-3);
        let grads = loss.backward()?;
        let grad = grads.get(&logits).expect("reached");
        assert_eq!(grad.dtype(), dtype);
        assert_close(&numbers(grad), &REFERENCES[0].gradient, 2e-3);
    }
    Ok(())
}

#[test]
fn shapes_without_a_batch_work_too() -> Result<()> {
    let logits = Tensor::new(&LOGITS, &CPU)?.reshape((4, 4))?;
    let targets = Tensor::new(&TARGETS, &CPU)?.reshape(4)?;
    assert_close(
        &numbers(&cross_entropy_loss(&logits, &targets, None)?),
        &[REFERENCES[0].loss],
        1e-6,
    );
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused_with_its_shapes_and_ids() -> Result<()> {
    let logits = Tensor::new(&LOGITS, &CPU)?;
    let ids = |ids: [[i64; 2]; 2]| Tensor::new(&ids, &CPU);
    for (targets, ignore, complaint) in [
        (
            Tensor::zeros((2, 3), DType::U32, &CPU)?,
            None,
            "(2, 2, 4) do not fit targets (2, 3)",
        ),
        (
            Tensor::zeros(4, DType::U32, &CPU)?,
            None,
            "(2, 2, 4) do not fit targets (4)",
        ),
        (Tensor::zeros((2, 2), DType::F32, &CPU)?, None, "targets are F32"),
        (
            ids([[1, 3], [4, 2]])?,
            None,
            "target 4 at position 2 is outside the vocabulary of 4",
        ),
        (ids([[1, -100], [0, 2]])?, None, "target -100 at position 1 is outside"),
        (ids([[1, 1], [1, 1]])?, Some(1), "no supervised token among 4"),
    ] {
        let error = cross_entropy_loss(&logits, &targets, ignore).unwrap_err().to_string();
        assert!(error.starts_with("cross_entropy_loss: "), "{error}");
        assert!(error.contains(complaint), "{error}");
    }
    let empty = Tensor::zeros((0, 4), DType::F32, &CPU)?;
    assert!(cross_entropy_loss(&empty, &Tensor::zeros(0, DType::U32, &CPU)?, None).is_err());
    let scalar = Tensor::new(1f32, &CPU)?;
    assert!(cross_entropy_loss(&scalar, &Tensor::new(0u32, &CPU)?, None).is_err());
    Ok(())
}

#[test]
fn smoothing_outside_its_range_is_refused() -> Result<()> {
    let (logits, targets) = (Tensor::new(&LOGITS, &CPU)?, Tensor::new(&TARGETS, &CPU)?);
    for smoothing in [-0.1, 1.0, f32::NAN] {
        let error = cross_entropy_loss_with_smoothing(&logits, &targets, smoothing, None).unwrap_err();
        assert!(error.to_string().contains("label smoothing"), "{error}");
    }
    Ok(())
}
