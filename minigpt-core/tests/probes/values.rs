//! Every tensor of a forward pass against plain loops over those before it, in f64.

use minigpt_core::probe::{Point, Probe, Recording, TensorKind};
use minigpt_core::reference::activation::activate;
use minigpt_core::{GptConfig, InvalidOp, Mask, Model, NormPlace, Pairing, Position, Reference};

use super::configs::{config, covering_set};
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

    fn norm(&self, x: &[f64], name: &str) -> Vec<f64> {
        let c = self.config.d_model;
        let weight = self.parameter(&format!("{name}.weight")).unwrap();
        let bias = self.parameter(&format!("{name}.bias")).unwrap_or_else(|| vec![0.0; c]);
        let mut out = Vec::new();
        for row in x.chunks(c) {
            let mean = row.iter().sum::<f64>() / c as f64;
            let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / c as f64;
            let rstd = 1.0 / (variance + self.config.norm_eps).sqrt();
            out.extend((0..c).map(|i| (row[i] - mean) * rstd * weight[i] + bias[i]));
        }
        out
    }

    /// The queries, keys and values of rows in which they lie side by side.
    fn parts(&self, qkv: &[f64]) -> [Vec<f64>; 3] {
        let [q, kv] = [self.config.heads, self.config.kv_heads()].map(|heads| heads * self.config.d_head());
        let part = |first: usize, width: usize| {
            qkv.chunks(q + 2 * kv).flat_map(|row| row[first..][..width].to_vec()).collect()
        };
        [part(0, q), part(q, kv), part(q + kv, kv)]
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
        for (n, token) in self.tokens.iter().enumerate() {
            expected.extend((0..c).map(|i| table[*token as usize * c + i] + position(n % time, i)));
        }
        close(self.get(None, Embedding), &expected, "embedding");
    }

    fn attention(&self, layer: usize) {
        let (time, heads, kv_heads, d) =
            (self.config.context, self.config.heads, self.config.kv_heads(), self.config.d_head());
        let (query, key, value) = (self.get(layer, Query), self.get(layer, Key), self.get(layer, Value));
        let (scores, weights) = (self.get(layer, AttentionScores), self.get(layer, AttentionWeights));
        let mut attended = vec![0.0; BATCH * time * heads * d];
        for (line, (scores, weights)) in scores.chunks(time).zip(weights.chunks(time)).enumerate() {
            let (b, h, i) = (line / time / heads, line / time % heads, line % time);
            let at = |t: usize| ((b * time + t) * heads + h) * d;
            let shared = |t: usize| ((b * time + t) * kv_heads + h * kv_heads / heads) * d;
            let seen = match self.config.mask {
                Mask::Prefix => (i + 1).max(self.config.prefix),
                Mask::None => time,
                _ => i + 1,
            };
            let dot = |j: usize| -> f64 { (0..d).map(|e| query[at(i) + e] * key[shared(j) + e]).sum() };
            let expected: Vec<f64> = (0..seen).map(|j| self.config.score_scale() * dot(j)).collect();
            close(&scores[..seen], &expected, "scores");
            let total: f64 = expected.iter().map(|s| s.exp()).sum();
            close(&weights[..seen], &expected.iter().map(|s| s.exp() / total).collect::<Vec<_>>(), "weights");
            close(&[weights.iter().sum()], &[1.0], "sum of weights");
            assert!(scores[seen..].iter().chain(&weights[seen..]).all(|x| *x == 0.0));
            for (j, weight) in weights.iter().enumerate() {
                (0..d).for_each(|e| attended[at(i) + e] += weight * value[shared(j) + e]);
            }
        }
        close(self.get(layer, Attended), &attended, "attended");
    }

    /// What rotary positions do to each pair.
    fn rotation(&self, layer: usize) {
        let Position::Rotary { base, pairing } = self.config.position else { return };
        let (time, d) = (self.config.context, self.config.d_head());
        for (before, after, heads) in
            [(QueryBeforeRotary, Query, self.config.heads), (KeyBeforeRotary, Key, self.config.kv_heads())]
        {
            let (before, after) = (self.get(layer, before), self.get(layer, after));
            let mut expected = vec![0.0; before.len()];
            for (n, head) in before.chunks(d).enumerate() {
                let t = n / heads % time;
                for pair in 0..d / 2 {
                    let (a, b) = match pairing {
                        Pairing::Halves => (pair, pair + d / 2),
                        _ => (2 * pair, 2 * pair + 1),
                    };
                    let (sin, cos) = (t as f64 / base.powf(2.0 * pair as f64 / d as f64)).sin_cos();
                    expected[n * d + a] = head[a] * cos - head[b] * sin;
                    expected[n * d + b] = head[a] * sin + head[b] * cos;
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
        let [query, key, value] = self.parts(&qkv);
        let rotary = self.config.position.is_rotary();
        let [q, k] = if rotary { [QueryBeforeRotary, KeyBeforeRotary] } else { [Query, Key] };
        for (kind, expected) in [(q, query), (k, key), (Value, value)] {
            close(self.get(layer, kind), &expected, kind.name());
        }
        if rotary {
            self.rotation(layer);
        }
        self.attention(layer);
        let d_attention = self.config.d_attention();
        let output = self.linear(self.get(layer, Attended), &name("attn.c_proj"), d_attention);
        close(self.get(layer, AttentionOutput), &output, "attention output");
        self.added(layer, input, [AttentionOutput, AttentionSum, ResidualMiddle], &name("ln_1"));

        let middle = self.get(layer, ResidualMiddle);
        let before = self.linear(&entry(middle, FeedForwardNorm, "ln_2"), &name("mlp.c_fc"), c);
        close(self.get(layer, PreActivation), &before, "pre-activation");
        let hidden: Vec<f64> = before.iter().map(|x| activate(self.config.activation, *x)).collect();
        close(self.get(layer, Activation), &hidden, "activation");
        let output = self.linear(&hidden, &name("mlp.c_proj"), self.config.d_ff);
        close(self.get(layer, FeedForwardOutput), &output, "feed-forward output");
        self.added(layer, middle, [FeedForwardOutput, FeedForwardSum, ResidualOutput], &name("ln_2"));
        self.get(layer, ResidualOutput).to_vec()
    }

    fn head(&self, mut last: Vec<f64>) {
        let (c, v, time) = (self.config.d_model, self.config.vocab_size, self.config.context);
        if self.config.norm_place == NormPlace::Pre {
            last = self.norm(&last, "ln_f");
            close(self.get(None, FinalNorm), &last, "final norm");
        }
        let head = if self.config.tied_embeddings { "wte" } else { "lm_head" };
        let logits = self.linear(&last, head, c);
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
    for (i, choice) in covering_set().iter().enumerate() {
        let config = config(choice);
        let model = model(Reference::<f64>::new(), &config, i as u64);
        let tokens = tokens(&config, BATCH * config.context, i as u64);
        let mut seen = Recording::of(|_| true);
        let logits = model.observe(&tokens, BATCH, config.context, &mut seen).unwrap();
        assert_eq!(logits, model.logits(&tokens, BATCH, config.context).unwrap());
        assert_eq!(seen.value(None, Logits), Some(&logits[..]));
        for (at, values) in seen.iter() {
            assert_eq!(at.count(), values.len(), "{at}");
            assert!(!at.gradient, "{at}");
        }
        let pass = Pass { config: &config, model: &model, seen, tokens };
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
