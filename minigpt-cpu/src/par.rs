//! The one place outside `arch/` with unsafe code: from spans to slices, from one slice to the threads' pieces of
//! it, and a closure lent to threads that outlive it.

mod apart;
#[cfg(feature = "std")]
mod loan;
mod parts;
mod views;

pub(crate) use apart::Rows;
#[cfg(feature = "std")]
pub(crate) use loan::Loan;
pub(crate) use parts::{Chain, Chunks, Either, Grid, Parts, PerWorker, Tile, for_each};
#[cfg(feature = "bf16")]
pub(crate) use views::BLOCK;
pub(crate) use views::{Views, floats};

#[cfg(all(test, feature = "std", not(loom)))]
mod tests;

#[cfg(all(test, feature = "std", loom))]
mod loom;
