//! Whole models on the stand-in: what the op-by-op tests cannot show, such as an order that is wrong between ops.

use minigpt_core::conformance::{Options, check};
use minigpt_core::model::Extras;
use minigpt_core::train::Trainer;
use minigpt_core::{Backend, Bias, Decoder, Device, GptConfig, Model, Reference, TrainConfig, Windows};
use minigpt_cuda::Cuda;

use crate::child::{Driver, in_child};

#[test]
fn the_backend_conforms() {
    in_child("model::the_backend_conforms", Driver::StandIn, &[], || {
        // The arithmetic is the reference's: a few cases show that the transfers are right.
        let report = check(|| Cuda::new(0).unwrap(), &Options { cases: 3, ..Options::default() });
        println!("{report}");
        assert!(report.passed(), "{report}");
    });
}

/// Every step's loss, gradient norm and learning rate, the checkpoint's bytes, and the logits of cached decoding.
type Run = (Vec<(f64, f64, f64)>, Vec<u8>, Vec<f32>);

fn train<B: Backend<Elem = f32>>(device: &Device<B>) -> Run {
    let config = GptConfig {
        layers: 2,
        heads: 2,
        d_model: 16,
        d_ff: 32,
        bias: Bias::ALL,
        dropout: 0.1,
        ..GptConfig::new(11, 8)
    };
    let text: Vec<u32> = (0..300).map(|i| i * i % 7).collect();
    let windows = Windows::new(&text, 8).unwrap();
    let settings = TrainConfig { batch: 3, time: 8, accumulation: 2, ..TrainConfig::constant(1e-2) };
    let model = Model::new(device, config, 3).unwrap();
    let mut trainer = Trainer::new(&model, settings).unwrap();
    let mut steps = Vec::new();
    for _ in 0..40 {
        trainer.step(&windows).unwrap();
        let metrics = trainer.metrics().unwrap();
        steps.push((metrics.loss, metrics.grad_norm, metrics.learning_rate));
    }
    let mut file = Vec::new();
    trainer.write(&mut file, &Extras { tokenizer: None, metadata: &[] }).unwrap();
    let mut decoder = Decoder::new(&model, 8).unwrap();
    // Past the context, so that the cache is rebuilt too.
    decoder.feed(&text[..13]).unwrap();
    (steps, file, decoder.logits().to_vec())
}

#[test]
fn a_whole_model_trains_and_decodes_as_on_the_reference_bit_for_bit() {
    let name = "model::a_whole_model_trains_and_decodes_as_on_the_reference_bit_for_bit";
    in_child(name, Driver::StandIn, &[], || {
        let device = Device::new(Cuda::new(0).unwrap());
        let free = || device.inspect(Cuda::free_bytes).unwrap();
        let before = free();
        let found = train(&device);
        let expected = train(&Reference::<f32>::new().into());
        assert_eq!(found.0, expected.0, "the steps differ");
        assert!(found.1 == expected.1, "the checkpoints differ");
        assert_eq!(found.2, expected.2, "the decoded logits differ");
        let losses = &expected.0;
        assert!(losses[39].0 < losses[0].0 - 0.1, "it learns: {losses:?}");
        assert!(device.inspect(Cuda::fallbacks) > 40, "no kernels yet: every op falls back");
        assert_eq!(free(), before, "what trained and decoded gives its memory back");
    });
}
