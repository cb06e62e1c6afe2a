//! Models with weights in every format run on kernels of their own, and compute what the reference computes from the
//! same weights.

use minigpt_core::checkpoint::Checkpoint;
use minigpt_core::model::Extras;
use minigpt_core::{Bias, Decoder, Dtype, GptConfig, Model, Reference};
use minigpt_cpu::{Cpu, Isa};

const FORMATS: [Dtype; 5] = [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::Q8_0, Dtype::Q4_0];

/// Of the largest logit; the suite's bound for a whole model in f32.
const BOUND: f64 = 1e-4;

fn check(what: &str, found: &[f32], oracle: &[f64]) {
    let largest = oracle.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    for (i, (&found, oracle)) in found.iter().zip(oracle).enumerate() {
        let error = (f64::from(found) - oracle).abs() / largest;
        assert!(error <= BOUND, "{what}: logit {i} is {found}, oracle {oracle}");
    }
}

#[test]
fn every_weight_format_prefills_and_decodes_without_falling_back() {
    // Rows that end within a block of 32, and a head with a number of rows that no vector divides.
    for (d_model, d_ff, tied_embeddings) in [(40, 70, true), (64, 256, false)] {
        let config = GptConfig {
            layers: 2,
            heads: 4,
            d_model,
            d_ff,
            tied_embeddings,
            bias: Bias::ALL,
            ..GptConfig::new(33, 16)
        };
        let exact = Model::new(Reference::<f32>::new(), config, 3).unwrap();
        let text: Vec<u32> = (0..12).map(|i| i * 7 % 33).collect();
        for dtype in FORMATS {
            let small = exact.quantized(Reference::new(), dtype).unwrap();
            let mut file = Vec::new();
            small.write(&mut file, &Extras::default()).unwrap();
            let checkpoint = Checkpoint::open_verified(&file).unwrap();
            let wide = Model::load(Reference::<f64>::new(), &checkpoint).unwrap();
            let oracle = wide.logits(&text, 1, text.len()).unwrap();
            let last = |n: usize| &oracle[(n - 1) * 33..n * 33];
            for isa in Isa::available() {
                let what = format!("{dtype:?} of width {d_model} on {isa}");
                let cpu = Cpu::builder().isa(isa).build().unwrap();
                let model = Model::borrow(cpu, &checkpoint).unwrap();
                check(&what, &model.logits(&text, 1, text.len()).unwrap(), &oracle);
                let mut decoder = Decoder::new(&model, 8).unwrap();
                // A piece of many rows, one of few, then token by token.
                let mut fed = 0;
                for piece in [7, 3, 1, 1] {
                    decoder.feed(&text[fed..fed + piece]).unwrap();
                    fed += piece;
                    check(&what, decoder.logits(), last(fed));
                }
                // A big-endian processor leaves narrow weights to the reference.
                if cfg!(target_endian = "little") {
                    assert_eq!(model.device().inspect(Cpu::fallbacks), 0, "{what}");
                }
            }
        }
    }
}
