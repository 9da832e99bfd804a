//! The tags `{% generation %}` and `{% endgeneration %}`, with which a chat template marks the assistant's text.
//!
//! To find the marked text, a conversation is rendered a second time with marks around it. The marks are chosen so that
//! they do not occur in the text, so no message can forge one.

use std::ops::Range;

use serde_json::Value as Json;

use super::{ChatMessage, ChatTemplate, TextError};

/// The byte ranges of `text`, the rendered conversation, inside generation tags. `None` if the template has no tags, or
/// reads its own marked text, so that marks would change the rendering.
///
/// # Errors
/// Those of rendering.
pub(crate) fn generation_spans(
    template: &ChatTemplate,
    messages: &[ChatMessage],
    tools: Option<&Json>,
    text: &str,
) -> Result<Option<Vec<Range<usize>>>, TextError> {
    if !template.marks_generation(tools) {
        return Ok(None);
    }
    let marks = Marks::absent_from(&[text, template.source()]);
    let marked = template.render_marked(messages, tools, (&marks.open, &marks.close))?;
    Ok(marks
        .spans(&marked)
        .filter(|(plain, _)| plain == text)
        .map(|(_, spans)| spans))
}

/// The strings written before and after marked text.
struct Marks {
    open: String,
    close: String,
}

impl Marks {
    /// Marks that none of the texts contains.
    fn absent_from(texts: &[&str]) -> Self {
        let marks = |number: u64| Self {
            open: format!("\u{F0000}{number}\u{F0001}"),
            close: format!("\u{F0000}{number}\u{F0002}"),
        };
        let absent = |marks: &Self| {
            texts
                .iter()
                .all(|text| !text.contains(&marks.open) && !text.contains(&marks.close))
        };
        // A text contains fewer numbers than bytes, so one of these is unused.
        let most = texts.iter().map(|text| text.len() as u64).sum();
        (0..=most).map(marks).find(absent).unwrap_or_else(|| marks(0))
    }

    /// The text without marks, and the ranges between them; `None` unless each mark is closed. Nested marks are part of
    /// the outer range.
    fn spans(&self, marked: &str) -> Option<(String, Vec<Range<usize>>)> {
        let (mut plain, mut spans) = (String::with_capacity(marked.len()), Vec::new());
        let (mut rest, mut depth, mut start) = (marked, 0usize, 0);
        while let Some(at) = [&self.open, &self.close]
            .iter()
            .filter_map(|mark| rest.find(mark.as_str()))
            .min()
        {
            plain.push_str(&rest[..at]);
            if rest[at..].starts_with(&self.open) {
                if depth == 0 {
                    start = plain.len();
                }
                depth += 1;
            } else {
                depth = depth.checked_sub(1)?;
                if depth == 0 && plain.len() > start {
                    spans.push(start..plain.len());
                }
            }
            rest = &rest[at + self.open.len()..];
        }
        plain.push_str(rest);
        (depth == 0).then_some((plain, spans))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The marked parts of the rendering.
    fn marked(source: &str, contents: &[&str]) -> Option<Vec<String>> {
        let template = ChatTemplate::new("t.jinja", source, [("eos_token", "</s>")]).unwrap();
        let messages: Vec<ChatMessage> = contents
            .iter()
            .enumerate()
            .map(|(i, content)| ChatMessage::new(["user", "assistant"][i % 2], *content))
            .collect();
        let text = template.render(&messages, false).unwrap();
        let spans = generation_spans(&template, &messages, None, &text).unwrap()?;
        Some(spans.into_iter().map(|span| text[span].to_owned()).collect())
    }

    #[test]
    fn marks_are_found_in_loops_macros_and_captures() {
        let turn = "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}</s>{% endgeneration %}{% else %}\
                    {{ m.content }}{% endif %}";
        for source in [
            format!("{{% for m in messages %}}{turn}{{% endfor %}}"),
            format!(
                "{{% macro say(m) %}}[{turn}]{{% endmacro %}}{{% for m in messages %}}{{{{ say(m) }}}}{{% endfor %}}"
            ),
            format!("{{% set all %}}{{% for m in messages %}}{turn}{{% endfor %}}{{% endset %}}<{{{{ all }}}}>"),
        ] {
            let expected = Some(vec!["b</s>".to_owned(), "ü</s>".to_owned()]);
            assert_eq!(marked(&source, &["a", "b", "c", "ü"]), expected, "{source}");
        }
    }

    #[test]
    fn content_cannot_forge_a_mark() {
        let source = "{% for m in messages %}{% if loop.last %}{% generation %}{{ m.content }}{% endgeneration %}\
                      {% else %}{{ m.content }}{% endif %}{% endfor %}";
        let forged = "\u{F0000}0\u{F0001}mine\u{F0000}0\u{F0002}\u{F0000}1\u{F0002}";
        assert_eq!(marked(source, &[forged, "b"]), Some(vec!["b".to_owned()]));
        assert_eq!(marked(source, &["a", forged]), Some(vec![forged.to_owned()]));
    }

    #[test]
    fn white_space_control_is_that_of_a_statement() {
        let source =
            "x\n  {% generation %}\n  a\n  {% endgeneration %}\ny {%- generation -%} b {%- endgeneration -%} z";
        let template = ChatTemplate::new("t.jinja", source, [("eos_token", "</s>")]).unwrap();
        assert_eq!(template.render(&[], false).unwrap(), "x\n  a\nybz");
        let spans = generation_spans(&template, &[], None, "x\n  a\nybz").unwrap();
        assert_eq!(spans, Some(vec![2..6, 7..8]));
    }

    #[test]
    fn templates_without_marks_or_that_read_them_have_none() {
        assert_eq!(marked("{{ messages[0].content }}", &["a"]), None);
        for not_a_tag in [
            "{# {% generation %} #}",
            "{% raw %}{% generation %}{% endraw %}",
            "{{ '{% generation %}' }}",
        ] {
            assert_eq!(marked(not_a_tag, &["a"]), None, "{not_a_tag}");
        }
        let reads = "{% set x %}{% generation %}ab{% endgeneration %}{% endset %}{{ x | length }}{{ x[:1] }}";
        assert_eq!(marked(reads, &["a"]), None);
        let unused = "{% if false %}{% generation %}a{% endgeneration %}{% endif %}b";
        assert_eq!(marked(unused, &["a"]), Some(Vec::new()));
    }
}
