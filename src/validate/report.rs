//! Runs every scenario, and reports the outcomes in the form for programs.

use serde_json::{Value, json};

use super::dense::Dense;
use super::distribution::Distribution;
use super::model::Subject;
use super::network::{EMBEDDING, Network, TOKENS};
use super::quantised::{Quantised, searched};
use super::scenario::SCENARIOS;
use super::transformer::{self, Place, Target};
use super::{Baselines, Check, Plan, backend_name, named_tolerance, processors, worse};
use crate::agreement::Agreement;
use crate::error::{Error, Result};
use crate::matmul::Activations;
use crate::quant::Bits;

/// The outcome of one scenario for one width, group, kind of activations and backend.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The dense layer, or the place in a transformer.
    pub scenario: String,
    /// Bits per code.
    pub bits: Bits,
    /// Columns per scale; 0: a row.
    pub group: usize,
    /// The precision in which products read their inputs.
    pub activations: Activations,
    /// The backend, such as `cpu/avx512`.
    pub backend: String,
    /// The difference from float64 with the same codes: for a dense layer the largest error of an
    /// output over `Σ |w x|`, else relative.
    pub kernel_error: f64,
    /// The largest accepted `kernel_error`.
    pub kernel_tolerance: f64,
    /// The norm of the difference from the float weights' result over the norm of that result.
    pub relative_error: f64,
    /// The `relative_error` that theory expects.
    pub expected: f64,
    /// The largest accepted `relative_error`: `expected` with a margin.
    pub tolerance: f64,
    /// The relative error that the width is commonly expected to have.
    pub named_tolerance: f64,
    /// `norm(W - W') / norm(W)` of the weights.
    pub weights_error: f64,
    /// `weights_error` for the best scales.
    pub best_weights_error: f64,
    /// Effective bits per weight, including scales.
    pub bits_a_weight: f64,
    /// The first 8 outputs with the float weights.
    pub baseline: Vec<f32>,
    /// The same with the quantised ones.
    pub quantised: Vec<f32>,
    /// The agreement of the predictions, for a model end to end.
    pub agreement: Option<Agreement>,
}

impl Outcome {
    /// Whether the kernel is right: its error is within its tolerance.
    pub fn kernel_passed(&self) -> bool {
        self.kernel_error <= self.kernel_tolerance
    }

    /// Whether the quantisation is as good as theory predicts.
    pub fn quantisation_passed(&self) -> bool {
        self.relative_error <= self.tolerance
    }

    /// Whether the kernel is right and the quantisation good.
    pub fn passed(&self) -> bool {
        self.kernel_passed() && self.quantisation_passed()
    }

    /// Whether the error is also within what the width is commonly expected to have.
    pub fn within_named(&self) -> bool {
        self.relative_error <= self.named_tolerance
    }

    /// The form for programs: `docs/validation.md`.
    pub fn to_json(&self) -> Value {
        json!({"scenario": self.scenario, "bits": self.bits.get(), "group": self.group, "activations": self.activations.name(),
               "backend": self.backend, "relative_error": self.relative_error, "expected": self.expected,
               "tolerance": self.tolerance, "passed": self.passed(), "named_tolerance": self.named_tolerance,
               "within_named": self.within_named(), "kernel_error": self.kernel_error,
               "kernel_tolerance": self.kernel_tolerance, "kernel_passed": self.kernel_passed(),
               "weights_error": self.weights_error, "best_weights_error": self.best_weights_error,
               "bits_a_weight": self.bits_a_weight, "baseline": self.baseline, "quantised": self.quantised,
               "model": self.agreement.map(|a| a.to_json())})
    }
}

/// The outcomes of a plan.
pub struct Report {
    /// The comparisons of float64 computations with PyTorch's.
    pub checks: Vec<Check>,
    /// Every outcome, scenario by scenario.
    pub outcomes: Vec<Outcome>,
    /// How weights are distributed between the codes, for each width: those of the model, or else
    /// of a dense layer.
    pub distributions: Vec<Distribution>,
    /// The model, if there was one.
    pub model: Option<String>,
    /// The backends, such as `cpu/avx512`, in the order of the plan.
    pub backends: Vec<String>,
    /// The version of PyTorch that made the baselines.
    pub torch: String,
}

impl Report {
    /// The number of checks and outcomes, and how many of them failed.
    pub fn counts(&self) -> (usize, usize) {
        let failed = self.checks.iter().filter(|c| !c.passed()).count()
            + self.outcomes.iter().filter(|o| !o.passed()).count();
        (self.checks.len() + self.outcomes.len(), failed)
    }

    /// The largest relative error of a float64 computation compared with PyTorch's; NaN if one is
    /// NaN.
    pub fn worst_check(&self) -> f64 {
        self.checks.iter().map(|c| c.error).fold(0.0, worse)
    }

    /// The form for programs: `docs/validation.md`.
    pub fn to_json(&self) -> Value {
        let widths = Bits::ALL.map(|bits| {
            json!({"bits": bits.get(), "named_tolerance": named_tolerance(bits), "lloyd_max": bits.lloyd_max()})
        });
        let (count, failed) = self.counts();
        json!({"format": 1, "version": env!("CARGO_PKG_VERSION"), "torch": self.torch, "model": self.model,
               "backends": self.backends, "count": count, "failed": failed, "passed": failed == 0, "widths": widths,
               "baselines": self.checks.iter().map(Check::to_json).collect::<Vec<_>>(),
               "results": self.outcomes.iter().map(Outcome::to_json).collect::<Vec<_>>(),
               "distributions": self.distributions.iter().map(Distribution::to_json).collect::<Vec<_>>()})
    }
}

/// Runs every scenario of the plan, and the model if there is one. `progress(what, done, all)` is
/// called before each step and at the end.
///
/// # Errors
/// `ERR_FORMAT` if the baselines lack something; those of the model.
pub fn run(
    plan: &Plan,
    baselines: &Baselines,
    subject: Option<&Subject>,
    progress: &mut dyn FnMut(&str, usize, usize),
) -> Result<Report> {
    let mut report = Report {
        checks: Vec::new(),
        outcomes: Vec::new(),
        distributions: Vec::new(),
        model: subject.map(|s| s.name().to_owned()),
        backends: plan.backends.iter().map(backend_name).collect(),
        torch: baselines.torch().to_owned(),
    };
    if subject.is_some() && processors(plan).next().is_none() {
        return Err(Error::unsupported(
            "a model is validated on the CPU, expected one of its levels among the backends",
        ));
    }
    let forms = plan.bits.len() * plan.groups.len();
    let of_model = subject.map_or(0, |s| s.forms(plan));
    let all = forms * (SCENARIOS.len() + 1) + of_model;
    let mut done = 0;
    let mut step = |what: &str| {
        progress(what, done, all);
        done += 1;
    };
    let widths = || {
        plan.bits
            .iter()
            .flat_map(|&b| plan.groups.iter().map(move |&g| (b, g)))
    };
    for scenario in &SCENARIOS {
        let dense = Dense::new(scenario, baselines)?;
        report.checks.extend(dense.check());
        for (bits, group) in widths() {
            step(scenario.name);
            report.outcomes.extend(dense.outcomes(plan, bits, group)?);
        }
    }
    let Some(rt) = plan.backends.last() else {
        return Ok(report);
    };
    one_layer(plan, baselines, &mut report, &mut || {
        step("transformer layer")
    })?;
    match subject {
        Some(subject) => {
            report.checks.extend(subject.check(rt, baselines)?);
            let taps = subject.taps(rt)?;
            for i in 0..subject.forms(plan) {
                step(subject.name());
                let form = subject.form(plan, rt, i)?;
                report
                    .outcomes
                    .extend(subject.outcomes(plan, &form, &taps)?);
                // The smallest groups, which are the ones in use.
                if of_model == 1 || form.group == finest(plan) {
                    let matrices = form
                        .codes
                        .iter()
                        .map(|(name, codes)| (&subject.floats().matrices[name], codes));
                    let found = Distribution::new(subject.name(), form.bits, form.group, matrices);
                    report.distributions.push(found);
                }
            }
        }
        None => {
            let dense = Dense::new(&SCENARIOS[1], baselines)?;
            for &bits in &plan.bits {
                let group = finest(plan);
                let codes = searched(rt, dense.weights(), bits, group)?;
                let pair = [(dense.weights(), &codes)];
                report.distributions.push(Distribution::new(
                    SCENARIOS[1].name,
                    bits,
                    group,
                    pair.into_iter(),
                ));
            }
        }
    }
    // Grouped by scenario, in which order the outcomes of a model's forms are not.
    let mut order: Vec<String> = Vec::new();
    for o in &report.outcomes {
        if !order.contains(&o.scenario) {
            order.push(o.scenario.clone());
        }
    }
    report
        .outcomes
        .sort_by_key(|o| order.iter().position(|s| *s == o.scenario));
    progress("", all, all);
    Ok(report)
}

/// The smallest group of the plan.
fn finest(plan: &Plan) -> usize {
    plan.groups
        .iter()
        .copied()
        .filter(|&g| g > 0)
        .min()
        .unwrap_or(0)
}

/// Attention, and the layer that contains it.
fn one_layer(
    plan: &Plan,
    baselines: &Baselines,
    report: &mut Report,
    step: &mut dyn FnMut(),
) -> Result<()> {
    let Some(rt) = plan.backends.last() else {
        return Ok(());
    };
    let network = Network::one_layer();
    let ids: Vec<u32> = (0..TOKENS as u32).collect();
    let hidden = network.architecture.hidden;
    let taps = transformer::floats(rt, &network, &ids)?;
    let targets = [
        (
            "multi-head attention",
            Place::Attention(0),
            "layer.attention",
            &taps.attention[0],
        ),
        (
            "transformer layer",
            Place::Layer(0),
            "layer.output",
            &taps.layers[0],
        ),
    ];
    let mut found = Vec::new();
    for (name, place, key, ours) in targets {
        let baseline = baselines.get(key, [TOKENS, hidden])?;
        report
            .checks
            .push(Check::new(name.to_owned(), ours, baseline));
        found.push(Target {
            scenario: name.to_owned(),
            place,
            baseline,
        });
    }
    for &bits in &plan.bits {
        for &group in &plan.groups {
            step();
            let form = Quantised::new(rt, &network, &[EMBEDDING, "lm_head.weight"], bits, group)?;
            report
                .outcomes
                .extend(transformer::outcomes(plan, &form, &ids, &found)?);
        }
    }
    Ok(())
}
