//! Both questions after nonlinear operations: for attention, for a layer, for a model layer by
//! layer.

use std::sync::Arc;

use super::forward::{Forward, Inputs, Taps};
use super::network::Network;
use super::quantised::Quantised;
use super::report::Outcome;
use super::{DEEP_MARGIN, Plan, backend_name, named_tolerance, processors, relative, worse};
use crate::error::Result;
use crate::matmul::Activations;
use crate::memory;
use crate::model::{Logits, Model, Observer, Precision, Session, SessionOptions};
use crate::runtime::Runtime;

/// The relative error of float32 in norms, softmax and gates between products; the smallest
/// tolerance.
const BETWEEN: f64 = 1e-6;

/// Where the values of a forward pass are compared.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// The output of a layer's attention before the output matrix: `(n, heads, head_dim)`.
    Attention(usize),
    /// The output of a layer after the norm that the next one applies: `(n, hidden)`.
    Layer(usize),
    /// `(n, vocabulary)`
    Logits,
}

impl Place {
    fn of(self, taps: &Taps) -> &[f32] {
        match self {
            Place::Attention(i) => &taps.attention[i],
            Place::Layer(i) => &taps.layers[i],
            Place::Logits => &taps.logits,
        }
    }
}

/// A place, its name in reports, and the values of the float weights there.
pub struct Target<'a> {
    pub scenario: String,
    pub place: Place,
    pub baseline: &'a [f32],
}

/// The outcomes at each target for one quantised form, with float32 and int8 activations, on every
/// backend.
///
/// # Errors
/// Those of [`Session::eval`].
pub fn outcomes(
    plan: &Plan,
    form: &Quantised,
    ids: &[u32],
    targets: &[Target<'_>],
) -> Result<Vec<Outcome>> {
    let Some(best) = processors(plan).last() else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    let activations = plan.activations.iter().copied();
    for activations in activations.filter(|a| *a != Activations::Sign) {
        let free = Forward {
            rt: best,
            network: &form.noisy,
            activations,
            shaken: false,
            heard: None,
        };
        let noisy = free.run(ids)?;
        for rt in processors(plan) {
            let (taps, inputs) = observed(rt, form, activations, ids)?;
            let heard = Some(&inputs).filter(|_| activations == Activations::Int8);
            let of_codes = |shaken| Forward {
                network: &form.dequantised,
                shaken,
                heard,
                ..free
            };
            let (exact, shaken) = (of_codes(false).run(ids)?, of_codes(true).run(ids)?);
            for t in targets {
                let ours = t.place.of(&taps);
                let kernel_error = worse(relative(ours, t.place.of(&exact)), exact.apart);
                let loss = worse(
                    relative(t.place.of(&shaken), t.place.of(&exact)),
                    shaken.apart,
                );
                let expected = relative(t.place.of(&noisy), t.baseline);
                let sample = |y: &[f32]| y[..8.min(y.len())].to_vec();
                found.push(Outcome {
                    scenario: t.scenario.clone(),
                    bits: form.bits,
                    group: form.group,
                    activations,
                    backend: backend_name(rt),
                    kernel_error,
                    kernel_tolerance: BETWEEN + loss,
                    relative_error: relative(ours, t.baseline),
                    expected,
                    tolerance: DEEP_MARGIN * expected,
                    named_tolerance: named_tolerance(form.bits),
                    weights_error: form.weights_error,
                    best_weights_error: form.best,
                    bits_a_weight: form.bits_a_weight,
                    baseline: sample(t.baseline),
                    quantised: sample(ours),
                    agreement: None,
                });
            }
        }
    }
    Ok(found)
}

/// The same network in float64, unquantised.
///
/// # Errors
/// None of its own.
pub fn floats(rt: &Runtime, network: &Network, ids: &[u32]) -> Result<Taps> {
    let pass = Forward {
        rt,
        network,
        activations: Activations::F32,
        shaken: false,
        heard: None,
    };
    pass.run(ids)
}

/// The library's own forward pass, observed through the inputs of its products, which are returned
/// too.
fn observed(
    rt: &Runtime,
    form: &Quantised,
    activations: Activations,
    ids: &[u32],
) -> Result<(Taps, Inputs)> {
    let network = &form.dequantised;
    let a = &network.architecture;
    let model = Model::new(a.clone(), &form.tensors(rt, activations))?;
    // A cache in float16 would make it a different computation.
    let options = SessionOptions {
        context: Some(ids.len()),
        kv: Some(Precision::F32),
        ..SessionOptions::default()
    };
    let mut session = Session::new(rt, Arc::new(model), &options)?;
    let mut watch = Watch::default();
    let mut logits = memory::filled(ids.len() * a.vocabulary, 0.0, "logits")?;
    session.eval_observed(rt, ids, Logits::All(&mut logits), Some(&mut watch))?;
    let seen = |name: String| watch.0.get(&name).cloned().unwrap_or_default();
    let taps = Taps {
        attention: (0..a.layers)
            .map(|i| seen(format!("model.layers.{i}.self_attn.o_proj.weight")))
            .collect(),
        layers: (0..a.layers).map(|i| seen(network.reader_of(i))).collect(),
        logits,
        apart: 0.0,
    };
    Ok((taps, watch.0))
}

/// Collects the inputs of products.
#[derive(Default)]
struct Watch(Inputs);

impl Observer for Watch {
    fn input(&mut self, weight: &str, x: &[f32], _: usize) {
        self.0
            .entry(weight.to_owned())
            .or_default()
            .extend_from_slice(x);
    }
}
