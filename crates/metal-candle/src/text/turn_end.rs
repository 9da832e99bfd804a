//! End-of-turn tokens: the tokens with which a model that follows the chat template ends its messages.
//!
//! Many models end their answers with another token than the end-of-text token of their configuration. A short
//! conversation is rendered, and the text right after the assistant's message is examined.

use super::{ChatMessage, StandIns, Tokenizer};

/// The tokens that the tokenizer's chat template writes right after the assistant's message (`<|im_end|>`,
/// `<|eot_id|>`, `<end_of_turn>`, ...), ignoring white space. Only special tokens and other added tokens count. Empty
/// without a chat template, or if it writes none.
///
/// For a template that only ends turns which are followed by another one, the tokens of such turns are returned.
///
/// ```
/// use metal_candle::text::{ChatTemplate, Tokenizer, end_of_turn_tokens};
///
/// let tokenizer = br#"{"version": "1.0", "added_tokens": [
///     {"id": 1, "content": "<end>", "special": true, "single_word": false, "lstrip": false, "rstrip": false,
///      "normalized": false}],
///   "model": {"type": "WordLevel", "vocab": {"x": 0, "<end>": 1}, "unk_token": "x"}}"#;
/// let tokenizer = Tokenizer::from_bytes(tokenizer, b"{}")?;
/// assert!(end_of_turn_tokens(&tokenizer).is_empty());
/// let source = "{% for m in messages %}{{ m.content }}<end>{% endfor %}";
/// let tokenizer = tokenizer.with_chat_template(ChatTemplate::new("t", source, [("eos_token", "<end>")])?);
/// assert_eq!(end_of_turn_tokens(&tokenizer), [1]);
/// # Ok::<(), metal_candle::text::TextError>(())
/// ```
#[must_use]
pub fn end_of_turn_tokens(tokenizer: &Tokenizer) -> Vec<u32> {
    let last = after_assistant(tokenizer, 2);
    if last.is_empty() {
        after_assistant(tokenizer, 3)
    } else {
        last
    }
}

/// The token after the second message, that of the assistant, in a conversation of `messages` messages.
fn after_assistant(tokenizer: &Tokenizer, messages: usize) -> Vec<u32> {
    let Some(template) = tokenizer.chat_template() else {
        return Vec::new();
    };
    let stand_ins = StandIns::absent_from(&[template.source()]);
    let say = |i: usize| ChatMessage::new(["user", "assistant"][i % 2], stand_ins.text(i, 0));
    let messages: Vec<ChatMessage> = (0..messages).map(say).collect();
    // A template that refuses this conversation has no end-of-turn token.
    let text = template.render(&messages, false).unwrap_or_default();
    let said = stand_ins.find(&text).into_iter().rfind(|found| found.message == 1);
    let rest = said
        .map(|found| text[found.bytes.end..].trim_start())
        .unwrap_or_default();
    tokenizer.leading_added_token(rest).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::testing::{CHATML, byte_level};

    #[test]
    fn the_token_after_the_assistant_s_words() {
        let last_open = "{% for m in messages %}<|im_start|>{{ m.content }}{% if not loop.last %}<|im_end|>\n{% endif %}\
                         {% endfor %}";
        let cases = [
            (Some(CHATML), vec!["<|im_end|>"]),
            (
                Some("{% for m in messages %}{{ m.content }}\n{{ eos_token }}{% endfor %}"),
                vec!["<|endoftext|>"],
            ),
            (Some(last_open), vec!["<|im_end|>"]),
            // The last turn ends differently from the others, which are merely continued: its end counts.
            (
                Some(
                    "{% for m in messages %}{{ m.content }}{{ '<|endoftext|>' if loop.last else '<|im_end|>' }}{% endfor %}",
                ),
                vec!["<|endoftext|>"],
            ),
            (
                Some("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"),
                vec![],
            ),
            (Some("{{ raise_exception('no') }}"), vec![]),
            (
                Some(
                    "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}",
                ),
                vec![],
            ),
            (None, vec![]),
        ];
        for (template, expected) in cases {
            let tokenizer = byte_level(template);
            let expected: Vec<u32> = expected
                .iter()
                .map(|token| tokenizer.token_id(token).unwrap())
                .collect();
            assert_eq!(end_of_turn_tokens(&tokenizer), expected, "{template:?}");
        }
    }
}
