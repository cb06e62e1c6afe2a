//! Checkpoints: a model, its tokenizer and its training state in one file that any program can read.
//!
//! [`write()`] streams a checkpoint to a sink, [`Checkpoint::open`] opens one where it lies, and a [`Stream`] reads one
//! as it comes in; with the feature `std`, [`save`] replaces a file as one, [`load`] reads one, and a [`RunFolder`]
//! keeps those of a training run. No input makes the reader panic, loop longer than its length, or allocate more than a
//! small multiple of it, and [`Limits`] bound what it makes a program do later.
//!
//! # The format, versions 1 and 2
//!
//! This library writes version 2 and reads both. They differ in `CONF` alone: version 2 tells apart more kinds of models, and
//! each model of version 1 is one of version 2.
//!
//! All integers of fixed width are little-endian. CRC-32 is that of zip and Ethernet (IEEE 802.3; polynomial
//! 0x04C11DB7, reflected, initial value and final XOR 0xFFFFFFFF): that of the bytes `123456789` is
//! 0xCBF43926.
//!
//! A file is a header, zeros up to the next multiple of 64, and a payload. It ends where the payload ends,
//! and its length is a multiple of 64. Nothing in it depends on when or where it was written: the same
//! contents are the same bytes.
//!
//! | from byte | bytes | what |
//! |---|---|---|
//! | 0 | 4 | `MGPT`, in ASCII |
//! | 4 | 4 | u32: the version of the format, 1 or 2 |
//! | 8 | 4 | u32: H, the length of the header in bytes, from byte 0 to the end of its checksum |
//! | 12 | H - 16 | the sections, one behind the other |
//! | H - 4 | 4 | u32: the CRC-32 of bytes 0 to H - 4 (exclusive) |
//! | H | 0 to 63 | zeros, up to P, the next multiple of 64 |
//! | P | | the payload |
//!
//! ## Sections
//!
//! | bytes | what |
//! |---|---|
//! | 4 | tag, in ASCII |
//! | 4 | u32: flags. Bit 0: a reader that does not know the tag must refuse the file; else it skips the section. The other bits are 0, and a reader refuses others |
//! | 4 | u32: the length of the body in bytes |
//! | | the body |
//!
//! Sections may come in any order, each tag once. `CONF` and `TENS` are in every file. A body ends where its
//! last value ends. Values are encoded by [postcard](https://postcard.jamesmunns.com/wire-format), as
//! follows:
//!
//! - `bool`: one byte, 0 or 1.
//! - `u32`, `u64` and counts: base 128, the lowest 7 bits first; the highest bit of a byte says that another
//!   follows. At most 5 bytes for 32 bits, 10 for 64. 300 is `AC 02`.
//! - `f64`: 8 bytes, IEEE 754.
//! - `str`: a count of bytes, then that many bytes of UTF-8.
//! - a choice: its number as a `u32`, then the values that the choice carries.
//! - an optional value: one byte, 0 if it is not there; else 1, then the value.
//! - a list: a count, then its elements. What is fixed in number, and the fields of a record, stand one
//!   behind the other without a count.
//!
//! **`CONF`**, the model ([`GptConfig`](crate::GptConfig)), required. In version 2, these one behind the other:
//!
//! | field | what |
//! |---|---|
//! | `u32` vocab_size | V, how many tokens there are |
//! | `u32` context | T, the most positions of a pass |
//! | `u32` layers | how many layers |
//! | `u32` heads | H, heads of queries |
//! | optional `u32` kv_heads | K, heads of keys and of values, which divides H; if it is not there, H |
//! | `u32` d_model | C, the width of the model |
//! | optional `u32` d_head | D, the width of a head; if it is not there, C / H, and H divides C |
//! | `u32` d_ff | F, the width of the feed-forward layer |
//! | `u32` prefix | P, how many given vectors stand before the tokens; less than T |
//! | position | a choice of 0 learned; 1 sinusoidal; 2 rotary, which carries an `f64` base and a pairing, itself a choice of 0 adjacent, 1 halves; 3 none |
//! | mask | a choice of 0 causal, 1 prefix, 2 none |
//! | norm | a choice of 0 layer norm, 1 RMS norm |
//! | norm_place | a choice of 0 pre, 1 post, 2 none |
//! | `bool` qk_norm | whether queries and keys have a norm |
//! | attention_scale | a choice of 0 1/sqrt(D); 1 none; 2 custom, which carries an `f64` |
//! | `bool` residual | whether a sub-layer's input is added to its output |
//! | activation | a choice of 0 GELU by tanh, 1 GELU by erf, 2 ReLU, 3 ReLU squared, 4 SiLU |
//! | `bool` gated | whether the feed-forward layer has a gate |
//! | `bool` qkv_bias | whether `attn.c_attn` has a bias |
//! | `bool` linear_bias | whether `attn.c_proj`, `mlp.c_fc` and `mlp.c_proj` have one |
//! | `bool` norm_bias | whether the norms have one |
//! | `f64` dropout | in training; 0 to 1 |
//! | `bool` tied_embeddings | whether the head is `wte.weight` |
//! | `f64` norm_eps | added under the root of the norms |
//!
//! In version 1: `u32` vocab_size, context, layers, heads, d_model, d_ff; position, a choice of 0 learned, 1 sinusoidal, 2
//! rotary, 3 none; norm_place, attention_scale and `bool` residual as above; activation, a choice of 0 GELU by tanh, 1 GELU by
//! erf, 2 ReLU; `bool` bias; `f64` dropout; `bool` tied_embeddings; `f64` norm_eps. `bias` is qkv_bias, linear_bias and
//! norm_bias in one. What version 1 does not have is as follows: kv_heads and d_head are not there, prefix is 0, rotary has
//! base 10000 and the adjacent pairing, mask is causal, norm is layer norm, qk_norm and gated are false.
//!
//! **`TOKN`**, the tokenizer, if there is one: a choice of 0, every byte is the token of its value; or 1,
//! characters, which carries a `str`: the characters sorted by code point, each once; the first is token 0.
//! There are at most vocab_size tokens.
//!
//! **`TRAN`**, if training is to continue ([`TrainConfig`], then [`TrainState`]): `u32` batch, time,
//! accumulation; the learning rate's `f64` peak, floor, `u32` warmup, steps, and decay, a choice of 0
//! constant, 1 linear, 2 cosine, 3 stable, which carries `u32` decay_steps; `f64` clip (may be infinite), beta1, beta2, eps,
//! weight_decay; `u64` seed;
//! 16 `u32`, the [counters](crate::op::counter) of the device; `u64` windows_drawn. AdamW trains all parameters with these
//! settings, of which vectors (biases, and the weights of norms) have no weight decay; unless there is:
//!
//! **`OPTM`**, if there is `TRAN` and the training is another one: four groups, an average, a list of `str`, the names of
//! the parameters that are frozen, each once, and what is rounded: a choice of 0 [`F32`](crate::Precision::F32), 1
//! [`Bf16`](crate::Precision::Bf16), which is left out if it is the first. The groups are those of embeddings (`wte.weight`,
//! `wpe.weight`), of matrices (the weights of `attn.c_attn`, `attn.c_proj`, `mlp.c_fc` and `mlp.c_proj`), of the head
//! (`lm_head.weight`) and of vectors (the rest). The average is an optional `f64`: what a moving average of the weights keeps of
//! itself. A group is:
//!
//! | field | what |
//! |---|---|
//! | optimizer | a choice of 0 AdamW, which carries `f64` beta1, beta2 and eps; 1 gradient descent, which carries `f64` momentum and `bool` nesterov; 2 Muon, which carries `f64` momentum, `bool` nesterov and `u32` steps |
//! | `f64` weight_decay | of each update, times the learning rate |
//! | `f64` rate | the group's learning rate is that of `TRAN` times this |
//!
//! Then beta1, beta2, eps and weight_decay of `TRAN` are 0 and mean nothing. (A program that does not know `OPTM` can run the
//! model, and finds no AdamW with an eps of 0 to train it by.)
//!
//! **`META`**, if the program has something to keep: a list of records of two `str`, key and value, in the
//! program's own order. Keys are not empty.
//!
//! **`TENS`**, the index of the payload, required: a list of records, one for each tensor, in the order of
//! the payload.
//!
//! | field | what |
//! |---|---|
//! | `str` name | 1 to 255 bytes; no two tensors have the same |
//! | role | a choice of 0, a parameter of the model; 1, of use only for training. All of 0 come before all of 1 |
//! | dtype | a choice of 0 f64, 1 f32, 2 f16, 3 bf16, 4 Q8_0, 5 Q4_0, 6 u32 |
//! | `u32` rows | at least 1; 1 for a vector |
//! | `u32` cols | at least 1 |
//! | `u64` offset | from P: 0 for the first tensor; else the end of the one before, rounded up to a multiple of 64 |
//! | `u64` length | in bytes: that of the shape |
//! | `u32` crc | the CRC-32 of the tensor's bytes |
//!
//! ## Payload
//!
//! The tensors, row by row, each followed by zeros up to a multiple of 64 bytes. f64, f32 and f16 are the formats of
//! IEEE 754 of 8, 4 and 2 bytes, little-endian; bf16 is the upper two bytes of an f32; u32 has 4 bytes. In Q8_0 and
//! Q4_0, a row is made of whole blocks of 32 numbers, and what fills up its last block means nothing:
//!
//! ```text
//! Q8_0   34 bytes: f16 d, 32 signed bytes q      number k is d q[k]
//! Q4_0   18 bytes: f16 d, 16 bytes q             number k is d ((q[k] mod 16) - 8)       for k < 16
//!                                                            d (floor(q[k - 16] / 16) - 8)  for k >= 16
//! ```
//!
//! ## The model
//!
//! These tensors have role 0. The letters are those of `CONF`, and i counts the layers from 0. A weight marked with a letter
//! has a `.bias` beside it, such as `h.i.ln_1.bias`, if that is true: q, qkv_bias; l, linear_bias; n, norm_bias. A bias is one
//! row of as many columns as the weight has rows (norms: columns).
//!
//! | name | rows x columns | there |
//! |---|---|---|
//! | `wte.weight` | V x C | always |
//! | `wpe.weight` | T x C | if position is learned |
//! | `h.i.ln_1.weight` n | 1 x C | unless norm_place is none |
//! | `h.i.attn.c_attn.weight` q | (H + 2K) D x C | always |
//! | `h.i.attn.q_norm.weight` n | 1 x D | if qk_norm |
//! | `h.i.attn.k_norm.weight` n | 1 x D | if qk_norm |
//! | `h.i.attn.c_proj.weight` l | C x H D | always |
//! | `h.i.ln_2.weight` n | 1 x C | unless norm_place is none |
//! | `h.i.mlp.c_fc.weight` l | F x C, or 2F x C if gated | always |
//! | `h.i.mlp.c_proj.weight` l | C x F | always |
//! | `ln_f.weight` n | 1 x C | if norm_place is pre |
//! | `lm_head.weight` | V x C | unless tied_embeddings; then `wte.weight` stands for it |
//!
//! This is the order in which this library writes them, each bias right after its weight; readers find them by name.
//!
//! A linear layer makes W x + b of a vector x. A norm makes of n numbers x as many:
//!
//! ```text
//! layer norm:  (x - mean) / sqrt(variance + norm_eps) * weight + bias    mean and variance are those of the n numbers;
//!                                                                        variance is the mean of (x - mean)^2
//! RMS norm:    x / sqrt(mean of x^2 + norm_eps) * weight + bias
//! ```
//!
//! A pass goes over positions 0, 1, ..., T - 1 at most. The first P of them hold the given vectors, of C numbers each: an input
//! like the tokens (an image, say), and not in the file. The first token stands at position P. For position p:
//!
//! ```text
//! x = g + e(p)                g: the given vector p if p < P; else wte[token]
//!                             e(p): wpe[p] if learned; else 0, or, if sinusoidal, for j = 0, 1, ...:
//!                             e[2j] = sin(p / 10000^(2j/C)),  e[2j+1] = cos(p / 10000^(2j/C))
//! in each layer:
//!     norm_place pre:    x = x + A(ln_1(x));   x = x + M(ln_2(x))
//!     norm_place post:   x = ln_1(x + A(x));   x = ln_2(x + M(x))
//!     norm_place none:   x = x + A(x);         x = x + M(x)
//!                        (without `residual`, the sums are A and M alone)
//! logits = lm_head ln_f(x)    (without ln_f, of x)
//!
//! M(x) = mlp.c_proj(u)
//!     z = mlp.c_fc(x);  u[j] = f(z[j]), or, if gated, u[j] = f(z[j]) z[F + j], for j < F: the gate's rows stand first
//!     GELU by tanh:  f(z) = z/2 (1 + tanh(sqrt(2/pi) (z + 0.044715 z^3)))
//!     GELU by erf:   f(z) = z/2 (1 + erf(z / sqrt(2)))
//!     ReLU:          f(z) = max(z, 0)
//!     ReLU squared:  f(z) = max(z, 0)^2
//!     SiLU:          f(z) = z / (1 + exp(-z))
//!
//! A(x) = attn.c_proj(o)
//!     q, k, v: the first H D, the next K D and the last K D numbers of attn.c_attn(x); each is its heads side by side,
//!     and each head has D numbers.
//!     If qk_norm, each head of q goes through attn.q_norm, and each head of k through attn.k_norm: norms of D numbers,
//!     whose weight and bias are the same for all heads.
//!     If position is rotary, the pairs (a, b) of each head of q and k are turned after that. For j < D/2, the pair is
//!     a = z[2j], b = z[2j+1] if adjacent, or a = z[j], b = z[j + D/2] if halves:
//!         (a, b) becomes (a cos r - b sin r, a sin r + b cos r),  r = p base^(-2j/D)
//!     o: the H heads side by side. For head h, the sum over the positions s that p sees of w(s) v(s), where w is the
//!     softmax over these s of scale (q . k(s)), q is head h of q, k(s) and v(s) are heads floor(h / (H/K)) of k and v at
//!     position s, and scale is 1/sqrt(D), 1, or the custom number.
//!     p sees s if s <= p; with the mask prefix also if s < P; with the mask none every s of the pass.
//! ```
//!
//! What a training keeps of parameter `p` is named after it, has its shape and role 1:
//!
//! | name | what | there |
//! |---|---|---|
//! | `adam.m/p`, `adam.v/p` | the first and the second moment | if AdamW trains it |
//! | `sgd.momentum/p` | the velocity | if gradient descent trains it, with a momentum other than 0 |
//! | `muon.momentum/p` | the velocity | if Muon trains it |
//! | `ema/p` | the moving average | if there is an average |
//!
//! They are written in the order of this table, each name for all parameters before the next. A parameter that is trained has all
//! of its own. One that is frozen has none, and whoever continues the training leaves it as it is: the parameters that `OPTM`
//! names, or without `OPTM` those that have no moments. If training is to continue, at least one parameter is trained (unless
//! there are given vectors, whose maker learns by their gradient).
//!
//! ## What will not change
//!
//! Later versions of this library read versions 1 and 2. What older programs may ignore comes as a new section
//! without the flag; what they must not, as a new section with the flag; anything else as a new version. A choice may get
//! another number, as decay got 3: a file without it stays what it was, and an older program refuses one that has it.

mod crc;
mod error;
#[cfg(feature = "std")]
mod file;
mod format;
mod header;
mod io;
mod limits;
mod quantize;
mod read;
mod stream;
mod write;

pub use error::{Fault, LoadError, SaveError, StreamError};
#[cfg(feature = "std")]
pub use file::{
    FileError, Journal, LoadFileError, Newest, RunFolder, RunFolderError, load, load_within, newest,
    newest_path, save, sync_folder,
};
pub use format::VERSION;
pub(crate) use format::chunk_of;
#[cfg(feature = "std")]
pub use io::{IoReader, IoWriter};
pub use io::{Read, Write};
pub use limits::Limits;
pub use quantize::encode_row;
pub use read::{Checkpoint, TensorView};
pub use stream::Stream;
pub use write::{Contents, TensorSpec, write};

use alloc::string::String;
use alloc::vec::Vec;

use crate::config::TrainConfig;
use crate::op::counter;

/// What a tensor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// A parameter of the model.
    Parameter,
    /// Of use only for training: what optimizers keep, and the average of the weights.
    Training,
}

/// What a run needs to continue, besides parameters and what optimizers keep.
#[derive(Debug, Clone, PartialEq)]
pub struct Training {
    /// How it trains.
    pub config: TrainConfig,
    /// How far it has come.
    pub state: TrainState,
    /// The names of the parameters that are frozen. Empty where AdamW trains all the others as
    /// [`Groups::adamw`](crate::Groups::adamw) has it: then those are frozen that have no moments.
    pub frozen: Vec<String>,
}

/// What a run must remember besides parameters and what optimizers keep: as much as a checkpoint needs to continue bit for bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrainState {
    /// The device counters, see [`counter`].
    pub counters: [u32; counter::LEN],
    /// How many training windows have been drawn, by all ranks together.
    pub windows_drawn: u64,
}
