//! Reads the golden files that `make_golden.py` wrote: a model's config and weights, and what PyTorch made of them.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;

use minigpt_core::config::TrainConfig;
use minigpt_core::train::Trainer;
use minigpt_core::{
    Activation, AttentionScale, Backend, Bias, GptConfig, Group, Groups, Mask, Model, Norm, NormPlace,
    Optimizer, Pairing, Position, Real,
};
use serde_json::Value;

/// A tensor of a golden file; f32 values are widened exactly.
pub(crate) struct Tensor {
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f64>,
}

/// How the golden runs were trained: AdamW, a constant learning rate.
pub(crate) struct Training {
    pub(crate) learning_rate: f64,
    pub(crate) beta1: f64,
    pub(crate) beta2: f64,
    pub(crate) eps: f64,
    /// Of matrices only.
    pub(crate) weight_decay: f64,
    pub(crate) clip: f64,
    /// How many steps were made: the length of `losses`.
    pub(crate) steps: usize,
    /// After how many of them the weights `after` were taken.
    pub(crate) after: usize,
}

/// One golden file. Maps are by the names of the parameters.
pub(crate) struct Golden {
    /// The file's name.
    pub(crate) name: String,
    pub(crate) config: GptConfig,
    pub(crate) training: Training,
    /// B and T of every batch; T has the prefix too.
    pub(crate) batch: usize,
    pub(crate) time: usize,
    /// (B, T - P) each; step i trains on batch i mod their number.
    pub(crate) tokens: Vec<Vec<u32>>,
    /// (B, T - P) each; `minigpt_core::op::IGNORE` is ignored.
    pub(crate) targets: Vec<Vec<u32>>,
    /// (B, P, C) each: the given vectors before the tokens, all exact in f32.
    pub(crate) prefixes: Vec<Vec<f64>>,
    /// The initial parameters, all exact in f32.
    pub(crate) params: BTreeMap<String, Tensor>,
    /// (B, T, V), of batch 0 and the initial parameters.
    pub(crate) logits: Tensor,
    /// The mean over the targets that count, of batch 0 and the initial parameters.
    pub(crate) loss: f64,
    /// The gradient of `loss`.
    pub(crate) grads: BTreeMap<String, Tensor>,
    /// (B, P, C), with P > 0: the gradient of `loss` with respect to the first batch's prefix.
    pub(crate) prefix_grad: Option<Tensor>,
    /// The parameters after `training.after` steps.
    pub(crate) after: BTreeMap<String, Tensor>,
    /// The mean loss of each step.
    pub(crate) losses: Vec<f64>,
    /// The norm of each step's mean gradient before clipping.
    pub(crate) grad_norms: Vec<f64>,
}

/// The golden files of models, by name.
pub(crate) fn all() -> Vec<Golden> {
    inside("golden")
}

/// Those of one model that is trained by others than AdamW alone, each with the groups that it is named for.
#[allow(dead_code)]
pub(crate) fn optimizers() -> Vec<(Golden, Groups)> {
    let group = |optimizer, weight_decay, rate| Group { optimizer, weight_decay, rate };
    let sgd = |momentum, nesterov, rate| group(Optimizer::Sgd { momentum, nesterov }, 0.1, rate);
    let muon = |momentum, nesterov| Optimizer::Muon { momentum, nesterov, steps: 5 };
    let adamw = group(Optimizer::AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8 }, 0.1, 1.0);
    let all = |group| Groups { embeddings: group, matrices: group, head: group, vectors: group };
    let velocity = all(sgd(0.9, false, 30.0));
    let mixed = Groups {
        embeddings: Group { rate: 0.25, ..adamw },
        head: velocity.head,
        vectors: Group { weight_decay: 0.5, rate: 2.0, ..adamw },
        matrices: adamw,
    };
    let groups = |name: &str| match name {
        "sgd.safetensors" => Groups { vectors: Group { weight_decay: 0.0, ..velocity.vectors }, ..velocity },
        "nesterov.safetensors" => all(sgd(0.9, true, 30.0)),
        "plain.safetensors" => all(sgd(0.0, false, 100.0)),
        "groups.safetensors" => mixed,
        "muon.safetensors" => Groups { matrices: group(muon(0.95, true), 0.005, 20.0), ..all(adamw) },
        "muon_straight.safetensors" => Groups { matrices: group(muon(0.8, false), 0.0, 10.0), ..all(adamw) },
        other => panic!("nobody knows how {other} was trained"),
    };
    let named = |golden: Golden| (groups(&golden.name), golden);
    inside("golden/optimizers").into_iter().map(named).map(|(groups, golden)| (golden, groups)).collect()
}

fn inside(folder: &str) -> Vec<Golden> {
    // From minigpt-core as from its sister crates.
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../minigpt-core/tests").join(folder);
    let mut paths: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    paths.sort();
    paths.iter().map(|path| Golden::load(path)).collect()
}

impl Golden {
    fn load(path: &Path) -> Golden {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let content = std::fs::read(path).unwrap_or_else(|e| panic!("{name}: {e}"));
        let (length, content) = content.split_at(8);
        let (header, data) = content.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
        let mut header: serde_json::Map<String, Value> = serde_json::from_slice(header).unwrap();
        let metadata = header.remove("__metadata__").unwrap();
        let config = config(&metadata);

        let mut tensors: BTreeMap<String, (Tensor, &str)> = BTreeMap::new();
        for (tensor, entry) in &header {
            let integers = |key: &str| -> Vec<usize> {
                entry[key].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect()
            };
            let (shape, offsets) = (integers("shape"), integers("data_offsets"));
            let (dtype, raw) = (entry["dtype"].as_str().unwrap(), &data[offsets[0]..offsets[1]]);
            let values: Vec<f64> = match dtype {
                "U32" => raw
                    .chunks_exact(4)
                    .map(|b| f64::from(u32::from_le_bytes(b.try_into().unwrap())))
                    .collect(),
                "F32" => raw
                    .chunks_exact(4)
                    .map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap())))
                    .collect(),
                "F64" => raw.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
                other => panic!("{name}: {tensor} is {other}"),
            };
            assert_eq!(values.len(), shape.iter().product::<usize>(), "{name}: {tensor}");
            assert!(values.iter().all(|v| v.is_finite()), "{name}: {tensor} is not finite");
            tensors.insert(tensor.clone(), (Tensor { shape, values }, dtype));
        }
        let mut take = |tensor: &str, dtype: &str| {
            let (found, its) = tensors.remove(tensor).unwrap_or_else(|| panic!("{name} lacks {tensor}"));
            assert_eq!(its, dtype, "{name}: {tensor}");
            found
        };
        let (tokens, targets) = (take("tokens", "U32"), take("targets", "U32"));
        let [batches, batch, text] = tokens.shape[..] else {
            panic!("{name}: tokens are {:?}", tokens.shape)
        };
        assert_eq!(tokens.shape, targets.shape, "{name}");
        let split = |ids: Tensor| -> Vec<Vec<u32>> {
            let ids: Vec<u32> = ids.values.iter().map(|&id| id as u32).collect();
            ids.chunks_exact(batch * text).map(<[u32]>::to_vec).collect()
        };
        let (tokens, targets) = (split(tokens), split(targets));
        assert_eq!((tokens.len(), targets.len()), (batches, batches), "{name}");

        let given = [batch, config.prefix, config.d_model];
        let (prefixes, prefix_grad) = if config.prefix > 0 {
            let (prefix, grad) = (take("prefix", "F32"), take("grad.prefix", "F64"));
            assert_eq!((prefix.shape[0], &prefix.shape[1..]), (batches, &given[..]), "{name}");
            assert_eq!(grad.shape, given, "{name}");
            (prefix.values.chunks_exact(given.iter().product()).map(<[f64]>::to_vec).collect(), Some(grad))
        } else {
            (vec![Vec::new(); batches], None)
        };

        let logits = take("logits", "F64");
        let loss = take("loss", "F64").values[0];
        let losses = take("losses", "F64").values;
        let grad_norms = take("grad_norms", "F64").values;
        let mut group = |prefix: &str, dtype: &str| -> BTreeMap<String, Tensor> {
            let names = header.keys().filter(|key| key.starts_with(prefix) && *key != "grad.prefix");
            let names: Vec<String> = names.cloned().collect();
            names.iter().map(|key| (key[prefix.len()..].to_string(), take(key, dtype))).collect()
        };
        let golden = Golden {
            training: training(&metadata),
            batch,
            time: config.prefix + text,
            config,
            tokens,
            targets,
            prefixes,
            params: group("param.", "F32"),
            logits,
            loss,
            grads: group("grad.", "F64"),
            prefix_grad,
            after: group("after10.", "F64"),
            losses,
            grad_norms,
            name: name.clone(),
        };
        assert!(tensors.is_empty(), "{name} holds more than is read: {:?}", tensors.keys());
        golden
    }
}

impl Golden {
    /// The golden model on `backend`, with its initial parameters.
    pub(crate) fn model<B: Backend>(&self, backend: B) -> Model<B> {
        let model = Model::new(backend, self.config.clone(), 0).unwrap();
        for (parameter, tensor) in &self.params {
            let values = elements::<B>(&tensor.values);
            assert!(model.set_parameter(parameter, &values).unwrap(), "{}: {parameter}", self.name);
        }
        model
    }

    /// The golden training at its beginning, with `batch` sequences in a micro-batch.
    pub(crate) fn trainer<B: Backend>(&self, backend: B, batch: usize) -> Trainer<B> {
        let Training { beta1, beta2, eps, weight_decay, .. } = self.training;
        let adamw = Optimizer::AdamW { beta1, beta2, eps };
        let decayed = Group { optimizer: adamw, weight_decay, rate: 1.0 };
        let vectors = Group { weight_decay: 0.0, ..decayed };
        let groups = Groups { embeddings: decayed, matrices: decayed, head: decayed, vectors };
        self.trainer_by(backend, batch, groups)
    }

    /// The same with others than AdamW alone.
    pub(crate) fn trainer_by<B: Backend>(&self, backend: B, batch: usize, groups: Groups) -> Trainer<B> {
        let Training { learning_rate, clip, .. } = self.training;
        let config = TrainConfig {
            batch,
            time: self.length(),
            accumulation: self.batch / batch,
            clip,
            groups,
            ..TrainConfig::constant(learning_rate)
        };
        Trainer::new(&self.model(backend), config).unwrap()
    }

    /// How many tokens a sequence has.
    pub(crate) fn length(&self) -> usize {
        self.time - self.config.prefix
    }

    /// What `model` gives for the logits of the first batch's tokens, (B, T - P, V).
    pub(crate) fn logits<B: Backend>(&self, model: &Model<B>) -> Vec<B::Elem> {
        let prefix = elements::<B>(&self.prefixes[0]);
        model.logits_with(&prefix, &self.tokens[0], self.batch, self.length()).unwrap()
    }

    /// What PyTorch gives for them.
    pub(crate) fn expected_logits(&self) -> Vec<f64> {
        let (vocab, prefix) = (self.config.vocab_size, self.config.prefix);
        let sequences = self.logits.values.chunks_exact(self.time * vocab);
        sequences.flat_map(|rows| &rows[prefix * vocab..]).copied().collect()
    }

    /// Step `i` of the golden training, in as many micro-batches as `trainer` was made for.
    pub(crate) fn step<B: Backend>(&self, trainer: &mut Trainer<B>, i: usize) {
        let batch = i % self.tokens.len();
        let sequences = trainer.config().batch;
        let size = sequences * self.length();
        let (tokens, targets) = (self.tokens[batch].chunks(size), self.targets[batch].chunks(size));
        for (part, (tokens, targets)) in tokens.zip(targets).enumerate() {
            let size = sequences * self.config.prefix * self.config.d_model;
            let prefix = elements::<B>(&self.prefixes[batch][part * size..][..size]);
            trainer.set_prefix(&prefix).unwrap();
            trainer.micro_step(tokens, targets).unwrap();
        }
        trainer.finish_step().unwrap();
    }
}

fn elements<B: Backend>(values: &[f64]) -> Vec<B::Elem> {
    values.iter().map(|&x| B::Elem::from_f64(x)).collect()
}

fn text<'a>(metadata: &'a Value, key: &str) -> &'a str {
    metadata[key].as_str().unwrap_or_else(|| panic!("no `{key}` in {metadata}"))
}

fn parsed<T: FromStr>(metadata: &Value, key: &str) -> T {
    text(metadata, key).parse().unwrap_or_else(|_| panic!("`{key}` in {metadata}"))
}

/// What older files do not name.
fn or<T: FromStr>(metadata: &Value, key: &str, default: T) -> T {
    if metadata.get(key).is_some() { parsed(metadata, key) } else { default }
}

fn position(metadata: &Value) -> Position {
    match text(metadata, "position") {
        "learned" => Position::Learned,
        "sinusoidal" => Position::Sinusoidal,
        "rotary" => Position::Rotary {
            base: or(metadata, "rotary_base", 10_000.0),
            pairing: match or(metadata, "rotary_pairing", "adjacent".to_string()).as_str() {
                "adjacent" => Pairing::Adjacent,
                "halves" => Pairing::Halves,
                other => panic!("pairing {other}"),
            },
        },
        "none" => Position::None,
        other => panic!("position {other}"),
    }
}

fn bias(metadata: &Value) -> Bias {
    match text(metadata, "bias") {
        "true" => Bias::ALL,
        "false" => Bias::NONE,
        parts => parts.split('+').fold(Bias::NONE, |bias, part| match part {
            "qkv" => Bias { qkv: true, ..bias },
            "linear" => Bias { linear: true, ..bias },
            "norm" => Bias { norm: true, ..bias },
            other => panic!("bias {other}"),
        }),
    }
}

fn config(metadata: &Value) -> GptConfig {
    let given = |key| metadata.get(key).is_some().then(|| parsed(metadata, key));
    GptConfig {
        vocab_size: parsed(metadata, "vocab_size"),
        context: parsed(metadata, "context"),
        layers: parsed(metadata, "layers"),
        heads: parsed(metadata, "heads"),
        d_model: parsed(metadata, "d_model"),
        d_ff: parsed(metadata, "d_ff"),
        kv_heads: given("kv_heads"),
        d_head: given("d_head"),
        prefix: or(metadata, "prefix", 0),
        position: position(metadata),
        mask: match or(metadata, "mask", "causal".to_string()).as_str() {
            "causal" => Mask::Causal,
            "prefix" => Mask::Prefix,
            "none" => Mask::None,
            other => panic!("mask {other}"),
        },
        norm: match or(metadata, "norm_kind", "layer".to_string()).as_str() {
            "layer" => Norm::Layer,
            "rms" => Norm::Rms,
            other => panic!("kind of norm {other}"),
        },
        qk_norm: or(metadata, "qk_norm", false),
        gated: or(metadata, "gated", false),
        norm_place: match text(metadata, "norm") {
            "pre" => NormPlace::Pre,
            "post" => NormPlace::Post,
            "none" => NormPlace::None,
            other => panic!("norm {other}"),
        },
        attention_scale: match text(metadata, "attention_scale") {
            "inverse_sqrt" => AttentionScale::InverseSqrt,
            "none" => AttentionScale::None,
            factor => AttentionScale::Custom(factor.parse().unwrap()),
        },
        residual: parsed(metadata, "residual"),
        activation: match text(metadata, "activation") {
            "gelu_tanh" => Activation::GeluTanh,
            "gelu_erf" => Activation::GeluErf,
            "relu" => Activation::Relu,
            "relu_squared" => Activation::ReluSquared,
            "silu" => Activation::Silu,
            other => panic!("activation {other}"),
        },
        bias: bias(metadata),
        dropout: parsed(metadata, "dropout"),
        tied_embeddings: parsed(metadata, "tied_embeddings"),
        norm_eps: parsed(metadata, "norm_eps"),
    }
}

fn training(metadata: &Value) -> Training {
    Training {
        learning_rate: parsed(metadata, "learning_rate"),
        beta1: parsed(metadata, "beta1"),
        beta2: parsed(metadata, "beta2"),
        eps: parsed(metadata, "eps"),
        weight_decay: parsed(metadata, "weight_decay"),
        clip: parsed(metadata, "clip"),
        steps: parsed(metadata, "steps"),
        after: parsed(metadata, "after"),
    }
}
