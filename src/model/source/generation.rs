//! `generation_config.json`: how the authors of a model would have it sampled.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::formats::{FileBytes, limits};

const FILE: &str = "generation_config.json";

/// The object in that file of a folder, without the ids of tokens, which are the tokenizer's; empty if there is none.
pub(super) fn read(folder: &Path) -> Result<Map<String, Value>> {
    let path = folder.join(FILE);
    if !path.is_file() {
        return Ok(Map::new());
    }
    let bytes = FileBytes::open(&path, false)?;
    if bytes.len() as u64 > limits::JSON_BYTES {
        return Err(Error::format(format!(
            "{}: it has {} bytes",
            path.display(),
            bytes.len()
        )));
    }
    let mut object: Map<String, Value> = serde_json::from_slice(&bytes)
        .map_err(|e| Error::format(format!("{}: it is not a JSON object: {e}", path.display())))?;
    object.retain(|key, value| !key.ends_with("_token_id") && !value.is_null());
    Ok(object)
}
