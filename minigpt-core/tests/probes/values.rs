//! Every tensor of a forward pass against plain loops over those before it, in f64.

use minigpt_core::probe::{Point, Probe, Recording, TensorKind};
use minigpt_core::reference::activation::activate;
use minigpt_core::{GptConfig, InvalidOp, Mask, Model, Norm, NormPlace, Pairing, Position, Reference};

use super::configs::{covering_set, given, length};
use super::{BATCH, model, tokens};
use TensorKind::*;

fn close(found: &[f64], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(
            (found - expected).abs() <= 1e-11 * (1.0 + expected.abs()),
            "{what}[{i}]: {found} {expected}"
        );
    }
}

fn sum(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// A pass that was observed, with the weights that it had.
struct Pass<'m, W> {
    config: &'m GptConfig,
    model: &'m Model<Reference<f64>>,
    seen: Recording<f64, W>,
    prefix: Vec<f64>,
    tokens: Vec<u32>,
}

impl<W: FnMut(&Point) -> bool> Pass<'_, W> {
    fn get(&self, layer: impl Into<Option<usize>>, kind: TensorKind) -> &[f64] {
        let layer = layer.into();
        self.seen.value(layer, kind).unwrap_or_else(|| panic!("{kind:?} of layer {layer:?} is not there"))
    }

    fn parameter(&self, name: &str) -> Option<Vec<f64>> {
        self.model.parameter(name).unwrap()
    }

    /// x weight^T + bias.
    fn linear(&self, x: &[f64], name: &str, d_in: usize) -> Vec<f64> {
        let weight = self.parameter(&format!("{name}.weight")).unwrap();
        let d_out = weight.len() / d_in;
        let bias = self.parameter(&format!("{name}.bias")).unwrap_or_else(|| vec![0.0; d_out]);
        let dot =
            |x: &[f64], o: usize| -> f64 { x.iter().zip(&weight[o * d_in..]).map(|(x, w)| x * w).sum() };
        x.chunks(d_in).flat_map(|x| (0..d_out).map(|o| dot(x, o) + bias[o]).collect::<Vec<_>>()).collect()
    }

    /// Of vectors as wide as the weight is.
    fn norm(&self, x: &[f64], name: &str) -> Vec<f64> {
        let weight = self.parameter(&format!("{name}.weight")).unwrap();
        let c = weight.len();
        let bias = self.parameter(&format!("{name}.bias")).unwrap_or_else(|| vec![0.0; c]);
        let mut out = Vec::new();
        for row in x.chunks(c) {
            let mean = match self.config.norm {
                Norm::Rms => 0.0,
                _ => row.iter().sum::<f64>() / c as f64,
            };
            let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / c as f64;
            let rstd = 1.0 / (variance + self.config.norm_eps).sqrt();
            out.extend((0..c).map(|i| (row[i] - mean) * rstd * weight[i] + bias[i]));
        }
        out
    }

    /// Queries, keys and values, side by side in each row.
    fn parts(&self, qkv: &[f64]) -> [Vec<f64>; 3] {
        let (queries, keys) = (self.config.d_attention(), self.config.kv_heads() * self.config.d_head());
        let part = |from: usize, width: usize| {
            qkv.chunks(queries + 2 * keys).flat_map(|row| row[from..][..width].to_vec()).collect()
        };
        [part(0, queries), part(queries, keys), part(queries + keys, keys)]
    }

    /// How many keys the query at position `i` sees.
    fn sees(&self, i: usize) -> usize {
        match self.config.mask {
            Mask::Causal => i + 1,
            Mask::Prefix => (i + 1).max(self.config.prefix),
            _ => self.config.context,
        }
    }

    fn embedding(&self) {
        let (c, time) = (self.config.d_model, self.config.context);
        let table = self.parameter("wte.weight").unwrap();
        let position = |t: usize, i: usize| match self.config.position {
            Position::Learned => self.parameter("wpe.weight").unwrap()[t * c + i],
            Position::Sinusoidal => {
                let angle = t as f64 / 10000f64.powf((i - i % 2) as f64 / c as f64);
                if i.is_multiple_of(2) { angle.sin() } else { angle.cos() }
            }
            _ => 0.0,
        };
        let mut expected = Vec::new();
        let (given, length) = (self.config.prefix, length(self.config));
        for (n, t) in (0..BATCH * time).map(|row| (row / time, row % time)) {
            let row = match t.checked_sub(given) {
                Some(t) => &table[self.tokens[n * length + t] as usize * c..][..c],
                None => &self.prefix[(n * given + t) * c..][..c],
            };
            expected.extend((0..c).map(|i| row[i] + position(t, i)));
        }
        close(self.get(None, Embedding), &expected, "embedding");
    }

    fn attention(&self, layer: usize) {
        let (time, heads, d) = (self.config.context, self.config.heads, self.config.d_head());
        let (kv_heads, width) = (self.config.kv_heads(), heads * d);
        let (query, key, value) = (self.get(layer, Query), self.get(layer, Key), self.get(layer, Value));
        let (scores, weights) = (self.get(layer, AttentionScores), self.get(layer, AttentionWeights));
        let mut attended = vec![0.0; BATCH * time * width];
        for (line, (scores, weights)) in scores.chunks(time).zip(weights.chunks(time)).enumerate() {
            let (b, h, i) = (line / time / heads, line / time % heads, line % time);
            let at = (b * time + i) * width + h * d;
            let of_key = |j: usize| ((b * time + j) * kv_heads + h / (heads / kv_heads)) * d;
            let dot = |j: usize| -> f64 { (0..d).map(|e| query[at + e] * key[of_key(j) + e]).sum() };
            let sees = self.sees(i);
            let expected: Vec<f64> = (0..sees).map(|j| self.config.score_scale() * dot(j)).collect();
            close(&scores[..sees], &expected, "scores");
            let total: f64 = expected.iter().map(|s| s.exp()).sum();
            close(&weights[..sees], &expected.iter().map(|s| s.exp() / total).collect::<Vec<_>>(), "weights");
            close(&[weights.iter().sum()], &[1.0], "sum of weights");
            assert!(scores[sees..].iter().chain(&weights[sees..]).all(|x| *x == 0.0));
            for (j, weight) in weights.iter().enumerate() {
                (0..d).for_each(|e| attended[at + e] += weight * value[of_key(j) + e]);
            }
        }
        close(self.get(layer, Attended), &attended, "attended");
    }

    /// What rotary positions do to each pair.
    fn rotation(&self, layer: usize, base: f64, pairing: Pairing) {
        let (time, d) = (self.config.context, self.config.d_head());
        let (heads, kv_heads) = (self.config.heads, self.config.kv_heads());
        for (before, after, heads) in [(QueryBeforeRotary, Query, heads), (KeyBeforeRotary, Key, kv_heads)] {
            let (before, after) = (self.get(layer, before), self.get(layer, after));
            let mut expected = before.to_vec();
            for (n, (head, x)) in expected.chunks_mut(d).zip(before.chunks(d)).enumerate() {
                let t = n / heads % time;
                for i in 0..d / 2 {
                    let (sin, cos) = (t as f64 / base.powf(2.0 * i as f64 / d as f64)).sin_cos();
                    let (a, b) = match pairing {
                        Pairing::Halves => (i, i + d / 2),
                        _ => (2 * i, 2 * i + 1),
                    };
                    (head[a], head[b]) = (x[a] * cos - x[b] * sin, x[a] * sin + x[b] * cos);
                }
            }
            close(after, &expected, "rotated");
        }
    }

    /// What is added to the stream before a sub-layer, and what the stream is behind it.
    fn added(&self, layer: usize, before: &[f64], [output, total, stream]: [TensorKind; 3], norm: &str) {
        let output = self.get(layer, output).to_vec();
        let total_expected = if self.config.residual { sum(before, &output) } else { output };
        if self.config.norm_place == NormPlace::Post {
            close(self.get(layer, total), &total_expected, "sum");
            close(self.get(layer, stream), &self.norm(&total_expected, norm), "norm of the sum");
        } else {
            close(self.get(layer, stream), &total_expected, "stream");
            assert!(self.seen.value(layer, total).is_none());
        }
    }

    fn block(&self, layer: usize) -> Vec<f64> {
        let (c, name) = (self.config.d_model, |part: &str| format!("h.{layer}.{part}"));
        let input = self.get(layer.checked_sub(1), if layer == 0 { Embedding } else { ResidualOutput });
        // What a sub-layer reads: the stream, or its norm.
        let entry = |stream: &[f64], kind, norm: &str| match self.config.norm_place {
            NormPlace::Pre => {
                close(self.get(layer, kind), &self.norm(stream, &name(norm)), "norm");
                self.get(layer, kind).to_vec()
            }
            _ => stream.to_vec(),
        };
        let qkv = self.linear(&entry(input, AttentionNorm, "ln_1"), &name("attn.c_attn"), c);
        let [mut query, mut key, value] = self.parts(&qkv);
        if self.config.qk_norm {
            query = self.norm(&query, &name("attn.q_norm"));
            key = self.norm(&key, &name("attn.k_norm"));
        }
        let [q, k] = match self.config.position {
            Position::Rotary { base, pairing } => {
                self.rotation(layer, base, pairing);
                [QueryBeforeRotary, KeyBeforeRotary]
            }
            _ => [Query, Key],
        };
        for (kind, expected) in [(q, query), (k, key), (Value, value)] {
            close(self.get(layer, kind), &expected, kind.name());
        }
        self.attention(layer);
        let output = self.linear(self.get(layer, Attended), &name("attn.c_proj"), self.config.d_attention());
        close(self.get(layer, AttentionOutput), &output, "attention output");
        self.added(layer, input, [AttentionOutput, AttentionSum, ResidualMiddle], &name("ln_1"));

        let middle = self.get(layer, ResidualMiddle);
        let before = self.linear(&entry(middle, FeedForwardNorm, "ln_2"), &name("mlp.c_fc"), c);
        close(self.get(layer, PreActivation), &before, "pre-activation");
        let f = |x: f64| activate(self.config.activation, x);
        let hidden: Vec<f64> = if self.config.gated {
            let (rows, d_ff) = (before.chunks(2 * self.config.d_ff), self.config.d_ff);
            rows.flat_map(|row| (0..d_ff).map(|i| f(row[i]) * row[d_ff + i])).collect()
        } else {
            before.iter().map(|x| f(*x)).collect()
        };
        close(self.get(layer, Activation), &hidden, "activation");
        let output = self.linear(&hidden, &name("mlp.c_proj"), self.config.d_ff);
        close(self.get(layer, FeedForwardOutput), &output, "feed-forward output");
        self.added(layer, middle, [FeedForwardOutput, FeedForwardSum, ResidualOutput], &name("ln_2"));
        self.get(layer, ResidualOutput).to_vec()
    }

    fn head(&self, mut last: Vec<f64>) {
        let (c, v, time) = (self.config.d_model, self.config.vocab_size, length(self.config));
        if self.config.norm_place == NormPlace::Pre {
            last = self.norm(&last, "ln_f");
            close(self.get(None, FinalNorm), &last, "final norm");
        }
        let head = if self.config.tied_embeddings { "wte" } else { "lm_head" };
        // Given vectors have none.
        let rows =
            last.chunks(self.config.context * c).flat_map(|rows| rows[self.config.prefix * c..].to_vec());
        let logits = self.linear(&rows.collect::<Vec<_>>(), head, c);
        close(self.get(None, Logits), &logits, "logits");
        let mut losses = Vec::new();
        for (n, logits) in logits.chunks(v).enumerate() {
            let total: f64 = logits.iter().map(|x| x.exp()).sum();
            let loss = |next: &u32| total.ln() - logits[*next as usize];
            losses.push(self.tokens.get(n + 1).filter(|_| n % time + 1 < time).map_or(0.0, loss));
        }
        close(self.get(None, Loss), &losses, "losses");
    }
}

#[test]
fn every_tensor_is_what_the_formulas_make_of_those_before_it() {
    for (i, config) in covering_set().into_iter().enumerate() {
        let model = model(Reference::<f64>::new(), &config, i as u64);
        let time = length(&config);
        let (tokens, prefix) = (tokens(&config, BATCH * time, i as u64), given(&config, BATCH, i as u64));
        let mut seen = Recording::of(|_| true);
        let logits = model.observe_with(&prefix, &tokens, BATCH, time, &mut seen).unwrap();
        assert_eq!(logits, model.logits_with(&prefix, &tokens, BATCH, time).unwrap());
        assert_eq!(seen.value(None, Logits), Some(&logits[..]));
        for (at, values) in seen.iter() {
            assert_eq!(at.count(), values.len(), "{at}");
            assert!(!at.gradient, "{at}");
        }
        let pass = Pass { config: &config, model: &model, seen, prefix, tokens };
        pass.embedding();
        let mut last = Vec::new();
        for layer in 0..config.layers {
            last = pass.block(layer);
        }
        pass.head(last);
    }
}

/// Sees whether it is given memory that holds more than the tensor.
struct Roomy(usize);

impl Probe<f64> for Roomy {
    fn wants(&mut self, _: &Point) -> bool {
        true
    }

    fn see(&mut self, at: &Point, values: Vec<f64>) -> Result<(), InvalidOp> {
        assert_eq!(values.capacity(), at.count(), "{at}");
        self.0 += 1;
        Ok(())
    }
}

#[test]
fn what_a_probe_keeps_is_no_larger_than_the_tensor() {
    let config = GptConfig { layers: 2, heads: 2, d_model: 8, d_ff: 12, ..GptConfig::new(5, 4) };
    let mut probe = Roomy(0);
    model(Reference::new(), &config, 1).observe(&[1, 2, 3], 1, 3, &mut probe).unwrap();
    assert!(probe.0 > 20);
}

#[test]
fn a_point_prints_its_name_and_its_shape() {
    let config = GptConfig { layers: 2, heads: 2, d_model: 8, d_ff: 12, ..GptConfig::new(5, 4) };
    let mut printed = Vec::new();
    let mut probe = minigpt_core::probe::when(
        |at| at.kind == AttentionWeights || at.kind == Query && at.layer == Some(1) || at.kind == Logits,
        |at, _: &[f64]| printed.push(at.to_string()),
    );
    model(Reference::new(), &config, 1).observe(&[1, 2, 3], 1, 3, &mut probe).unwrap();
    drop(probe);
    let expected = [
        "h.0.attention.weights (B 1, H 2, T 3, T 3)",
        "h.1.attention.query (B 1, T 3, H 2, D 4)",
        "h.1.attention.weights (B 1, H 2, T 3, T 3)",
        "logits (B 1, T 3, V 5)",
    ];
    assert_eq!(printed, expected);
}
