//! Diagnosis of folders that are not models in Hugging Face's layout: what they contain, and what to do about it.
//!
//! Looks at names only and opens nothing.

use std::path::Path;

use metal_candle_graph::io::FileError;

use super::LoadError;

/// Maximum number of folder entries examined.
const MOST_ENTRIES: usize = 4096;

/// The folder, if it exists and contains a `config.json`.
pub(super) fn existing(folder: &Path) -> Result<&Path, LoadError> {
    let not_a_model = |reason| LoadError::NotAModel {
        path: folder.to_owned(),
        reason,
    };
    if folder.is_file() {
        return Err(not_a_model(of_file(folder)));
    }
    if !folder.is_dir() {
        return Err(LoadError::NoFolder {
            path: folder.to_owned(),
        });
    }
    if folder.join("config.json").symlink_metadata().is_err() {
        return Err(not_a_model(of_folder(folder)));
    }
    Ok(folder)
}

/// The error of a folder with settings whose weights cannot be opened, with what it contains instead.
pub(super) fn without_weights(folder: &Path, error: FileError) -> LoadError {
    let reason = match &error {
        FileError::NoWeights { .. } => other_weights(&names(folder)),
        _ => None,
    };
    match reason {
        Some(reason) => LoadError::NotAModel {
            path: folder.to_owned(),
            reason,
        },
        None => error.into(),
    }
}

fn of_file(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if has_extension(&name, "gguf") {
        return gguf(&name);
    }
    "is a file; give the folder of the model, with config.json, model.safetensors and tokenizer.json".to_owned()
}

fn of_folder(folder: &Path) -> String {
    let names = names(folder);
    let has = |name: &str| names.iter().any(|n| n == name);
    if has("adapter_config.json") {
        return "holds a LoRA adapter, not a model; give the folder of its base model, and this one as the adapter"
            .into();
    }
    if has("model_index.json") {
        return "holds a diffusers pipeline (model_index.json), not a language model".into();
    }
    if has("params.json") && names.iter().any(|n| n.starts_with("consolidated")) {
        return "holds a model in its authors' own layout (params.json, consolidated.*); give one converted to Hugging \
                Face's: config.json, model.safetensors, tokenizer.json"
            .into();
    }
    if let Some(inner) = inner_model(folder, &names) {
        return format!(
            "not a model folder: it holds no config.json; `{}` does, give that folder",
            inner.escape_debug()
        );
    }
    let seen = other_weights(&names).map_or_else(String::new, |seen| format!("; it {seen}"));
    format!(
        "not a model folder: it holds no config.json; give a folder in Hugging Face's layout: config.json, \
         model.safetensors, tokenizer.json{seen}"
    )
}

/// A model folder one or two levels below, as in the hub's cache: `snapshots/<commit>`.
fn inner_model(folder: &Path, entries: &[String]) -> Option<String> {
    let is_model = |inner: &str| folder.join(inner).join("config.json").is_file();
    let direct = entries.iter().find(|name| is_model(name)).cloned();
    direct.or_else(|| {
        let commits = names(&folder.join("snapshots"));
        commits
            .iter()
            .map(|name| format!("snapshots/{name}"))
            .find(|name| is_model(name))
    })
}

/// Weights in unsupported formats.
fn other_weights(names: &[String]) -> Option<String> {
    if let Some(name) = names.iter().find(|n| has_extension(n, "gguf")) {
        return Some(gguf(name));
    }
    if let Some(name) = names.iter().find(|n| has_extension(n, "safetensors")) {
        let name = name.escape_debug();
        return Some(format!(
            "holds `{name}`, but neither model.safetensors nor model.safetensors.index.json, which says where each tensor \
             is; is the download complete?"
        ));
    }
    let other = |n: &&String| {
        ["h5", "msgpack", "npz", "onnx", "ot"]
            .iter()
            .any(|e| has_extension(n, e))
    };
    let name = names.iter().find(other)?.escape_debug();
    Some(format!(
        "holds `{name}`, a format that is not read; save the model as safetensors: {}",
        convert("")
    ))
}

fn gguf(name: &str) -> String {
    let name = name.escape_debug().to_string();
    format!(
        "holds `{name}`; GGUF is not read. Convert it: {}",
        convert(&format!(", gguf_file='{name}'"))
    )
}

/// How to save a model and its tokenizer in a supported format. A model that transformers loaded from GGUF counts as
/// quantised, and can be saved only after removing its quantisation settings.
fn convert(argument: &str) -> String {
    format!(
        "python -c \"from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; \
         m = M.from_pretrained('FOLDER'{argument}); m.hf_quantizer = None; \
         vars(m.config).pop('quantization_config', None); m.save_pretrained('NEW_FOLDER'); \
         T.from_pretrained('FOLDER'{argument}).save_pretrained('NEW_FOLDER')\""
    )
}

fn has_extension(name: &str, extension: &str) -> bool {
    Path::new(name)
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case(extension))
}

/// The names in a folder, sorted; empty if it cannot be read.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries
        .take(MOST_ENTRIES)
        .map(|e| e.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.collect();
    names.sort_unstable();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The message for a folder with these files.
    fn said(files: &[&str]) -> String {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let error = existing(folder.path()).map(drop).unwrap_err();
        assert!(matches!(error, LoadError::NotAModel { .. }), "{error}");
        assert!(
            error.to_string().starts_with(&folder.path().display().to_string()),
            "{error}"
        );
        error.to_string()
    }

    #[test]
    fn folders_that_are_no_models_say_what_they_are() {
        for (files, parts) in [
            (&[][..], &["no config.json", "model.safetensors, tokenizer.json"][..]),
            (&["x.GGUF", "README.md"], &["`x.GGUF`", "gguf_file='x.GGUF'"]),
            (
                &["adapter_config.json", "adapter_model.safetensors"],
                &["LoRA adapter", "base model"],
            ),
            (&["model_index.json", "unet/config.json"], &["diffusers"]),
            (&["params.json", "consolidated.00.pth"], &["params.json", "converted"]),
            (&["snapshots/abc/config.json", "refs/main"], &["`snapshots/abc` does"]),
            (&["inner/config.json"], &["`inner` does"]),
            (&["model.safetensors"], &["no config.json"]),
            (&["flax_model.msgpack"], &["`flax_model.msgpack`", "save_pretrained"]),
        ] {
            let message = said(files);
            for part in parts {
                assert!(message.contains(part), "expected `{part}` in: {message}");
            }
        }
    }

    #[test]
    fn a_file_is_no_folder() {
        let folder = tempfile::tempdir().unwrap();
        for (name, part) in [("a.gguf", "GGUF is not read"), ("model.safetensors", "is a file")] {
            std::fs::write(folder.path().join(name), "").unwrap();
            let error = existing(&folder.path().join(name)).map(drop).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn settings_without_weights_say_what_is_there() {
        let missing = |names: &[&str]| {
            let folder = tempfile::tempdir().unwrap();
            for name in names {
                std::fs::write(folder.path().join(name), "").unwrap();
            }
            let error = metal_candle_graph::io::Checkpoint::open(folder.path())
                .map(drop)
                .unwrap_err();
            without_weights(folder.path(), error).to_string()
        };
        assert!(missing(&["config.json", "m.gguf"]).contains("gguf_file='m.gguf'"));
        assert!(missing(&["config.json", "model-00001-of-00002.safetensors"]).contains("index.json"));
        let pickle = missing(&["config.json", "pytorch_model.bin"]);
        assert!(
            pickle.contains("pytorch_model.bin") && pickle.contains("save_pretrained"),
            "{pickle}"
        );
        assert!(missing(&["config.json"]).contains("no weights") || missing(&["config.json"]).contains("safetensors"));
    }
}
