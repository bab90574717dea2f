//! Every cap of the readers, in one place.
//!
//! A cap is far above what real files need and far below what would hurt: its task is that a few
//! hostile bytes cannot ask for gigabytes or recurse without end. Besides these, a count is always
//! compared with the bytes that remain before anything is allocated for it.

/// Bytes of a JSON text: a manifest, a shard index, the header of a safetensors file.
/// The largest headers published, of models with 100,000 tensors, are near 12 MB.
pub const JSON_BYTES: u64 = 64 << 20;

/// Memory of a tree of JSON values, such as the configuration of a model, some three times as much while it grows. The largest published,
/// with thousands of added tokens, take 6 MB.
pub const TREE_BYTES: usize = 8 << 20;

/// The same of what a manifest says for people to read: some 1 kB where it is ours.
pub const SMALL_TREE_BYTES: usize = 64 << 10;

/// Values inside values in a tree of JSON. Configurations have up to five.
pub const TREE_DEPTH: usize = 64;

/// Tensors in a file.
pub const TENSORS: u64 = 1 << 20;

/// Bytes of a tensor's or weight's name. GGML itself stops at 64.
pub const NAME_BYTES: u64 = 1024;

/// Key–value pairs in the metadata of a GGUF file.
pub const METADATA_PAIRS: u64 = 1 << 16;

/// Bytes of a metadata key; the GGUF specification's own limit.
pub const METADATA_KEY_BYTES: u64 = (1 << 16) - 1;

/// Bytes of one text in the metadata. The longest in use, chat templates, have some 20 kB.
pub const TEXT_BYTES: u64 = 16 << 20;

/// Arrays inside arrays in GGUF metadata. Known files have none.
pub const ARRAY_NESTING: usize = 4;

/// Dimensions of a GGUF tensor; GGML's own limit.
pub const GGUF_DIMENSIONS: u64 = 4;

/// The largest alignment of the tensor data in a GGUF file.
pub const GGUF_ALIGNMENT: u64 = 1 << 16;

/// Dimensions of an array or a safetensors tensor; NumPy's own limit is 64.
pub const DIMENSIONS: usize = 64;

/// Bytes of the text header of an .npy array. NumPy itself stops at 10,000.
pub const NPY_HEADER_BYTES: u64 = 1 << 16;

/// The other side of a matrix without rows or columns: no data backs it, and whoever loops over its
/// rows would loop for years.
pub const EMPTY_SIDE: u64 = 1 << 24;

/// Bytes that one deflated byte can become at most; a larger claim is a lie.
pub const DEFLATE_RATIO: u64 = 1032;
