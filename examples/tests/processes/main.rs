//! Training as a process of its own: killed, asked to stop, beside another, on a disk that takes no more.
//!
//! The 10 kills of `kills` take seconds. So many as you like, here 200:
//!
//! ```sh
//! MINIGPT_KILLS=200 cargo test -p minigpt-examples --test processes kills -- --nocapture
//! ```

mod child;
mod kills;
#[cfg(unix)]
mod pipes;
#[cfg(unix)]
mod refusals;
#[cfg(unix)]
mod signals;
