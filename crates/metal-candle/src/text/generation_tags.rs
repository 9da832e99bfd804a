//! The tags `{% generation %}` and `{% endgeneration %}`, with which a chat template marks what the assistant writes.
//!
//! The template engine does not know them; here they become statements that it knows. Nothing here renders.

use std::sync::LazyLock;

use regex::Regex;

/// `{% generation %}` marks assistant text for transformers' masks and writes nothing itself: make it an `if true`.
pub(super) fn without_generation_tags(source: &str) -> String {
    static TAG: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}").ok());
    let Some(tag) = TAG.as_ref() else {
        return source.to_owned();
    };
    tag.replace_all(source, |found: &regex::Captures| {
        let statement = if found.get(2).is_some() { "endif" } else { "if true" };
        format!("{{%{} {statement} {}%}}", &found[1], &found[3])
    })
    .into_owned()
}
