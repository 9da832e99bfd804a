//! Printed output: graphs as text and as dot, word for word; error messages; and what the verifier rejects.

mod mistakes;

use candle_core::{DType, Device, Shape};
use metal_candle_graph::graph::verify::verify;
use metal_candle_graph::graph::{GraphNode, ValueRef};
use metal_candle_graph::{CrossEntropyOptions, Error, Graph, LazyTensor, Meta, Operation};

fn ones(shape: &[usize]) -> LazyTensor {
    of(shape, DType::F32)
}

fn of(shape: &[usize], dtype: DType) -> LazyTensor {
    let tensor = candle_core::Tensor::ones(shape, dtype, &Device::Cpu).unwrap();
    LazyTensor::from_tensor(tensor).unwrap()
}

/// `softmax(x w * 0.5)` and its row sums share a node.
fn small() -> Graph {
    let (x, w) = (ones(&[2, 3]), ones(&[3, 4]));
    let scores = x.matmul(&w).unwrap().mul_scalar(0.5).unwrap();
    let kept = scores.softmax(1).unwrap().sum_keepdim(&[1]).unwrap();
    scores.add(&kept).unwrap().graph().unwrap()
}

#[test]
fn a_graph_as_text() {
    let expected = "\
%0 = Input() : f32[2, 3]
%1 = Input() : f32[3, 4]
%2 = Matmul(%0, %1) : f32[2, 4]
%3 = MulScalar value=0.5(%2) : f32[2, 4]
%4 = Softmax dim=1(%3) : f32[2, 4]
%5 = Sum dims=[1](%4) : f32[2, 1]
%6 = Add(%3, %5) : f32[2, 4]
return %6
";
    assert_eq!(small().to_string(), expected);
}

#[test]
fn a_graph_as_dot() {
    let expected = r##"digraph plan {
  rankdir=TB;
  node [shape=box, fontname="Helvetica"];
  n0 [label="Input\nf32[2, 3]", style=filled, fillcolor="#dbe9f6"];
  n1 [label="Input\nf32[3, 4]", style=filled, fillcolor="#dbe9f6"];
  n2 [label="Matmul\nf32[2, 4]"];
  n0 -> n2;
  n1 -> n2;
  n3 [label="MulScalar value=0.5\nf32[2, 4]"];
  n2 -> n3;
  n4 [label="Softmax dim=1\nf32[2, 4]"];
  n3 -> n4;
  n5 [label="Sum dims=[1]\nf32[2, 1]"];
  n4 -> n5;
  n6 [label="Add\nf32[2, 4]", style=filled, fillcolor="#fde0c5"];
  n3 -> n6;
  n5 -> n6;
}
"##;
    assert_eq!(small().to_dot(), expected);
}

#[test]
fn second_outputs_are_named() {
    let (hidden, weight, targets) = (ones(&[5, 4]), ones(&[7, 4]), of(&[5], DType::I64));
    let parts = LazyTensor::record(
        Operation::CrossEntropy(CrossEntropyOptions::default()),
        &[&hidden, &weight, &targets],
    );
    let expected = "\
%0 = Input() : f32[5, 4]
%1 = Input() : f32[7, 4]
%2 = Input() : i64[5]
%3 = CrossEntropy ignore=-100 smoothing=0(%0, %1, %2) : f32[5], f32[5]
%4 = Neg(%3.1) : f32[5]
return %4
";
    assert_eq!(parts.unwrap()[1].neg().unwrap().graph().unwrap().to_string(), expected);
}

#[test]
fn a_tensor_does_not_print_its_values() {
    let y = ones(&[2, 3]).exp().unwrap();
    assert_eq!(format!("{y:?}"), "LazyTensor(Exp f32[2, 3], recorded)");
    y.eval().unwrap();
    assert_eq!(format!("{y:?}"), "LazyTensor(Exp f32[2, 3], evaluated)");
}

/// `%2 = Add(%0, %1)`, returned.
fn sum() -> Graph {
    ones(&[2]).add(&ones(&[2])).unwrap().graph().unwrap()
}

#[test]
fn the_verifier_accepts_what_was_recorded() {
    verify(&sum(), "test").unwrap();
    verify(&small(), "test").unwrap();
}

#[test]
fn the_verifier_rejects_malformed_graphs() {
    let broken = |change: &dyn Fn(&mut Graph)| {
        let mut graph = sum();
        change(&mut graph);
        let error = verify(&graph, "test").unwrap_err();
        assert!(matches!(error, Error::Verify { pass: "test", .. }));
        error.to_string()
    };
    let value = |node, output| ValueRef { node, output };
    assert_eq!(
        broken(&|g| g.nodes.swap(1, 2)),
        "verifier, after test: %1 Add uses %1 before it is computed"
    );
    assert_eq!(
        broken(&|g| g.nodes[2].inputs[0] = value(7, 0)),
        "verifier, after test: %2 Add uses %7 before it is computed"
    );
    assert_eq!(
        broken(&|g| g.nodes[2].inputs[1] = value(0, 1)),
        "verifier, after test: %2 uses output 1 of %0"
    );
    assert_eq!(
        broken(&|g| g.outputs[0] = value(3, 0)),
        "verifier, after test: output %3.0 does not exist"
    );
    assert_eq!(
        broken(&|g| g.outputs.push(value(2, 1))),
        "verifier, after test: output %2.1 does not exist"
    );
    let shape = broken(&|g| g.nodes[2].outputs[0] = Meta::new(Shape::from(3), DType::F32));
    assert_eq!(shape, "verifier, after test: %2 Add stores f32[3], inferred f32[2]");
    let dtype = broken(&|g| g.nodes[2].outputs[0] = Meta::new(Shape::from(2), DType::F64));
    assert_eq!(dtype, "verifier, after test: %2 Add stores f64[2], inferred f32[2]");
    let missing = broken(&|g| g.nodes[2].inputs.truncate(1));
    assert_eq!(missing, "verifier, after test: %2: Add requires 2 inputs, got 1");
    let extra = broken(&|g| {
        let Graph { nodes, .. } = g;
        nodes.push(GraphNode {
            operation: Operation::Reshape { shape: Shape::from(5) },
            inputs: std::iter::once(value(2, 0)).collect(),
            outputs: std::iter::once(Meta::new(5, DType::F32)).collect(),
        });
    });
    assert_eq!(
        extra,
        "verifier, after test: %3: Reshape: [2] does not have as many elements as [5]"
    );
}
