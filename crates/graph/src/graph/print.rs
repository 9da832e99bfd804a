//! Graphs as text and as Graphviz dot, and the operations' names.

use std::fmt::{self, Write as _};

use super::ir::{Graph, ValueRef};
use super::node::Meta;
use super::operation::{Approximate, Operation};

impl Operation {
    /// The operation's name as it is printed and reported in errors.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Input => "Input",
            Self::Constant { .. } => "Constant",
            Self::Iota { .. } => "Iota",
            Self::Random { .. } => "Random",
            Self::Neg => "Neg",
            Self::Abs => "Abs",
            Self::Sign => "Sign",
            Self::Exp => "Exp",
            Self::Log => "Log",
            Self::Sqrt => "Sqrt",
            Self::Rsqrt => "Rsqrt",
            Self::Recip => "Recip",
            Self::Sin => "Sin",
            Self::Cos => "Cos",
            Self::Tanh => "Tanh",
            Self::Erf => "Erf",
            Self::Sigmoid => "Sigmoid",
            Self::Floor => "Floor",
            Self::MulScalar { .. } => "MulScalar",
            Self::AddScalar { .. } => "AddScalar",
            Self::Cast { .. } => "Cast",
            Self::Add => "Add",
            Self::Sub => "Sub",
            Self::Mul => "Mul",
            Self::Div => "Div",
            Self::Pow => "Pow",
            Self::Maximum => "Maximum",
            Self::Minimum => "Minimum",
            Self::Equal => "Equal",
            Self::Less => "Less",
            Self::LessEqual => "LessEqual",
            Self::Where => "Where",
            Self::Sum { .. } => "Sum",
            Self::Max { .. } => "Max",
            Self::ArgMax { .. } => "ArgMax",
            Self::Reshape { .. } => "Reshape",
            Self::Permute { .. } => "Permute",
            Self::Broadcast { .. } => "Broadcast",
            Self::Slice { .. } => "Slice",
            Self::Concat { .. } => "Concat",
            Self::Pad { .. } => "Pad",
            Self::IndexSelect { .. } => "IndexSelect",
            Self::Gather { .. } => "Gather",
            Self::IndexAdd { .. } => "IndexAdd",
            Self::ScatterAdd { .. } => "ScatterAdd",
            Self::DynamicSlice { .. } => "DynamicSlice",
            Self::SliceUpdate { .. } => "SliceUpdate",
            Self::StopGradient => "StopGradient",
            Self::Matmul => "Matmul",
            Self::Softmax { .. } => "Softmax",
            Self::RMSNorm { .. } => "RMSNorm",
            Self::LayerNorm { .. } => "LayerNorm",
            Self::Rope { .. } => "Rope",
            Self::SwiGLU => "SwiGLU",
            Self::GELU { .. } => "GELU",
            Self::LoRA { .. } => "LoRA",
            Self::DequantMatmul { .. } => "DequantMatmul",
            Self::Attention(_) => "Attention",
            Self::CrossEntropy(_) => "CrossEntropy",
            Self::AdamW(_) => "AdamW",
            Self::Elementwise(_) => "Elementwise",
            Self::MatmulSum { .. } => "MatmulSum",
            Self::SharedMatmul { .. } => "SharedMatmul",
            Self::ValueAndVjp { .. } => "ValueAndVjp",
            Self::Vjp { .. } => "Vjp",
        }
    }
}

/// The name and the parameters: `MulScalar value=2`.
impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Self::Constant { value, .. } => write!(f, " value={value}"),
            Self::Iota { dim, .. }
            | Self::ArgMax { dim }
            | Self::Concat { dim }
            | Self::IndexSelect { dim }
            | Self::Gather { dim }
            | Self::IndexAdd { dim }
            | Self::ScatterAdd { dim }
            | Self::SliceUpdate { dim }
            | Self::Softmax { dim } => write!(f, " dim={dim}"),
            Self::DynamicSlice { dim, length } => write!(f, " dim={dim} length={length}"),
            Self::Random { distribution, .. } => write!(f, " {distribution:?}"),
            Self::MulScalar { value } | Self::AddScalar { value } => write!(f, " value={value}"),
            Self::Cast { dtype } => write!(f, " to={}", dtype.as_str()),
            Self::Sum { dims } | Self::Max { dims } | Self::Permute { dims } => write!(f, " dims={dims:?}"),
            Self::Slice { start, end } => write!(f, " start={start:?} end={end:?}"),
            Self::Pad { before, after } => write!(f, " before={before:?} after={after:?}"),
            Self::RMSNorm { eps } | Self::LayerNorm { eps } => write!(f, " eps={eps}"),
            Self::Rope { interleaved } => write!(f, " interleaved={interleaved}"),
            Self::GELU {
                approximate: Approximate::Tanh,
            } => f.write_str(" tanh"),
            Self::LoRA { scale } => write!(f, " scale={scale}"),
            Self::DequantMatmul { format, transposed } => {
                write!(f, " {}{}", format.name(), if *transposed { " transposed" } else { "" })
            }
            Self::Elementwise(expression) => write!(f, " [{expression}]"),
            Self::Attention(o) => {
                write!(f, " scale={} causal={}", o.scale, o.causal)?;
                o.window.map_or(Ok(()), |w| write!(f, " window={w}"))?;
                f.write_str(if o.offset { " offset" } else { "" })?;
                f.write_str(if o.segments { " segments" } else { "" })
            }
            Self::CrossEntropy(o) => write!(f, " ignore={} smoothing={}", o.ignore_index, o.label_smoothing),
            Self::AdamW(o) => write!(
                f,
                " beta1={} beta2={} eps={} weight_decay={}",
                o.beta1, o.beta2, o.eps, o.weight_decay
            ),
            Self::SharedMatmul { count, scale, .. } => write!(f, " count={count} scale={scale}"),
            Self::MatmulSum { terms, scale, .. } => write!(f, " terms={terms:?} scale={scale}"),
            Self::Vjp { of, wanted } | Self::ValueAndVjp { of, wanted } => {
                write!(f, " of=({of}) wanted={wanted:#b}")
            }
            Self::Input
            | Self::Neg
            | Self::Abs
            | Self::Sign
            | Self::Exp
            | Self::Log
            | Self::Sqrt
            | Self::Rsqrt
            | Self::Recip
            | Self::Sin
            | Self::Cos
            | Self::Tanh
            | Self::Erf
            | Self::Sigmoid
            | Self::Floor
            | Self::Add
            | Self::Sub
            | Self::Mul
            | Self::Div
            | Self::Pow
            | Self::Maximum
            | Self::Minimum
            | Self::Equal
            | Self::Less
            | Self::LessEqual
            | Self::Where
            | Self::Reshape { .. }
            | Self::Broadcast { .. }
            | Self::StopGradient
            | Self::Matmul
            | Self::SwiGLU
            | Self::GELU {
                approximate: Approximate::None,
            } => Ok(()),
        }
    }
}

impl fmt::Display for Meta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype.as_str(), self.shape.dims())
    }
}

/// `%3`, or `%3.1` for the second output.
impl fmt::Display for ValueRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.output {
            0 => write!(f, "%{}", self.node),
            output => write!(f, "%{}.{output}", self.node),
        }
    }
}

/// One line per node: `%2 = Add(%0, %1) : f32[2, 3]`, then the outputs.
impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let join = |items: &mut dyn Iterator<Item = String>| items.collect::<Vec<_>>().join(", ");
        for (index, node) in self.nodes.iter().enumerate() {
            let inputs = join(&mut node.inputs.iter().map(ToString::to_string));
            let metas = join(&mut node.outputs.iter().map(ToString::to_string));
            writeln!(f, "%{index} = {}({inputs}) : {metas}", node.operation)?;
        }
        writeln!(f, "return {}", join(&mut self.outputs.iter().map(ToString::to_string)))
    }
}

impl Graph {
    /// The graph in Graphviz's dot language: `dot -Tsvg graph.dot > graph.svg` draws it.
    #[must_use]
    pub fn to_dot(&self) -> String {
        let mut dot = String::from("digraph plan {\n  rankdir=TB;\n  node [shape=box, fontname=\"Helvetica\"];\n");
        for (index, node) in self.nodes.iter().enumerate() {
            let metas: Vec<String> = node.outputs.iter().map(ToString::to_string).collect();
            let is_output = self.outputs.iter().any(|output| output.node as usize == index);
            let style = if node.operation == Operation::Input {
                ", style=filled, fillcolor=\"#dbe9f6\""
            } else if is_output {
                ", style=filled, fillcolor=\"#fde0c5\""
            } else {
                ""
            };
            // Writing to a String cannot fail.
            let _ = writeln!(
                dot,
                "  n{index} [label=\"{}\\n{}\"{style}];",
                node.operation,
                metas.join(", ")
            );
            for input in &node.inputs {
                let _ = writeln!(dot, "  n{} -> n{index};", input.node);
            }
        }
        dot.push_str("}\n");
        dot
    }
}
