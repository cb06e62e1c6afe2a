//! `backend::fall_back` carries memory: every op through the `Reference` backend changes exactly the bytes that the
//! slice function's results belong in, and a wrong descriptor changes none.

mod attention;
mod backend;
mod embedding;
mod linear;
mod memory;
mod norm;
mod refusals;
mod rows;
mod step;
