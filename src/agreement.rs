//! Compares two models token by token: typically a quantised one with its float original.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::memory;
use crate::model::{Logits, Model, Session, SessionOptions, not_finite};
use crate::perplexity::log_sum_exp;
use crate::runtime::Runtime;

/// The comparison of two models that read the same tokens: their predictions at every token except
/// the last of each window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Agreement {
    /// The number of positions compared.
    pub tokens: usize,
    /// The norm of the difference of the logits over the norm of the reference's logits. The mean
    /// at each position is subtracted first, because it does not affect the softmax.
    pub relative_error: f64,
    /// The mean Kullback–Leibler divergence of the model's distribution from the reference's, in
    /// nats.
    pub kl: f64,
    /// The share of positions where both models have the same most likely token.
    pub same_top: f64,
    /// The perplexity of the model at these positions.
    pub perplexity: f64,
    /// That of the reference.
    pub reference_perplexity: f64,
}

impl Agreement {
    /// The form for programs.
    pub fn to_json(&self) -> Value {
        json!({"tokens": self.tokens, "logits_relative_error": self.relative_error, "kl_nats": self.kl, "same_top": self.same_top,
               "perplexity": self.perplexity, "reference_perplexity": self.reference_perplexity})
    }
}

/// Compares the models on `ids`, in windows of at most `window` tokens without overlap.
/// `progress(done, windows)` is called after each.
///
/// # Errors
/// `ERR_RANGE` for fewer than two tokens, a window outside 2 to the shorter context, and
/// vocabularies that differ; `ERR_FORMAT` for logits that are not finite; those of
/// [`Session::eval`].
pub fn agreement(
    rt: &Runtime,
    model: &Arc<Model>,
    reference: &Arc<Model>,
    ids: &[u32],
    window: usize,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Agreement> {
    let vocabulary = model.architecture().vocabulary;
    let other = reference.architecture().vocabulary;
    if vocabulary != other {
        return Err(Error::range(format!(
            "the model has {vocabulary} tokens, the reference {other}: expected two forms of one model"
        )));
    }
    let context = model.context().min(reference.context());
    if !(2..=context).contains(&window) {
        return Err(Error::range(format!(
            "a window of {window} tokens, expected 2 to {context}, the shorter context"
        )));
    }
    if ids.len() < 2 {
        return Err(Error::range(format!(
            "the text has {} tokens, expected at least 2",
            ids.len()
        )));
    }
    let window = window.min(ids.len());
    let options = SessionOptions {
        context: Some(window),
        ..SessionOptions::default()
    };
    let mut sessions = [
        Session::new(rt, model.clone(), &options)?,
        Session::new(rt, reference.clone(), &options)?,
    ];
    let room = || memory::filled(window * vocabulary, 0.0, "the logits of a window");
    let mut logits = [room()?, room()?];
    let mut sums = Sums::default();
    let windows = ids.len().div_ceil(window);
    for (i, ids) in ids.chunks(window).enumerate() {
        for (session, logits) in sessions.iter_mut().zip(&mut logits) {
            session.rewind(rt, 0)?;
            let all = &mut logits[..ids.len() * vocabulary];
            session.eval(rt, ids, Logits::All(all))?;
            let all = &logits[..ids.len() * vocabulary];
            if !all.iter().all(|l| l.is_finite()) {
                return Err(not_finite("the logits"));
            }
        }
        let [ours, theirs] = &logits;
        let places = ours
            .chunks_exact(vocabulary)
            .zip(theirs.chunks_exact(vocabulary));
        for ((ours, theirs), &next) in places.zip(&ids[1..]) {
            sums.add(ours, theirs, next as usize);
        }
        progress(i + 1, windows);
    }
    Ok(sums.agreement())
}

/// Sums over positions.
#[derive(Default)]
struct Sums {
    tokens: usize,
    squares: f64,
    differences: f64,
    kl: f64,
    same: usize,
    surprise: f64,
    reference_surprise: f64,
}

impl Sums {
    /// Adds a position: the logits of both models `(vocabulary)`, and the next token.
    fn add(&mut self, ours: &[f32], theirs: &[f32], next: usize) {
        let (p, q) = (Distribution::new(theirs), Distribution::new(ours));
        for (&theirs, &ours) in theirs.iter().zip(ours) {
            let centred = f64::from(theirs) - p.mean;
            self.squares += centred * centred;
            self.differences += (centred - (f64::from(ours) - q.mean)).powi(2);
            let log_p = p.log(theirs);
            self.kl += log_p.exp() * (log_p - q.log(ours));
        }
        self.tokens += 1;
        self.same += usize::from(p.top == q.top);
        self.surprise -= q.log(ours[next]);
        self.reference_surprise -= p.log(theirs[next]);
    }

    fn agreement(&self) -> Agreement {
        let tokens = self.tokens as f64;
        Agreement {
            tokens: self.tokens,
            relative_error: (self.differences / self.squares.max(f64::MIN_POSITIVE)).sqrt(),
            // Rounding can make the sum slightly negative for equal distributions.
            kl: (self.kl / tokens).max(0.0),
            same_top: self.same as f64 / tokens,
            perplexity: (self.surprise / tokens).exp(),
            reference_perplexity: (self.reference_surprise / tokens).exp(),
        }
    }
}

/// The statistics of logits that a softmax needs.
struct Distribution {
    mean: f64,
    /// The first of the most likely tokens.
    top: usize,
    /// `ln Σ exp(logit)`
    log_sum: f64,
}

impl Distribution {
    fn new(logits: &[f32]) -> Distribution {
        let mut top = 0;
        for (i, l) in logits.iter().enumerate() {
            if *l > logits[top] {
                top = i;
            }
        }
        Distribution {
            mean: logits.iter().map(|&l| f64::from(l)).sum::<f64>() / logits.len() as f64,
            top,
            log_sum: log_sum_exp(logits),
        }
    }

    /// The logarithm of the probability of a token with this logit.
    fn log(&self, logit: f32) -> f64 {
        f64::from(logit) - self.log_sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By definition, with explicit probabilities.
    #[test]
    fn one_place_by_hand() {
        let (ours, theirs) = ([0.0f32, 1.0, 3.0], [2.0f32, 2.0, 5.0]);
        let softmax = |l: [f32; 3]| {
            let e = l.map(|l| f64::from(l).exp());
            let sum: f64 = e.iter().sum();
            e.map(|e| e / sum)
        };
        let (q, p) = (softmax(ours), softmax(theirs));
        let mut sums = Sums::default();
        sums.add(&ours, &theirs, 1);
        let found = sums.agreement();
        let kl: f64 = p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum();
        assert!((found.kl - kl).abs() < 1e-12, "{found:?}, {kl}");
        assert!((found.perplexity - 1.0 / q[1]).abs() < 1e-9);
        assert!((found.reference_perplexity - 1.0 / p[1]).abs() < 1e-9);
        // After subtraction of the means, 4/3 and 3: differences -4/3 + 1, -1/3 + 1, 5/3 - 2.
        let norm = (1.0f64 + 1.0 + 4.0).sqrt();
        let difference = (1.0f64 / 9.0 + 4.0 / 9.0 + 1.0 / 9.0).sqrt();
        assert!((found.relative_error - difference / norm).abs() < 1e-12);
        assert_eq!((found.same_top, found.tokens), (1.0, 1));
    }

    #[test]
    fn what_only_shifts_agrees_and_what_turns_does_not() {
        let theirs = [1.0f32, -2.0, 0.5, 3.0];
        let mut sums = Sums::default();
        sums.add(&theirs.map(|l| l + 8.0), &theirs, 0);
        let found = sums.agreement();
        assert!(found.kl < 1e-12 && found.relative_error < 1e-7, "{found:?}");
        sums.add(&theirs.map(|l| -l), &theirs, 0);
        let found = sums.agreement();
        assert!(found.kl > 1.0 && found.same_top == 0.5, "{found:?}");
    }
}
