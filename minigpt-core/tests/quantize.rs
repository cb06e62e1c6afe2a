//! Models with weights in fewer bits: how near they come, what they weigh, and that they outlive a checkpoint.

use minigpt_core::checkpoint::Checkpoint;
use minigpt_core::model::Extras;
use minigpt_core::{
    Dtype, Error, GptConfig, InvalidOp, Model, Reference, ReferenceError, TrainConfig, Trainer,
};

type Small = Model<Reference<f32>>;

const NARROW: [Dtype; 4] = [Dtype::F16, Dtype::Bf16, Dtype::Q8_0, Dtype::Q4_0];

/// Rows of 40 and 70 elements: no whole number of blocks.
fn config(tied_embeddings: bool) -> GptConfig {
    GptConfig { layers: 2, heads: 4, d_model: 40, d_ff: 70, tied_embeddings, ..GptConfig::new(33, 12) }
}

fn model(config: GptConfig) -> Small {
    Model::new(Reference::new(), config, 5).unwrap()
}

fn tokens() -> Vec<u32> {
    (0..12).map(|i| i * 7 % 33).collect()
}

fn file(model: &mut Small) -> Vec<u8> {
    let mut file = Vec::new();
    model.write(&mut file, &Extras::default()).unwrap();
    file
}

#[test]
fn logits_stay_as_near_as_the_format_allows() {
    for tied in [true, false] {
        let exact = model(config(tied));
        let oracle = exact.logits(&tokens(), 1, 12).unwrap();
        let spread = oracle.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        for (dtype, bound) in NARROW.into_iter().zip([1e-3, 1e-2, 2e-2, 0.3]) {
            let small = exact.quantized(Reference::new(), dtype).unwrap();
            let found = small.logits(&tokens(), 1, 12).unwrap();
            let worst = found.iter().zip(&oracle).fold(0.0f32, |m, (x, y)| m.max((x - y).abs())) / spread;
            assert!(worst > 0.0 && worst < bound, "{dtype:?}, tied {tied}: {worst}");
        }
    }
}

#[test]
fn only_matrices_without_the_learned_positions_are_narrow() {
    for dtype in NARROW {
        let small = model(config(false)).quantized(Reference::new(), dtype).unwrap();
        for (tensor, stored) in small.parameters() {
            let matrix = tensor.rows > 1 && tensor.name != "wpe.weight";
            assert_eq!(stored, if matrix { dtype } else { Dtype::F32 }, "{}", tensor.name);
        }
    }
}

#[test]
fn a_checkpoint_keeps_every_bit_borrowed_or_loaded() {
    for dtype in NARROW {
        let mut small = model(config(true)).quantized(Reference::new(), dtype).unwrap();
        let logits = small.logits(&tokens(), 1, 12).unwrap();
        let file = file(&mut small);
        let checkpoint = Checkpoint::open_verified(&file).unwrap();
        let borrowed = Model::borrow(Reference::<f32>::new(), &checkpoint).unwrap();
        assert_eq!(borrowed.logits(&tokens(), 1, 12).unwrap(), logits, "{dtype:?}");
        // Widened, because every such number is an f32.
        let loaded = Model::load(Reference::<f32>::new(), &checkpoint).unwrap();
        assert_eq!(loaded.logits(&tokens(), 1, 12).unwrap(), logits, "{dtype:?}");
        // What was rounded once stays as it is; only the scale of nibbles is chosen anew.
        if dtype != Dtype::Q4_0 {
            let again = loaded.quantized(Reference::new(), dtype).unwrap();
            assert_eq!(self::file(&mut { again }), file, "{dtype:?}");
        }
    }
}

#[test]
fn files_shrink_as_the_formats_promise() {
    let mut exact =
        model(GptConfig { layers: 1, heads: 4, d_model: 256, d_ff: 1024, ..GptConfig::new(65, 64) });
    let whole = file(&mut exact).len() as f64;
    for (dtype, most) in NARROW.into_iter().zip([0.53, 0.53, 0.30, 0.18]) {
        let share = file(&mut exact.quantized(Reference::new(), dtype).unwrap()).len() as f64 / whole;
        assert!(share < most, "{dtype:?}: {share}");
    }
}

#[test]
fn a_weight_that_does_not_fit_is_named() {
    let broken = model(config(true));
    let name = "h.1.mlp.c_fc.weight";
    let mut weights = broken.parameter(name).unwrap().unwrap();
    weights[3 * 40 + 34] = f32::NAN;
    broken.set_parameter(name, &weights).unwrap();
    for dtype in NARROW {
        let error = broken.quantized(Reference::new(), dtype).unwrap_err();
        assert_eq!(error, Error::Unfit { tensor: name.into(), row: 3, col: 34, dtype });
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn narrow_models_are_not_trained_and_unknown_formats_are_refused() {
    let exact = model(config(true));
    let small = exact.quantized(Reference::new(), Dtype::Q8_0).unwrap();
    let settings = TrainConfig { batch: 1, time: 4, ..TrainConfig::constant(1e-3) };
    assert_eq!(Trainer::new(&small, settings).unwrap_err(), Error::Frozen);
    for dtype in [Dtype::U32, Dtype::F64] {
        let refused = exact.quantized(Reference::new(), dtype).unwrap_err();
        let Error::Backend(ReferenceError::Op(InvalidOp::Dtype { found, .. })) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(found, dtype);
    }
    // In its own number type it is a copy.
    let copy = exact.quantized(Reference::new(), Dtype::F32).unwrap();
    assert_eq!(copy.logits(&tokens(), 1, 12).unwrap(), exact.logits(&tokens(), 1, 12).unwrap());
}
