//! Streams: only whole characters, which concatenate to the whole text.

use proptest::prelude::*;

use super::*;
use crate::text::testing::{byte_fallback, byte_level};

/// Streams the ids; checks that every piece is whole text and that the pieces concatenate to the full decoding.
fn pieces(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> Vec<String> {
    let mut stream = TextStream::new(tokenizer, skip_special);
    let mut pieces: Vec<String> = ids.iter().filter_map(|id| stream.push(*id).unwrap()).collect();
    pieces.push(stream.finish().unwrap());
    assert_eq!(pieces.concat(), tokenizer.decode(ids, skip_special).unwrap(), "{ids:?}");
    pieces
}

#[test]
fn a_character_is_held_back_until_its_last_byte() {
    for tokenizer in [byte_level(None), byte_fallback()] {
        let text = "hello 🦀 ñandú";
        let ids = tokenizer.encode(text, false).unwrap();
        assert!(ids.len() > text.chars().count() / 2);
        for piece in pieces(&tokenizer, &ids, true) {
            assert!(!piece.contains(BROKEN), "{piece:?}");
        }
    }
}

#[test]
fn text_is_emitted_as_soon_as_it_is_complete() {
    let tokenizer = byte_level(None);
    let ids = tokenizer.encode("hello the world", false).unwrap();
    assert_eq!(pieces(&tokenizer, &ids, true), ["hello", " the", " world", ""]);
    let tokenizer = byte_fallback();
    let ids = tokenizer.encode("hello world", false).unwrap();
    assert_eq!(pieces(&tokenizer, &ids, true), ["hello", " world", ""]);
}

#[test]
fn a_broken_character_ends_as_a_replacement() {
    let tokenizer = byte_level(None);
    let crab = tokenizer.encode("🦀", false).unwrap();
    assert_eq!(pieces(&tokenizer, &crab[..2], true), ["\u{FFFD}"]);
    let a = tokenizer.encode("a", false).unwrap();
    assert_eq!(pieces(&tokenizer, &[crab[0], a[0]], true), ["\u{FFFD}a", ""]);
}

#[test]
fn special_tokens_are_shown_or_not() {
    let tokenizer = byte_level(None);
    let ids = tokenizer.encode("hello<|im_end|> the", false).unwrap();
    assert_eq!(pieces(&tokenizer, &ids, true), ["hello", " the", ""]);
    assert_eq!(pieces(&tokenizer, &ids, false), ["hello", "<|im_end|>", " the", ""]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_text_streams_to_itself(text in "\\PC{0,20}|[ a-z🦀é\n]{0,30}") {
        for tokenizer in [byte_level(None), byte_fallback()] {
            let ids = tokenizer.encode(&text, false).unwrap();
            for piece in pieces(&tokenizer, &ids, true) {
                prop_assert!(text.contains(BROKEN) || !piece.contains(BROKEN));
            }
        }
    }

    /// Any sequence of tokens, including bytes that do not form a character.
    #[test]
    fn any_tokens_stream_to_their_decode(ids in prop::collection::vec(0u32..340, 0..40), skip in any::<bool>()) {
        for tokenizer in [byte_level(None), byte_fallback()] {
            pieces(&tokenizer, &ids, skip);
        }
    }
}
