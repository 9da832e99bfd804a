//! Valid adapters, and malformed ones.

use tempfile::TempDir;

use super::*;
use crate::adapters::TargetModules;

const Q: &str = "model.layers.0.self_attn.q_proj";
const V: &str = "model.layers.0.self_attn.v_proj";

fn config() -> AdapterConfig {
    let target_modules = TargetModules::Names(vec!["q_proj".into(), "v_proj".into()]);
    AdapterConfig {
        r: 2,
        lora_alpha: 4.0,
        target_modules,
        ..Default::default()
    }
}

fn matrix(rows: usize, columns: usize) -> Tensor {
    let values: Vec<f32> = (0..rows * columns).map(|i| i as f32 * 0.25 - 1.0).collect();
    Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
}

fn pairs() -> BTreeMap<String, LoraPair> {
    let pair = |out| LoraPair {
        a: matrix(2, 6),
        b: matrix(out, 2),
    };
    BTreeMap::from([(Q.to_owned(), pair(6)), (V.to_owned(), pair(3))])
}

fn expected() -> Vec<(String, usize, usize)> {
    vec![(Q.to_owned(), 6, 6), (V.to_owned(), 6, 3)]
}

/// A folder with valid settings and these tensors.
fn folder(tensors: &[(&str, Tensor)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    config().write(folder.path(), folder.path()).unwrap();
    safetensors::write(&folder.path().join(FILE), tensors, &BTreeMap::new()).unwrap();
    folder
}

fn read(tensors: &[(&str, Tensor)]) -> Result<Adapter> {
    Adapter::read(folder(tensors).path(), &Device::Cpu)
}

#[test]
fn what_is_written_is_read() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("new/adapter");
    write_adapter(&folder, &config(), &pairs()).unwrap();
    let adapter = Adapter::read(&folder, &Device::Cpu).unwrap();
    assert_eq!(adapter.config, config());
    adapter.check_against(&expected()).unwrap();
    for (module, pair) in pairs() {
        let found = &adapter.pairs[&module];
        assert_eq!(found.a.to_vec2::<f32>().unwrap(), pair.a.to_vec2::<f32>().unwrap());
        assert_eq!(found.b.to_vec2::<f32>().unwrap(), pair.b.to_vec2::<f32>().unwrap());
    }
    let report = adapter.report().unwrap();
    assert_eq!(
        report,
        AdapterReport {
            modules: 2,
            parameters: 12 + 12 + 12 + 6,
            all_deltas_zero: false
        }
    );
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 2, "nothing is left beside");
}

/// The names that PEFT's `save_pretrained` writes.
#[test]
fn names_are_those_of_peft() {
    let folder = tempfile::tempdir().unwrap();
    write_adapter(folder.path(), &config(), &pairs()).unwrap();
    let file = SafetensorsFile::open(folder.path().join("adapter_model.safetensors")).unwrap();
    assert!(file.names().eq([
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight",
        "base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight",
        "base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight",
    ]));
    assert_eq!(file.metadata()["format"], "pt");
}

#[test]
fn half_precision_is_read_as_f32() {
    let (a, b) = (key(Q, 'A'), key(Q, 'B'));
    let bf16 = |t: Tensor| t.to_dtype(DType::BF16).unwrap();
    let adapter = read(&[(&a, bf16(matrix(2, 6))), (&b, bf16(matrix(6, 2)))]).unwrap();
    assert_eq!(
        adapter.pairs[Q].a.to_vec2::<f32>().unwrap(),
        matrix(2, 6).to_vec2::<f32>().unwrap()
    );
}

#[test]
fn one_half_of_a_pair_names_the_other() {
    for (present, missing) in [('A', 'B'), ('B', 'A')] {
        let fault = read(&[(&key(Q, present), matrix(2, 2))]).unwrap_err();
        let missing = key(Q, missing);
        assert!(
            matches!(&fault, AdapterError::MissingTensor { name, .. } if *name == missing),
            "{fault}"
        );
    }
}

#[test]
fn tensors_that_are_no_lora_weights_are_named() {
    for name in [
        "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector.weight",
        "base_model.model.model.norm.weight",
        "model.layers.0.self_attn.q_proj.lora_A.weight",
    ] {
        let (a, b) = (key(Q, 'A'), key(Q, 'B'));
        let fault = read(&[(&a, matrix(2, 6)), (&b, matrix(6, 2)), (name, matrix(1, 1))]).unwrap_err();
        assert!(
            matches!(&fault, AdapterError::NotALoraWeight { name: n, .. } if n == name),
            "{fault}"
        );
    }
}

#[test]
fn ranks_and_dimensions_are_checked_on_reading() {
    let (a, b) = (key(Q, 'A'), key(Q, 'B'));
    let flat = matrix(2, 6).flatten_all().unwrap();
    for (tensor_a, tensor_b, culprit) in [
        (matrix(3, 6), matrix(6, 2), &a),
        (matrix(2, 6), matrix(6, 3), &b),
        (flat, matrix(6, 2), &a),
    ] {
        let fault = read(&[(&a, tensor_a), (&b, tensor_b)]).unwrap_err();
        assert!(
            matches!(&fault, AdapterError::Shape { name, .. } if name == culprit),
            "{fault}"
        );
    }
}

#[test]
fn an_adapter_for_another_model_is_named() {
    let folder = tempfile::tempdir().unwrap();
    write_adapter(folder.path(), &config(), &pairs()).unwrap();
    let adapter = Adapter::read(folder.path(), &Device::Cpu).unwrap();
    let check = |expected: &[(String, usize, usize)]| adapter.check_against(expected).unwrap_err();
    let extra = check(&expected()[..1]);
    assert!(
        matches!(&extra, AdapterError::UnexpectedTensor { name, .. } if *name == key(V, 'A')),
        "{extra}"
    );
    let more = [expected(), vec![("lm_head".to_owned(), 6, 9)]].concat();
    let missing = check(&more);
    assert!(
        matches!(&missing, AdapterError::MissingTensor { name, .. } if *name == key("lm_head", 'A')),
        "{missing}"
    );
    for (at, input, output, culprit) in [(0, 5, 6, key(Q, 'A')), (1, 6, 4, key(V, 'B'))] {
        let mut other = expected();
        (other[at].1, other[at].2) = (input, output);
        let fault = check(&other);
        assert!(
            matches!(&fault, AdapterError::Shape { name, .. } if *name == culprit),
            "{fault}"
        );
    }
}

#[test]
fn an_adapter_without_effect_is_reported() {
    let mut zero = pairs();
    for pair in zero.values_mut() {
        pair.b = pair.b.zeros_like().unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    write_adapter(folder.path(), &config(), &zero).unwrap();
    assert!(
        Adapter::read(folder.path(), &Device::Cpu)
            .unwrap()
            .report()
            .unwrap()
            .all_deltas_zero
    );
}

#[test]
fn a_weight_that_is_not_finite_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    write_adapter(folder.path(), &config(), &pairs()).unwrap();
    let file = folder.path().join(FILE);
    let mut bytes = fs::read(&file).unwrap();
    // The last weight of the last tensor.
    let last = bytes.len() - 4;
    bytes[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&file, bytes).unwrap();
    let fault = Adapter::read(folder.path(), &Device::Cpu).unwrap_err();
    assert!(
        matches!(&fault, AdapterError::NotFiniteWeight { path, name } if *path == file && *name == key(V, 'B')),
        "{fault}"
    );
}

#[test]
fn invalid_adapters_are_not_written() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("adapter");
    let mut nan = pairs();
    nan.get_mut(V).unwrap().a = Tensor::full(f32::NAN, (2, 6), &Device::Cpu).unwrap();
    let fault = write_adapter(&folder, &config(), &nan).unwrap_err();
    assert!(
        matches!(&fault, AdapterError::NotFinite { name } if *name == key(V, 'A')),
        "{fault}"
    );
    let wrong = AdapterConfig { r: 3, ..config() };
    assert!(matches!(
        write_adapter(&folder, &wrong, &pairs()),
        Err(AdapterError::Shape { .. })
    ));
    assert!(matches!(
        write_adapter(&folder, &config(), &BTreeMap::new()),
        Err(AdapterError::Empty { .. })
    ));
    assert!(!folder.exists());
}

#[test]
fn pickles_are_refused_with_advice_and_missing_files_named() {
    let folder = tempfile::tempdir().unwrap();
    let absent = Adapter::read(folder.path(), &Device::Cpu).unwrap_err();
    assert!(absent.to_string().contains("adapter_config.json"), "{absent}");
    config().write(folder.path(), folder.path()).unwrap();
    let absent = Adapter::read(folder.path(), &Device::Cpu).unwrap_err();
    assert!(absent.to_string().contains("adapter_model.safetensors"), "{absent}");
    std::fs::write(folder.path().join(PICKLE), b"x").unwrap();
    let pickle = Adapter::read(folder.path(), &Device::Cpu).unwrap_err();
    assert!(
        matches!(&pickle, AdapterError::File(FileError::PickleRefused { advice, .. }) if advice.contains("save_file"))
    );
}

#[test]
fn a_file_without_tensors_is_named() {
    let none: [(&str, Tensor); 0] = [];
    assert!(matches!(read(&none), Err(AdapterError::Empty { .. })));
}

/// PEFT's names of factors of the output head and of embeddings, and of full weights that it saves with them.
#[test]
fn adapters_on_head_or_embedding_are_refused_as_such() {
    let (a, b) = (key(Q, 'A'), key(Q, 'B'));
    for (name, module) in [
        ("base_model.model.lm_head.lora_A.weight", "lm_head"),
        ("base_model.model.lm_head.base_layer.weight", "lm_head"),
        ("base_model.model.lm_head.weight", "lm_head"),
        (
            "base_model.model.model.embed_tokens.lora_embedding_A",
            "model.embed_tokens",
        ),
        (
            "base_model.model.model.embed_tokens.base_layer.weight",
            "model.embed_tokens",
        ),
        ("base_model.model.transformer.wte.lora_embedding_B", "transformer.wte"),
    ] {
        let fault = read(&[(&a, matrix(2, 6)), (&b, matrix(6, 2)), (name, matrix(2, 2))]).unwrap_err();
        assert!(
            matches!(&fault, AdapterError::HeadOrEmbedding { module: m, .. } if m == module),
            "{fault}"
        );
        let text = fault.to_string();
        assert!(
            text.contains(FILE) && text.contains(name) && text.contains("not supported"),
            "{text}"
        );
    }
}

/// The folder never mixes settings and weights of two adapters, whichever step fails.
#[test]
fn a_failed_write_leaves_the_old_adapter() {
    let home = tempfile::tempdir().unwrap();
    let content = || ["adapter_config.json", FILE].map(|file| fs::read(home.path().join(file)).unwrap());
    write_adapter(home.path(), &config(), &pairs()).unwrap();
    let before = content();

    let wider = AdapterConfig {
        lora_alpha: 8.0,
        ..config()
    };
    let nan = BTreeMap::from([(
        Q.to_owned(),
        LoraPair {
            a: (matrix(2, 6) * f64::NAN).unwrap(),
            b: matrix(6, 2),
        },
    )]);
    assert!(write_adapter(home.path(), &wider, &nan).is_err());
    assert_eq!(content(), before);

    // The settings cannot be replaced: the path is a folder that is not empty.
    let blocked = tempfile::tempdir().unwrap();
    fs::create_dir_all(blocked.path().join("adapter_config.json/x")).unwrap();
    fs::write(blocked.path().join(FILE), b"old").unwrap();
    let fault = write_adapter(blocked.path(), &wider, &pairs()).unwrap_err().to_string();
    assert!(fault.contains("adapter_config.json: cannot remove"), "{fault}");
    assert_eq!(fs::read(blocked.path().join(FILE)).unwrap(), b"old");
    assert_eq!(
        fs::read_dir(blocked.path()).unwrap().count(),
        2,
        "nothing is left beside"
    );

    write_adapter(home.path(), &wider, &pairs()).unwrap();
    assert_eq!(Adapter::read(home.path(), &Device::Cpu).unwrap().config, wider);
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 2, "nothing is left beside");
}
