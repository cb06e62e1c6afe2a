//! The parameters of a model: their names, shapes and kinds, how each begins, and where it lies.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::{Layout, Region};
use crate::config::{ConfigError, GptConfig, NormPlace, ParameterKind, Position};
use crate::memory::Dtype;

/// How a parameter begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Init {
    /// Normal with a standard deviation of 0.02.
    Normal,
    /// Normal with 0.02 / sqrt(2 layers): what adds to the residual stream (Radford et al. 2019, section 2.3).
    Residual,
    /// All ones: a norm's weight.
    Ones,
    /// All zeros: a bias.
    Zeros,
}

/// One parameter: a matrix `(rows, cols)`, or a vector, which has one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Its name in checkpoints: nanoGPT's, such as `h.0.attn.c_attn.weight`.
    pub name: String,
    /// d_out of a linear layer.
    pub rows: usize,
    /// d_in of a linear layer.
    pub cols: usize,
    /// How it begins.
    pub init: Init,
    /// Which group trains it.
    pub kind: ParameterKind,
    /// Its place among the parameters.
    pub region: Region,
}

impl Tensor {
    /// Whether it is a matrix: an embedding, the head, or the weight of a linear layer.
    pub fn is_matrix(&self) -> bool {
        self.kind != ParameterKind::Vector
    }
}

/// A weight and, if the config has biases, a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Affine<T> {
    /// (d_out, d_in), or as wide as what it norms: (C).
    pub weight: T,
    /// (d_out), or (C).
    pub bias: Option<T>,
}

/// The norms of the heads of queries, and of keys: each (D).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadNorms<T> {
    /// Of each head of queries.
    pub queries: Affine<T>,
    /// Of each head of keys.
    pub keys: Affine<T>,
}

/// The parameters of one block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockParameters<T> {
    /// The norm of the attention sub-layer.
    pub norm1: Option<Affine<T>>,
    /// Queries, keys and values in one: ((H + 2K) D, C).
    pub qkv: Affine<T>,
    /// If the config has norms of queries and keys. Boxed, because few have them and a small machine has every block in memory.
    pub head_norms: Option<Box<HeadNorms<T>>>,
    /// Back to the residual stream: (C, H D).
    pub attention_out: Affine<T>,
    /// The norm of the feed-forward sub-layer.
    pub norm2: Option<Affine<T>>,
    /// (F, C), or if gated (2F, C), the gate's rows first.
    pub up: Affine<T>,
    /// (C, F).
    pub down: Affine<T>,
}

/// Something for each parameter of a model: its description, its span, its gradient's span.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameters<T> {
    /// (V, C).
    pub token_embedding: T,
    /// (T, C), if positions are learned.
    pub position_embedding: Option<T>,
    /// One for each layer.
    pub blocks: Vec<BlockParameters<T>>,
    /// Before the head, if norms come first.
    pub final_norm: Option<Affine<T>>,
    /// (V, C), if it is not the token embedding.
    pub head: Option<T>,
}

impl<T> BlockParameters<T> {
    /// The norm of queries and that of keys, if the config has them.
    pub(crate) fn head_norms(&self) -> impl Iterator<Item = &Affine<T>> {
        self.head_norms.iter().flat_map(|norms| [&norms.queries, &norms.keys])
    }
}

impl<T> Affine<T> {
    fn map<U>(&self, f: &mut impl FnMut(&T) -> U) -> Affine<U> {
        Affine { weight: f(&self.weight), bias: self.bias.as_ref().map(f) }
    }
}

impl<T> Parameters<T> {
    /// The same for each parameter's image under `f`, which is called in the order of the model.
    pub fn map<U>(&self, mut f: impl FnMut(&T) -> U) -> Parameters<U> {
        let f = &mut f;
        Parameters {
            token_embedding: f(&self.token_embedding),
            position_embedding: self.position_embedding.as_ref().map(&mut *f),
            blocks: self
                .blocks
                .iter()
                .map(|b| BlockParameters {
                    norm1: b.norm1.as_ref().map(|a| a.map(f)),
                    qkv: b.qkv.map(f),
                    head_norms: b.head_norms.as_ref().map(|norms| {
                        Box::new(HeadNorms { queries: norms.queries.map(f), keys: norms.keys.map(f) })
                    }),
                    attention_out: b.attention_out.map(f),
                    norm2: b.norm2.as_ref().map(|a| a.map(f)),
                    up: b.up.map(f),
                    down: b.down.map(f),
                })
                .collect(),
            final_norm: self.final_norm.as_ref().map(|a| a.map(f)),
            head: self.head.as_ref().map(f),
        }
    }

    /// All of them, in the order of the model.
    pub fn list(&self) -> Vec<&T> {
        fn push<'a, T>(all: &mut Vec<&'a T>, affine: &'a Affine<T>) {
            all.push(&affine.weight);
            all.extend(&affine.bias);
        }
        let mut all = Vec::new();
        all.push(&self.token_embedding);
        all.extend(&self.position_embedding);
        for b in &self.blocks {
            b.norm1.iter().for_each(|a| push(&mut all, a));
            push(&mut all, &b.qkv);
            b.head_norms().for_each(|a| push(&mut all, a));
            push(&mut all, &b.attention_out);
            b.norm2.iter().for_each(|a| push(&mut all, a));
            push(&mut all, &b.up);
            push(&mut all, &b.down);
        }
        self.final_norm.iter().for_each(|a| push(&mut all, a));
        all.extend(&self.head);
        all
    }

    /// The matrix of the head: its own, or the token embedding.
    pub fn head_weight(&self) -> &T {
        self.head.as_ref().unwrap_or(&self.token_embedding)
    }
}

impl Parameters<Tensor> {
    /// Room for copies of what linear layers and embeddings of tokens read.
    pub(super) fn copies(&self, layout: &mut Layout) -> Result<Parameters<Option<Region>>, ConfigError> {
        let mut failed = None;
        let copies = self.map(|tensor| {
            let kept = !tensor.is_matrix() || Some(tensor) == self.position_embedding.as_ref();
            let region = (!kept && failed.is_none()).then(|| layout.push(&[tensor.region.len]))?;
            region.map_err(|error| failed = Some(error)).ok()
        });
        failed.map_or(Ok(copies), Err)
    }
}

/// The parameters, how many numbers they are, and how many bytes.
type Laid = (Parameters<Tensor>, usize, usize);

/// Lays out the parameters of a model.
pub(super) fn lay_out(config: &GptConfig, elem: Dtype) -> Result<Laid, ConfigError> {
    let (c, f, v) = (config.d_model, config.d_ff, config.vocab_size);
    let nowhere = Region { offset: 0, len: 0 };
    let tensor =
        |name: String, kind, rows, cols, init| Tensor { name, rows, cols, init, kind, region: nowhere };
    let vector = |name: String, width, init| tensor(name, ParameterKind::Vector, 1, width, init);
    let linear = |name: String, bias: bool, rows, cols, init| Affine {
        bias: bias.then(|| vector(format!("{name}.bias"), rows, Init::Zeros)),
        weight: tensor(format!("{name}.weight"), ParameterKind::Matrix, rows, cols, init),
    };
    let norm = |name: String, width| Affine {
        bias: config.bias.norm.then(|| vector(format!("{name}.bias"), width, Init::Zeros)),
        weight: vector(format!("{name}.weight"), width, Init::Ones),
    };
    let head_norms = |i: usize| {
        let of = |heads: &str| norm(format!("h.{i}.attn.{heads}_norm"), config.d_head());
        config.qk_norm.then(|| Box::new(HeadNorms { queries: of("q"), keys: of("k") }))
    };
    let has_norms = config.norm_place != NormPlace::None;
    let mut blocks = Vec::new();
    // The number of layers may come from a stranger's file.
    blocks.try_reserve_exact(config.layers).map_err(|_| ConfigError::TooLarge { field: "layers" })?;
    for i in 0..config.layers {
        blocks.push(BlockParameters {
            norm1: has_norms.then(|| norm(format!("h.{i}.ln_1"), c)),
            qkv: linear(format!("h.{i}.attn.c_attn"), config.bias.qkv, config.d_qkv(), c, Init::Normal),
            head_norms: head_norms(i),
            attention_out: linear(
                format!("h.{i}.attn.c_proj"),
                config.bias.linear,
                c,
                config.d_attention(),
                Init::Residual,
            ),
            norm2: has_norms.then(|| norm(format!("h.{i}.ln_2"), c)),
            up: linear(format!("h.{i}.mlp.c_fc"), config.bias.linear, config.d_up(), c, Init::Normal),
            down: linear(format!("h.{i}.mlp.c_proj"), config.bias.linear, c, f, Init::Residual),
        });
    }
    let all = Parameters {
        token_embedding: tensor("wte.weight".into(), ParameterKind::Embedding, v, c, Init::Normal),
        position_embedding: (config.position == Position::Learned)
            .then(|| tensor("wpe.weight".into(), ParameterKind::Embedding, config.context, c, Init::Normal)),
        blocks,
        final_norm: (config.norm_place == NormPlace::Pre).then(|| norm("ln_f".into(), c)),
        head: (!config.tied_embeddings)
            .then(|| tensor("lm_head.weight".into(), ParameterKind::Head, v, c, Init::Normal)),
    };

    // Matrices first, then vectors; each in the order of the model.
    let mut layout = Layout::new(elem, "parameters");
    let mut count = 0usize;
    let mut regions = alloc::vec![nowhere; all.list().len()];
    for matrices in [true, false] {
        for (tensor, region) in all.list().into_iter().zip(&mut regions) {
            if tensor.is_matrix() == matrices {
                *region = layout.push(&[tensor.rows, tensor.cols])?;
                count += region.len;
            }
        }
    }
    let end = layout.end;
    let mut next = regions.into_iter();
    let all = all.map(|tensor| Tensor { region: next.next().unwrap_or(nowhere), ..tensor.clone() });
    Ok((all, count, end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Plan;

    #[test]
    fn parameters_of_a_kind_lie_side_by_side() {
        let config =
            GptConfig { tied_embeddings: false, bias: crate::config::Bias::ALL, ..GptConfig::new(7, 4) };
        let plan = Plan::smallest(&config, Dtype::F32).unwrap();
        let mut tensors = plan.parameters.list();
        tensors.sort_by_key(|tensor| tensor.region.offset);
        let mut kinds: Vec<ParameterKind> = tensors.iter().map(|tensor| tensor.kind).collect();
        kinds.dedup();
        let order =
            [ParameterKind::Embedding, ParameterKind::Matrix, ParameterKind::Head, ParameterKind::Vector];
        assert_eq!(kinds, order);
        assert!(tensors.iter().all(|tensor| tensor.is_matrix() == (tensor.rows > 1)));
    }
}
