//! Trains the model that this program embeds and writes it to `model.mgpt`:
//! `cargo run --release --example make_model` in this folder.

use std::error::Error;

use minigpt_core::model::Extras;
use minigpt_core::{
    AnyTokenizer, CharTokenizer, GptConfig, Model, Reference, Tokenizer, TrainConfig, Trainer, Windows,
};

fn main() -> Result<(), Box<dyn Error>> {
    let text = "a small model speaks from flash. ".repeat(8);
    let tokenizer: AnyTokenizer = CharTokenizer::from_text(&text)?.into();
    let tokens = tokenizer.encode(&text)?;
    let windows = Windows::new(&tokens, 16)?;
    let config = GptConfig {
        layers: 1,
        heads: 2,
        d_model: 16,
        d_ff: 32,
        ..GptConfig::new(tokenizer.vocab_size(), 16)
    };
    let model = Model::new(Reference::<f32>::new(), config, 1)?;
    let settings = TrainConfig { batch: 8, time: 16, ..TrainConfig::constant(1e-2) };
    let mut trainer = Trainer::new(&model, settings)?;
    for _ in 0..300 {
        trainer.step(&windows)?;
    }
    println!("loss {:.3}", trainer.metrics()?.loss);
    let mut file = Vec::new();
    // For inference: without the optimizer's state.
    trainer.into_model().write(&mut file, &Extras { tokenizer: Some(&tokenizer), metadata: &[] })?;
    std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/model.mgpt"), file)?;
    Ok(())
}
