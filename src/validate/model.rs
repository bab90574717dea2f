//! A real model: layer by layer, and end to end.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::forward::Taps;
use super::network::Network;
use super::quantised::{Given, Quantised};
use super::report::Outcome;
use super::transformer::{self, Place, Target};
use super::{
    Baselines, Check, DEEP_MARGIN, Plan, backend_name, named_tolerance, processors, relative,
};
use crate::agreement::{Agreement, agreement};
use crate::error::{Error, Result};
use crate::formats::{self, MatrixView};
use crate::matmul::Activations;
use crate::model::source::{Role, Source};
use crate::model::{Model, open_tokenizer};
use crate::quant::CodesBuf;
use crate::runtime::Runtime;

/// The number of tokens compared layer by layer, in float64.
const LOOKED_AT: usize = 96;

/// Tokens per window of the text.
const WINDOW: usize = 256;

/// A model to be validated: its float weights, its text, and its codes if it has any.
pub struct Subject {
    name: String,
    floats: Network,
    /// The tokens of the text.
    ids: Vec<u32>,
    /// Its quantised form, as codes and as floats. `None`: it is quantised with every width and
    /// group of the plan.
    stored: Option<(BTreeMap<String, CodesBuf>, Network)>,
    /// The SHA-256 of the file with the float weights, if there is a single file.
    sha256: Option<String>,
}

const NO_TOKENIZER: &str = "there is no tokenizer, so that it cannot read a text";

impl Subject {
    /// Opens the float model at `reference`, and its quantised form at `model`, if there is one;
    /// `text` is what they read.
    ///
    /// # Errors
    /// Those of [`Source::open`] and of [`Network::read`]; `ERR_CONFIG` if the reference is
    /// quantised, or the model has other shapes; `ERR_RANGE` for a text of fewer than two tokens;
    /// `ERR_UNSUPPORTED` without a tokenizer.
    pub fn open(
        rt: &Runtime,
        name: &str,
        reference: &Path,
        model: Option<&Path>,
        text: &str,
    ) -> Result<Subject> {
        let beside =
            |source: &Source| Ok((open_tokenizer(source)?, formats::sha256(source.path()).ok()));
        let (source, (tokenizer, sha256)) = Source::open_with(reference, true, beside)?;
        let within = |e: Error| source.within(e);
        unquantised(&source, reference)?;
        let floats = Network::read(rt, &source).map_err(within)?;
        let tokenizer = tokenizer.ok_or_else(|| within(Error::unsupported(NO_TOKENIZER)))?;
        let ids = tokenizer.encode(text, tokenizer.begins())?;
        if ids.len() < 2 || text.trim().is_empty() {
            return Err(Error::range(format!(
                "the text has {} tokens, expected at least 2 and some words",
                ids.len()
            )));
        }
        let stored = match model {
            Some(path) => Some(stored(rt, &Source::open(path, true)?, &floats, path)?),
            None => None,
        };
        Ok(Subject {
            name: name.to_owned(),
            sha256,
            floats,
            ids,
            stored,
        })
    }

    /// Its name in reports, as given to `open`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The float weights.
    pub(super) fn floats(&self) -> &Network {
        &self.floats
    }

    /// The number of quantised forms: the one it was opened with, or one for each width and group
    /// of the plan.
    pub fn forms(&self, plan: &Plan) -> usize {
        match self.stored {
            Some(_) => 1,
            None => plan.bits.len() * plan.groups.len(),
        }
    }

    /// The codes that it was opened with, or those of form `i` of the plan.
    ///
    /// # Errors
    /// `ERR_MEMORY`.
    pub(super) fn form(&self, plan: &Plan, rt: &Runtime, i: usize) -> Result<Quantised> {
        match &self.stored {
            Some((codes, rest)) => Quantised::of(&self.floats, rest, codes.clone()),
            None => {
                let bits = plan.bits[i / plan.groups.len()];
                let group = plan.groups[i % plan.groups.len()];
                Quantised::new(rt, &self.floats, &[], bits, group)
            }
        }
    }

    /// The forward pass of the float weights on the tokens compared layer by layer.
    ///
    /// # Errors
    /// None of its own.
    pub(super) fn taps(&self, rt: &Runtime) -> Result<Taps> {
        transformer::floats(rt, &self.floats, self.looked_at())
    }

    fn looked_at(&self) -> &[u32] {
        let most = LOOKED_AT.min(self.floats.architecture.context);
        &self.ids[..most.min(self.ids.len())]
    }

    /// Compares the float64 computation with PyTorch's results, layer by layer, if there are any
    /// for this model.
    ///
    /// # Errors
    /// Those of [`Baselines::of_model`].
    pub(super) fn check(&self, rt: &Runtime, baselines: &Baselines) -> Result<Vec<Check>> {
        let Some(sha256) = &self.sha256 else {
            return Ok(Vec::new());
        };
        let Some(torch) = baselines.of_model(sha256)? else {
            return Ok(Vec::new());
        };
        let taps = transformer::floats(rt, &self.floats, &torch.ids)?;
        let layers = taps.layers.iter().zip(&torch.layers).enumerate();
        let mut checks: Vec<Check> = layers
            .map(|(i, (ours, theirs))| Check::new(self.layer(i), ours, theirs))
            .collect();
        checks.push(Check::new(
            format!("{}, logits", self.name),
            &taps.logits,
            torch.logits,
        ));
        Ok(checks)
    }

    fn layer(&self, i: usize) -> String {
        format!("{}, layer {}", self.name, i + 1)
    }

    /// Layer by layer on every backend, and end to end on the best CPU one.
    ///
    /// # Errors
    /// Those of [`transformer::outcomes`] and [`agreement`].
    pub(super) fn outcomes(
        &self,
        plan: &Plan,
        form: &Quantised,
        taps: &Taps,
    ) -> Result<Vec<Outcome>> {
        let layers = taps.layers.iter().enumerate().map(|(i, baseline)| Target {
            scenario: self.layer(i),
            place: Place::Layer(i),
            baseline,
        });
        let logits = Target {
            scenario: format!("{}, logits", self.name),
            place: Place::Logits,
            baseline: &taps.logits,
        };
        let targets: Vec<Target<'_>> = layers.chain([logits]).collect();
        let mut found = transformer::outcomes(plan, form, self.looked_at(), &targets)?;
        let Some(rt) = processors(plan).last() else {
            return Ok(found);
        };
        // The expected error at the end is the effect of the noise there; with int8 activations it
        // is scaled by the factor by which they raised it at the logits.
        let noise = self.agreement(rt, |given| Given {
            network: &form.noisy,
            ..given
        })?;
        let noisy = transformer::floats(rt, &form.noisy, self.looked_at())?;
        let with_floats = relative(&noisy.logits, &taps.logits);
        let mut ends = Vec::new();
        for at_logits in found.iter().filter(|o| {
            o.scenario == targets[targets.len() - 1].scenario && o.backend == backend_name(rt)
        }) {
            let more = at_logits.expected / with_floats.max(f64::MIN_POSITIVE);
            let seen = self.agreement(rt, |given| Given {
                network: &form.dequantised,
                codes: Some(&form.codes),
                activations: at_logits.activations,
                ..given
            })?;
            let expected = noise.relative_error * more.max(1.0);
            ends.push(Outcome {
                scenario: format!("{}, end to end", self.name),
                relative_error: seen.relative_error,
                expected,
                tolerance: DEEP_MARGIN * expected,
                named_tolerance: named_tolerance(form.bits),
                agreement: Some(seen),
                ..at_logits.clone()
            });
        }
        found.extend(ends);
        Ok(found)
    }

    /// The agreement of a form with the floats, over the whole text.
    fn agreement<'a>(
        &'a self,
        rt: &'a Runtime,
        form: impl FnOnce(Given<'a>) -> Given<'a>,
    ) -> Result<Agreement> {
        let floats = Given {
            rt,
            network: &self.floats,
            codes: None,
            activations: Activations::F32,
        };
        let model =
            |given: &Given<'_>| Model::new(self.floats.architecture.clone(), given).map(Arc::new);
        let reference = model(&floats)?;
        let model = model(&form(floats))?;
        let window = WINDOW.min(model.context());
        agreement(rt, &model, &reference, &self.ids, window, &mut |_, _| {})
    }
}

/// The first matrix of a model that is quantised.
fn first_codes(source: &Source) -> Result<Option<String>> {
    for spec in source.tensors() {
        if spec.role == Role::Matrix
            && let MatrixView::Codes(_) = source.matrix(&spec.name)?
        {
            return Ok(Some(spec.name));
        }
    }
    Ok(None)
}

/// `ERR_CONFIG` for a model with quantised matrices.
fn unquantised(source: &Source, path: &Path) -> Result<()> {
    match first_codes(source)? {
        Some(name) => Err(Error::config(format!(
            "{} is quantised already ({name}): expected float weights to compare with; give it as MODEL with --reference",
            path.display()
        ))),
        None => Ok(()),
    }
}

/// Checks that a model can be the reference for validating a quantised form of it, without reading
/// its weights.
///
/// # Errors
/// `ERR_CONFIG` if it is itself quantised, `ERR_UNSUPPORTED` if it is too large, not a plain Llama,
/// or without a tokenizer; those of the files.
pub fn accepts(source: &Source) -> Result<()> {
    Network::accepts(source).map_err(|e| source.within(e))?;
    unquantised(source, source.path())?;
    match open_tokenizer(source)? {
        Some(_) => Ok(()),
        None => Err(source.within(Error::unsupported(NO_TOKENIZER))),
    }
}

/// Whether a model has quantised matrices, which a reference must not have.
///
/// # Errors
/// Those of [`Source::open`].
pub fn is_quantised(path: &Path) -> Result<bool> {
    Ok(first_codes(&Source::open(path, true)?)?.is_some())
}

/// The codes of a model that is a quantised form of `floats`, and all of it as floats.
fn stored(
    rt: &Runtime,
    source: &Source,
    floats: &Network,
    path: &Path,
) -> Result<(BTreeMap<String, CodesBuf>, Network)> {
    let wrong = |what: String| Error::config(format!("{}: {what}", path.display()));
    if source.architecture() != &floats.architecture {
        return Err(wrong(
            "its architecture is not that of the reference: expected two forms of one model".into(),
        ));
    }
    let mut all = BTreeMap::new();
    for spec in source
        .tensors()
        .into_iter()
        .filter(|s| s.role == Role::Matrix)
    {
        if let MatrixView::Codes(view) = source.matrix(&spec.name)? {
            all.insert(spec.name, view.as_codes().to_buf()?);
        }
    }
    if all.is_empty() {
        return Err(wrong(
            "none of its matrices is quantised: give it alone, without --reference".into(),
        ));
    }
    let network = Network::read(rt, source).map_err(|e| source.within(e))?;
    Ok((all, network))
}
