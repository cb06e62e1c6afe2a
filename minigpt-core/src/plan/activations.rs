//! What of the forward pass is kept for the backward pass, and what is computed again.

use alloc::vec::Vec;

use super::{Layout, Region};
use crate::config::{ConfigError, GptConfig, Norm, NormPlace, Recompute};

/// Statistics that a norm keeps for its gradient, of each vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NormActivations {
    /// (B, T), of layer norm; for each head apart where heads are normed: (B, T, H).
    pub mean: Option<Region>,
    /// (B, T) or (B, T, H).
    pub rstd: Region,
}

/// What the norms of queries and keys leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NormedHeads {
    /// Queries and keys side by side, as attention reads them: (B, T, (H + K) D).
    pub heads: Region,
    /// Of the queries' norm, (B, T, H).
    pub queries: NormActivations,
    /// Of the keys' norm, (B, T, K).
    pub keys: NormActivations,
}

/// What a block computes. Where no norm stands between two of them they are the same region. In inference all blocks
/// share theirs; in training they share what is computed [again](crate::Recompute).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockActivations {
    /// The block's input: (B, T, C).
    pub input: Region,
    /// What the projection to q, k, v reads: (B, T, C).
    pub attention_in: Region,
    /// Queries, keys and values side by side: (B, T, (H + 2K) D).
    pub qkv: Region,
    /// If the config has norms of queries and keys.
    pub normed_qk: Option<NormedHeads>,
    /// The heads' results side by side: (B, T, H D).
    pub attended: Region,
    /// (B, H, T); empty where attention goes over a cache.
    pub lse: Region,
    /// The attention sub-layer's sum: (B, T, C).
    pub attention_sum: Region,
    /// The feed-forward sub-layer's input on the residual stream: (B, T, C).
    pub middle: Region,
    /// What the first feed-forward layer reads: (B, T, C).
    pub feed_forward_in: Region,
    /// What the first feed-forward layer gives: (B, T, F), for the gradient only; or if gated (B, T, 2F).
    pub pre_activation: Option<Region>,
    /// What the last one reads, the activation's result or the gate's: (B, T, F).
    pub hidden: Region,
    /// The feed-forward sub-layer's sum: (B, T, C).
    pub feed_forward_sum: Region,
    /// The block's result, the next one's input: (B, T, C).
    pub output: Region,
    /// Of the first norm.
    pub norm1: NormActivations,
    /// Of the second norm.
    pub norm2: NormActivations,
}

/// What the forward pass computes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Activations {
    /// One for each layer.
    pub blocks: Vec<BlockActivations>,
    /// What the head reads: (B, T, C).
    pub head_in: Region,
    /// In decoding, the rows from which logits are wanted: (W, C). Else empty.
    pub wanted: Region,
    /// Of the final norm.
    pub final_norm: NormActivations,
    /// (logit rows, V). In training, their gradient takes their place, and if they are many, only some rows have room:
    /// the head, its loss and its gradient go over the rows piece by piece.
    pub logits: Region,
}

/// What the backward pass needs besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackwardActivations {
    /// The gradient of the residual stream, carried from the last block to the first: (B, T, C).
    pub d_stream: Region,
    /// (B, T, C), or (B, T, H D) if that is more.
    pub d_scratch: Region,
    /// (B, T, (H + 2K) D).
    pub d_qkv: Region,
    /// (B, T, F).
    pub d_hidden: Region,
    /// The gradient of what a gate reads: (B, T, 2F).
    pub d_gate: Option<Region>,
    /// Where a norm's result is computed again, unless it was kept: (B, T, C).
    pub normed: Option<Region>,
}

/// What one op after the other uses and nothing keeps, in two places. Regions at one place are never live together.
struct Passing {
    normed: Region,
    hidden: Region,
    backward: BackwardActivations,
}

impl Passing {
    fn new(shape: &Shape, layout: &mut Layout) -> Result<Self, ConfigError> {
        let Shape { stream, scratch, wide, .. } = shape;
        let d_stream = layout.push(stream)?;
        let [[hidden, _], [d_scratch, again]] = layout.overlay([[wide, &[0]], [scratch, stream]])?;
        let ([normed, d_hidden, d_qkv], d_gate) = passing_gradients(shape, layout)?;
        let backward =
            BackwardActivations { d_stream, d_scratch, d_qkv, d_hidden, d_gate, normed: Some(again) };
        Ok(Passing { normed, hidden, backward })
    }
}

/// Regions that are in use one after the other: of a norm's result, of `d_hidden` with `d_gate` beside it, and of `d_qkv`.
fn passing_gradients(
    Shape { stream, qkv, wide, gate, .. }: &Shape,
    layout: &mut Layout,
) -> Result<([Region; 3], Option<Region>), ConfigError> {
    let gate_in: &[usize] = gate.as_ref().map_or(&[0], |gate| gate);
    let sets = layout.overlay([[stream, &[0]], [wide, gate_in], [qkv, &[0]]])?;
    let [[normed, _], [d_hidden, d_gate], [d_qkv, _]] = sets;
    Ok(([normed, d_hidden, d_qkv], gate.map(|_| d_gate)))
}

/// The dimensions of activations.
struct Shape {
    stream: [usize; 3],
    qkv: [usize; 3],
    attended: [usize; 3],
    scratch: [usize; 3],
    wide: [usize; 3],
    /// What a gate reads, if there is one.
    gate: Option<[usize; 4]>,
}

impl Shape {
    fn new(config: &GptConfig, batch: usize, time: usize) -> Self {
        let (d_model, d_attention) = (config.d_model, config.d_attention());
        Shape {
            stream: [batch, time, d_model],
            qkv: [batch, time, config.d_qkv()],
            attended: [batch, time, d_attention],
            scratch: [batch, time, d_model.max(d_attention)],
            wide: [batch, time, config.d_ff],
            gate: config.gated.then_some([batch, time, config.d_ff, 2]),
        }
    }
}

fn norm_activations(
    config: &GptConfig,
    has_norm: bool,
    [batch, time, groups]: [usize; 3],
    layout: &mut Layout,
) -> Result<NormActivations, ConfigError> {
    let vectors = [batch, if has_norm { time } else { 0 }, groups];
    let mean = match config.norm {
        Norm::Layer => Some(layout.push_exact(&vectors)?),
        Norm::Rms => None,
    };
    Ok(NormActivations { mean, rstd: layout.push_exact(&vectors)? })
}

fn normed_heads(
    config: &GptConfig,
    batch: usize,
    time: usize,
    layout: &mut Layout,
) -> Result<Option<NormedHeads>, ConfigError> {
    if !config.qk_norm {
        return Ok(None);
    }
    let (heads, kv_heads) = (config.heads, config.kv_heads());
    Ok(Some(NormedHeads {
        heads: layout.push(&[batch, time, heads + kv_heads, config.d_head()])?,
        queries: norm_activations(config, true, [batch, time, heads], layout)?,
        keys: norm_activations(config, true, [batch, time, kv_heads], layout)?,
    }))
}

/// As many rows go through the head at once as have this many logits, or 256 rows if that is more: enough for the
/// weight to be read from memory but seldom, and few enough for a large vocabulary. A function of the shape alone,
/// since it decides in which order gradients are summed.
const HEAD_LOGITS: usize = 1 << 20;

fn head_rows(rows: usize, vocab: usize) -> usize {
    rows.min((HEAD_LOGITS / vocab.max(1)).max(256))
}

pub(super) fn training(
    config: &GptConfig,
    recompute: Recompute,
    batch: usize,
    time: usize,
    layout: &mut Layout,
) -> Result<(Activations, BackwardActivations), ConfigError> {
    let shape = Shape::new(config, batch, time);
    let Shape { stream, qkv, attended, scratch, wide, gate } = &shape;
    let (before, after) = (config.norm_place == NormPlace::Pre, config.norm_place == NormPlace::Post);
    let has_norms = config.norm_place != NormPlace::None;
    let passing = if recompute == Recompute::Nothing { None } else { Some(Passing::new(&shape, layout)?) };

    let mut blocks: Vec<BlockActivations> = Vec::new();
    blocks.try_reserve_exact(config.layers).map_err(|_| ConfigError::TooLarge { field: "layers" })?;
    let mut input = layout.push(stream)?;
    for _ in 0..config.layers {
        let norm1 = norm_activations(config, has_norms, [batch, time, 1], layout)?;
        let norm2 = norm_activations(config, has_norms, [batch, time, 1], layout)?;
        let output = layout.push(stream)?;
        let mut block = match blocks.first() {
            Some(&first) if recompute == Recompute::Blocks => first,
            _ => {
                let mut normed = || match &passing {
                    _ if !before => Ok(None),
                    Some(passing) => Ok(Some(passing.normed)),
                    None => layout.push(stream).map(Some),
                };
                let (normed1, normed2) = (normed()?, normed()?);
                let middle = layout.push(stream)?;
                let mut apart = |or: Region| if after { layout.push(stream) } else { Ok(or) };
                BlockActivations {
                    input,
                    attention_in: normed1.unwrap_or(input),
                    attention_sum: apart(middle)?,
                    middle,
                    feed_forward_in: normed2.unwrap_or(middle),
                    feed_forward_sum: apart(output)?,
                    output,
                    qkv: layout.push(qkv)?,
                    normed_qk: normed_heads(config, batch, time, layout)?,
                    attended: layout.push(attended)?,
                    lse: layout.push_exact(&[batch, config.heads, time])?,
                    pre_activation: Some(layout.push(gate.as_ref().map_or(wide, |gate| gate))?),
                    hidden: match &passing {
                        Some(passing) => passing.hidden,
                        None => layout.push(wide)?,
                    },
                    norm1,
                    norm2,
                }
            }
        };
        // The places that each block has for itself, even if the others are the first one's.
        if !before {
            block.attention_in = input;
        }
        if !after {
            block.feed_forward_sum = output;
        }
        blocks.push(BlockActivations { input, output, norm1, norm2, ..block });
        input = output;
    }
    let final_norm = norm_activations(config, before, [batch, time, 1], layout)?;
    // A model with a prefix goes through the head sequence by sequence, since the rows of the prefix do not.
    let rows = match config.prefix {
        0 => batch.checked_mul(time).ok_or(ConfigError::TooLarge { field: "batch" })?,
        prefix => time.saturating_sub(prefix),
    };
    let logits = layout.push(&[head_rows(rows, config.vocab_size), config.vocab_size])?;
    let (normed, backward) = match passing {
        Some(Passing { normed, backward, .. }) => (normed, backward),
        None => {
            let (d_stream, d_scratch) = (layout.push(stream)?, layout.push(scratch)?);
            let ([normed, d_hidden, d_qkv], d_gate) = passing_gradients(&shape, layout)?;
            (normed, BackwardActivations { d_stream, d_scratch, d_qkv, d_hidden, d_gate, normed: None })
        }
    };
    let head_in = if before { normed } else { input };
    let wanted = layout.push(&[0])?;
    Ok((Activations { blocks, head_in, wanted, final_norm, logits }, backward))
}

/// In inference a block's values die with it, so one set serves all; three streams suffice, because the input is dead
/// once the attention sum is made.
pub(super) fn inference(
    config: &GptConfig,
    batch: usize,
    time: usize,
    layout: &mut Layout,
) -> Result<Activations, ConfigError> {
    let mut activations = forward(config, batch, time, true, layout)?;
    activations.logits = layout.push(&[batch, time - config.prefix, config.vocab_size])?;
    Ok(activations)
}

/// As [`inference`], of rows of which some have their logits wanted.
pub(super) fn decoding(
    config: &GptConfig,
    rows: usize,
    wanted: usize,
    layout: &mut Layout,
) -> Result<Activations, ConfigError> {
    let mut activations = forward(config, 1, rows, false, layout)?;
    activations.wanted = layout.push(&[wanted, config.d_model])?;
    activations.logits = layout.push(&[wanted, config.vocab_size])?;
    Ok(activations)
}

/// All but the logits; `lse`: with what attention over the pass's own positions leaves.
fn forward(
    config: &GptConfig,
    batch: usize,
    time: usize,
    lse: bool,
    layout: &mut Layout,
) -> Result<Activations, ConfigError> {
    let Shape { stream, qkv, attended, wide, gate, .. } = Shape::new(config, batch, time);
    let (before, after) = (config.norm_place == NormPlace::Pre, config.norm_place == NormPlace::Post);
    let has_norms = config.norm_place != NormPlace::None;
    let input = layout.push(&stream)?;
    let normed = if has_norms { layout.push(&stream)? } else { input };
    let mut blocks = Vec::new();
    blocks.try_reserve_exact(config.layers).map_err(|_| ConfigError::TooLarge { field: "layers" })?;
    if config.layers > 0 {
        let norm1 = norm_activations(config, has_norms, [batch, time, 1], layout)?;
        let norm2 = norm_activations(config, has_norms, [batch, time, 1], layout)?;
        let middle = layout.push(&stream)?;
        let block = BlockActivations {
            input,
            attention_in: if before { normed } else { input },
            qkv: layout.push(&qkv)?,
            normed_qk: normed_heads(config, batch, time, layout)?,
            attended: layout.push(&attended)?,
            lse: layout.push_exact(&[batch, config.heads, if lse { time } else { 0 }])?,
            attention_sum: if after { normed } else { middle },
            middle,
            feed_forward_in: if before { normed } else { middle },
            pre_activation: gate.map(|gate| layout.push(&gate)).transpose()?,
            hidden: layout.push(&wide)?,
            feed_forward_sum: if after { normed } else { input },
            output: input,
            norm1,
            norm2,
        };
        blocks.resize(config.layers, block);
    }
    let final_norm = norm_activations(config, before, [batch, time, 1], layout)?;
    let head_in = if before { normed } else { input };
    let nowhere = layout.push(&[0])?;
    Ok(Activations { blocks, head_in, wanted: nowhere, final_norm, logits: nowhere })
}
