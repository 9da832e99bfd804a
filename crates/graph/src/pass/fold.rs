//! Removes identities and moves constants through shape changes: `x * 1`, casts to the same dtype, reshapes of
//! reshapes, permutations that cancel, views of constants. Only rewrites that keep every bit.

use smallvec::SmallVec;

use crate::graph::{Graph, GraphNode, Operation, ValueRef};

pub(super) fn run(graph: Graph) -> Graph {
    let Graph { nodes, outputs, device } = graph;
    let mut folded = Folded {
        nodes: Vec::with_capacity(nodes.len()),
        values: Vec::with_capacity(nodes.len()),
    };
    for node in nodes {
        let inputs = node.inputs.iter().map(|&input| folded.value(input)).collect();
        folded.push(GraphNode { inputs, ..node });
    }
    let outputs = outputs.into_iter().map(|output| folded.value(output)).collect();
    Graph {
        nodes: folded.nodes,
        outputs,
        device,
    }
}

/// The rewritten list, and for each old node its replacement (the first output; others keep their index).
struct Folded {
    nodes: Vec<GraphNode>,
    values: Vec<ValueRef>,
}

impl Folded {
    fn value(&self, old: ValueRef) -> ValueRef {
        let new = self.values[old.node as usize];
        if old.output == 0 {
            new
        } else {
            ValueRef {
                node: new.node,
                output: old.output,
            }
        }
    }

    fn operation(&self, value: ValueRef) -> &GraphNode {
        &self.nodes[value.node as usize]
    }

    fn push(&mut self, node: GraphNode) {
        let replacement = match node.inputs.first() {
            Some(&x) if node.outputs.len() == 1 => self.simplify(&node, x),
            _ => Simplified::Keep,
        };
        let value = match replacement {
            Simplified::Value(value) => value,
            Simplified::Operation(operation, inputs) => self.append(GraphNode {
                operation,
                inputs,
                ..node
            }),
            Simplified::Keep => self.append(node),
        };
        self.values.push(value);
    }

    fn append(&mut self, node: GraphNode) -> ValueRef {
        self.nodes.push(node);
        ValueRef {
            node: self.nodes.len() as u32 - 1,
            output: 0,
        }
    }

    fn simplify(&self, node: &GraphNode, x: ValueRef) -> Simplified {
        let below = self.operation(x);
        let (meta, found) = (&node.outputs[0], &below.outputs[x.output as usize]);
        let from = |operation: Operation| Simplified::Operation(operation, below.inputs.clone());
        match (&node.operation, &below.operation) {
            (Operation::StopGradient | Operation::MulScalar { value: 1.0 }, _) => Simplified::Value(x),
            (
                Operation::Reshape { .. }
                | Operation::Broadcast { .. }
                | Operation::Cast { .. }
                | Operation::Slice { .. },
                _,
            ) if meta == found => Simplified::Value(x),
            (Operation::Neg, Operation::Neg) => Simplified::Value(below.inputs[0]),
            (Operation::Reshape { shape }, Operation::Reshape { .. }) => {
                self.reshape_of(below.inputs[0], shape, meta, &from)
            }
            (Operation::Permute { dims }, Operation::Permute { dims: first }) => {
                let both: Vec<usize> = dims.iter().map(|&d| first[d]).collect();
                if both.is_sorted() {
                    Simplified::Value(below.inputs[0])
                } else {
                    from(Operation::Permute { dims: both })
                }
            }
            (Operation::Permute { dims }, _) if dims.is_sorted() => Simplified::Value(x),
            (operation, Operation::Constant { value, .. }) if operation.is_view() => {
                let constant = Operation::Constant {
                    value: *value,
                    shape: meta.shape.clone(),
                    dtype: meta.dtype,
                };
                Simplified::Operation(constant, SmallVec::new())
            }
            _ => Simplified::Keep,
        }
    }

    fn reshape_of(
        &self,
        source: ValueRef,
        shape: &candle_core::Shape,
        meta: &crate::graph::Meta,
        from: &dyn Fn(Operation) -> Simplified,
    ) -> Simplified {
        if self.operation(source).outputs[source.output as usize] == *meta {
            return Simplified::Value(source);
        }
        from(Operation::Reshape { shape: shape.clone() })
    }
}

enum Simplified {
    Keep,
    Value(ValueRef),
    Operation(Operation, SmallVec<[ValueRef; 3]>),
}
