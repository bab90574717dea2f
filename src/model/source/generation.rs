//! `generation_config.json`: the sampling options that the authors of a model advise.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::Result;
use crate::formats::json;

const FILE: &str = "generation_config.json";

/// The object in that file of a folder, without token ids, which belong to the tokenizer; empty if
/// there is no such file.
pub(super) fn read(folder: &Path) -> Result<Map<String, Value>> {
    let path = folder.join(FILE);
    let Some(bytes) = json::read(&path)? else {
        return Ok(Map::new());
    };
    let mut object = json::object(&bytes, "it", |_| true).map_err(|e| e.within(path.display()))?;
    object.retain(|key, value| !key.ends_with("_token_id") && !value.is_null());
    Ok(object)
}
