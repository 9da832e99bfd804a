//! Round trips: files are read back as written, by this crate and by the reference, and no corruption panics.

use std::collections::BTreeMap;
use std::fs;

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use proptest::prelude::*;

use super::super::FileError;
use super::super::safetensors::{SafetensorsFile, write};
use super::{file, raw};

#[test]
fn writing_refuses_reserved_and_repeated_names_and_keeps_the_old_file() {
    let (_folder, path) = raw(b"old");
    let t = Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap();
    let none = BTreeMap::new();
    let reserved = write(&path, &[("__metadata__", t.clone())], &none);
    assert!(matches!(reserved, Err(FileError::ReservedName { .. })));
    let twice = write(&path, &[("a", t.clone()), ("a", t)], &none);
    assert!(matches!(twice, Err(FileError::DuplicateName { .. })));
    assert_eq!(fs::read(&path).unwrap(), b"old");
}

#[test]
fn saving_over_the_file_that_is_loaded() {
    let (_folder, path) = raw(b"");
    let none = BTreeMap::new();
    write(&path, &[("a", Tensor::new(&[1f32, 2.], &Device::Cpu).unwrap())], &none).unwrap();
    let open = SafetensorsFile::open(&path).unwrap();
    write(&path, &[("a", Tensor::new(&[3f32], &Device::Cpu).unwrap())], &none).unwrap();
    let before = open.load("a", &Device::Cpu).unwrap().to_vec1::<f32>().unwrap();
    let after = SafetensorsFile::open(&path).unwrap().load("a", &Device::Cpu).unwrap();
    assert_eq!((before, after.to_vec1::<f32>().unwrap()), (vec![1., 2.], vec![3.]));
}

/// The reference implementation writes the same bytes and reads ours.
#[test]
fn bytes_equal_the_reference_writer() {
    use safetensors::tensor::{Dtype, TensorView};
    let dev = &Device::Cpu;
    let ours = [
        ("b.weight", Tensor::new(&[[1.5f32, -2.], [0.25, 4.]], dev).unwrap()),
        ("ids \"quoted\" \u{e9}", Tensor::new(&[7i64], dev).unwrap()),
        ("a", Tensor::new(&[1u8, 2, 3], dev).unwrap()),
        ("half", Tensor::new(&[f16::ONE], dev).unwrap()),
    ];
    let (_folder, path) = raw(b"");
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    write(&path, &ours, &metadata).unwrap();
    let floats: Vec<u8> = [1.5f32, -2., 0.25, 4.].iter().flat_map(|v| v.to_le_bytes()).collect();
    let views = [
        ("b.weight", TensorView::new(Dtype::F32, vec![2, 2], &floats).unwrap()),
        (
            ours[1].0,
            TensorView::new(Dtype::I64, vec![1], &[7, 0, 0, 0, 0, 0, 0, 0]).unwrap(),
        ),
        ("a", TensorView::new(Dtype::U8, vec![3], &[1, 2, 3]).unwrap()),
        ("half", TensorView::new(Dtype::F16, vec![1], &[0, 0x3c]).unwrap()),
    ];
    let reference = safetensors::serialize(views, Some(metadata.into_iter().collect())).unwrap();
    assert_eq!(fs::read(&path).unwrap(), reference);
}

fn tensor_of(kind: usize, numbers: &[i16], shape: &[usize]) -> Tensor {
    fn make<T: candle_core::WithDType>(n: &[i16], shape: &[usize], f: impl Fn(i16) -> T) -> Tensor {
        Tensor::from_vec(n.iter().map(|&v| f(v)).collect::<Vec<T>>(), shape, &Device::Cpu).unwrap()
    }
    match kind {
        0 => make(numbers, shape, |v| f32::from(v) / 3.),
        1 => make(numbers, shape, |v| f16::from_f32(f32::from(v) / 3.)),
        2 => make(numbers, shape, |v| bf16::from_f32(f32::from(v) / 3.)),
        3 => make(numbers, shape, |v| i64::from(v) << 40),
        4 => make(numbers, shape, |v| u32::from(v as u16) << 15),
        5 => make(numbers, shape, |v| v as u8),
        _ => make(numbers, shape, |v| f64::from(v) / 3.),
    }
}

fn bits(tensor: &Tensor) -> Vec<u64> {
    let flat = tensor.flatten_all().unwrap();
    match tensor.dtype() {
        DType::F32 => flat
            .to_vec1::<f32>()
            .unwrap()
            .iter()
            .map(|v| v.to_bits().into())
            .collect(),
        DType::F16 => flat
            .to_vec1::<f16>()
            .unwrap()
            .iter()
            .map(|v| v.to_bits().into())
            .collect(),
        DType::BF16 => flat
            .to_vec1::<bf16>()
            .unwrap()
            .iter()
            .map(|v| v.to_bits().into())
            .collect(),
        DType::I64 => flat.to_vec1::<i64>().unwrap().iter().map(|&v| v as u64).collect(),
        DType::U32 => flat.to_vec1::<u32>().unwrap().iter().map(|&v| v.into()).collect(),
        DType::U8 => flat.to_vec1::<u8>().unwrap().iter().map(|&v| v.into()).collect(),
        _ => flat.to_vec1::<f64>().unwrap().iter().map(|v| v.to_bits()).collect(),
    }
}

/// Names and small tensors of every dtype and rank 0 to 3, some without elements, some transposed.
fn tensors() -> impl Strategy<Value = BTreeMap<String, Tensor>> {
    let one = (0..7usize, prop::collection::vec(0..4usize, 0..4)).prop_flat_map(|(kind, shape)| {
        let count = shape.iter().product::<usize>();
        prop::collection::vec(any::<i16>(), count).prop_map(move |n| {
            let tensor = tensor_of(kind, &n, &shape);
            if shape.len() == 2 { tensor.t().unwrap() } else { tensor }
        })
    });
    prop::collection::btree_map("[a-z.\"\\\\\u{e9} ]{1,8}", one, 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn round_trip(tensors in tensors(), metadata in prop::collection::btree_map(".{0,6}", ".{0,6}", 0..4)) {
        let (_folder, path) = raw(b"");
        let list: Vec<_> = tensors.iter().map(|(n, t)| (n, t.clone())).collect();
        write(&path, &list, &metadata).unwrap();
        safetensors::SafeTensors::deserialize(&fs::read(&path).unwrap()).unwrap();
        let open = SafetensorsFile::open(&path).unwrap();
        prop_assert_eq!(open.metadata(), &metadata);
        prop_assert!(open.names().eq(tensors.keys()));
        for (name, tensor) in &tensors {
            let back = open.load(name, &Device::Cpu).unwrap();
            prop_assert_eq!((back.dtype(), back.dims()), (tensor.dtype(), tensor.dims()));
            prop_assert_eq!(bits(&back), bits(tensor));
        }
    }

    /// Converting while reading gives the same result as Candle's conversion afterwards.
    #[test]
    fn conversions_equal_candles(numbers in prop::collection::vec(any::<i16>(), 1..50), from in 0..4usize, to in 0..4usize) {
        let kinds = [(0, DType::F32), (1, DType::F16), (2, DType::BF16), (6, DType::F64)];
        let tensor = tensor_of(kinds[from].0, &numbers, &[numbers.len()]);
        let (_folder, path) = raw(b"");
        write(&path, &[("t", tensor.clone())], &BTreeMap::new()).unwrap();
        let read = SafetensorsFile::open(&path).unwrap().load_as("t", kinds[to].1, &Device::Cpu).unwrap();
        prop_assert_eq!(bits(&read), bits(&tensor.to_dtype(kinds[to].1).unwrap()));
    }

    /// Any corruption gives tensors or an error, never a panic.
    #[test]
    fn corruption_never_panics(tensors in tensors(), hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8), cut in 0..9usize) {
        let (_folder, path) = raw(b"");
        let list: Vec<_> = tensors.iter().map(|(n, t)| (n, t.clone())).collect();
        write(&path, &list, &BTreeMap::new()).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        for (at, value) in hits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(bytes.len() - cut / 2);
        fs::write(&path, &bytes).unwrap();
        if let Ok(open) = SafetensorsFile::open(&path) {
            for name in open.names() {
                let _ = open.load(name, &Device::Cpu);
            }
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let header = String::from_utf8_lossy(&bytes).into_owned();
        let (_folder, path) = file(&header, 3);
        prop_assert!(SafetensorsFile::open(&path).is_err());
    }
}

/// A tensor longer than one chunk.
#[test]
fn tensors_span_chunks() {
    let (_folder, path) = raw(b"");
    let count = 300_001;
    let tensor = Tensor::arange(0f32, count as f32, &Device::Cpu).unwrap();
    write(&path, &[("t", tensor.clone())], &BTreeMap::new()).unwrap();
    let open = SafetensorsFile::open(&path).unwrap();
    assert_eq!(bits(&open.load("t", &Device::Cpu).unwrap()), bits(&tensor));
}
