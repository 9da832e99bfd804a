//! The patterns of normalizers and decoders, which the library compiles itself.
//!
//! They are few and short, so the library's engine suffices after translation. Nothing here runs a pattern.

use serde_json::Value as Json;

use super::translate::translate;

/// Translates every `{"Regex": ...}` of a normalizer or decoder from Oniguruma.
pub(in crate::text) fn translate_patterns(value: &mut Json) -> Result<(), String> {
    match value {
        Json::Array(items) => items.iter_mut().try_for_each(translate_patterns),
        Json::Object(fields) => {
            for (name, field) in fields {
                match (name.as_str(), field) {
                    ("Regex", Json::String(pattern)) => {
                        let translated =
                            translate(pattern).map_err(|reason| format!("the pattern {pattern:?}: {reason}"))?;
                        *pattern = translated.pattern;
                    }
                    (_, field) => translate_patterns(field)?,
                }
            }
            Ok(())
        }
        _ => Ok(()),
    }
}
