//! The demonstration's tokenizer: byte-level BPE, trained on the corpus and on a few chats.
//!
//! The chats are in the training text so that `":"` and the like become single tokens; the model itself never sees a chat
//! before it is fine-tuned.

use miette::{Result, miette};
use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

use super::instructions::Example;

/// Ends a document; also the padding of a batch.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// Begins a message of a chat.
pub const MESSAGE_START: &str = "<|im_start|>";
/// Ends a message of a chat.
pub const MESSAGE_END: &str = "<|im_end|>";
/// Fills short rows of a batch.
pub const PADDING: &str = "<|pad|>";
/// The special tokens; their ids are their places here.
pub const SPECIAL: [&str; 4] = [END_OF_TEXT, MESSAGE_START, MESSAGE_END, PADDING];
/// Tokens of the vocabulary, special ones and the 256 bytes included.
pub const VOCABULARY: usize = 1536;

/// Trains the tokenizer on `documents` and on the text of `examples`.
///
/// # Errors
///
/// Whatever the tokenizer library reports, or fewer tokens than [`VOCABULARY`] because the text is too short.
pub fn train_tokenizer(documents: &[String], examples: &[Example]) -> Result<Tokenizer> {
    let special = SPECIAL.map(|token| AddedToken::from(token, true).normalized(false));
    let mut trainer: TrainerWrapper = BpeTrainerBuilder::new()
        .vocab_size(VOCABULARY)
        .show_progress(false)
        .special_tokens(special.to_vec())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build()
        .into();
    let mut tokenizer = Tokenizer::new(BPE::default());
    // `add_prefix_space` off: a document's first word is the same token as a quoted one.
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, false, true)));
    tokenizer.with_decoder(Some(ByteLevelDecoder::new(false, false, true)));
    let chats = examples
        .iter()
        .map(|example| format!("user\n{}\nassistant\n{}\n", example.order, example.record));
    let text = documents.iter().cloned().chain(chats);
    tokenizer
        .train(&mut trainer, text)
        .map_err(|error| miette!("training the tokenizer: {error}"))?;
    let size = tokenizer.get_vocab_size(true);
    if size != VOCABULARY {
        return Err(miette!(
            "the tokenizer has {size} tokens instead of {VOCABULARY}: give it more documents"
        ));
    }
    Ok(tokenizer)
}

/// `tokenizer.json` as text.
///
/// # Errors
///
/// Whatever the tokenizer library reports.
pub fn tokenizer_json(tokenizer: &Tokenizer) -> Result<String> {
    tokenizer
        .to_string(true)
        .map_err(|error| miette!("writing the tokenizer: {error}"))
}

/// The number of tokens of `text`.
///
/// # Errors
///
/// Whatever the tokenizer library reports.
pub fn count_tokens(tokenizer: &Tokenizer, text: &str) -> Result<usize> {
    let encoding = tokenizer
        .encode_fast(text, false)
        .map_err(|error| miette!("tokenizing {text:?}: {error}"))?;
    Ok(encoding.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::{corpus, instructions};

    fn trained() -> (Tokenizer, Vec<Example>) {
        let (training, held_out) = instructions(1);
        (train_tokenizer(&corpus(1, 1500), &training[..200]).unwrap(), held_out)
    }

    #[test]
    fn text_survives_and_special_tokens_have_their_places() {
        let (tokenizer, _) = trained();
        for text in ["Mia bought 3 apples.", "{\"who\":\"Mia\"}", "Zoë's 東京 \u{1F600}\n\tx"] {
            let ids = tokenizer.encode(text, false).unwrap();
            assert_eq!(tokenizer.decode(ids.get_ids(), false).unwrap(), text);
        }
        for (id, token) in SPECIAL.iter().enumerate() {
            assert_eq!(tokenizer.token_to_id(token), Some(id as u32));
            assert_eq!(tokenizer.encode(*token, false).unwrap().get_ids(), [id as u32]);
        }
    }

    #[test]
    fn a_record_is_compact() {
        let (tokenizer, held_out) = trained();
        let tokens: usize = held_out
            .iter()
            .map(|example| count_tokens(&tokenizer, &example.record).unwrap())
            .sum();
        // Six keys, six values, and at most two marks around each.
        assert!(tokens <= held_out.len() * 30, "{} a record", tokens / held_out.len());
    }

    #[test]
    fn training_repeats_itself() {
        assert_eq!(
            tokenizer_json(&trained().0).unwrap(),
            tokenizer_json(&trained().0).unwrap()
        );
    }

    #[test]
    fn too_little_text_is_refused() {
        let error = train_tokenizer(&corpus(1, 2), &[]).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("more documents"), "{error}");
    }
}
