//! The error messages for wrong shapes, indices, dtypes and numbers of inputs, word for word.

use candle_core::{DType, Device};
use metal_candle_graph::{
    AdamWOptions, Approximate, AttentionInputs, AttentionOptions, CrossEntropyOptions, Distribution, Error, LazyTensor,
    Operation, QuantFormat, Result, compile,
};

use super::{of, ones};

fn message<T>(result: Result<T>) -> String {
    result.err().expect("a mistake was accepted").to_string()
}

/// Checks that the error is this variant, with this message.
macro_rules! says {
    ($result:expr, $variant:ident, $text:expr $(,)?) => {{
        let error = $result.err().expect("a mistake was accepted");
        assert!(matches!(error, Error::$variant { .. }), "{error:?}");
        assert_eq!(error.to_string(), $text);
    }};
}

#[test]
fn wrong_shapes() {
    let (x, y) = (ones(&[2, 3]), ones(&[4, 5]));
    says!(x.matmul(&y), Shape, "Matmul: [2, 3] x [4, 5]: inner dimensions differ");
    says!(
        ones(&[3]).matmul(&y),
        Shape,
        "Matmul: [3] x [4, 5]: both sides need at least 2 dimensions",
    );
    says!(
        ones(&[2, 1, 3]).matmul(&ones(&[4, 3, 2])),
        Shape,
        "Matmul: shapes [2] and [4] do not broadcast",
    );
    says!(x.add(&y), Shape, "Add: shapes [2, 3] and [4, 5] do not broadcast");
    says!(x.less(&y), Shape, "Less: shapes [2, 3] and [4, 5] do not broadcast");
    says!(
        of(&[7], DType::U8).where_cond(&x, &x),
        Shape,
        "Where: shapes [7] and [2, 3] and [2, 3] do not broadcast",
    );
    says!(x.sum(2), Shape, "Sum: dimensions [2] are out of range for shape [2, 3]");
    says!(
        x.max_keepdim(&[0, 5]),
        Shape,
        "Max: dimensions [0, 5] are out of range for shape [2, 3]",
    );
    says!(
        ones(&[0, 3]).max(0),
        Shape,
        "Max: no maximum over an empty dimension of [0, 3]",
    );
    says!(
        x.argmax(2),
        Shape,
        "ArgMax: dimensions [2] are out of range for shape [2, 3]"
    );
    says!(
        x.reshape(&[7]),
        Shape,
        "Reshape: [2, 3] does not have as many elements as [7]"
    );
    says!(
        x.permute(&[0, 0]),
        Shape,
        "Permute: [0, 0] is not a permutation of the dimensions of [2, 3]",
    );
    says!(
        x.transpose(0, 2),
        Shape,
        "transpose: dimension 0 or 2 is out of range for shape [2, 3]"
    );
    says!(ones(&[3]).t(), Shape, "t: [3] has fewer than two dimensions");
    says!(
        x.broadcast_to(&[2, 4]),
        Shape,
        "Broadcast: shapes [2, 3] and [2, 4] do not broadcast",
    );
    says!(
        x.broadcast_to(&[3]),
        Shape,
        "Broadcast: [2, 3] does not broadcast to [3]"
    );
    says!(x.slice(1, 2, 4), Shape, "Slice: [0, 2]..[2, 4] is not inside [2, 3]");
    says!(
        x.slice(2, 0, 1),
        Shape,
        "Slice: dimension 2 is out of range for shape [2, 3]"
    );
    says!(
        LazyTensor::concat(&[&x, &y], 0),
        Shape,
        "Concat: shapes [2, 3], [4, 5] differ outside dimension 0",
    );
    says!(x.pad(&[1], &[0, 0]), Shape, "Pad: expected 1 dimensions, got [2, 3]");
    says!(x.squeeze(0), Shape, "squeeze: dimension 0 of [2, 3] is not of size 1");
    says!(
        x.unsqueeze(3),
        Shape,
        "unsqueeze: cannot insert dimension 3 into [2, 3]"
    );
    says!(
        LazyTensor::iota(1, &[3], DType::F32, &candle_core::Device::Cpu),
        Shape,
        "Iota: dimension 1 is out of range for shape [3]",
    );
    says!(
        LazyTensor::from_slice(&[1.0], &[2], &candle_core::Device::Cpu),
        Shape,
        "from_slice: 1 values do not fill shape [2]",
    );
    says!(
        x.to_scalar::<f32>(),
        Shape,
        "to_scalar: [2, 3] does not have exactly one element"
    );
}

#[test]
fn wrong_indices() {
    let (x, rows, at) = (ones(&[2, 3]), of(&[2], DType::U32), of(&[1], DType::U32));
    says!(
        x.index_select(2, &rows),
        Shape,
        "IndexSelect: dimension 2 is out of range for shape [2, 3]",
    );
    says!(
        x.index_select(0, &of(&[1, 2], DType::U32)),
        Shape,
        "IndexSelect: expected 1 dimensions, got [1, 2]",
    );
    says!(
        x.gather(0, &of(&[1, 2], DType::I64)),
        Shape,
        "Gather: indices [1, 2] must equal [2, 3] outside dimension 0",
    );
    says!(
        x.index_add(0, &rows, &ones(&[1, 3])),
        Shape,
        "IndexAdd: updates has shape [1, 3], expected [2, 3]",
    );
    let places = of(&[1, 3], DType::U32);
    says!(
        x.scatter_add(0, &places, &ones(&[2, 3])),
        Shape,
        "ScatterAdd: updates has shape [2, 3], expected [1, 3]",
    );
    says!(
        x.dynamic_slice(1, &rows, 1),
        Shape,
        "DynamicSlice: position has shape [2], expected [1]",
    );
    says!(
        x.dynamic_slice(1, &at, 4),
        Shape,
        "DynamicSlice: length 4 exceeds dimension 1 of [2, 3]",
    );
    says!(
        x.slice_update(0, &ones(&[1, 2]), &at),
        Shape,
        "SliceUpdate: update has shape [1, 2], expected [1, 3]",
    );
    says!(
        of(&[3], DType::U32).random(Distribution::Normal, &[2], DType::F32),
        Shape,
        "Random: the key must have shape (4), got [3]",
    );
    says!(
        of(&[4], DType::U32).random(Distribution::Bits, &[2], DType::F32),
        Shape,
        "Random: the distribution Bits does not support F32",
    );
    says!(
        x.index_select(0, &of(&[1], DType::U32).add(&at).unwrap())
            .unwrap()
            .eval(),
        Index,
        "IndexSelect: index 2 is out of range for a dimension of 2",
    );
    says!(
        x.dynamic_slice(0, &at, 2).unwrap().eval(),
        Range,
        "DynamicSlice: 1..3 is not inside a dimension of 2",
    );
}

#[test]
#[allow(clippy::too_many_lines)] // a list
fn wrong_shapes_of_fused_operations() {
    let x = ones(&[2, 3]);
    says!(
        x.softmax(2),
        Shape,
        "Softmax: dimension 2 is out of range for shape [2, 3]"
    );
    says!(
        ones(&[]).rms_norm(1e-5),
        Shape,
        "RMSNorm: a scalar has no last dimension to normalise",
    );
    says!(
        x.rms_norm_weighted(&ones(&[2]), 1e-5),
        Shape,
        "RMSNorm: weight has shape [2], expected [3]",
    );
    says!(
        x.layer_norm(&ones(&[3]), &ones(&[1]), 1e-5),
        Shape,
        "LayerNorm: weight has shape [1], expected [3]",
    );
    says!(
        x.swiglu(&ones(&[3])),
        Shape,
        "SwiGLU: up has shape [3], expected [2, 3]"
    );
    says!(
        x.lora_fused(&ones(&[4, 2]), &ones(&[2, 5]), 1.0),
        Shape,
        "LoRA: [2, 3] x [4, 2]: inner dimensions differ",
    );
    let quantized = |dims: &[usize], dtype| LazyTensor::zeros(dims, dtype, &Device::Cpu).unwrap();
    let (quants, scales) = (quantized(&[4, 32], DType::U8), quantized(&[4, 1], DType::F16));
    says!(
        x.dequant_matmul(&quants, &scales, QuantFormat::Q8_0),
        Shape,
        "DequantMatmul: x [2, 3] and weights [4, 32]: the last dimension of x is not 32",
    );
    says!(
        ones(&[2, 32]).dequant_matmul(&quants, &scales, QuantFormat::Q4_0),
        Shape,
        "DequantMatmul: quants [4, 32] and scales [4, 1] are not (out, 16 n) and (out, n) of q4_0",
    );
    says!(
        ones(&[1, 5, 2, 4]).rope(&ones(&[1, 4, 2]), &ones(&[1, 4, 2]), false),
        Shape,
        "Rope: x [1, 5, 2, 4] (batch, seq, heads, head_dim) and cos [1, 4, 2] (batch or 1, seq, at most head_dim / 2)",
    );
    let options = AttentionOptions {
        scale: 1.0,
        causal: false,
        window: None,
        offset: false,
        segments: false,
    };
    let (q, k) = (ones(&[1, 4, 3, 8]), ones(&[1, 4, 2, 8]));
    let inputs = AttentionInputs {
        q: &q,
        k: &k,
        v: &k,
        offset: None,
        segments: None,
    };
    says!(
        LazyTensor::attention(&inputs, options),
        Shape,
        "Attention: q [1, 4, 3, 8], k [1, 4, 2, 8], v [1, 4, 2, 8]: expected (batch, seq, heads, head_dim) with heads of q a multiple of k's",
    );
    let inputs = AttentionInputs { q: &k, ..inputs };
    let window = AttentionOptions {
        window: Some(2),
        ..options
    };
    says!(
        LazyTensor::attention(&inputs, window),
        Shape,
        "Attention: a sliding window needs causal attention",
    );
    let nothing = AttentionOptions {
        window: Some(0),
        causal: true,
        ..options
    };
    says!(
        LazyTensor::attention(&inputs, nothing),
        Shape,
        "Attention: a sliding window must be at least 1",
    );
    let ids = of(&[1, 3], DType::U32);
    let inputs = AttentionInputs {
        segments: Some((&ids, &ids)),
        ..inputs
    };
    says!(
        LazyTensor::attention(&inputs, options),
        Shape,
        "Attention: query segments has shape [1, 3], expected [1, 4]",
    );
    let targets = of(&[2], DType::I64);
    let default = CrossEntropyOptions::default();
    says!(
        x.cross_entropy(&ones(&[9, 4]), &targets, default),
        Shape,
        "CrossEntropy: hidden [2, 3] and weight [9, 4] differ in their last dimension",
    );
    says!(
        x.cross_entropy(&ones(&[9, 3]), &of(&[3], DType::I64), default),
        Shape,
        "CrossEntropy: targets has shape [3], expected [2]",
    );
    let adamw = AdamWOptions {
        beta1: 0.9,
        beta2: 0.99,
        eps: 1e-8,
        weight_decay: 0.0,
    };
    says!(
        x.adamw(&x, &x, &ones(&[3, 2]), &ones(&[4]), adamw),
        Shape,
        "AdamW: second moment has shape [3, 2], expected [2, 3]",
    );
    says!(
        x.adamw(&x, &x, &x, &ones(&[3]), adamw),
        Shape,
        "AdamW: rates (learning rate, corrections, factor) has shape [3], expected [4]",
    );
    let vjp = |of: Operation, wanted: u32, inputs: &[&LazyTensor]| {
        LazyTensor::record(
            Operation::Vjp {
                of: Box::new(of),
                wanted,
            },
            inputs,
        )
    };
    says!(vjp(Operation::SwiGLU, 1, &[&x]), Shape, "Vjp: 1 inputs for SwiGLU");
    says!(
        vjp(Operation::SwiGLU, 4, &[&x; 4]),
        Shape,
        "Vjp: wanted 0b100 of 2 inputs of SwiGLU",
    );
    says!(
        vjp(Operation::Softmax { dim: 0 }, 1, &[&x, &x, &ones(&[3])]),
        Shape,
        "Vjp: output 0 of Softmax is f32[2, 3], got f32[3]",
    );
    // Not a fused operation: with enough inputs, `wanted` has no bit for them.
    says!(
        vjp(Operation::Concat { dim: 0 }, 1, &[&x; 40]),
        Shape,
        "Vjp: Concat is not a fused operation",
    );
}

#[test]
fn wrong_dtypes() {
    let (x, integers, bytes) = (ones(&[2, 3]), of(&[2, 3], DType::I64), of(&[2, 3], DType::U8));
    says!(
        integers.exp(),
        DType,
        "Exp: input 0 has dtype I64, expected a float (f32, f64, f16, bf16)",
    );
    says!(bytes.neg(), DType, "Neg: input 0 has dtype U8, expected a float or i64");
    says!(
        integers.mul_scalar(2.0),
        DType,
        "MulScalar: input 0 has dtype I64, expected a float (f32, f64, f16, bf16)",
    );
    says!(
        x.add(&integers),
        DType,
        "Add: input 1 has dtype I64, expected F32 like input 0",
    );
    says!(
        x.equal(&bytes),
        DType,
        "Equal: input 1 has dtype U8, expected F32 like input 0",
    );
    says!(
        integers.pow(&integers),
        DType,
        "Pow: input 0 has dtype I64, expected a float (f32, f64, f16, bf16)",
    );
    says!(x.where_cond(&x, &x), DType, "Where: input 0 has dtype F32, expected U8");
    says!(
        bytes.where_cond(&x, &integers),
        DType,
        "Where: input 2 has dtype I64, expected F32 like input 1",
    );
    says!(
        x.matmul(&of(&[3, 2], DType::F64)),
        DType,
        "Matmul: input 1 has dtype F64, expected F32 like input 0",
    );
    says!(
        LazyTensor::concat(&[&x, &x, &integers], 0),
        DType,
        "Concat: input 2 has dtype I64, expected F32 like input 0",
    );
    says!(
        x.index_select(0, &of(&[1], DType::F32)),
        DType,
        "IndexSelect: input 1 has dtype F32, expected u32 or i64",
    );
    says!(
        x.dynamic_slice(0, &of(&[1], DType::I64), 1),
        DType,
        "DynamicSlice: input 1 has dtype I64, expected U32",
    );
    says!(
        x.random(Distribution::Normal, &[2], DType::F32),
        DType,
        "Random: input 0 has dtype F32, expected U32",
    );
    says!(
        integers.softmax(0),
        DType,
        "Softmax: input 0 has dtype I64, expected a float (f32, f64, f16, bf16)",
    );
    says!(
        integers.gelu(Approximate::None),
        DType,
        "GELU: input 0 has dtype I64, expected a float (f32, f64, f16, bf16)",
    );
    says!(
        x.rms_norm_weighted(&of(&[3], DType::F16), 0.1),
        DType,
        "RMSNorm: input 1 has dtype F16, expected F32 like input 0",
    );
    says!(
        x.cross_entropy(&ones(&[9, 3]), &of(&[2], DType::U32), CrossEntropyOptions::default()),
        DType,
        "CrossEntropy: input 2 has dtype U32, expected I64",
    );
    let unsupported = candle_core::Tensor::zeros(2, DType::F32, &candle_core::Device::Cpu)
        .unwrap()
        .to_dtype(DType::I16)
        .unwrap();
    says!(
        LazyTensor::from_tensor(unsupported),
        UnsupportedDType,
        "from_tensor: dtype I16 is not one of f32, f64, f16, bf16, u8, u32, i64",
    );
    says!(
        x.cast(DType::I32),
        UnsupportedDType,
        "Cast: dtype I32 is not one of f32, f64, f16, bf16, u8, u32, i64",
    );
    assert!(message(x.to_vec::<f64>()).starts_with("to_vec of f32[2, 3]: "));
}

#[test]
fn wrong_numbers_of_inputs() {
    let x = ones(&[2, 3]);
    says!(
        LazyTensor::record(Operation::Add, &[&x]),
        Arity,
        "Add requires 2 inputs, got 1",
    );
    says!(
        LazyTensor::record(Operation::Exp, &[&x, &x]),
        Arity,
        "Exp requires 1 input, got 2",
    );
    says!(
        LazyTensor::record(Operation::Where, &[&x, &x]),
        Arity,
        "Where requires 3 inputs, got 2",
    );
    says!(
        LazyTensor::record(Operation::RMSNorm { eps: 0.1 }, &[&x, &x, &x]),
        Arity,
        "RMSNorm requires 1 or 2 inputs, got 3",
    );
    says!(
        LazyTensor::record(Operation::LayerNorm { eps: 0.1 }, &[&x, &x]),
        Arity,
        "LayerNorm requires 1 or 3 inputs, got 2",
    );
    says!(
        LazyTensor::record(Operation::LoRA { scale: 1.0 }, &[&x]),
        Arity,
        "LoRA requires 3 inputs, got 1",
    );
    says!(
        LazyTensor::concat(&[], 0),
        Arity,
        "Concat requires at least 1 input, got 0"
    );
    says!(
        LazyTensor::record(Operation::Input, &[&x]),
        Arity,
        "Input requires 0 inputs, got 1",
    );
}

#[test]
fn evaluating_while_tracing() {
    let peek = compile(|args| args[0].eval().map(|_| Vec::new()));
    says!(
        peek.call(vec![ones(&[2])]).map_err(Error::from),
        Placeholder,
        "a placeholder has no value: do not evaluate inside a compiled function",
    );
}
