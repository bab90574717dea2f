//! Language models: decoder-only transformers of the Llama kind.
//!
//! | module | one reason to exist |
//! |---|---|
//! | `architecture` | what a model computes, as plain data |
//! | `source` | models on disk: architecture, tensors, tokenizer |

pub mod architecture;
pub mod source;
