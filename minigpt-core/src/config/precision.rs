//! [`Precision`]: what is rounded to how many bits.

/// How the numbers of a pass are rounded. A policy of a whole run, which is a function of the op and of the kind of tensor alone.
///
/// Under [`Bf16`](Precision::Bf16) the result of each step of an op is rounded to bf16, to nearest even, before anything uses it,
/// whether it is stored or not. [`reference::rounded`](crate::reference::rounded) names the steps.
///
/// | | `F32` | `Bf16` |
/// |---|---|---|
/// | activations, the residual stream, gradients of both, logits | the backend's number type | bf16 |
/// | weights of linear layers and embeddings of tokens, as a pass reads them | the weights | copies in bf16 |
/// | keys and values in a cache | as the cache is made | as the cache is made |
/// | sums, such as those of a matrix product; what happens inside a norm, a softmax, a loss | the backend's number type | the same |
/// | the weights that are trained, their gradients, what optimizers keep, the statistics of norms and attention | the backend's number type | the same |
///
/// The result of a linear layer, for example, is rounded once summed, once more after the activation, after dropout, and after
/// the residual is added. What happens inside attention is left open: a backend may round the weights before they meet the
/// values, and the gradients of the scores.
///
/// bf16 is the upper half of an f32: the same range with 8 bits of precision, two or three decimal digits. So nothing overflows
/// that would not in f32 (but for numbers within a 500th of its largest), and no loss needs to be scaled. But a sum of many small
/// updates would get stuck, which is why the weights that are trained stay as they are and only copies are rounded (Micikevicius
/// et al. 2018, "Mixed Precision Training", arXiv:1710.03740, section 3.1; Kalamkar et al. 2019, "A Study of BFLOAT16 for Deep
/// Learning Training", arXiv:1905.12322).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Precision {
    /// Everything is in the backend's own number type, and no product or sum in fewer bits.
    #[default]
    F32,
    /// Activations, their gradients and copies of the weights in bf16.
    Bf16,
}
