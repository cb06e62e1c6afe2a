//! Tokenizers: text to tokens and back, and tokenizers from bytes.

use minigpt_core::{
    ByteTokenizer, CharTokenizer, Checkpoint, StreamDecoder, Tokenizer, TokenizerError, checkpoint::Fault,
};

use super::file::{CONF, Pieces, REQUIRED, TENS, TOKN, VERSION};

/// The first byte says how much of the rest is the text that a vocabulary is made of; what follows is text to encode,
/// and bytes to decode.
pub fn tokenizer_roundtrip(data: &[u8]) {
    let Some((&share, data)) = data.split_first() else { return };
    let (known, rest) = data.split_at(data.len() * usize::from(share) / 255);
    let (known, text) = (String::from_utf8_lossy(known), String::from_utf8_lossy(rest));

    spells(&ByteTokenizer, &text);
    let bytes: Vec<u32> = rest.iter().map(|&byte| u32::from(byte)).collect();
    assert_eq!(ByteTokenizer.decode(&bytes).as_deref(), Ok(&*text));
    streams(&ByteTokenizer, &bytes);
    let wide: Vec<u32> =
        rest.chunks_exact(2).map(|id| u32::from(u16::from_le_bytes([id[0], id[1]]))).collect();
    streams(&ByteTokenizer, &wide);

    let tokenizer = match CharTokenizer::from_text(&known) {
        Ok(tokenizer) => tokenizer,
        Err(error) => return assert_eq!((error, &*known), (TokenizerError::EmptyVocabulary, "")),
    };
    spells(&tokenizer, &known);
    let vocabulary = tokenizer.chars();
    assert!(vocabulary.windows(2).all(|pair| pair[0] < pair[1]));
    match text.char_indices().find(|(_, character)| vocabulary.binary_search(character).is_err()) {
        None => spells(&tokenizer, &text),
        Some((byte, character)) => {
            let index = text[..byte].chars().count();
            let vocab_size = vocabulary.len();
            let error = TokenizerError::UnknownCharacter { character, index, byte, vocab_size };
            assert_eq!(tokenizer.encode(&text), Err(error));
        }
    }
    let ids: Vec<u32> = wide.iter().map(|id| id % (vocabulary.len() as u32 + 1)).collect();
    streams(&tokenizer, &ids);
}

/// The first byte chooses the model's vocabulary; the rest is the section `TOKN` of a checkpoint, then the arguments of
/// [`CharTokenizer`]'s constructors.
pub fn tokenizer_load(data: &[u8]) {
    let Some((&choice, data)) = data.split_first() else { return };
    let vocab_size = [1, 5, 65, 256, 0x11_0000][usize::from(choice) % 5];
    let mut file = Pieces::new(VERSION);
    file.push(CONF, REQUIRED, conf(vocab_size));
    file.push(TOKN, 0, data.to_vec());
    file.push(TENS, REQUIRED, vec![0]);
    match Checkpoint::open_verified(&file.bytes()) {
        Err(error) => {
            let _ = error.to_string();
            let in_section = matches!(
                error.fault,
                Fault::Malformed { tag: TOKN }
                    | Fault::SectionLength { tag: TOKN }
                    | Fault::Tokenizer(_)
                    | Fault::Vocabulary { .. }
            );
            assert!(in_section, "{error}");
        }
        Ok(checkpoint) => {
            let tokenizer = checkpoint.tokenizer().expect("the section is there");
            assert!(tokenizer.vocab_size() <= vocab_size as usize);
            keeps_its_laws(tokenizer);
        }
    }

    if let Ok(tokenizer) = CharTokenizer::from_text(&String::from_utf8_lossy(data)) {
        assert_eq!(CharTokenizer::from_chars(tokenizer.chars().to_vec()).as_ref(), Ok(&tokenizer));
        keeps_its_laws(&tokenizer);
    }
    let words = data.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
    match CharTokenizer::from_chars(words.filter_map(char::from_u32).collect()) {
        Ok(tokenizer) => keeps_its_laws(&tokenizer),
        Err(error) => drop(error.to_string()),
    }
}

/// The section `CONF` of a small model.
fn conf(vocab_size: u32) -> Vec<u8> {
    let mut body = Vec::new();
    // Vocabulary, context, layers, heads, no kv_heads, width, no d_head, d_ff, no prefix.
    for dimension in [vocab_size, 3, 1, 1, 0, 2, 0, 3, 0] {
        super::file::varint(u64::from(dimension), &mut body);
    }
    // Learned positions, causal, layer norm, pre, not of queries and keys, 1/sqrt(D), residuals, GELU by erf, not gated, no
    // bias, no dropout, tied embeddings.
    body.extend([0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0]);
    body.extend(0.0f64.to_le_bytes());
    body.push(1);
    body.extend(1e-5f64.to_le_bytes());
    body
}

/// Every token of the first few hundred means something; the first that there is not is refused.
fn keeps_its_laws(tokenizer: &dyn Tokenizer) {
    let vocab_size = tokenizer.vocab_size();
    let ids: Vec<u32> = (0..vocab_size.min(300) as u32).collect();
    streams(tokenizer, &ids);
    let past = u32::try_from(vocab_size).expect("ids are u32");
    let error = TokenizerError::UnknownToken { id: past, vocab_size };
    assert_eq!(tokenizer.decode(&[past]), Err(error));
}

/// `text`, which the tokenizer knows, comes back from its tokens.
fn spells(tokenizer: &dyn Tokenizer, text: &str) {
    let ids = tokenizer.encode(text).expect("known text is encoded");
    assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
    assert_eq!(tokenizer.decode(&ids).as_deref(), Ok(text));
    streams(tokenizer, &ids);
}

/// Tokens one by one give the text that they give together.
fn streams(tokenizer: &dyn Tokenizer, ids: &[u32]) {
    let mut stream = StreamDecoder::new();
    let mut text = String::new();
    let streamed =
        ids.iter().try_for_each(|&id| stream.push(tokenizer, id).map(|piece| text.push_str(piece)));
    match tokenizer.decode(ids) {
        Ok(whole) => {
            streamed.expect("each token is known");
            text.push_str(stream.finish().expect("there is memory for one character"));
            assert_eq!(text, whole);
        }
        Err(error) => {
            let vocab_size = tokenizer.vocab_size();
            let id = ids.iter().copied().find(|&id| id as usize >= vocab_size).expect("one is unknown");
            assert_eq!(error, TokenizerError::UnknownToken { id, vocab_size });
            assert_eq!(streamed, Err(error));
        }
    }
}
