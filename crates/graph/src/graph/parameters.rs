//! The parameters of operations as words. Equality and hashing are derived from this one table. Floats are compared by
//! their bits: a NaN equals itself, and 0.0 is not -0.0. The plan cache and common subexpression elimination rely on
//! it.

use std::hash::{Hash, Hasher};
use std::mem::discriminant;

use candle_core::DType;
use smallvec::SmallVec;

use super::node::Meta;
use super::operation::{AdamWOptions, AttentionOptions, CrossEntropyOptions, Operation};
use crate::fused::elementwise::{Expression, Operand};

/// Collects the words of parameters. Lists are preceded by their lengths, so that different parameters have different
/// words.
struct Words<F>(F);

impl<F: FnMut(u64)> Words<F> {
    fn word(&mut self, word: u64) {
        (self.0)(word);
    }

    fn size(&mut self, size: usize) {
        self.word(size as u64);
    }

    fn single(&mut self, value: f32) {
        self.word(u64::from(value.to_bits()));
    }

    fn dtype(&mut self, dtype: DType) {
        self.word(dtype as u64);
    }

    fn sizes(&mut self, sizes: &[usize]) {
        self.size(sizes.len());
        for &size in sizes {
            self.size(size);
        }
    }

    fn meta(&mut self, meta: &Meta) {
        self.sizes(meta.shape.dims());
        self.dtype(meta.dtype);
    }

    /// A nested operation: its name, then its parameters.
    fn operation(&mut self, operation: &Operation) {
        let name = operation.name().as_bytes();
        self.size(name.len());
        for part in name.chunks(8) {
            let mut bytes = [0; 8];
            bytes[..part.len()].copy_from_slice(part);
            self.word(u64::from_le_bytes(bytes));
        }
        self.parameters(operation);
    }

    fn expression(&mut self, Expression { inputs, terms }: &Expression) {
        self.size(inputs.len());
        for meta in inputs {
            self.meta(meta);
        }
        self.size(terms.len());
        for term in terms {
            self.operation(&term.operation);
            self.size(term.operands.len());
            for operand in &term.operands {
                let (is_term, number) = match *operand {
                    Operand::Input(i) => (0, i),
                    Operand::Term(t) => (1, t),
                };
                self.word(is_term);
                self.size(number);
            }
            self.meta(&term.meta);
        }
    }

    /// The table of parameters.
    #[allow(clippy::too_many_lines)]
    fn parameters(&mut self, operation: &Operation) {
        use Operation as O;
        match operation {
            O::Constant { value, shape, dtype } => {
                self.word(value.to_bits());
                self.sizes(shape.dims());
                self.dtype(*dtype);
            }
            O::Iota { dim, shape, dtype } => {
                self.size(*dim);
                self.sizes(shape.dims());
                self.dtype(*dtype);
            }
            O::Random {
                distribution,
                shape,
                dtype,
            } => {
                self.word(*distribution as u64);
                self.sizes(shape.dims());
                self.dtype(*dtype);
            }
            O::MulScalar { value }
            | O::AddScalar { value }
            | O::RMSNorm { eps: value }
            | O::LayerNorm { eps: value }
            | O::LoRA { scale: value } => self.single(*value),
            O::Cast { dtype } => self.dtype(*dtype),
            O::ArgMax { dim }
            | O::Concat { dim }
            | O::IndexSelect { dim }
            | O::Gather { dim }
            | O::IndexAdd { dim }
            | O::ScatterAdd { dim }
            | O::SliceUpdate { dim }
            | O::Softmax { dim } => self.size(*dim),
            O::DynamicSlice { dim, length } => {
                self.size(*dim);
                self.size(*length);
            }
            O::Sum { dims } | O::Max { dims } | O::Permute { dims } => self.sizes(dims),
            O::Reshape { shape } | O::Broadcast { shape } => self.sizes(shape.dims()),
            O::Slice { start: a, end: b } | O::Pad { before: a, after: b } => {
                self.sizes(a);
                self.sizes(b);
            }
            O::Rope { interleaved } => self.word(u64::from(*interleaved)),
            O::GELU { approximate } => self.word(*approximate as u64),
            O::DequantMatmul { format, transposed } => {
                self.word(*format as u64);
                self.word(u64::from(*transposed));
            }
            O::Attention(options) => options.words().into_iter().for_each(|word| self.word(word)),
            O::CrossEntropy(options) => options.words().into_iter().for_each(|word| self.word(word)),
            O::AdamW(options) => options.words().into_iter().for_each(|word| self.word(word)),
            O::Elementwise(expression) => self.expression(expression),
            O::MatmulSum { terms, scale, dtype } => {
                self.size(terms.len());
                for &term in terms {
                    self.word(term as u64);
                }
                self.single(*scale);
                self.dtype(*dtype);
            }
            O::SharedMatmul { count, scale, dtype } => {
                self.size(*count);
                self.single(*scale);
                self.dtype(*dtype);
            }
            O::Vjp { of, wanted } | O::ValueAndVjp { of, wanted } => {
                self.word(u64::from(*wanted));
                self.operation(of);
            }
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
            | O::Add
            | O::Sub
            | O::Mul
            | O::Div
            | O::Pow
            | O::Maximum
            | O::Minimum
            | O::Equal
            | O::Less
            | O::LessEqual
            | O::Where
            | O::StopGradient
            | O::Matmul
            | O::SwiGLU => {}
        }
    }
}

impl PartialEq for Operation {
    fn eq(&self, other: &Self) -> bool {
        if discriminant(self) != discriminant(other) {
            return false;
        }
        let mut words: SmallVec<[u64; 24]> = SmallVec::new();
        Words(|word| words.push(word)).parameters(self);
        let (mut rest, mut same) = (words.iter(), true);
        Words(|word| same &= rest.next() == Some(&word)).parameters(other);
        same && rest.next().is_none()
    }
}

impl Eq for Operation {}

impl Hash for Operation {
    fn hash<H: Hasher>(&self, state: &mut H) {
        discriminant(self).hash(state);
        Words(|word| state.write_u64(word)).parameters(self);
    }
}

/// Implements equality and hash of a struct by its words.
macro_rules! by_words {
    ($($options:ty),*) => { $(
        impl PartialEq for $options {
            fn eq(&self, other: &Self) -> bool {
                self.words() == other.words()
            }
        }

        impl Eq for $options {}

        impl Hash for $options {
            fn hash<H: Hasher>(&self, state: &mut H) {
                self.words().hash(state);
            }
        }
    )* };
}

by_words!(AttentionOptions, CrossEntropyOptions, AdamWOptions);

impl AttentionOptions {
    fn words(&self) -> [u64; 6] {
        let Self {
            scale,
            causal,
            window,
            offset,
            segments,
        } = *self;
        let (has_window, width) = (window.is_some(), window.unwrap_or(0));
        let flags = [causal, has_window, offset, segments].map(u64::from);
        let [causal, has_window, offset, segments] = flags;
        [
            scale.to_bits().into(),
            causal,
            has_window,
            width as u64,
            offset,
            segments,
        ]
    }
}

impl CrossEntropyOptions {
    fn words(&self) -> [u64; 2] {
        let Self {
            ignore_index,
            label_smoothing,
        } = *self;
        [ignore_index as u64, label_smoothing.to_bits().into()]
    }
}

impl AdamWOptions {
    fn words(&self) -> [u64; 4] {
        let Self {
            beta1,
            beta2,
            eps,
            weight_decay,
        } = *self;
        [beta1, beta2, eps, weight_decay].map(f64::to_bits)
    }
}
