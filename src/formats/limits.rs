//! Every limit of the readers, in one place.
//!
//! Each limit is far above what real files need and far below what would be harmful: a few hostile
//! bytes must not be able to request gigabytes or recurse without end. In addition, a count is
//! always compared with the remaining bytes before anything is allocated for it.

/// Bytes of a JSON text: a manifest, a shard index, the header of a safetensors file. The largest
/// published headers, of models with 100,000 tensors, have about 12 MB.
pub const JSON_BYTES: u64 = 64 << 20;

/// Memory of a tree of JSON values, such as the configuration of a model; it may take three times
/// as much while it grows. The largest published ones, with thousands of added tokens, take 6 MB.
pub const TREE_BYTES: usize = 8 << 20;

/// The same for the descriptive fields of a manifest; ours have about 1 kB.
pub const SMALL_TREE_BYTES: usize = 64 << 10;

/// Nesting depth of a JSON tree. Configurations have up to five levels.
pub const TREE_DEPTH: usize = 64;

/// Tensors in a file.
pub const TENSORS: u64 = 1 << 20;

/// Bytes of a tensor's or weight's name. GGML allows 64.
pub const NAME_BYTES: u64 = 1024;

/// Key–value pairs in the metadata of a GGUF file.
pub const METADATA_PAIRS: u64 = 1 << 16;

/// Bytes of a metadata key; the limit of the GGUF specification.
pub const METADATA_KEY_BYTES: u64 = (1 << 16) - 1;

/// Bytes of one text in the metadata. The longest in use, chat templates, have some 20 kB.
pub const TEXT_BYTES: u64 = 16 << 20;

/// Nesting depth of arrays in GGUF metadata. Known files have no nested ones.
pub const ARRAY_NESTING: usize = 4;

/// Dimensions of a GGUF tensor; GGML's own limit.
pub const GGUF_DIMENSIONS: u64 = 4;

/// The largest alignment of the tensor data in a GGUF file.
pub const GGUF_ALIGNMENT: u64 = 1 << 16;

/// Dimensions of an array or a safetensors tensor; NumPy's own limit is 64.
pub const DIMENSIONS: usize = 64;

/// Bytes of the text header of an .npy array. NumPy allows 10,000.
pub const NPY_HEADER_BYTES: u64 = 1 << 16;

/// The other dimension of a matrix without rows or without columns: no data limits it, and a loop
/// over its rows could take years.
pub const EMPTY_SIDE: u64 = 1 << 24;

/// The most bytes that one deflated byte can expand to; a larger claim is false.
pub const DEFLATE_RATIO: u64 = 1032;
