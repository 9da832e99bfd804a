//! `adapter_config.json`, as PEFT writes and reads it.

use std::path::Path;

use metal_candle_graph::io::{read_json_object, write_atomically};
use regex::Regex;
use serde_json::{Map, Value, json};

use super::error::Result;
use super::files::fault_at;
use super::target_modules::full_match;
use super::{AdapterError, TargetModules};
use crate::error::setting_text;
use crate::models::{ConfigError, Fields};

/// Name of the file within an adapter's folder.
pub(super) const FILE: &str = "adapter_config.json";

/// Maximum entries of a pattern table; enough for one per linear layer of the largest models.
const MAX_PATTERNS: usize = 1024;

/// PEFT settings that change the computation and are not implemented: each must be absent, null, false or empty.
const MUST_BE_OFF: [&str; 18] = [
    "alora_invocation_tokens",
    "arrow_config",
    "exclude_modules",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "layers_pattern",
    "layers_to_transform",
    "lora_bias",
    "megatron_config",
    "modules_to_save",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
];

/// PEFT settings that are either implemented or do not affect the computation: provenance, initialisation, distribution
/// of the weights.
const KNOWN: [&str; 24] = [
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "init_lora_weights",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
];

/// Maximum number of unknown settings that are listed, and maximum characters of each.
const MAX_NAMED: usize = 8;

/// The settings of an adapter, under PEFT's names.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterConfig {
    /// Rank of the two factors.
    pub r: usize,
    /// Numerator of the scaling.
    pub lora_alpha: f64,
    /// Dropout probability of the adapter's input in training.
    pub lora_dropout: f64,
    /// Whether the scaling divides by the square root of the rank.
    pub use_rslora: bool,
    /// Which linear layers are adapted.
    pub target_modules: TargetModules,
    /// Exceptions to `r`: patterns that match the end of a module's name; the first match counts.
    pub rank_pattern: Vec<(String, usize)>,
    /// Exceptions to `lora_alpha`, likewise.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Name or path of the base model, if known.
    pub base_model_name_or_path: Option<String>,
}

/// Rank and scaling of each module; created by [`AdapterConfig::per_module`].
#[derive(Debug)]
pub struct PerModule<'c> {
    config: &'c AdapterConfig,
    ranks: Vec<(Regex, usize)>,
    alphas: Vec<(Regex, f64)>,
}

impl PerModule<'_> {
    /// The rank of a module: that of the first matching `rank_pattern`, else `r`.
    #[must_use]
    pub fn rank_of(&self, module: &str) -> usize {
        first_match(&self.ranks, module).unwrap_or(self.config.r)
    }

    /// The scaling of a module's low-rank term, from its rank and alpha.
    #[must_use]
    pub fn scaling_of(&self, module: &str) -> f64 {
        let alpha = first_match(&self.alphas, module).unwrap_or(self.config.lora_alpha);
        self.config.scale(self.rank_of(module), alpha)
    }
}

fn first_match<T: Copy>(patterns: &[(Regex, T)], module: &str) -> Option<T> {
    patterns
        .iter()
        .find(|(pattern, _)| pattern.is_match(module))
        .map(|&(_, value)| value)
}

impl Default for AdapterConfig {
    /// PEFT's defaults (rank 8, alpha 8, no dropout) on every linear layer.
    fn default() -> Self {
        Self {
            r: 8,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            use_rslora: false,
            target_modules: TargetModules::AllLinear,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            base_model_name_or_path: None,
        }
    }
}

impl AdapterConfig {
    /// The scaling of the low-rank term: `alpha / r`, or `alpha / sqrt(r)` with `use_rslora`.
    ///
    /// ```
    /// use metal_candle::adapters::AdapterConfig;
    /// let config = AdapterConfig { r: 4, lora_alpha: 16.0, ..Default::default() };
    /// assert_eq!(config.scaling(), 4.0);
    /// assert_eq!(AdapterConfig { use_rslora: true, ..config }.scaling(), 8.0);
    /// ```
    #[must_use]
    pub fn scaling(&self) -> f64 {
        self.scale(self.r, self.lora_alpha)
    }

    fn scale(&self, rank: usize, alpha: f64) -> f64 {
        let rank = rank as f64;
        alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }

    /// Rank and scaling per module, with the patterns compiled once.
    ///
    /// # Errors
    /// [`AdapterError::Pattern`], and [`AdapterError::Setting`] if there are too many patterns.
    pub fn per_module(&self) -> Result<PerModule<'_>> {
        Ok(PerModule {
            config: self,
            ranks: compiled("rank_pattern", &self.rank_pattern)?,
            alphas: compiled("alpha_pattern", &self.alpha_pattern)?,
        })
    }

    /// Checks that every setting is in range.
    ///
    /// # Errors
    /// [`AdapterError::Setting`] for the first that is not, [`AdapterError::Pattern`].
    pub fn validate(&self) -> Result<()> {
        let bound = |field, ok: bool, reason: String| {
            if ok {
                Ok(())
            } else {
                Err(AdapterError::Setting { field, reason })
            }
        };
        let rank = |r: usize| (1..=1 << 16).contains(&r);
        // The computation uses f32.
        let alpha = |a: f64| a > 0.0 && (a as f32).is_normal();
        bound(
            "r",
            rank(self.r),
            format!("is {}, which is not between 1 and 65536", self.r),
        )?;
        bound(
            "lora_alpha",
            alpha(self.lora_alpha),
            format!("is {}, which is not above 0 and finite", setting_text(self.lora_alpha)),
        )?;
        let dropout = self.lora_dropout;
        bound(
            "lora_dropout",
            dropout >= 0.0 && (dropout as f32) < 1.0,
            format!("is {}, which is not from 0 to below 1", setting_text(dropout)),
        )?;
        for (pattern, r) in &self.rank_pattern {
            bound("rank_pattern", rank(*r), format!("gives `{pattern}` rank {r}"))?;
        }
        for (pattern, a) in &self.alpha_pattern {
            bound("alpha_pattern", alpha(*a), format!("gives `{pattern}` alpha {a}"))?;
        }
        self.per_module()?;
        match &self.target_modules {
            TargetModules::Names(names) if names.is_empty() || names.iter().any(String::is_empty) => {
                bound("target_modules", false, "is empty or has an empty entry".to_owned())
            }
            TargetModules::Pattern(pattern) => full_match("target_modules", pattern, "").map(|_| ()),
            _ => Ok(()),
        }
    }

    /// Reads `adapter_config.json` of an adapter's folder.
    ///
    /// # Errors
    /// [`AdapterError::Config`] naming the field that is missing, mistyped, out of range or not supported.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        let map = read_json_object(&path)?;
        Self::from_json(&path, &map)
    }

    /// Builds the settings from a parsed file; `path` is used in messages only. Keys unknown to this version are
    /// ignored, and listed in a warning through `tracing` unless they are null, false or empty.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn from_json(path: &Path, map: &Map<String, Value>) -> Result<Self> {
        let fields = Fields::new(path, map);
        refuse_unsupported(&fields)?;
        let config = Self {
            r: fields.usize("r")?.unwrap_or(8),
            lora_alpha: fields.f64("lora_alpha")?.unwrap_or(8.0),
            lora_dropout: fields.f64("lora_dropout")?.unwrap_or(0.0),
            use_rslora: fields.bool("use_rslora")?.unwrap_or(false),
            target_modules: target_modules(&fields)?,
            rank_pattern: patterns(&fields, "rank_pattern", |v| {
                v.as_u64().and_then(|r| usize::try_from(r).ok())
            })?,
            alpha_pattern: patterns(&fields, "alpha_pattern", Value::as_f64)?,
            base_model_name_or_path: fields.str("base_model_name_or_path")?.map(str::to_owned),
        };
        config.validate().map_err(|e| match e {
            AdapterError::Setting { field, reason } => fields.invalid(field, reason).into(),
            other => other,
        })?;
        if let Some(warning) = unknown_settings(path, map) {
            tracing::warn!("{warning}");
        }
        Ok(config)
    }

    /// The contents of the file, with the keys that every version of PEFT since 0.7 knows.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let targets = match &self.target_modules {
            TargetModules::Names(names) => json!(names),
            TargetModules::AllLinear => json!("all-linear"),
            TargetModules::Pattern(pattern) => json!(pattern),
        };
        let ranks: Map<_, _> = self.rank_pattern.iter().map(|(k, r)| (k.clone(), json!(r))).collect();
        let alphas: Map<_, _> = self
            .alpha_pattern
            .iter()
            .map(|(k, a)| (k.clone(), number(*a)))
            .collect();
        json!({
            "alpha_pattern": alphas,
            "auto_mapping": null,
            "base_model_name_or_path": self.base_model_name_or_path,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "layers_pattern": null,
            "layers_to_transform": null,
            "lora_alpha": number(self.lora_alpha),
            "lora_dropout": self.lora_dropout,
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": self.r,
            "rank_pattern": ranks,
            "revision": null,
            "target_modules": targets,
            "task_type": "CAUSAL_LM",
            "use_rslora": self.use_rslora,
        })
    }

    /// Writes `adapter_config.json` into a folder, atomically; messages give the folder as `shown`.
    pub(super) fn write(&self, folder: &Path, shown: &Path) -> Result<()> {
        let text = format!("{:#}\n", self.to_json());
        let written = write_atomically(&folder.join(FILE), |out| out.write_all(text.as_bytes()));
        Ok(written.map_err(|fault| fault_at(fault, &shown.join(FILE)))?)
    }
}

/// An integer without a fraction, as PEFT writes it.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        json!(value as i64)
    } else {
        json!(value)
    }
}

/// Patterns that match the end of a module's name, from its beginning or after a dot.
fn compiled<T: Copy>(field: &'static str, patterns: &[(String, T)]) -> Result<Vec<(Regex, T)>> {
    if patterns.len() > MAX_PATTERNS {
        let reason = format!("has {} entries, the limit is {MAX_PATTERNS}", patterns.len());
        return Err(AdapterError::Setting { field, reason });
    }
    let compile = |(pattern, value): &(String, T)| Ok((full_match(field, pattern, r"(?:.*\.)?")?, *value));
    patterns.iter().map(compile).collect()
}

fn refuse_unsupported(fields: &Fields<'_>) -> std::result::Result<(), ConfigError> {
    let peft_type = fields.str("peft_type")?.ok_or_else(|| fields.missing("peft_type"))?;
    if peft_type != "LORA" {
        return Err(fields.unsupported("peft_type", &peft_type.into(), "LORA"));
    }
    for (field, supported) in [("task_type", "CAUSAL_LM"), ("bias", "none")] {
        match fields.str(field)? {
            Some(text) if text != supported => {
                return Err(fields.unsupported(field, &text.into(), supported));
            }
            _ => {}
        }
    }
    for field in MUST_BE_OFF {
        match fields.get(field) {
            Some(value) if !is_off(value) => {
                return Err(fields.unsupported(field, value, "absent, null, false or empty"));
            }
            _ => {}
        }
    }
    // PEFT's other initialisations change the base weights, which an adapter's files do not contain.
    match fields.get("init_lora_weights") {
        None | Some(Value::Bool(_)) => Ok(()),
        Some(Value::String(kind)) if ["gaussian", "eva", "orthogonal"].contains(&kind.as_str()) => Ok(()),
        Some(value) => Err(fields.unsupported("init_lora_weights", value, "true, false, gaussian, eva, orthogonal")),
    }
}

/// The warning about unknown settings.
fn unknown_settings(path: &Path, map: &Map<String, Value>) -> Option<String> {
    let unknown = |(key, value): &(&String, &Value)| {
        !KNOWN.contains(&key.as_str()) && !MUST_BE_OFF.contains(&key.as_str()) && !is_off(value)
    };
    let keys: Vec<&str> = map.iter().filter(unknown).map(|(key, _)| key.as_str()).collect();
    let short = |text: &str| text.chars().take(40).flat_map(char::escape_debug).collect::<String>();
    let mut named: Vec<String> = keys
        .iter()
        .take(MAX_NAMED)
        .map(|key| format!("`{}`", short(key)))
        .collect();
    if keys.len() > MAX_NAMED {
        named.push(format!("{} more", keys.len() - MAX_NAMED));
    }
    let version = map.get("peft_version").and_then(Value::as_str);
    let writer = version.map_or_else(
        || "the file does not name the PEFT version".to_owned(),
        |v| format!("written by PEFT {}", short(v)),
    );
    (!keys.is_empty()).then(|| {
        format!(
            "{}: unknown settings are ignored: {} ({writer}); if they change what the adapter computes, its results differ \
             from PEFT's",
            path.display(),
            named.join(", ")
        )
    })
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Number(_) => false,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

fn target_modules(fields: &Fields<'_>) -> std::result::Result<TargetModules, ConfigError> {
    match fields.get("target_modules") {
        None => Err(fields.missing("target_modules")),
        Some(Value::String(text)) => Ok(TargetModules::from_text(text)),
        Some(_) => Ok(TargetModules::Names(
            fields.texts("target_modules")?.unwrap_or_default(),
        )),
    }
}

/// An object that maps patterns to numbers, in the file's order.
fn patterns<T>(
    fields: &Fields<'_>,
    field: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> std::result::Result<Vec<(String, T)>, ConfigError> {
    let Some(value) = fields.get(field) else {
        return Ok(Vec::new());
    };
    let pairs = |map: &Map<String, Value>| map.iter().map(|(k, v)| Some((k.clone(), read(v)?))).collect();
    let found: Option<Vec<_>> = value.as_object().and_then(pairs);
    found.ok_or_else(|| fields.mistyped(field, "an object of patterns and numbers", value))
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
