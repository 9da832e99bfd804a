//! Output shapes from input shapes alone, or output dtypes from input dtypes alone: the methods of version 1. The
//! answers come from the inference that every recording uses.

use candle_core::{DType, Shape};

use super::infer::{accumulator, infer};
use super::node::Meta;
use super::operation::Operation;
use super::verify::fitting_dtypes;
use crate::error::{Error, Result};

impl Operation {
    /// The shape of the (first) result on inputs of these shapes.
    ///
    /// ```
    /// use candle_core::Shape;
    /// use metal_candle_graph::Operation;
    ///
    /// let (a, b) = (Shape::from((2, 3)), Shape::from((3, 4)));
    /// assert_eq!(Operation::Matmul.output_shape(&[&a, &b])?.dims(), &[2, 4]);
    /// # Ok::<(), metal_candle_graph::Error>(())
    /// ```
    ///
    /// # Errors
    /// When number or shapes of the inputs do not fit. [`Operation::Input`] takes the shape of its data and returns it.
    pub fn output_shape(&self, inputs: &[&Shape]) -> Result<Shape> {
        if let (Self::Input, [shape]) = (self, inputs) {
            return Ok((*shape).clone());
        }
        let dtypes = fitting_dtypes(self, inputs.len());
        let metas: Vec<Meta> = inputs
            .iter()
            .zip(dtypes)
            .map(|(&shape, dtype)| Meta::new(shape.clone(), dtype))
            .collect();
        let outputs = infer(self, &metas.iter().collect::<Vec<_>>())?;
        outputs
            .into_iter()
            .next()
            .map(|meta| meta.shape)
            .ok_or(Error::ExecuteInput)
    }

    /// The dtype of the (first) result on inputs of these dtypes, which the operation must accept. Without inputs it is
    /// f32, unless the operation has a dtype parameter.
    ///
    /// ```
    /// use candle_core::DType;
    /// use metal_candle_graph::Operation;
    ///
    /// assert_eq!(Operation::Less.output_dtype(&[DType::F32, DType::F32]), DType::U8);
    /// ```
    #[must_use]
    pub fn output_dtype(&self, inputs: &[DType]) -> DType {
        use Operation as O;
        let input = |i: usize| inputs.get(i).copied().unwrap_or(DType::F32);
        match self {
            O::Constant { dtype, .. } | O::Iota { dtype, .. } | O::Random { dtype, .. } | O::Cast { dtype } => *dtype,
            O::Equal | O::Less | O::LessEqual => DType::U8,
            O::ArgMax { .. } => DType::U32,
            O::Where => input(1),
            O::Elementwise(expression) => expression.result().map_or_else(|_| input(0), |meta| meta.dtype),
            O::CrossEntropy(_) => accumulator(input(0)),
            O::ValueAndVjp { of, .. } => of.output_dtype(inputs),
            O::Vjp { wanted, .. } => input(wanted.trailing_zeros() as usize),
            O::Input
            | O::Neg
            | O::Abs
            | O::Sign
            | O::Exp
            | O::Log
            | O::Sqrt
            | O::Rsqrt
            | O::Recip
            | O::Sin
            | O::Cos
            | O::Tanh
            | O::Erf
            | O::Sigmoid
            | O::Floor
            | O::MulScalar { .. }
            | O::AddScalar { .. }
            | O::Add
            | O::Sub
            | O::Mul
            | O::Div
            | O::Pow
            | O::Maximum
            | O::Minimum
            | O::Sum { .. }
            | O::Max { .. }
            | O::Reshape { .. }
            | O::Permute { .. }
            | O::Broadcast { .. }
            | O::Slice { .. }
            | O::Concat { .. }
            | O::Pad { .. }
            | O::IndexSelect { .. }
            | O::Gather { .. }
            | O::IndexAdd { .. }
            | O::ScatterAdd { .. }
            | O::DynamicSlice { .. }
            | O::SliceUpdate { .. }
            | O::StopGradient
            | O::Matmul
            | O::Softmax { .. }
            | O::RMSNorm { .. }
            | O::LayerNorm { .. }
            | O::Rope { .. }
            | O::SwiGLU
            | O::GELU { .. }
            | O::LoRA { .. }
            | O::MatmulSum { .. }
            | O::SharedMatmul { .. }
            | O::DequantMatmul { .. }
            | O::Attention(_)
            | O::AdamW(_) => input(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{AdamWOptions, Approximate, AttentionOptions, CrossEntropyOptions, Distribution};

    /// Checks that the operation infers this shape, and that both methods agree with the inference.
    fn check(operation: &Operation, inputs: &[(&[usize], DType)], expected: &[usize]) {
        let metas: Vec<Meta> = inputs.iter().map(|(dims, dtype)| Meta::new(*dims, *dtype)).collect();
        let inferred = infer(operation, &metas.iter().collect::<Vec<_>>()).unwrap();
        let shapes: Vec<&Shape> = metas.iter().map(|m| &m.shape).collect();
        let dtypes: Vec<DType> = metas.iter().map(|m| m.dtype).collect();
        let name = operation.name();
        assert_eq!(operation.output_shape(&shapes).unwrap().dims(), expected, "{name}");
        assert_eq!(inferred[0].shape.dims(), expected, "{name}");
        assert_eq!(operation.output_dtype(&dtypes), inferred[0].dtype, "{name}");
    }

    #[test]
    #[allow(clippy::too_many_lines)] // one table
    fn agree_with_the_inference() {
        use Operation as O;
        let (half, f64s, u8s, u32s, i64s) = (DType::BF16, DType::F64, DType::U8, DType::U32, DType::I64);
        let shape = Shape::from((2, 3));
        check(
            &O::Constant {
                value: 1.0,
                shape: shape.clone(),
                dtype: half,
            },
            &[],
            &[2, 3],
        );
        check(
            &O::Iota {
                dim: 0,
                shape: shape.clone(),
                dtype: i64s,
            },
            &[],
            &[2, 3],
        );
        let distribution = Distribution::Bits;
        check(
            &O::Random {
                distribution,
                shape: shape.clone(),
                dtype: u32s,
            },
            &[(&[4], u32s)],
            &[2, 3],
        );
        for operation in [
            O::Neg,
            O::Exp,
            O::MulScalar { value: 2.0 },
            O::StopGradient,
            O::Softmax { dim: 1 },
        ] {
            check(&operation, &[(&[2, 3], half)], &[2, 3]);
        }
        check(
            &O::GELU {
                approximate: Approximate::Tanh,
            },
            &[(&[2, 3], half)],
            &[2, 3],
        );
        check(&O::Cast { dtype: u8s }, &[(&[2, 3], half)], &[2, 3]);
        for operation in [O::Add, O::Pow, O::Less, O::Equal, O::LessEqual] {
            check(&operation, &[(&[2, 1], f64s), (&[3], f64s)], &[2, 3]);
        }
        check(&O::Where, &[(&[2, 3], u8s), (&[3], half), (&[2, 1], half)], &[2, 3]);
        check(&O::Sum { dims: vec![0] }, &[(&[2, 3], i64s)], &[1, 3]);
        check(&O::ArgMax { dim: 1 }, &[(&[2, 3], half)], &[2, 1]);
        check(&O::Reshape { shape: Shape::from(6) }, &[(&[2, 3], half)], &[6]);
        check(
            &O::Concat { dim: 0 },
            &[(&[2, 3], half), (&[1, 3], half), (&[1, 3], half)],
            &[4, 3],
        );
        check(&O::IndexSelect { dim: 0 }, &[(&[2, 3], half), (&[5], u32s)], &[5, 3]);
        check(
            &O::ScatterAdd { dim: 0 },
            &[(&[2, 3], half), (&[5, 3], i64s), (&[5, 3], half)],
            &[2, 3],
        );
        check(
            &O::DynamicSlice { dim: 0, length: 1 },
            &[(&[2, 3], half), (&[1], u32s)],
            &[1, 3],
        );
        check(
            &O::SliceUpdate { dim: 0 },
            &[(&[2, 3], half), (&[1, 3], half), (&[1], u32s)],
            &[2, 3],
        );
        check(&O::Matmul, &[(&[5, 2, 3], half), (&[3, 4], half)], &[5, 2, 4]);
        check(&O::RMSNorm { eps: 1e-5 }, &[(&[2, 3], half)], &[2, 3]);
        check(&O::RMSNorm { eps: 1e-5 }, &[(&[2, 3], half), (&[3], half)], &[2, 3]);
        check(
            &O::LoRA { scale: 2.0 },
            &[(&[5, 2, 3], half), (&[3, 4], half), (&[4, 6], half)],
            &[5, 2, 6],
        );
        let options = AttentionOptions {
            scale: 1.0,
            causal: true,
            window: None,
            offset: true,
            segments: true,
        };
        let q = (&[1, 5, 4, 2][..], half);
        let segments = (&[1, 5][..], u32s);
        check(
            &O::Attention(options),
            &[q, q, q, (&[1], u32s), segments, segments],
            &[1, 5, 4, 2],
        );
        let loss = O::CrossEntropy(CrossEntropyOptions::default());
        let [hidden, weight, targets] = [(&[5, 2][..], half), (&[7, 2][..], half), (&[5][..], i64s)];
        check(&loss, &[hidden, weight, targets], &[5]);
        let row = (&[5][..], DType::F32);
        let vjp = O::Vjp {
            of: Box::new(loss),
            wanted: 0b10,
        };
        check(&vjp, &[hidden, weight, targets, row, row, row, row], &[7, 2]);
        let options = AdamWOptions {
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            weight_decay: 0.0,
        };
        let p = (&[2, 3][..], f64s);
        check(&O::AdamW(options), &[p, p, p, p, (&[4], f64s)], &[2, 3]);
    }

    #[test]
    fn an_input_has_the_shape_of_its_data() {
        for shape in [Shape::from((2, 3)), Shape::from(0), Shape::from(())] {
            assert_eq!(Operation::Input.output_shape(&[&shape]).unwrap(), shape);
        }
        let shape = Shape::from(2);
        assert!(Operation::Input.output_shape(&[&shape, &shape]).is_err());
    }

    #[test]
    fn incompatible_inputs_are_errors() {
        let (a, b) = (Shape::from((2, 3)), Shape::from((4, 5)));
        let message = |operation: Operation, inputs: &[&Shape]| operation.output_shape(inputs).unwrap_err().to_string();
        assert_eq!(message(Operation::Matmul, &[&a]), "Matmul requires 2 inputs, got 1");
        assert_eq!(
            message(Operation::Matmul, &[&a, &b]),
            "Matmul: [2, 3] x [4, 5]: inner dimensions differ"
        );
        assert_eq!(
            message(Operation::Add, &[&a, &b]),
            "Add: shapes [2, 3] and [4, 5] do not broadcast"
        );
        assert_eq!(message(Operation::Input, &[]), "Cannot execute Input operation");
        let norm = Operation::RMSNorm { eps: 1e-5 };
        assert_eq!(message(norm, &[]), "RMSNorm requires 1 input, got 0");
        let lora = Operation::LoRA { scale: 1.0 };
        let narrow = Shape::from((3, 2));
        assert_eq!(
            message(lora, &[&a, &narrow, &b]),
            "LoRA: [2, 2] x [4, 5]: inner dimensions differ"
        );
    }
}
