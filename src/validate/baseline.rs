//! The results of PyTorch, from the file that `tools/make_validation_baselines.py` writes:
//! safetensors, with the SHA-256 of the data in the metadata, so that a damaged file is not
//! mistaken for disagreement.

use std::collections::HashMap;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::relative;
use crate::error::{Error, Result};
use crate::formats::safetensors::SafeTensors;
use crate::formats::{MatrixView, json};

/// The largest relative difference of float32 from float64 in a whole forward pass.
pub const TOLERANCE: f64 = 1e-5;

/// Results of PyTorch in float32, by name: `dense_32x64` `(16, 32)`, `layer.output` `(32, 128)`,
/// `model.logits` `(n, vocabulary)`.
pub struct Baselines {
    /// Shape and values, row-major.
    tensors: HashMap<String, ([usize; 2], Vec<f32>)>,
    metadata: HashMap<String, String>,
}

impl Baselines {
    /// Parses a safetensors file whose metadata has the `sha256` of the data, which is checked, the
    /// version of PyTorch as `torch`, and the `model_sha256` of the model that was read.
    ///
    /// # Errors
    /// `ERR_FORMAT` if it is not such a file, or damaged; `ERR_MEMORY`.
    pub fn parse(bytes: &[u8]) -> Result<Baselines> {
        let header = header(bytes)?;
        let metadata = metadata(header)?;
        let data = &bytes[8 + header.len()..];
        let found = format!("{:x}", Sha256::digest(data));
        match metadata.get("sha256") {
            Some(stored) if *stored == found => {}
            Some(stored) => {
                return Err(Error::format(format!(
                    "damaged: the sha256 of its data is {found}, expected {stored}"
                )));
            }
            None => return Err(not_baselines("its metadata has no sha256")),
        }
        let file = SafeTensors::new(bytes.to_vec().into())?;
        let mut tensors = HashMap::new();
        for name in file.names() {
            let Some(MatrixView::Floats(view)) = file.matrix(name).transpose()? else {
                return Err(not_baselines(&format!("{name} is no matrix of floats")));
            };
            let values = view.to_f32()?.into_owned();
            tensors.insert(name.to_owned(), ([view.rows, view.cols], values));
        }
        Ok(Baselines { tensors, metadata })
    }

    /// The result with that name and shape, row-major.
    ///
    /// # Errors
    /// `ERR_FORMAT` if there is none.
    pub fn get(&self, name: &str, shape: [usize; 2]) -> Result<&[f32]> {
        match self.tensors.get(name) {
            Some((found, values)) if *found == shape => Ok(values),
            Some((found, _)) => Err(not_baselines(&format!(
                "{name} is of shape {found:?}, expected {shape:?}"
            ))),
            None => Err(not_baselines(&format!("there is no {name}"))),
        }
    }

    /// The results for a model: the tokens it read, and the values of each layer and of the logits.
    /// `None` unless it is the model with that SHA-256.
    ///
    /// # Errors
    /// `ERR_FORMAT` if a part is missing.
    pub fn of_model(&self, sha256: &str) -> Result<Option<OfModel<'_>>> {
        if self.metadata.get("model_sha256").map(String::as_str) != Some(sha256) {
            return Ok(None);
        }
        let any = |name: &str| match self.tensors.get(name) {
            Some((_, values)) => Ok(values.as_slice()),
            None => Err(not_baselines(&format!("there is no {name}"))),
        };
        let mut layers = Vec::new();
        while let Ok(layer) = any(&format!("model.layer.{}", layers.len())) {
            layers.push(layer);
        }
        Ok(Some(OfModel {
            ids: any("model.ids")?.iter().map(|&id| id as u32).collect(),
            layers,
            logits: any("model.logits")?,
        }))
    }

    /// The version of PyTorch, as it calls itself.
    pub fn torch(&self) -> &str {
        self.metadata.get("torch").map_or("unknown", String::as_str)
    }
}

/// The results of PyTorch for a model.
pub struct OfModel<'a> {
    /// The `n` tokens read.
    pub ids: Vec<u32>,
    /// The output of each layer, after the next norm: `(n, hidden)`.
    pub layers: Vec<&'a [f32]>,
    /// `(n, vocabulary)`
    pub logits: &'a [f32],
}

/// The JSON header at the beginning.
fn header(bytes: &[u8]) -> Result<&[u8]> {
    let (len, rest) = bytes
        .split_first_chunk()
        .ok_or_else(|| not_baselines("it has fewer than 8 bytes"))?;
    let len = usize::try_from(u64::from_le_bytes(*len)).unwrap_or(usize::MAX);
    rest.get(..len)
        .ok_or_else(|| not_baselines("its header is longer than the file"))
}

fn metadata(header: &[u8]) -> Result<HashMap<String, String>> {
    let header = json::object(header, "it", |key| key == "__metadata__")
        .map_err(|e| not_baselines(&format!("its header is not JSON: {}", e.message())))?;
    let Some(Value::Object(metadata)) = header.get("__metadata__") else {
        return Err(not_baselines("it has no metadata"));
    };
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    Ok(metadata.iter().map(|(k, v)| (k.clone(), text(v))).collect())
}

fn not_baselines(why: &str) -> Error {
    Error::format(format!(
        "not a file of baselines (tools/make_validation_baselines.py writes one): {why}"
    ))
}

/// The comparison of a computation in float64 with PyTorch's in float32.
#[derive(Clone, Debug)]
pub struct Check {
    /// What was computed: a dense layer, attention, a layer, the logits of a model.
    pub scenario: String,
    /// The norm of the difference over the norm of PyTorch's result; infinite if the lengths
    /// differ.
    pub error: f64,
}

impl Check {
    /// Compares a float64 result, rounded to float32, with PyTorch's.
    pub(super) fn new(scenario: String, ours: &[f32], torch: &[f32]) -> Check {
        // Different lengths mean different computations.
        let same = ours.len() == torch.len();
        Check {
            scenario,
            error: if same {
                relative(ours, torch)
            } else {
                f64::INFINITY
            },
        }
    }

    /// Whether the error is at most [`TOLERANCE`].
    pub fn passed(&self) -> bool {
        self.error <= TOLERANCE
    }

    /// An element of `baselines` in the report: `docs/validation.md`.
    pub fn to_json(&self) -> Value {
        json!({"scenario": self.scenario, "error": self.error, "tolerance": TOLERANCE, "passed": self.passed()})
    }
}
