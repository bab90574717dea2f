//! Language models: decoder-only transformers of the Llama kind.
//!
//! | module | one reason to exist |
//! |---|---|
//! | `architecture` | what a model computes, as plain data |

pub mod architecture;
