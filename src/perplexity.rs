//! How well a model predicts a text.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::memory;
use crate::model::{Logits, Model, Session, SessionOptions, not_finite};
use crate::runtime::Runtime;

/// The result of scoring a text.
#[derive(Clone, Copy, Debug)]
pub struct Perplexity {
    /// The number of tokens scored.
    pub tokens: usize,
    /// Their mean negative log-likelihood, in nats.
    pub nll: f64,
}

impl Perplexity {
    /// `exp(nll)`.
    pub fn value(&self) -> f64 {
        self.nll.exp()
    }
}

/// Perplexity as measured by llama.cpp's tool. The text, in which the names of special tokens are
/// ordinary text, is split into windows of `window` tokens without overlap. The first token of each
/// window is replaced by the beginning-of-sequence token, and the second half of each is scored. A
/// remainder at the end is not used.
///
/// `progress(done, windows)` is called after each window.
///
/// # Errors
/// `ERR_RANGE` if the text has fewer tokens than a window, and for a window of less than 3, which
/// scores nothing; `ERR_FORMAT` for logits that are not finite; those of [`Session::eval`].
pub fn perplexity(
    rt: &Runtime,
    model: &Arc<Model>,
    text: &str,
    window: usize,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Perplexity> {
    let tokenizer = model.tokenizer()?;
    let mut ids = tokenizer.encode_plain(text, tokenizer.begins())?;
    if window < 3 || window > model.context() {
        return Err(Error::range(format!(
            "a window of {window} tokens, expected 3 to {}, the model's context",
            model.context()
        )));
    }
    if ids.len() < window {
        return Err(Error::range(format!(
            "the text has {} tokens, expected at least a window of {window}",
            ids.len()
        )));
    }
    let vocabulary = model.architecture().vocabulary;
    let options = SessionOptions {
        context: Some(window),
        ..SessionOptions::default()
    };
    let mut session = Session::new(rt, model.clone(), &options)?;
    let mut logits = memory::filled(window * vocabulary, 0.0, "the logits of a window")?;
    let windows = ids.len() / window;
    let (mut sum, mut tokens) = (0.0, 0);
    for (i, ids) in ids.chunks_exact_mut(window).enumerate() {
        if let Some(bos) = tokenizer.begins() {
            ids[0] = bos;
        }
        session.rewind(rt, 0)?;
        session.eval(rt, ids, Logits::All(&mut logits))?;
        for t in window / 2..window - 1 {
            sum += surprise(&logits[t * vocabulary..][..vocabulary], ids[t + 1]);
            tokens += 1;
        }
        if !sum.is_finite() {
            return Err(not_finite("the logits"));
        }
        progress(i + 1, windows);
    }
    Ok(Perplexity {
        tokens,
        nll: sum / tokens as f64,
    })
}

/// `-ln softmax(logits)[token]`
fn surprise(logits: &[f32], token: u32) -> f64 {
    log_sum_exp(logits) - f64::from(logits[token as usize])
}

/// `ln Σ exp(logit)`, the difference between a logit and its log-probability. Not finite if a logit
/// is NaN or +∞.
pub(crate) fn log_sum_exp(logits: &[f32]) -> f64 {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let top = f64::from(top);
    let sum: f64 = logits.iter().map(|&l| (f64::from(l) - top).exp()).sum();
    top + sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_exponentials() {
        let sum = (1f64.exp() + 1.0 + (-2f64).exp()).ln();
        assert!((log_sum_exp(&[1.0, 0.0, -2.0]) - sum).abs() < 1e-15);
        // Values for which plain exponentials overflow, and for which they vanish.
        assert!((log_sum_exp(&[1e4, 1e4]) - 1e4 - 2f64.ln()).abs() < 1e-11);
        assert!((log_sum_exp(&[-1e4, -1e4]) + 1e4 - 2f64.ln()).abs() < 1e-11);
        for wrong in [f32::NAN, f32::INFINITY] {
            assert!(!log_sum_exp(&[0.0, wrong]).is_finite());
        }
    }
}
