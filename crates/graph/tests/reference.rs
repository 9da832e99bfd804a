//! Every fused operation and the matrix product against `PyTorch`: outputs and all gradients of the cases in
//! `fixtures/ops`, in f32 and f64, on both backends. `fixtures/README.md` has the layout of the files.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use metal_candle_graph::{
    AdamWOptions, Approximate, AttentionInputs, AttentionOptions, Backend, CrossEntropyOptions, LazyTensor, Result,
    eval_all, value_and_grad, with_backend,
};
use safetensors::SafeTensors;
use serde_json::Value;

/// Operations and the number of their cases, so that no case of a file is lost.
const OPERATIONS: [(&str, usize); 11] = [
    ("matmul", 18),
    ("softmax", 12),
    ("rms_norm", 12),
    ("layer_norm", 12),
    ("rope", 12),
    ("swiglu", 6),
    ("gelu", 8),
    ("lora", 12),
    ("attention", 28),
    ("cross_entropy", 12),
    ("adamw", 6),
];

/// One case of a file.
struct Case {
    name: String,
    dtype: DType,
    settings: Value,
    tensors: HashMap<String, Tensor>,
}

fn cases(operation: &str) -> Vec<Case> {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("../../fixtures/ops/{operation}.safetensors"));
    let bytes = std::fs::read(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let metadata: BTreeMap<_, _> = header.metadata().clone().unwrap().into_iter().collect();
    let all = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap();
    let case = |(name, settings): (String, String)| {
        let settings: Value = serde_json::from_str(&settings).unwrap();
        assert_eq!(settings["op"], operation);
        let dtype = if settings["dtype"] == "f64" {
            DType::F64
        } else {
            DType::F32
        };
        let own = |(key, tensor): (&String, &Tensor)| {
            Some((key.strip_prefix(&format!("{name}."))?.to_owned(), tensor.clone()))
        };
        Case {
            tensors: all.iter().filter_map(own).collect(),
            name: format!("{operation} {name}"),
            dtype,
            settings,
        }
    };
    metadata.into_iter().map(case).collect()
}

impl Case {
    fn tensor(&self, name: &str) -> &Tensor {
        self.tensors
            .get(name)
            .unwrap_or_else(|| panic!("{}: no tensor {name}", self.name))
    }

    fn lazy(&self, name: &str) -> LazyTensor {
        LazyTensor::from_tensor(self.tensor(name).clone()).unwrap()
    }

    fn inputs(&self) -> Vec<String> {
        self.settings["inputs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|n| n.as_str().unwrap().to_owned())
            .collect()
    }

    fn number(&self, name: &str) -> f64 {
        self.settings["parameters"][name]
            .as_f64()
            .unwrap_or_else(|| panic!("{}: no number {name}", self.name))
    }

    fn count(&self, name: &str) -> Option<usize> {
        self.settings["parameters"][name].as_u64().map(|n| n as usize)
    }

    fn flag(&self, name: &str) -> bool {
        self.settings["parameters"][name]
            .as_bool()
            .unwrap_or_else(|| panic!("{}: no flag {name}", self.name))
    }

    fn word(&self, name: &str) -> &str {
        self.settings["parameters"][name]
            .as_str()
            .unwrap_or_else(|| panic!("{}: no word {name}", self.name))
    }

    /// The engine keeps an operation's factors and eps in f32, torch in f64: if one is not exact in f32, an f64 result
    /// cannot be closer than that rounding.
    fn tolerance(&self) -> f64 {
        let rounded = |name: &str| {
            let value = self.settings["parameters"][name].as_f64();
            value.is_some_and(|v| (f64::from(v as f32) - v).abs() > 0.0)
        };
        match self.dtype {
            DType::F32 => 1e-5,
            _ if ["eps", "scale", "label_smoothing"].into_iter().any(rounded) => 1e-7,
            _ => 1e-10,
        }
    }

    /// Compares with a stored tensor: relative to each element and to the largest. Where gradients nearly cancel, the
    /// rounding errors of numbers of order one remain.
    fn check(&self, what: &str, found: &Tensor, expected: &Tensor, tolerance: f64) {
        let name = format!("{}: {what}", self.name);
        assert_eq!(
            (found.dims(), found.dtype()),
            (expected.dims(), expected.dtype()),
            "{name}"
        );
        let list = |t: &Tensor| {
            t.to_dtype(DType::F64)
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1::<f64>()
                .unwrap()
        };
        let (found, expected) = (list(found), list(expected));
        let largest = expected.iter().fold(0.0f64, |m, e| m.max(e.abs()));
        assert!(largest.is_finite(), "{name}: the fixture is not finite");
        for (i, (f, e)) in found.iter().zip(&expected).enumerate() {
            let close = (f - e).abs() <= tolerance * (e.abs() + 0.5 * largest + 1e-5);
            assert!(close, "{name}[{i}] is {f:e}, torch says {e:e} (largest {largest:e})");
        }
    }
}

/// Runs a case on the backend of this thread.
fn check(case: &Case, run: impl Fn(&Case, &HashMap<String, LazyTensor>) -> Result<LazyTensor>) {
    let names = case.inputs();
    let parameters: Vec<LazyTensor> = names.iter().map(|name| case.lazy(name)).collect();
    let inputs = names.iter().cloned().zip(parameters.iter().cloned()).collect();
    let y = run(case, &inputs).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    let loss = y.mul(&case.lazy("g")).unwrap().sum_all().unwrap();
    let (_, gradients) = value_and_grad(&loss, &parameters).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    let results = eval_all(&[&[y], &gradients[..]].concat()).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    case.check("output", &results[0], case.tensor("y"), case.tolerance());
    for (name, found) in names.iter().zip(&results[1..]) {
        let expected = case.tensor(&format!("grad.{name}"));
        case.check(&format!("gradient of {name}"), found, expected, case.tolerance());
    }
}

/// The engine's call for a case.
fn record(case: &Case, x: &HashMap<String, LazyTensor>) -> Result<LazyTensor> {
    let transposed = |name: &str, flag: &str| {
        if case.flag(flag) {
            x[name].t()
        } else {
            Ok(x[name].clone())
        }
    };
    match case.settings["op"].as_str().unwrap() {
        "matmul" => transposed("a", "transpose_a")?.matmul(&transposed("b", "transpose_b")?),
        "softmax" => x["x"].softmax(case.count("dim").unwrap()),
        "rms_norm" => match x.get("weight") {
            Some(weight) => x["x"].rms_norm_weighted(weight, case.number("eps") as f32),
            None => x["x"].rms_norm(case.number("eps") as f32),
        },
        "layer_norm" => layer_norm(case, x),
        "rope" => rope(case, x),
        "swiglu" => x["gate"].swiglu(&x["up"]),
        "gelu" => match case.word("approximate") {
            "none" => x["x"].gelu(Approximate::None),
            "tanh" => x["x"].gelu(Approximate::Tanh),
            other => panic!("{}: approximate {other}", case.name),
        },
        "lora" => lora(case, x),
        "attention" => attention(case, x, case.count("offset").unwrap() > 0),
        "cross_entropy" => cross_entropy(case, x),
        other => panic!("no operation {other}"),
    }
}

fn layer_norm(case: &Case, x: &HashMap<String, LazyTensor>) -> Result<LazyTensor> {
    let eps = case.number("eps") as f32;
    match (x.get("weight"), x.get("bias")) {
        (Some(weight), Some(bias)) => x["x"].layer_norm(weight, bias, eps),
        _ => LazyTensor::record(metal_candle_graph::Operation::LayerNorm { eps }, &[&x["x"]]).map(|mut y| y.remove(0)),
    }
}

/// The rows of the tables at the given positions.
fn rope(case: &Case, x: &HashMap<String, LazyTensor>) -> Result<LazyTensor> {
    let positions = case.lazy("positions");
    let [batch, seq] = positions.dims() else {
        panic!("{}: positions {:?}", case.name, positions.dims())
    };
    let rows = |table: &str| {
        let table = case.lazy(table);
        table
            .index_select(0, &positions.reshape(&[batch * seq])?)?
            .reshape(&[*batch, *seq, table.dims()[1]])
    };
    x["x"].rope(&rows("cos")?, &rows("sin")?, case.flag("interleaved"))
}

/// The low-rank term, and the frozen layer's product where the case has one.
fn lora(case: &Case, x: &HashMap<String, LazyTensor>) -> Result<LazyTensor> {
    let term = x["x"].lora_fused(&x["a"], &x["b"], case.number("scale") as f32)?;
    let Some(weight) = x.get("weight") else { return Ok(term) };
    let base = x["x"].matmul_t(weight)?;
    let base = x.get("bias").map_or(Ok(base.clone()), |bias| base.add(bias))?;
    base.add(&term)
}

fn attention(case: &Case, x: &HashMap<String, LazyTensor>, with_offset: bool) -> Result<LazyTensor> {
    let (offset, seq) = (case.count("offset").unwrap(), x["q"].dims()[1]);
    let position = LazyTensor::from_data(&[offset as u32], &[1], &Device::Cpu)?;
    let of_keys = case
        .tensors
        .contains_key("segments")
        .then(|| case.lazy("segments").cast(DType::U32))
        .transpose()?;
    let of_queries = of_keys.as_ref().map(|s| s.slice(1, offset, offset + seq)).transpose()?;
    let inputs = AttentionInputs {
        q: &x["q"],
        k: &x["k"],
        v: &x["v"],
        offset: with_offset.then_some(&position),
        segments: of_queries.as_ref().zip(of_keys.as_ref()),
    };
    let options = AttentionOptions {
        scale: case.number("scale") as f32,
        causal: case.flag("causal"),
        window: case.count("window"),
        offset: false,
        segments: false,
    };
    LazyTensor::attention(&inputs, options)
}

/// The reductions, from the losses of the rows.
fn cross_entropy(case: &Case, x: &HashMap<String, LazyTensor>) -> Result<LazyTensor> {
    let labels = case.lazy("labels");
    let options = CrossEntropyOptions {
        ignore_index: -100,
        label_smoothing: case.number("label_smoothing") as f32,
    };
    let rows = x["hidden"].cross_entropy(&x["weight"], &labels, options)?;
    let sum = rows.sum_all()?;
    match case.word("reduction") {
        "sum" => Ok(sum),
        "mean" => {
            let ignored = labels
                .equal(&labels.scalar_like(-100.0)?)?
                .cast(rows.dtype())?
                .sum_all()?;
            sum.div(&ignored.scalar_like(rows.dims()[0] as f64)?.sub(&ignored)?)
        }
        other => panic!("{}: reduction {other}", case.name),
    }
}

/// Ten steps, each compared.
fn adamw(case: &Case) -> Result<()> {
    let (beta1, beta2) = (case.number("beta1"), case.number("beta2"));
    let options = AdamWOptions {
        beta1,
        beta2,
        eps: case.number("eps"),
        weight_decay: case.number("weight_decay"),
    };
    let rates = case.settings["parameters"]["learning_rates"].as_array().unwrap();
    assert_eq!(rates.len(), 10, "{}", case.name);
    let mut parameter = case.lazy("initial");
    let (mut first, mut second) = (parameter.zeros_like()?, parameter.zeros_like()?);
    for (step, rate) in rates.iter().enumerate() {
        let gradient = LazyTensor::from_tensor(case.tensor("gradients").get(step).unwrap())?;
        let t = step as i32 + 1;
        // The gradient is halved before the step, and doubled by its factor.
        let rates = [rate.as_f64().unwrap(), 1.0 - beta1.powi(t), 1.0 - beta2.powi(t), 2.0];
        let rates = LazyTensor::from_data(&rates, &[4], &Device::Cpu)?.cast(case.dtype)?;
        let next = parameter.adamw(&gradient.mul_scalar(0.5)?, &first, &second, &rates, options)?;
        (parameter, first, second) = (next.parameter, next.first, next.second);
        let found = eval_all(&[parameter.clone(), first.clone(), second.clone()])?;
        for (name, found) in ["parameter", "exp_avg", "exp_avg_sq"].into_iter().zip(&found) {
            let expected = case.tensor(name).get(step).unwrap();
            case.check(&format!("{name} after step {t}"), found, &expected, case.tolerance());
        }
    }
    Ok(())
}

fn check_all(operation: &str) {
    let least = OPERATIONS
        .iter()
        .find(|(name, _)| *name == operation)
        .map(|(_, least)| *least)
        .unwrap();
    let cases = cases(operation);
    assert!(
        cases.len() >= least,
        "{operation}: {} cases, expected {least}",
        cases.len()
    );
    for dtype in [DType::F32, DType::F64] {
        assert!(
            cases.iter().filter(|case| case.dtype == dtype).count() >= least / 2,
            "{operation}: cases of {dtype:?}"
        );
    }
    for backend in [Backend::Candle, Backend::Cpu] {
        for case in &cases {
            with_backend(backend, || match operation {
                "adamw" => adamw(case).unwrap_or_else(|e| panic!("{}: {e}", case.name)),
                _ => check(case, record),
            });
        }
    }
}

macro_rules! operations {
    ($($name:ident),*) => {
        mod torch_agrees_on {
            $(
                #[test]
                fn $name() {
                    super::check_all(stringify!($name));
                }
            )*
        }

        const TESTED: &[&str] = &[$(stringify!($name)),*];
    };
}

operations!(
    matmul,
    softmax,
    rms_norm,
    layer_norm,
    rope,
    swiglu,
    gelu,
    lora,
    attention,
    cross_entropy,
    adamw
);

/// The table covers all files of the folder, and each test above is in the table.
#[test]
fn every_file_has_its_test() {
    assert_eq!(TESTED, OPERATIONS.map(|(name, _)| name));
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/ops");
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let operation = name.strip_suffix(".safetensors").unwrap();
        // The frequencies are a model's, not an operation.
        assert!(
            operation == "rope_frequencies" || TESTED.contains(&operation),
            "{name} is not tested"
        );
    }
}

/// A position of zero that is only known at run time is the same as none.
#[test]
fn attention_with_an_offset_input() {
    let with_offset: Vec<Case> = cases("attention")
        .into_iter()
        .filter(|case| case.flag("causal"))
        .collect();
    assert!(with_offset.len() >= 24);
    for backend in [Backend::Candle, Backend::Cpu] {
        with_backend(backend, || {
            for case in &with_offset {
                check(case, |case, x| attention(case, x, true));
            }
        });
    }
}
