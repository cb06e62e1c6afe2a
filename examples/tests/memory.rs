//! A text costs little more memory than its tokens, from the first byte that is read to the last validation.

#[path = "../../minigpt-core/tests/support/heap.rs"]
mod heap;

use minigpt_examples::testing::Scratch;

const LINE: &str = "the quick brown fox jumps over the lazy dog;\n";

/// The most bytes in use during a run on so many lines, and the bytes of its text.
fn peak(lines: usize, flags: &str) -> (f64, f64) {
    let scratch = Scratch::new();
    let text = LINE.repeat(lines);
    let flags = format!("{flags} --iterations 3 --validation-share 0.001 --threads 1");
    // The text here is not the run's.
    let (peak, summary) = heap::peak(|| scratch.trained(&text, &flags));
    summary.unwrap();
    (peak as f64, text.len() as f64)
}

#[test]
fn a_text_takes_no_more_memory_than_its_tokens_and_a_fifth() {
    // A checkpoint whose characters are those of the text.
    let source = Scratch::new();
    source.trained(&LINE.repeat(40), "--iterations 3").unwrap();
    let from = format!("--from {}", source.path("run").display());
    for flags in ["", "--tokenizer byte", &from] {
        let (short, short_bytes) = peak(5_000, flags);
        let (long, long_bytes) = peak(250_000, flags);
        let per_byte = (long - short) / (long_bytes - short_bytes);
        assert!((1.0..1.2).contains(&per_byte), "{per_byte} bytes for each of the text, with {flags}");
    }
}
